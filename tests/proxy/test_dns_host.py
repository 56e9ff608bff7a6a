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
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked += 1
        self.gate.wait(10)
        assert (host, port) == ("auth.example", 9000)
        found: list[tuple[Any, ...]] = []
        for answer in self.answer:
            if isinstance(answer, OSError):
                raise answer
            family = _V6 if ":" in answer else _V4
            found.append((family, socket.SOCK_STREAM, 6, "", (answer, port)))
        return found


class Hosts:
    """The addresses, with a clock and metrics."""

    def __init__(self, system: FakeGetaddrinfo) -> None:
        self.now = 1000.0
        self.metrics = WorkerMetrics()
        self.system = system
        self.hosts = HostAddresses(WHERE, metrics=self.metrics, getaddrinfo=system, clock=lambda: self.now)

    def results(self) -> dict[DnsResult, int]:
        cells = {result: self.metrics.dns_queries[DnsPurpose.AUTH, result].value for result in DnsResult}
        return {result: value for result, value in cells.items() if value}

    async def lookup_ended(self) -> None:
        """Wait for a lookup in progress."""
        if self.hosts.lookup is not None:
            await self.hosts.lookup


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
    test = Hosts(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::1"))
    assert await test.hosts.start()
    taken = [test.hosts.take() for _ in range(4)]
    assert taken == [
        (_V4, ("192.0.2.1", 9000)),
        (_V4, ("192.0.2.2", 9000)),
        (_V6, ("2001:db8::1", 9000)),
        (_V4, ("192.0.2.1", 9000)),
    ]
    assert test.results() == {DnsResult.OK: 1}


async def test_failed_address_is_last_resort_for_ten_seconds() -> None:
    test = Hosts(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert await test.hosts.start()
    first, second, third = test.hosts.targets
    assert test.hosts.failed(second)
    assert not test.hosts.failed(second)  # already marked
    assert [test.hosts.take() for _ in range(4)] == [first, third, first, third]
    assert test.hosts.take((first, third)) == second
    assert test.hosts.take((first, second, third)) is None
    test.now += module.FAILED_SECONDS
    assert {test.hosts.take() for _ in range(3)} == {first, second, third}
    assert test.hosts.failed(second)
    test.hosts.works(second)
    assert {test.hosts.take() for _ in range(3)} == {first, second, third}
    await test.hosts.close()


async def test_oldest_failure_is_tried_first_if_all_failed() -> None:
    test = Hosts(FakeGetaddrinfo("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert await test.hosts.start()
    first, second, third = test.hosts.targets
    for target in (second, third, first):
        test.now += 0.1
        test.hosts.failed(target)
    assert [test.hosts.take(), test.hosts.take((second,))] == [second, third]
    await test.hosts.close()


async def test_failures_of_removed_addresses_are_dropped() -> None:
    test = Hosts(FakeGetaddrinfo("192.0.2.1", "192.0.2.2"))
    assert await test.hosts.start()
    for target in test.hosts.targets:
        test.hosts.failed(target)
    test.system.answer = ("192.0.2.2", "192.0.2.7")
    test.now += 1
    test.hosts.take()
    await test.lookup_ended()
    assert test.hosts.take() == (_V4, ("192.0.2.7", 9000))
    assert test.hosts.failed_until.keys() == {(_V4, ("192.0.2.2", 9000))}
    await test.hosts.close()


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
    test = Hosts(FakeGetaddrinfo(*(f"192.0.2.{number}" for number in range(1, 30))))
    await test.hosts.start()
    assert len(test.hosts.targets) == module.MAX_ADDRESSES == 16


async def test_previous_addresses_are_used_during_lookup() -> None:
    test = Hosts(FakeGetaddrinfo("192.0.2.1"))
    await test.hosts.start()
    test.now += 29
    test.hosts.take()
    assert test.system.asked == 1
    test.now += 1
    test.system.answer = ("192.0.2.7",)
    assert test.hosts.take() == (_V4, ("192.0.2.1", 9000))
    assert test.hosts.take() == (_V4, ("192.0.2.1", 9000))
    await test.lookup_ended()
    assert test.hosts.take() == (_V4, ("192.0.2.7", 9000))
    assert test.system.asked == 2
    await test.hosts.close()


async def test_failed_connection_starts_lookup_after_one_second() -> None:
    test = Hosts(FakeGetaddrinfo("192.0.2.1"))
    await test.hosts.start()
    test.hosts.failed((_V4, ("192.0.2.1", 9000)))
    test.hosts.take()
    assert test.system.asked == 1  # not within a second
    test.now += 1
    test.hosts.take()
    await test.lookup_ended()
    test.now += 1
    test.hosts.take()
    assert test.system.asked == 2  # and not again without another failure
    await test.hosts.close()


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
    test = Hosts(FakeGetaddrinfo("192.0.2.1"))
    await test.hosts.start()
    test.now += 30
    test.system.answer = (error,)
    test.hosts.take()
    await test.lookup_ended()
    assert test.hosts.take() == (_V4, ("192.0.2.1", 9000))
    assert test.results() == {DnsResult.OK: 1, result: 1}
    await test.hosts.close()


async def test_unresolved_host_is_looked_up_every_second() -> None:
    test = Hosts(FakeGetaddrinfo(socket.gaierror(socket.EAI_NONAME, "?")))
    assert not await test.hosts.start()
    assert test.hosts.take() is None
    assert test.system.asked == 1
    test.now += 1
    test.system.answer = ("192.0.2.1",)
    assert test.hosts.take() is None
    await test.lookup_ended()
    assert test.hosts.take() == (_V4, ("192.0.2.1", 9000))
    await test.hosts.close()


async def test_only_one_lookup_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT", 0.01)
    test = Hosts(FakeGetaddrinfo("192.0.2.1"))
    test.system.gate.clear()
    assert not await test.hosts.start()  # gave up waiting
    for _ in range(5):
        test.now += 100
        assert test.hosts.take() is None
    assert test.system.asked == 1
    await asyncio.sleep(0.02)
    test.system.gate.set()
    await test.lookup_ended()
    assert test.metrics.dns_timeouts[DnsPurpose.AUTH].value == 1
    assert test.hosts.targets == ((_V4, ("192.0.2.1", 9000)),)  # a late result is used
    assert test.results() == {DnsResult.TIMEOUT: 1}
    await test.hosts.close()


async def test_getaddrinfo_is_used() -> None:
    hosts = HostAddresses(AuthHttp(host="localhost", port=9000), metrics=WorkerMetrics())
    assert await hosts.start()
    assert {address[0] for _, address in hosts.targets} <= {"127.0.0.1", "::1"}
    await hosts.close()
