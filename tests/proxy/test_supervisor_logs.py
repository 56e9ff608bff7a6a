# SPDX-License-Identifier: Apache-2.0
"""``mailproxy run -f nginx.conf`` writes the configured logs; whole processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.proxy_process import COMMAND, ProxyProcess, free_port, wait_until


class Conf:
    """An ``nginx.conf`` with one IMAP server."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "nginx.conf"
        self.port = free_port()

    def write(self, main: str, server: str = "") -> Path:
        self.path.write_text(
            f"{main}\nworker_processes 2;\nevents {{}}\nworker_shutdown_timeout 1s;\n"
            f"mail {{ auth_http 127.0.0.1:9/;\n"
            f"server {{ listen 127.0.0.1:{self.port}; protocol imap; {server} }} }}\n"
        )
        return self.path


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    return Conf(tmp_path)


@contextlib.contextmanager
def running(file: Path, *options: str) -> Iterator[ProxyProcess]:
    with ProxyProcess(file, command=COMMAND, options=options) as proxy:
        proxy.wait_for_event("listening")
        yield proxy


def leave(conf: Conf) -> None:
    """Run one session that is logged."""
    with socket.create_connection(("127.0.0.1", conf.port), 30) as client:
        client.recv(100)
        client.sendall(b"a LOGOUT\r\n")
        while client.recv(100):
            pass


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_logs_are_written_to_the_configured_files(conf: Conf, tmp_path: Path) -> None:
    main, imap, loud = (tmp_path / name for name in ("main.log", "imap.log", "loud.log"))
    file = conf.write(f"error_log {main} notice;", f"error_log {imap}; error_log loud.log debug;")
    with running(file) as proxy:
        leave(conf)
        wait_until(lambda: '"event":"session"' in text(imap))
        wait_until(lambda: '"event":"session"' in text(loud))
        assert '"event":"listening"' in text(main)
        assert '"event":"session"' not in text(main)
        assert not proxy.logged("session")  # standard error is not a log of this server
    assert {path.name for path in tmp_path.glob("*.log")} == {"main.log", "imap.log", "loud.log"}


def test_sigusr1_reopens_logs_in_every_process(conf: Conf, tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    with running(conf.write(f"error_log {log} notice;")) as proxy:
        leave(conf)
        wait_until(lambda: '"event":"session"' in text(log))
        for number in (1, 2):
            log.rename(tmp_path / f"error.log.{number}")
            proxy.signal(signal.SIGUSR1)
            wait_until(lambda: '"event":"logs_reopened"' in text(log))

            def workers() -> set[str]:
                leave(conf)
                return set(re.findall(r'"session":"([0-9a-f]+)-', text(log)))

            wait_until(lambda: len(workers()) == 2, "both workers to write to the new file")


def test_sigusr1_without_log_files_does_nothing(conf: Conf) -> None:
    with running(conf.write("error_log stderr info;")) as proxy:
        proxy.signal(signal.SIGUSR1)
        proxy.wait_for_event("logs_reopened")
        leave(conf)
        proxy.wait_for_event("session")


@pytest.mark.parametrize("level", ["main", "server"])
def test_a_log_that_cannot_be_written_prevents_the_start(conf: Conf, tmp_path: Path, level: str) -> None:
    directive = f"error_log {tmp_path}/missing/error.log;"
    file = conf.write(directive) if level == "main" else conf.write("", directive)
    with ProxyProcess(file, command=COMMAND) as proxy:
        assert proxy.exit_code() == 1
        wait_until(lambda: 'missing/error.log": No such file or directory' in "".join(proxy.lines))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("nowhere/x.log", "cannot open "),
        ("syslog:server=nothing.invalid", 'host not found in syslog server "nothing.invalid"'),
    ],
)
def test_a_log_that_cannot_be_used_is_named_with_its_line(conf: Conf, log: str, reason: str) -> None:
    file = conf.write(f"error_log stderr;\nerror_log {log};")
    command = [sys.executable, "-m", "mailproxy", "run", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith(f'mailproxy: {file}:2: "error_log": {reason}')


def test_check_opens_no_log(conf: Conf, tmp_path: Path) -> None:
    file = conf.write(f"error_log {tmp_path}/missing/error.log; error_log {tmp_path}/error.log;")
    done = subprocess.run(
        [sys.executable, "-m", "mailproxy", "check", "-f", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, (tmp_path / "error.log").exists()) == (0, False)
    assert "standard error" not in done.stderr


def test_a_reload_with_a_log_that_cannot_be_written_changes_nothing(conf: Conf, tmp_path: Path) -> None:
    log = tmp_path / "error.log"
    with running(conf.write(f"error_log {log};")) as proxy:
        conf.write(f"error_log {tmp_path}/missing/error.log;")
        proxy.signal(signal.SIGHUP)
        refused = proxy.wait_for_event("configuration_refused")
        assert "missing/error.log" in refused["reason"]
        leave(conf)
        wait_until(lambda: '"event":"session"' in text(log))


def test_a_reload_may_name_another_log(conf: Conf, tmp_path: Path) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    with running(conf.write(f"error_log {one};")) as proxy:
        conf.write(f"error_log {two};")
        proxy.signal(signal.SIGHUP)
        proxy.wait_for_event("configuration_loaded", 2)
        leave(conf)
        wait_until(lambda: '"event":"session"' in text(two))
        assert '"event":"session"' not in text(one)


@pytest.mark.parametrize(
    ("named", "forced", "is_logged"), [("debug", "crit", False), ("emerg", "info", True)]
)
def test_the_level_of_the_command_line_holds_for_sessions_and_files(
    conf: Conf, tmp_path: Path, named: str, forced: str, is_logged: bool
) -> None:
    log = tmp_path / "error.log"
    file = conf.write(f"error_log {log} {named};", f"error_log {log} {named};")
    with ProxyProcess(file, command=COMMAND, options=["--log-level", forced]) as proxy:
        wait_until(lambda: is_served(conf))
        leave(conf)
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code() == 0
    assert ('"event":"session"' in text(log)) is is_logged


def is_served(conf: Conf) -> bool:
    with contextlib.suppress(OSError):
        leave(conf)
        return True
    return False


def test_events_are_sent_to_a_syslog_server(conf: Conf) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        port = server.getsockname()[1]
        file = conf.write(
            f"error_log syslog:server=localhost:{port},facility=mail,tag=edge,nohostname notice;"
        )
        with running(file):
            leave(conf)
            received = b""
            while b'"event":"session"' not in received:
                received = server.recv(8192)
        assert received.startswith(b"<22>")  # mail, info
        assert b" edge: " in received
        assert not received.endswith(b"\n")


def test_a_full_disk_stops_no_session(conf: Conf) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with running(conf.write("error_log /dev/full debug; error_log stderr;")) as proxy:
        for _ in range(3):
            leave(conf)
        wait_until(lambda: len(proxy.logged("session")) == 3)
