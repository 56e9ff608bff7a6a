# SPDX-License-Identifier: Apache-2.0
"""The limit of open files: how many clients of a worker fit, and what happens to those above it."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from mailproxy.net.open_files import most_clients, needed_files
from support.manifests import Manifest
from support.proxy_process import COMMAND, Client, ProxyProcess, wait_until


@pytest.mark.parametrize(("clients", "listeners"), [(512, 1), (9000, 7), (1, 0)])
def test_limit_that_is_needed_for_clients_has_room_for_them(clients: int, listeners: int) -> None:
    needed = needed_files(clients, listeners)
    assert most_clients(needed, listeners) == clients
    assert most_clients(needed - 1, listeners) == max(clients - 1, 1)


def test_one_client_is_accepted_however_low_the_limit_is() -> None:
    assert most_clients(10, 5) == 1


def test_unlimited_files_have_room_for_all_clients() -> None:
    assert most_clients(resource.RLIM_INFINITY, 5) > 10**6


def test_clients_above_the_open_files_limit_get_the_busy_reply(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "mailproxy.yaml")
    manifest.write(workers="1\n  workerConnections: 200")
    with ProxyProcess(manifest.path, command=COMMAND) as proxy:
        proxy.wait_for_event("listening")
        assert proxy.logged("open_files_limit_is_low") == []
        assert proxy.metric("mailproxy_connections_limit") == 200
        limit, needed = needed_files(20, listeners=1), needed_files(200, listeners=1)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for pid in (proxy.process.pid, *proxy.workers()):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
        proxy.signal(signal.SIGHUP)
        event = proxy.wait_for_event("open_files_limit_is_low")
        assert (event["limit"], event["needed"], event["clients"]) == (limit, needed, 20)
        assert "workerConnections" in event["hint"]
        wait_until(lambda: proxy.metric("mailproxy_connections_limit") == 20, "the limit")
        clients = [Client(manifest.port) for _ in range(60)]
        greetings = [client.greeting for client in clients]
        assert greetings.count("* OK IMAP4 ready") == 20
        assert sum("UNAVAILABLE" in greeting for greeting in greetings) == 40
        assert proxy.logged("cannot_accept") == []
        assert proxy.wait_for_event("worker_connections_not_enough")["limit"] == 20
        for client in clients:
            client.__exit__()
