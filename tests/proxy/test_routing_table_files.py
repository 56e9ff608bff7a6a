# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailproxy.routing import table_files
from mailproxy.routing.route_table import RouteTable
from mailproxy.routing.router import RouteMatch
from mailproxy.routing.table_files import load_tables
from mailproxy_config.model import AuthMode, Protocol, ProxyConfig
from mailproxy_config.upstream_groups import GroupServer, Route, UpstreamGroup
from support import configs
from support.proxy_process import COMMAND, ProxyProcess, free_port
from support.routed_logins import Load, imap_server, log_in, replace


def config(path: Path, *names: str) -> ProxyConfig:
    """A configuration with one table, and groups with these names."""
    groups = tuple(UpstreamGroup(name=name, servers=(GroupServer(address="a", host="a"),)) for name in names)
    directives = {"route": (Route(table=str(path)),), "upstream_groups": groups, "auth_http": None}
    server = configs.server(Protocol.IMAP, auth_mode=AuthMode.UPSTREAM, **directives)
    return ProxyConfig(servers=(server,))


def test_unchanged_table_is_not_compiled_again(tmp_path: Path) -> None:
    file = tmp_path / "moves"
    file.write_text("bob a\n")
    first = load_tables(config(file, "a"), {}).files
    assert load_tables(config(file, "a"), first).files == first
    assert load_tables(config(file, "a", "b"), first).files != first
    file.write_text("bob a\n\n")
    assert load_tables(config(file, "a"), first).files != first


def test_invalid_table_is_an_error_at_first_and_keeps_its_version_later(tmp_path: Path) -> None:
    file = tmp_path / "moves"
    file.write_text("bob a\nann x\n")
    found = load_tables(config(file, "a"), {})
    assert [str(problem) for problem in found.errors] == [
        f"{file}:2: 'ann x': the upstream is not in spec.upstreams (a)"
    ]
    assert found.errors[0].without_line == f"{file}:2: the upstream is not in spec.upstreams (a)"
    assert found.kept == ()
    good = load_tables(config(file, "a", "x"), {}).files
    file.write_text("bob a\nann y\n")
    found = load_tables(config(file, "a", "x"), good)
    assert (found.errors, found.files) == ((), good)
    assert [problem.path for problem in found.kept] == [f"{file}:2"]
    # A version that may name a group that is gone cannot be kept.
    assert load_tables(config(file, "a"), good).errors != ()


def test_lines_of_a_secret_are_in_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "moves" / "users"
    file.parent.mkdir(parents=True)
    file.write_text("bob a\na ann\n")
    [problem] = load_tables(config(file, "a"), {}).errors
    assert str(problem) == f"{file}:2: the upstream is not in spec.upstreams (a)"


def test_table_of_a_million_lines_is_loaded_once(tmp_path: Path) -> None:
    count = 1_000_000
    file = tmp_path / "moves"
    file.write_bytes(b"".join(b"u%d@example.org a\n" % number for number in range(count)))
    first = load_tables(config(file, "a"), {})
    assert first.errors == ()
    table = RouteTable(first.files[str(file)].fileno())
    for name in (b"u0@example.org", b"u999999@example.org"):
        assert table.find(name) == RouteMatch("a")
    assert table.find(b"u1000000@example.org") is None
    assert load_tables(config(file, "a"), first.files).files == first.files
    assert os.fstat(first.files[str(file)].fileno()).st_size < 48 * 2**20


def test_missing_file_pipe_and_changing_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [missing] = load_tables(config(tmp_path / "none", "a"), {}).errors
    assert missing.reason == "cannot be read: No such file or directory"
    os.mkfifo(tmp_path / "pipe")
    [pipe] = load_tables(config(tmp_path / "pipe", "a"), {}).errors
    assert pipe.reason == "is not a regular file"
    file = tmp_path / "moves"
    file.write_text("bob a\n")
    before = os.fstat

    def growing(descriptor: int) -> os.stat_result:
        found = before(descriptor)
        with file.open("a") as more:
            more.write("ann a\n")
        return found

    monkeypatch.setattr(table_files.os, "fstat", growing)
    [changed] = load_tables(config(file, "a"), {}).errors
    assert changed.reason.startswith("was changed while it was read")


def test_table_is_replaced_under_load_and_an_invalid_one_is_not_used(tmp_path: Path) -> None:
    logins: list[str] = []
    port, table = free_port(), tmp_path / "moves"
    table.write_text("@example.org one\n")
    with imap_server(logins, "one") as one, imap_server(logins, "two") as two:
        file = tmp_path / "nginx.conf"
        file.write_text(
            "worker_processes 2; mail { auth_mode upstream; route table=moves;\n"
            f"upstream one {{ server 127.0.0.1:{one}; }} upstream two {{ server 127.0.0.1:{two}; }}\n"
            f"server {{ listen 127.0.0.1:{port}; protocol imap; }} }}"
        )
        with ProxyProcess(file, command=COMMAND) as proxy:
            proxy.wait_for_event("listening")
            with Load(port) as load:
                assert log_in(port) == "a OK logged in"
                replace(table, "@example.org two\n")
                proxy.wait_for_event("configuration_loaded", 2)
                count = len(logins)
                assert log_in(port) == "a OK logged in"
                assert logins[count + 3 :] == ["two"] * len(logins[count + 3 :])  # three were in progress
                replace(table, "@example.org two\nbob@example.org three\n")
                kept = proxy.wait_for_event("route_table_kept")
                assert kept["path"] == f"{table}:2"
                assert kept["line"] == "'bob@example.org three'"
                assert kept["reason"] == "the upstream is not in spec.upstreams (one, two)"
                [report] = proxy.config()["route_tables"]
                assert report == f"{table}:2: {kept['reason']}"
                proxy.wait_for_event("configuration_loaded", 3)
                assert proxy.metric("mailproxy_route_tables_refused") == 1
                assert log_in(port) == "a OK logged in"
                assert logins[-1] == "two"
                replace(table, "@example.org one\n")
                proxy.wait_for_event("configuration_loaded", 4)
                assert proxy.metric("mailproxy_route_tables_refused") == 0
            assert set(load.replies) == {"a OK logged in"}
            assert "one" in logins[-3:]


def test_invalid_table_prevents_the_start(tmp_path: Path) -> None:
    (tmp_path / "moves").write_text("bob\n")
    file = tmp_path / "nginx.conf"
    file.write_text(
        "mail { auth_mode upstream; route table=moves; upstream one { server 127.0.0.1:1; }\n"
        f"server {{ listen 127.0.0.1:{free_port()}; protocol imap; }} }}"
    )
    with ProxyProcess(file, command=COMMAND) as proxy:
        assert proxy.exit_code() == 1
        expected = f"mailproxy: {tmp_path}/moves:1: 'bob': a line is"
        assert any(line.startswith(expected) for line in proxy.lines), proxy.lines
