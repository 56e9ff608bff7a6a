# SPDX-License-Identifier: Apache-2.0
"""The addresses of the authentication service: used in turn, refreshed in the background."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from mailproxy.dns import HostAddresses, target_text
from mailproxy.dns import host as module
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import AuthHttp

WHERE = AuthHttp(host="auth.example", port=9000)
_V4, _V6 = socket.AF_INET, socket.AF_INET6


class FakeGetaddrinfo:
    """A replacement for ``getaddrinfo``."""

    def __init__(self, *answers: str | OSError) -> None:
        self.answer: tuple[str | OSError, ...] = answers
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.calls += 1
        self.gate.wait(10)
        assert (host, port) == ("auth.example", 9000)
        found: list[tuple[Any, ...]] = []
        for answer in self.answer:
            if isinstance(answer, OSError):
                raise answer
            family = _V6 if ":" in answer else _V4
            found.append((family, socket.SOCK_STREAM, 6, "", (answer, port)))
        return found


class HostFixture:
    """The addresses, with a clock and metrics."""

    def __init__(self, system: FakeGetaddrinfo) -> None:
        self.now = 1000.0
        self.metrics = WorkerMetrics()
        self.system = system
        self.addresses = HostAddresses(
            WHERE, metrics=self.metrics, getaddrinfo=system, clock=lambda: self.now
        )

    def results(self) -> dict[DnsResult, int]:
        cells = {result: self.metrics.dns_queries[DnsPurpose.AUTH, result].value for result in DnsResult}
        return {result: value for result, value in cells.items() if value}

    async def wait_for_lookup(self) -> None:
        """Wait for a lookup in progress."""
        if self.addresses.lookup is not None:
            await self.addresses.lookup


@pytest.mark.parametrize(
    ("where", "target"),
    [
        (AuthHttp(host="192.0.2.1", port=80), (_V4, ("192.0.2.1", 80))),
        (AuthHttp(host="[2001:db8::1]", port=9000), (_V6, ("2001:db8::1", 9000))),
        (AuthHttp(host="localhost", unix_path="/run/auth"), (socket.AF_UNIX, "/run/auth")),
    ],
)
async def test_ip_address_needs_no_lookup(where: AuthHttp, target: tuple[int, Any]) -> None:
    def never(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        raise AssertionError

    hosts = HostAddresses(where, metrics=WorkerMetrics(), getaddrinfo=never)
    assert await hosts.start()
    hosts.failed(target)
    assert [hosts.take(), hosts.take()] == [target, target]
    await hosts.close()


async def test_addresses_are_used_in_turn() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::1"))
    assert await host.addresses.start()
    taken = [host.addresses.take() for _ in range(4)]
    assert taken == [
        (_V4, ("192.0.2.1", 9000)),
        (_V4, ("192.0.2.2", 9000)),
        (_V6, ("2001:db8::1", 9000)),
        (_V4, ("192.0.2.1", 9000)),
    ]
    assert host.results() == {DnsResult.OK: 1}


async def test_failed_address_is_last_resort_for_ten_seconds() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert await host.addresses.start()
    first, second, third = host.addresses.targets
    assert host.addresses.failed(second)
    assert not host.addresses.failed(second)  # already marked
    assert [host.addresses.take() for _ in range(4)] == [first, third, first, third]
    assert host.addresses.take((first, third)) == second
    assert host.addresses.take((first, second, third)) is None
    host.now += module.FAILED_SECONDS
    assert {host.addresses.take() for _ in range(3)} == {first, second, third}
    assert host.addresses.failed(second)
    host.addresses.works(second)
    assert {host.addresses.take() for _ in range(3)} == {first, second, third}
    await host.addresses.close()


async def test_oldest_failure_is_tried_first_if_all_failed() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert await host.addresses.start()
    first, second, third = host.addresses.targets
    for target in (second, third, first):
        host.now += 0.1
        host.addresses.failed(target)
    assert [host.addresses.take(), host.addresses.take((second,))] == [second, third]
    await host.addresses.close()


async def test_failures_of_removed_addresses_are_dropped() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1", "192.0.2.2"))
    assert await host.addresses.start()
    for target in host.addresses.targets:
        host.addresses.failed(target)
    host.system.answer = ("192.0.2.2", "192.0.2.7")
    host.now += 1
    host.addresses.take()
    await host.wait_for_lookup()
    assert host.addresses.take() == (_V4, ("192.0.2.7", 9000))
    assert host.addresses.failed_until.keys() == {(_V4, ("192.0.2.2", 9000))}
    await host.addresses.close()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ((_V4, ("192.0.2.1", 80)), "192.0.2.1:80"),
        ((_V6, ("2001:db8::1", 80, 0, 0)), "[2001:db8::1]:80"),
        ((socket.AF_UNIX, "/run/auth"), "unix:/run/auth"),
    ],
)
def test_target_text_formats_address(target: tuple[int, Any], text: str) -> None:
    assert target_text(target) == text


async def test_at_most_sixteen_addresses_are_used() -> None:
    host = HostFixture(FakeGetaddrinfo(*(f"192.0.2.{number}" for number in range(1, 30))))
    await host.addresses.start()
    assert len(host.addresses.targets) == module.MAX_ADDRESSES == 16


async def test_previous_addresses_are_used_during_lookup() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1"))
    await host.addresses.start()
    host.now += 29
    host.addresses.take()
    assert host.system.calls == 1
    host.now += 1
    host.system.answer = ("192.0.2.7",)
    assert host.addresses.take() == (_V4, ("192.0.2.1", 9000))
    assert host.addresses.take() == (_V4, ("192.0.2.1", 9000))
    await host.wait_for_lookup()
    assert host.addresses.take() == (_V4, ("192.0.2.7", 9000))
    assert host.system.calls == 2
    await host.addresses.close()


async def test_failed_connection_starts_lookup_after_one_second() -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1"))
    await host.addresses.start()
    host.addresses.failed((_V4, ("192.0.2.1", 9000)))
    host.addresses.take()
    assert host.system.calls == 1  # not within a second
    host.now += 1
    host.addresses.take()
    await host.wait_for_lookup()
    host.now += 1
    host.addresses.take()
    assert host.system.calls == 2  # and not again without another failure
    await host.addresses.close()


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (socket.gaierror(socket.EAI_NONAME, "?"), DnsResult.NXDOMAIN),
        (socket.gaierror(socket.EAI_AGAIN, "?"), DnsResult.SERVFAIL),
        (socket.gaierror(socket.EAI_FAIL, "?"), DnsResult.REFUSED),
        (socket.gaierror(socket.EAI_MEMORY, "?"), DnsResult.INVALID),
        (OSError(5, "?"), DnsResult.INVALID),
    ],
)
async def test_failed_lookup_keeps_previous_addresses(error: OSError, result: DnsResult) -> None:
    host = HostFixture(FakeGetaddrinfo("192.0.2.1"))
    await host.addresses.start()
    host.now += 30
    host.system.answer = (error,)
    host.addresses.take()
    await host.wait_for_lookup()
    assert host.addresses.take() == (_V4, ("192.0.2.1", 9000))
    assert host.results() == {DnsResult.OK: 1, result: 1}
    await host.addresses.close()


async def test_unresolved_host_is_looked_up_every_second() -> None:
    host = HostFixture(FakeGetaddrinfo(socket.gaierror(socket.EAI_NONAME, "?")))
    assert not await host.addresses.start()
    assert host.addresses.take() is None
    assert host.system.calls == 1
    host.now += 1
    host.system.answer = ("192.0.2.1",)
    assert host.addresses.take() is None
    await host.wait_for_lookup()
    assert host.addresses.take() == (_V4, ("192.0.2.1", 9000))
    await host.addresses.close()


async def test_only_one_lookup_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT", 0.01)
    host = HostFixture(FakeGetaddrinfo("192.0.2.1"))
    host.system.gate.clear()
    assert not await host.addresses.start()  # gave up waiting
    for _ in range(5):
        host.now += 100
        assert host.addresses.take() is None
    assert host.system.calls == 1
    await asyncio.sleep(0.02)
    host.system.gate.set()
    await host.wait_for_lookup()
    assert host.metrics.dns_timeouts[DnsPurpose.AUTH].value == 1
    assert host.addresses.targets == ((_V4, ("192.0.2.1", 9000)),)  # a late result is used
    assert host.results() == {DnsResult.TIMEOUT: 1}
    await host.addresses.close()


async def test_getaddrinfo_is_used() -> None:
    hosts = HostAddresses(AuthHttp(host="localhost", port=9000), metrics=WorkerMetrics())
    assert await hosts.start()
    assert {address[0] for _, address in hosts.targets} <= {"127.0.0.1", "::1"}
    await hosts.close()
