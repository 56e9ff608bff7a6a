# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Final

from mailproxy.users.user_files import load_users
from mailproxy_config.model import AuthMode, Protocol, ProxyConfig
from support import configs
from support.proxy_process import COMMAND, ProxyProcess, free_port
from support.routed_logins import Load, imap_server, log_in, replace

# Of the passwords "secret" and "secret2".
SECRET: Final = "$2b$05$.d1mjcd6SrVadFCxs0Ruxu8o5l/p.TS2TjL5YUghaAFl.eS.auZbW"
SECRET2: Final = "$2b$05$n58dZLTNgvOe4W6g3XLebeTxVT3HnDDRlfcI4gpWII0fROjrkpes6"


def config(path: Path, mode: AuthMode = AuthMode.STATIC) -> ProxyConfig:
    values = {"auth_http": None, "auth_mode": mode, "auth_user_file": str(path)}
    return ProxyConfig(servers=(configs.server(Protocol.IMAP, **values),))


def test_invalid_list_is_an_error_at_first_and_keeps_its_version_later(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"bob:{SECRET}\nann\n")
    found = load_users(config(file), {})
    assert [str(problem) for problem in found.errors] == [f'{file}:2: a line is "user:hash"']
    assert (found.files, found.kept) == ({}, ())
    file.write_text(f"bob:{SECRET}\n")
    good = load_users(config(file), {}).files
    assert load_users(config(file), good).files == good
    file.write_text(f"bob:{SECRET2}\n")
    assert load_users(config(file), good).files != good
    file.write_text("bob:secret\n")
    found = load_users(config(file), good)
    assert (found.errors, found.files) == ((), good)
    [kept] = found.kept
    assert kept.path == f"{file}:1"
    file.unlink()
    [kept] = load_users(config(file), good).kept
    assert str(kept) == f"{file}: cannot be read: No such file or directory"


def test_list_of_another_mode_is_not_read(tmp_path: Path) -> None:
    assert load_users(config(tmp_path / "none", AuthMode.UPSTREAM), {}) == load_users(
        ProxyConfig(servers=()), {}
    )


def proxy_file(tmp_path: Path, users: str, port: int, upstream: int) -> Path:
    (tmp_path / "users").write_text(users)
    file = tmp_path / "nginx.conf"
    file.write_text(
        "worker_processes 2; mail { auth_mode static; auth_user_file users; route domain=* upstream=one;\n"
        f"upstream one {{ server 127.0.0.1:{upstream}; }}\n"
        f"server {{ listen 127.0.0.1:{port}; protocol imap; }} }}"
    )
    return file


def test_list_is_replaced_under_load_and_an_invalid_one_is_not_used(tmp_path: Path) -> None:
    logins: list[str] = []
    port, users = free_port(), tmp_path / "users"
    refusal = "a NO [AUTHENTICATIONFAILED] Authentication failed."
    with imap_server(logins, "one") as upstream:
        file = proxy_file(tmp_path, f"bob@example.org:{SECRET}\n", port, upstream)
        with ProxyProcess(file, command=COMMAND) as proxy:
            proxy.wait_for_event("listening")
            assert log_in(port, "ann@example.org") == refusal
            with Load(port) as load:
                replace(users, f"bob@example.org:{SECRET}\nann@example.org:{SECRET}\n")
                proxy.wait_for_event("configuration_loaded", 2)
                assert log_in(port, "ann@example.org") == "a OK logged in"
                replace(users, f"bob@example.org:{SECRET}\nzoe@example.org:secret\n")
                kept = proxy.wait_for_event("user_file_kept")
                assert kept["path"] == f"{users}:2"
                assert kept["reason"].startswith("the hash is neither bcrypt nor")
                proxy.wait_for_event("configuration_loaded", 3)
                [report] = proxy.config()["user_files"]
                assert report == f"{users}:2: {kept['reason']}"
                assert proxy.metric("mailproxy_user_files_refused") == 1
                assert log_in(port, "ann@example.org") == "a OK logged in"
                replace(users, f"bob@example.org:{SECRET}\n")
                proxy.wait_for_event("configuration_loaded", 4)
                assert proxy.metric("mailproxy_user_files_refused") == 0
                assert log_in(port, "ann@example.org") == refusal
            assert set(load.replies) == {"a OK logged in"}


def test_invalid_list_prevents_the_start(tmp_path: Path) -> None:
    file = proxy_file(tmp_path, "bob:secret\n", free_port(), 1)
    with ProxyProcess(file, command=COMMAND) as proxy:
        assert proxy.exit_code() == 1
        expected = f"mailproxy: {tmp_path}/users:1: the hash is neither bcrypt nor"
        assert any(line.startswith(expected) for line in proxy.lines), proxy.lines
