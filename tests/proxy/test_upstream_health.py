# SPDX-License-Identifier: Apache-2.0
"""The table of addresses that failed, which all workers of a supervisor share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mailproxy.net import shared_memory, upstream_health
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import (
    FAILURES,
    FORGET_SECONDS,
    LAST_SECONDS,
    MAX_ADDRESSES,
    UpstreamHealth,
)
from mailproxy.protocols.types import UpstreamAddress
from support.candidates import refused_addresses
from support.proxy_process import COMMAND, Client, ProxyProcess, free_port, wait_until

A, B, C = (UpstreamAddress(f"192.0.2.{number}", 143) for number in (1, 2, 3))


class Clock:
    """The module's clock."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(upstream_health, "time", clock)
    return clock


@pytest.fixture
def health(clock: Clock) -> UpstreamHealth:
    return UpstreamHealth(SharedMemory())


def fail(health: UpstreamHealth, address: UpstreamAddress, times: int = FAILURES) -> None:
    for _ in range(times):
        health.begin(address)
        health.failed(address)


def test_address_is_last_in_order_after_three_failures_in_a_row(health: UpstreamHealth) -> None:
    fail(health, A, 2)
    assert health.ordered([A, B, C]) == [A, B, C]
    fail(health, A, 1)
    assert health.ordered([A, B, C]) == [B, C, A]
    assert health.unhealthy() == 1


def test_success_clears_the_failures(health: UpstreamHealth) -> None:
    fail(health, A, 2)
    health.succeeded(A)
    fail(health, A, 2)
    assert health.ordered([A, B]) == [A, B]
    fail(health, A, 1)
    health.succeeded(A)
    assert health.ordered([A, B]) == [A, B]
    assert health.unhealthy() == 0


def test_port_belongs_to_the_address(health: UpstreamHealth) -> None:
    fail(health, A)
    assert health.is_last(A)
    assert health.is_last(UpstreamAddress(A.address, A.port, "other.example"))
    assert not health.is_last(UpstreamAddress(A.address, 993))


def test_order_is_kept_if_all_addresses_failed(health: UpstreamHealth) -> None:
    for address in (B, A, C):
        fail(health, address)
    assert health.ordered([A, B, C]) == [A, B, C]


def test_one_trial_at_a_time_begins_after_half_a_minute(health: UpstreamHealth, clock: Clock) -> None:
    fail(health, A)
    clock.now += LAST_SECONDS - 0.001
    assert health.ordered([A, B]) == [B, A]
    clock.now += 0.001
    assert health.ordered([A, B]) == [A, B]
    health.begin(A)  # the trial
    assert health.ordered([A, B]) == [B, A]
    health.failed(A)
    clock.now += LAST_SECONDS / 2
    assert health.ordered([A, B]) == [B, A]
    clock.now += LAST_SECONDS / 2
    assert health.ordered([A, B]) == [A, B]


def test_trial_without_a_result_is_followed_by_another(health: UpstreamHealth, clock: Clock) -> None:
    fail(health, A)
    clock.now += LAST_SECONDS
    health.begin(A)
    clock.now += LAST_SECONDS
    assert health.ordered([A, B]) == [A, B]


def test_trial_that_succeeds_clears_the_address(health: UpstreamHealth, clock: Clock) -> None:
    fail(health, A)
    clock.now += LAST_SECONDS
    health.begin(A)
    health.succeeded(A)
    assert health.ordered([A, B]) == [A, B]
    assert health.unhealthy() == 0


def test_address_is_forgotten_after_ten_minutes(health: UpstreamHealth, clock: Clock) -> None:
    fail(health, A)
    clock.now += FORGET_SECONDS
    assert health.unhealthy() == 0
    fail(health, A, 1)
    assert not health.is_last(A)


def test_number_of_addresses_is_limited(health: UpstreamHealth, clock: Clock) -> None:
    for number in range(4 * MAX_ADDRESSES):
        clock.now += 0.001
        fail(health, UpstreamAddress("2001:db8::1", number), 3)
        assert health.is_last(UpstreamAddress("2001:db8::1", number)), "the newest failure is never lost"
    assert health.unhealthy() == MAX_ADDRESSES


def test_processes_share_the_table() -> None:
    descriptor = shared_memory.create()
    try:
        ours, theirs = (UpstreamHealth(SharedMemory(descriptor)) for _ in range(2))
    finally:
        os.close(descriptor)
    fail(ours, A)
    assert theirs.is_last(A)
    theirs.succeeded(A)
    assert not ours.is_last(A)


# --- with a supervisor ------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[tuple[int, dict[str, str]]]:
    """An authentication service; its port, and the headers of its responses."""
    headers = {"Auth-Status": "OK", "Auth-Server": "127.0.0.1"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, headers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def log_in(port: int) -> str:
    with Client(port) as client:
        client.exchange("USER alice")
        return client.exchange("PASS correct-horse")


def test_workers_share_the_health_of_addresses_with_those_that_replace_them(
    tmp_path: Path, service: tuple[int, dict[str, str]]
) -> None:
    """Two failures are recorded by workers that are killed, the third by one of a new fork server."""
    service_port, headers = service
    port, file = free_port(), tmp_path / "nginx.conf"
    file.write_text(
        "worker_processes 2;\nevents {}\nmail {\n"
        f"  auth_http 127.0.0.1:{service_port}/;\n"
        "  proxy_next_upstream connect;\n  proxy_next_upstream_tries 1;\n"
        f"  server {{ listen 127.0.0.1:{port}; protocol pop3; }}\n}}\n"
    )
    with refused_addresses(1) as (dead,), ProxyProcess(file, command=COMMAND) as proxy:
        headers["Auth-Port"] = str(dead.port)
        proxy.wait_for_event("listening")
        unhealthy = "mailproxy_upstream_unhealthy"
        for _ in range(2):
            assert log_in(port) == "-ERR internal server error"
        assert proxy.metric(unhealthy) == 0
        killed = [*proxy.workers(), *proxy.fork_servers()]
        assert len(killed) == 3
        for pid in reversed(killed):
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: len(proxy.workers()) == 2 and not {*proxy.workers(), *proxy.fork_servers()} & {*killed},
            "new workers of a new fork server",
        )
        wait_until(lambda: proxy.get("/readyz")[0] == 200, "ready workers")
        assert log_in(port) == "-ERR internal server error"
        assert proxy.metric(unhealthy) == 1
        assert proxy.metric('mailproxy_upstream_tries_total{protocol="pop3",result="exhausted"}') >= 1
