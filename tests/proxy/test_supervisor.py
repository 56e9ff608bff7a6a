# SPDX-License-Identifier: Apache-2.0
"""Whole proxies as processes: start, reload, failures, drain."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trustme

from support.manifests import Manifest
from support.proxy_process import (
    COMMAND,
    TIMEOUT_SECONDS,
    Client,
    ProxyProcess,
    free_port,
    is_alive,
    wait_until,
)

SERVERS: Final = ("imap", "imap-two", "imap-three")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "mailproxy.yaml")


@pytest.fixture
def proxy(manifest: Manifest) -> Iterator[ProxyProcess]:
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        yield proxy


# -- starting


def test_listening_event_has_the_addresses(manifest: Manifest, proxy: ProxyProcess) -> None:
    event = proxy.wait_for_event("listening")
    assert event["listeners"] == f"127.0.0.1:{manifest.port}"
    assert event["workers"] == 2
    with Client(manifest.port) as client:
        assert client.greeting.split()[0] == "server"
    assert proxy.get("/healthz")[0] == 200
    assert proxy.get("/readyz")[0] == 200
    config = proxy.config()
    assert config["hash"] == proxy.wait_for_event("configuration_loaded")["hash"]
    assert (config["generation"], config["last_error"]) == (7, None)
    assert proxy.metric("mailproxy_workers ") == 2
    assert proxy.metric(f'mailproxy_config_info{{hash="{config["hash"]}"}}') == 1


@pytest.mark.parametrize(
    ("arguments", "text", "code", "expected"),
    [
        # options                         configuration            exit code, and why
        ([], "kind: MailProxy", 1, "spec"),
        ([], "", 1, "is empty"),
        ([], None, 1, "cannot be read: No such file"),
        (["--workers", "no"], "", 2, "neither auto nor a number"),
        (["--admin", "[::1]:{taken}"], None, 1, "cannot be read"),
    ],
)
def test_failed_start_prints_the_problem(
    tmp_path: Path, arguments: list[str], text: str | None, code: int, expected: str
) -> None:
    file = tmp_path / "mailproxy.yaml"
    if text is not None:
        file.write_text(text)
    arguments = [word.format(taken=free_port()) for word in arguments]
    with ProxyProcess(file, command=COMMAND, options=arguments) as proxy:
        assert proxy.exit_code() == code
        wait_until(lambda: expected in "".join(proxy.lines), expected)


def test_port_in_use_exits_with_3_before_workers_start(manifest: Manifest) -> None:
    with socket.create_server(("127.0.0.1", manifest.port)), ProxyProcess(manifest.path) as proxy:
        assert proxy.exit_code() == 3
        wait_until(lambda: "another process listens there" in "".join(proxy.lines))
        assert not proxy.logged("worker_exited")


def test_admin_port_in_use_exits_with_3(manifest: Manifest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
        with ProxyProcess(manifest.path, command=COMMAND, options=["--admin", admin]) as proxy:
            assert proxy.exit_code() == 3
            wait_until(
                lambda: f"cannot listen on {admin} (--admin): Address already in use" in "".join(proxy.lines)
            )


@pytest.mark.parametrize(("name", "code"), [("refused", 1), ("crash", 3)])
def test_proxy_exits_when_workers_cannot_start(manifest: Manifest, name: str, code: int) -> None:
    manifest.write(name=name)
    with ProxyProcess(manifest.path) as proxy:
        assert proxy.exit_code() == code


def test_failed_start_removes_unix_sockets(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "imap.sock"
    manifest.write(name="refused", listen=f'{{address: "unix:{path}"}}')
    with ProxyProcess(manifest.path) as proxy:
        assert proxy.exit_code() == 1
    assert not path.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_ready_ends_the_proxy(manifest: Manifest, signum: signal.Signals) -> None:
    manifest.write(name="hang")
    with ProxyProcess(manifest.path) as proxy:
        wait_until(proxy.workers)
        proxy.signal(signum)
        assert proxy.exit_code() == 0


# -- reloading


def server_name(port: int) -> str:
    with Client(port) as client:
        return client.greeting.split()[3]


def test_sighup_reloads_and_keeps_sessions(manifest: Manifest, proxy: ProxyProcess) -> None:
    workers = sorted(proxy.workers())
    with Client(manifest.port) as client:
        manifest.write(server_name="two")
        proxy.signal(signal.SIGHUP)
        proxy.wait_for_event("configuration_loaded", 2)
        assert server_name(manifest.port) == "two"
        assert client.exchange("still here") == "still here"
    assert proxy.logged("reload_requested")[0]["signal"] == "SIGHUP"
    assert [event["generation"] for event in proxy.logged("configuration_loaded")] == [7, 7]
    assert not proxy.logged("listeners_changed")
    assert sorted(proxy.workers()) == workers
    assert proxy.config()["hash"] == proxy.logged("configuration_loaded")[1]["hash"]
    assert proxy.metric('mailproxy_config_reloads_total{result="success"}') == 2
    assert proxy.metric("mailproxy_config_info") == 1


def test_changed_file_is_reloaded(manifest: Manifest, proxy: ProxyProcess) -> None:
    manifest.write(server_name="two")
    proxy.wait_for_event("configuration_loaded", 2)
    assert server_name(manifest.port) == "two"
    assert proxy.logged("file_changed")[0]["path"] == str(manifest.path)


def test_swapped_config_map_is_reloaded(tmp_path: Path, manifest: Manifest) -> None:
    mount = tmp_path / "mount"
    for version in ("one", "two"):
        (mount / version).mkdir(parents=True)
        manifest.write(server_name=version)
        (mount / version / "mailproxy.yaml").write_text(manifest.text())
    (mount / "..data").symlink_to("one")
    (mount / "mailproxy.yaml").symlink_to("..data/mailproxy.yaml")
    with ProxyProcess(mount / "mailproxy.yaml") as proxy:
        proxy.wait_for_event("listening")
        (mount / "..data_tmp").symlink_to("two")
        (mount / "..data_tmp").rename(mount / "..data")
        proxy.wait_for_event("configuration_loaded", 2)
        assert server_name(manifest.port) == "two"


@pytest.mark.parametrize("bad", [{"server_name": "[]"}, {"name": "refused"}])
def test_invalid_reload_keeps_the_configuration(
    manifest: Manifest, proxy: ProxyProcess, bad: dict[str, str]
) -> None:
    before = proxy.config()["hash"]
    with Client(manifest.port) as client:
        manifest.write(**bad)
        reason = proxy.wait_for_event("configuration_refused")
        kept = proxy.wait_for_event("configuration_kept")
        assert (kept["level"], kept["hash"], kept["generation"]) == ("error", before, 7)
        assert kept["reason"] == "the new configuration is refused, the one before stays in use"
        assert client.exchange("still here") == "still here"
    wait_until(lambda: proxy.config()["hash"] == before, "the old hash")
    assert str(reason["reason"]) in proxy.config()["last_error"]
    assert proxy.metric("mailproxy_config_last_reload_successful") == 0
    assert proxy.metric('mailproxy_config_reloads_total{result="failure"}') == 1
    assert server_name(manifest.port) == "one"
    assert proxy.get("/readyz")[0] == 200
    manifest.write(name="imap", server_name="two")
    proxy.wait_for_event("configuration_loaded", 2)
    assert proxy.config()["last_error"] is None
    assert proxy.metric("mailproxy_config_last_reload_successful") == 1


def test_a_reload_with_many_problems_logs_some_of_them(manifest: Manifest, proxy: ProxyProcess) -> None:
    text = manifest.text()
    manifest.path.write_text(text + "".join(f"  field{number}: 1\n" for number in range(300)))
    assert proxy.wait_for_event("configuration_kept")["problems"] == 300
    assert len(proxy.logged("configuration_refused")) == 100


def test_a_large_file_is_refused_at_a_reload_without_being_read(
    manifest: Manifest, proxy: ProxyProcess
) -> None:
    manifest.path.write_text("a:\n" + "".join(f"  k{number}: 1\n" for number in range(250_000)))
    assert "is too large" in proxy.wait_for_event("configuration_refused")["reason"]
    assert proxy.get("/healthz")[0] == 200


def test_configuration_that_crashes_a_worker_reaches_only_one(
    manifest: Manifest, proxy: ProxyProcess
) -> None:
    before = set(proxy.workers())

    def is_replaced() -> bool:
        now = set(proxy.workers())
        return len(now) == 2 and len(before & now) == 1

    manifest.write(name="crash")
    assert "ended while it applied this" in proxy.wait_for_event("configuration_refused")["reason"]
    wait_until(is_replaced, "the replacement of one")
    assert server_name(manifest.port) == "one"


def test_reload_adds_a_listener(manifest: Manifest, proxy: ProxyProcess) -> None:
    other = free_port()
    with Client(manifest.port) as client:
        both = ", ".join(f"{{address: 127.0.0.1, port: {port}}}" for port in (manifest.port, other))
        manifest.write(listen=both)
        proxy.wait_for_event("configuration_loaded", 2)
        opened = proxy.wait_for_event("listeners_changed")
        assert (opened["opened"], opened.get("closed")) == (f"127.0.0.1:{other}", None)
        assert server_name(other) == server_name(manifest.port) == "one"
        manifest.write(listen=f"{{address: 127.0.0.1, port: {other}}}")
        closed = proxy.wait_for_event("listeners_changed", 2)
        assert (closed.get("opened"), closed["closed"]) == (None, f"127.0.0.1:{manifest.port}")
        assert server_name(other) == "one"
        with pytest.raises(ConnectionRefusedError):
            Client(manifest.port)
        assert client.exchange("still here") == "still here"


def test_reload_with_port_in_use_keeps_the_configuration(manifest: Manifest, proxy: ProxyProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        manifest.write(listen=f"{{address: 127.0.0.1, port: {port}}}", server_name="two")
        assert f"127.0.0.1:{port}" in proxy.wait_for_event("configuration_refused")["reason"]
    assert server_name(manifest.port) == "one"


def test_reload_changes_the_number_of_workers(manifest: Manifest, proxy: ProxyProcess) -> None:
    manifest.write(workers=3)
    wait_until(lambda: len(proxy.workers()) == 3, "three workers")
    wait_until(
        lambda: proxy.config()["hash"] == proxy.logged("configuration_loaded")[-1]["hash"], "the new hash"
    )
    manifest.write(workers=1)
    wait_until(lambda: len(proxy.workers()) == 1, "one worker")
    assert proxy.metric("mailproxy_worker_restarts_total") == 0
    for _ in range(10):
        assert server_name(manifest.port) == "one"


def test_fewer_workers_still_accept_queued_clients(manifest: Manifest, proxy: ProxyProcess) -> None:
    manifest.write(workers=3)
    wait_until(lambda: len(proxy.workers()) == 3, "three workers")
    wait_until(lambda: proxy.metric("mailproxy_workers ") == 3, "their readiness")
    leaving = sorted(proxy.workers())[1:]
    for pid in leaving:
        os.kill(pid, signal.SIGSTOP)
    try:
        clients = [socket.create_connection(("127.0.0.1", manifest.port), TIMEOUT_SECONDS) for _ in range(40)]
        manifest.write(workers=1)
        assert {client.recv(100)[:4] for client in clients} == {b"serv"}
    finally:
        for pid in leaving:
            os.kill(pid, signal.SIGCONT)
    for client in clients:
        client.close()


def test_many_reloads_leak_no_descriptors(manifest: Manifest, proxy: ProxyProcess) -> None:
    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (proxy.process.pid, *sorted(proxy.workers()))]

    counts = []
    for number in range(2, 6):
        proxy.signal(signal.SIGHUP)
        proxy.wait_for_event("configuration_loaded", number)
        counts.append(descriptors())
    assert counts[1:] == counts[:-1]


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path, manifest: Manifest) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew() -> None:
        issued = authority.issue_cert("mail.example.com")
        key.write_bytes(issued.private_key_pem.bytes())
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    renew()
    files = f"{{certificateFile: {certificate}, keyFile: {key}}}"
    manifest.write(
        listen=f"{{address: 127.0.0.1, port: {manifest.port}, ssl: true}}",
        more=f", sslCertificate: [{files}]",
    )
    where = ("127.0.0.1", manifest.port)
    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        first = ssl.get_server_certificate(where, timeout=TIMEOUT_SECONDS)
        assert first in certificate.read_text()
        renew()
        proxy.wait_for_event("configuration_loaded", 2)
        assert len({event["hash"] for event in proxy.logged("configuration_loaded")}) == 1
        second = ssl.get_server_certificate(where, timeout=TIMEOUT_SECONDS)
        assert second != first
        assert second in certificate.read_text()
        key.unlink()
        assert "no such file" in proxy.wait_for_event("configuration_refused")["reason"]
        renew()
        proxy.wait_for_event("configuration_loaded", 3)


# -- workers


def accepted(proxy: ProxyProcess) -> float:
    return proxy.metric("mailproxy_connections_accepted_total")


def test_killed_worker_is_replaced_and_counters_do_not_decrease(
    manifest: Manifest, proxy: ProxyProcess
) -> None:
    for _ in range(20):
        server_name(manifest.port)
    assert accepted(proxy) == 20
    killed = proxy.workers()[0]
    os.kill(killed, signal.SIGKILL)
    assert accepted(proxy) == 20
    wait_until(lambda: proxy.metric('mailproxy_worker_restarts_total{reason="killed"}') == 1, "the restart")
    wait_until(lambda: len(proxy.workers()) == 2 and killed not in proxy.workers(), "another worker")
    for _ in range(20):
        server_name(manifest.port)
    assert accepted(proxy) == 40


def test_proxy_runs_with_inherited_ignored_sigchld(manifest: Manifest) -> None:
    """execve(2) keeps an ignored signal ignored, and the kernel then keeps no exit codes (sigaction(2))."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        proxy = ProxyProcess(manifest.path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    with proxy:
        proxy.wait_for_event("listening")
        first = proxy.workers()
        os.kill(first[0], signal.SIGKILL)
        assert proxy.wait_for_event("worker_exited")["exit_code"] == -signal.SIGKILL
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code() == 0


