# SPDX-License-Identifier: Apache-2.0
"""Whole proxies as processes, with faults."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from support.manifests import Manifest
from support.proxy_process import COMMAND, TIMEOUT_SECONDS, Client, ProxyProcess, free_port, wait_until
from support.worker_processes import PYTHONPATH, ROOT


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "mailproxy.yaml")


@pytest.fixture
def proxy(manifest: Manifest) -> Iterator[ProxyProcess]:
    with ProxyProcess(manifest.path) as proxy:
        proxy.wait_for_event("listening")
        yield proxy


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_proxy_runs_with_closed_standard_streams(manifest: Manifest, closed: str) -> None:
    admin = free_port()
    command = f"exec {sys.executable} {' '.join(COMMAND)} {manifest.path} --admin 127.0.0.1:{admin} {closed}"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(["sh", "-c", command], env=environment, stderr=-1) as process:
        try:
            greeted = wait_until(lambda: can_connect(manifest.port) and Client(manifest.port), "a listener")
            with greeted as client:
                assert client.greeting == "* OK IMAP4 ready"
            folder = Path(f"/proc/{process.pid}/fd")
            shown = [os.readlink(folder / str(descriptor)) for descriptor in range(3)]
            assert [shown[int(word[0])] for word in closed.split()] == ["/dev/null"] * len(closed.split())
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_SECONDS) == 0
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["mailproxy", "mailproxy_operator"])
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_commands_exit_normally_with_closed_standard_streams(command: str, closed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{PYTHONPATH}:{ROOT / 'operator'}"}
    shown = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m {command} --help {closed}"],
        env=environment,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_hung_worker_is_replaced_and_its_queued_clients_are_served(manifest: Manifest) -> None:
    with ProxyProcess(manifest.path, options=["7", "10"]) as proxy:
        proxy.wait_for_event("listening")
        hung = proxy.workers()[0]
        os.kill(hung, signal.SIGSTOP)
        clients = [socket.create_connection(("127.0.0.1", manifest.port), TIMEOUT_SECONDS) for _ in range(20)]
        wait_until(lambda: proxy.get("/readyz")[0] == 503, "the worker to be missed")
        assert f"not ready: worker {hung} has not reported for" in proxy.get("/readyz")[1]
        assert proxy.wait_for_event("worker_does_not_report")["pid"] == hung
        greetings = {client.recv(100).split()[2].decode() for client in clients}
        assert str(hung) not in greetings
        assert proxy.wait_for_event("worker_hangs")["pid"] == hung
        wait_until(
            lambda: proxy.metric('mailproxy_worker_restarts_total{reason="unresponsive"}') == 1, "the restart"
        )
        wait_until(lambda: proxy.get("/readyz")[0] == 200, "readiness")
        assert [event["pid"] for event in proxy.logged("worker_hangs")] == [hung]
        for client in clients:
            client.close()


def test_killed_fork_server_is_replaced(manifest: Manifest, proxy: ProxyProcess) -> None:
    (on_exit,) = proxy.fork_servers()
    workers = set(proxy.workers())
    os.kill(on_exit, signal.SIGKILL)
    assert proxy.wait_for_event("fork_server_exited")["pid"] == on_exit
    wait_until(lambda: proxy.fork_servers() and proxy.fork_servers() != [on_exit], "another fork server")
    assert set(proxy.workers()) == workers
    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(proxy.workers()) == 2 and killed not in proxy.workers(), "another worker")
    assert proxy.wait_for_event("worker_exited")["exit_code"] == -9


def test_reload_with_all_descriptors_in_use_ends_no_session(manifest: Manifest) -> None:
    manifest.write(workers=1)
    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        (worker,) = proxy.workers()
        used = max(int(name) for name in os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 10, 1024))
        with Client(manifest.port) as client:
            others = [
                socket.create_connection(("127.0.0.1", manifest.port), TIMEOUT_SECONDS) for _ in range(30)
            ]
            proxy.wait_for_event("cannot_accept")
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_event("configuration_loaded", 2)
            assert client.exchange("a NOOP") == "a OK completed"
            assert proxy.workers() == [worker]
            for other in others:
                other.close()


def test_reload_with_all_descriptors_in_use_opens_a_new_log(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "nginx.conf"

    def write(log: str) -> None:
        listening = f"server {{ listen 127.0.0.1:{port}; protocol imap; }}"
        logs = f"error_log {tmp_path}/{log} info;\nerror_log stderr info;\nworker_processes 1;\n"
        file.write_text(f"{logs}mail {{ server_name a; auth_http 127.0.0.1:9/; {listening} }}\n")

    write("first.log")
    with ProxyProcess(file, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        (worker,) = proxy.workers()
        used = max(int(name) for name in os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 10, 1024))
        with Client(port) as client:
            others = [socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) for _ in range(30)]
            proxy.wait_for_event("cannot_accept")
            write("second.log")
            proxy.signal(signal.SIGHUP)
            wait_until(
                lambda: proxy.logged("configuration_kept") or len(proxy.logged("configuration_loaded")) == 2
            )
            assert not proxy.logged("configuration_refused")
            assert client.exchange("a NOOP") == "a OK completed"
            for other in others:
                other.close()


def test_ticket_keys_rotate_in_all_workers(tmp_path: Path, manifest: Manifest) -> None:
    issued = trustme.CA().issue_cert("mail.example.com")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    manifest.write(
        listen=f"{{address: 127.0.0.1, port: {manifest.port}, ssl: true}}",
        more=f", sslSessionTimeout: 1s, sslCertificate: [{{certificateFile: {certificate}, keyFile: {key}}}]",
    )

    def key_name() -> str:
        """The first 16 bytes of a ticket name the key that it was encrypted with (RFC 5077)."""
        command = ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{manifest.port}"]
        shown = subprocess.run(
            command, input="", capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        return shown.stdout.partition("TLS session ticket:")[2].split("-", 1)[1][:48]

    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        names: set[str] = set()
        wait_until(lambda: names.add(key_name()) or len(names) == 4, "the fourth key")  # type: ignore[func-returns-value]
        assert len(proxy.workers()) == 2
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code() == 0


def can_connect(port: int) -> bool:
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
