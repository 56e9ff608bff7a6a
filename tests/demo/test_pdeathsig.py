# SPDX-License-Identifier: Apache-2.0
"""The proxy that ``local`` started ends with it, even when ``local`` is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mailproxy_demo import pdeathsig
from support.operator_bodies import body
from support.servers.programs import Ports, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: prctl(2)")

SOURCES = os.pathsep.join(sys.path)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_proxy_ends_when_local_is_killed(tmp_path: Path) -> None:
    port = Ports().take()
    listener = {"address": "127.0.0.1", "port": port}
    servers = [{"name": "imap", "protocol": "imap", "listen": [listener]}]
    manifest = tmp_path / "edge.yaml"
    manifest.write_text(yaml.safe_dump(body(replicas=1, workers=2, servers=servers)))
    command = [sys.executable, "-m", "mailproxy_operator", "local", "-f", str(manifest)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCES}, stdout=log, stderr=log)
        try:
            eventually(lambda: listens(port), "the proxy to listen")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
    eventually(lambda: not listens(port), "the proxy to end")


def test_program_is_not_started_when_parent_has_ended() -> None:
    other_process = "1" if os.getpid() != 1 else "2"
    found = subprocess.run(
        [sys.executable, pdeathsig.__file__, other_process, "echo", "started"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (found.returncode, found.stdout) == (1, b"")


def test_program_receives_its_arguments_unchanged() -> None:
    command = [sys.executable, pdeathsig.__file__, str(os.getpid()), "echo", "a b", "$c"]
    assert subprocess.run(command, capture_output=True, timeout=20, check=True).stdout == b"a b $c\n"