def test_sigterm_to_a_worker_replaces_it(manifest: Manifest, proxy: ProxyProcess) -> None:
    server_name(manifest.port)
    worker_pid = proxy.workers()[0]
    os.kill(worker_pid, signal.SIGTERM)
    wait_until(
        lambda: proxy.metric('mailproxy_worker_restarts_total{reason="requested"}') == 1, "the restart"
    )
    wait_until(lambda: not is_alive(worker_pid) and len(proxy.workers()) == 2, "another worker")
    assert accepted(proxy) == 1
    assert proxy.get("/readyz")[0] == 200


def test_scrape_does_not_wait_for_hung_worker(manifest: Manifest, proxy: ProxyProcess) -> None:
    for _ in range(10):
        server_name(manifest.port)
    assert accepted(proxy) == 10
    for pid in proxy.workers():
        os.kill(pid, signal.SIGSTOP)
    assert accepted(proxy) == 10
    for pid in proxy.workers():
        os.kill(pid, signal.SIGCONT)


def test_workers_exit_when_the_supervisor_is_killed(manifest: Manifest, proxy: ProxyProcess) -> None:
    workers = [*proxy.workers(), *proxy.fork_servers()]
    with Client(manifest.port) as relaying, Client(manifest.port) as waiting:
        assert relaying.exchange("RELAY") == "RELAY"
        proxy.process.kill()
        assert waiting.read_line() == "BYE"
        assert relaying.read_line() == ""
    wait_until(lambda: not any(map(is_alive, workers)), "all of them to end")
    with pytest.raises(ConnectionRefusedError):
        Client(manifest.port)


