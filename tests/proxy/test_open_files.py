# SPDX-License-Identifier: Apache-2.0
"""The limit of open files: how many clients of a worker fit, and what happens to those above it."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from mailproxy import app
from mailproxy.net.open_files import fit, most_clients, needed_files
from mailproxy.net.pipes import MAX_PIPES
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, ServerConfig
from support.configs import server
from support.loopback_worker import loopback_worker, run
from support.manifests import Manifest
from support.proxy_process import COMMAND, Client, ProxyProcess, wait_until


@pytest.mark.parametrize(("clients", "listeners"), [(512, 1), (9000, 7), (1, 0)])
def test_limit_that_is_needed_for_clients_has_room_for_them(clients: int, listeners: int) -> None:
    needed = needed_files(clients, listeners)
    assert most_clients(needed, listeners) == clients
    assert most_clients(needed - 1, listeners) == max(clients - 1, 1)


@pytest.mark.parametrize(
    ("limit", "fitting"),
    [
        (resource.RLIM_INFINITY, (500, MAX_PIPES)),
        (needed_files(500, 3) + 2 * MAX_PIPES, (500, MAX_PIPES)),
        (needed_files(500, 3) + 7, (500, 3)),
        (needed_files(500, 3), (500, 0)),
        (needed_files(400, 3), (400, 0)),
        (10, (1, 0)),
    ],
)
def test_pipes_take_no_files_from_clients(limit: int, fitting: tuple[int, int]) -> None:
    assert fit(limit, 500, 3) == fitting


def test_worker_without_files_to_spare_uses_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "open_files_limit", lambda: needed_files(20, 1))

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.IMAP, auth_http=auth, listen=(listen,))

    async def play() -> None:
        async with loopback_worker(build) as w:
            assert w.app.context.limit == 20
            assert w.app.context.pipes.take() is None

    run(play)


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
