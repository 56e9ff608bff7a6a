# SPDX-License-Identifier: Apache-2.0
"""Limits that the workers of ``mailproxy run`` share, with workers that are killed and reloads."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from support.proxy_process import COMMAND, TIMEOUT_SECONDS, ProxyProcess, free_port, wait_until

LIMIT: Final = 6


class Clients:
    """Clients that do not log in."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: list[socket.socket] = []

    def admitted(self, count: int) -> int:
        """Connect so often; returns how many clients got a greeting, which stay connected."""
        found = 0
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_SECONDS)
            if client.recv(100):
                found += 1
                self.open.append(client)
            else:
                client.close()
        return found

    def leave_closed(self) -> int:
        """Forget the clients whose worker is gone; returns how many there were."""
        gone = []
        for client in self.open:
            client.settimeout(0.0)
            try:
                if not client.recv(100):
                    gone.append(client)
            except BlockingIOError:
                client.settimeout(TIMEOUT_SECONDS)
            except ConnectionError:
                gone.append(client)
        for client in gone:
            client.close()
            self.open.remove(client)
        return len(gone)

    def close(self) -> None:
        for client in self.open:
            client.close()


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(free_port())


def write(file: Path, clients: Clients, limit: int = LIMIT) -> None:
    listening = f"server {{ listen 127.0.0.1:{clients._port}; protocol imap; limit_preauth {limit}; }}"
    file.write_text(
        "error_log stderr info;\nworker_processes 2;\n"
        f"mail {{ server_name a; auth_http 127.0.0.1:9/; {listening} }}\n"
    )


def entries(proxy: ProxyProcess) -> float:
    return proxy.metric('mailproxy_limit_zone_entries{zone="limit_preauth"}')


def test_workers_share_a_limit_also_after_one_was_killed_and_after_a_reload(
    tmp_path: Path, clients: Clients
) -> None:
    file = tmp_path / "nginx.conf"
    write(file, clients)
    with ProxyProcess(file, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        assert clients.admitted(3 * LIMIT) == LIMIT
        assert entries(proxy) in {1, 2}  # one for each worker that has such clients
        killed = proxy.workers()[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in proxy.workers() and len(proxy.workers()) == 2, "another worker")
        proxy.wait_for_event("worker_exited")
        gone = clients.leave_closed()
        assert clients.admitted(2 * LIMIT) == gone
        write(file, clients, LIMIT + 2)
        proxy.signal(signal.SIGHUP)
        proxy.wait_for_event("configuration_loaded", 2)
        assert clients.admitted(2 * LIMIT) == 2  # those of before are still counted
        clients.close()