# -- the end


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_drain_keeps_relays_and_leaves_no_process(manifest: Manifest, signum: signal.Signals) -> None:
    manifest.write(timeout="60s")
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        with Client(manifest.port) as relaying, Client(manifest.port) as waiting:
            assert relaying.exchange("RELAY") == "RELAY"
            proxy.signal(signum)
            assert waiting.read_line() == "BYE"
            assert proxy.get("/readyz")[0] == 503
            assert proxy.get("/healthz")[0] == 200
            assert proxy.metric("mailproxy_draining") == 1
            assert accepted(proxy) == 2
            wait_until(lambda: refused(manifest.port), "the port to be closed")
            assert relaying.exchange("still here") == "still here"
        assert proxy.exit_code() == 0
        wait_until(lambda: proxy.logged("drained"))


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was closed while this client was in its queue
        return False
    return False


def test_drain_timeout_ends_relays(manifest: Manifest, proxy: ProxyProcess) -> None:
    with Client(manifest.port) as relaying:
        assert relaying.exchange("RELAY") == "RELAY"
        proxy.signal(signal.SIGTERM)
        assert relaying.read_line() == ""
    assert proxy.exit_code() == 0


def test_second_signal_stops_at_once(manifest: Manifest) -> None:
    manifest.write(timeout="1000s")
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        with Client(manifest.port) as relaying:
            assert relaying.exchange("RELAY") == "RELAY"
            proxy.signal(signal.SIGTERM)
            proxy.wait_for_event("draining")
            proxy.signal(signal.SIGTERM)
            assert proxy.exit_code() == 0
            assert relaying.read_line() == ""


def test_proxy_accepts_during_drain_delay(manifest: Manifest) -> None:
    manifest.path.write_text(manifest.text().replace("delay: 0s", "delay: 2s"))
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        proxy.signal(signal.SIGTERM)
        wait_until(lambda: proxy.get("/readyz")[0] == 503, "not ready")
        assert server_name(manifest.port) == "one"
        wait_until(lambda: refused(manifest.port), "the port to be closed")
        assert proxy.exit_code() == 0


def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "imap.sock"
    manifest.write(listen=f'{{address: "unix:{path}"}}')
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            assert client.recv(6) == b"server"
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code() == 0
    assert not path.exists()


# -- with the real application


def test_real_application_greets_reloads_and_drains(manifest: Manifest) -> None:
    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        with Client(manifest.port) as client:
            assert client.greeting == "* OK IMAP4 ready"
            assert client.exchange("a1 NOOP") == "a1 OK completed"
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_event("configuration_loaded", 2)
            assert client.exchange("a2 NOOP") == "a2 OK completed"
            wait_until(lambda: proxy.metric("mailproxy_connections_active") == 1)
            proxy.signal(signal.SIGTERM)
            assert client.read_line().startswith("* BYE")
        assert proxy.exit_code() == 0


def test_the_real_application_has_only_the_descriptors_it_needs(manifest: Manifest) -> None:
    manifest.write(workers=1)
    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        (worker,) = proxy.workers()
        strange = {os.readlink(f"/proc/{proxy.process.pid}/fd/0")} - {"/dev/null"}
        found = [os.readlink(f"/proc/{worker}/fd/{name}") for name in os.listdir(f"/proc/{worker}/fd")]
        assert not strange & set(found)
        with Client(manifest.port):
            wait_until(lambda: len(os.listdir(f"/proc/{worker}/fd")) == len(found) + 1, "one descriptor more")
        wait_until(lambda: len(os.listdir(f"/proc/{worker}/fd")) == len(found), "one descriptor less")
