# SPDX-License-Identifier: Apache-2.0
"""Lookups: sharing, limits, cancellation, caching."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mailproxy.dns.lookup import LookupCache, LookupLimits, LookupResult, ResultCache, Waiter, packed
from mailproxy.enums import CacheResult, DnsPurpose, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics

OK: LookupResult[str] = LookupResult(DnsResult.OK, "value", 60)
INVALID_RESULT: LookupResult[str] = LookupResult(DnsResult.INVALID)


class Queries:
    """Holds every query until the test sets its result."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[LookupResult[str]]] = {}
        self.keys: list[str] = []

    async def query(self, key: str) -> LookupResult[str]:
        self.keys.append(key)
        self.open[key] = asyncio.get_running_loop().create_future()
        return await self.open[key]


class Harness:
    """A ``LookupCache``, its queries, and the delivered results."""

    def __init__(self, *, timeout: float = 0, limit: int = 3) -> None:
        self.queries = Queries()
        self.metrics = WorkerMetrics()
        self.lookups = LookupCache(
            DnsPurpose.PTR,
            self.queries.query,
            timeout=timeout,
            valid=None,
            metrics=self.metrics,
            limits=LookupLimits(lookups=limit),
        )
        self.results: list[LookupResult[str]] = []

    def find(self, key: str) -> Callable[[], None]:
        return self.lookups.find(key, self.results.append)

    async def finish(self, key: str) -> None:
        self.queries.open[key].set_result(OK)
        await run_callbacks()


async def run_callbacks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_waiters_share_one_result() -> None:
    harness = Harness()
    harness.find("a")
    harness.find("a")
    await run_callbacks()
    await harness.finish("a")
    assert harness.results == [OK, OK]
    assert harness.queries.keys == ["a"]
    assert harness.lookups.cached("a") is OK


def crash(_: LookupResult[str]) -> None:
    raise ZeroDivisionError


async def test_exception_in_one_callback_does_not_affect_others() -> None:
    harness = Harness()
    harness.lookups.find("a", crash)
    harness.find("a")
    crashes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    await run_callbacks()
    await harness.finish("a")
    assert harness.results == [OK]
    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


async def test_lookups_above_limit_are_invalid() -> None:
    harness = Harness(limit=2)
    for key in ("a", "b", "c", "a"):
        harness.find(key)()  # cancelling makes room
    for key in ("a", "b", "a"):
        harness.find(key)
    assert harness.results == []
    harness.find("c")()
    assert harness.results == [INVALID_RESULT]
    await run_callbacks()
    assert harness.queries.keys == ["a", "b"]
    await harness.lookups.close()


async def test_lookup_is_cancelled_with_last_waiter() -> None:
    harness = Harness(limit=1)
    first, second = harness.find("a"), harness.find("a")
    await run_callbacks()
    first()
    assert not harness.queries.open["a"].cancelled()
    second()
    await run_callbacks()
    assert harness.queries.open["a"].cancelled()
    harness.find("b")
    await run_callbacks()
    assert harness.queries.keys == ["a", "b"]
    assert harness.results == []
    assert harness.metrics.dns_queries[DnsPurpose.PTR, DnsResult.OK].value == 0
    await harness.lookups.close()


async def test_lookup_after_cancel_is_new() -> None:
    harness = Harness()
    harness.find("a")()
    harness.find("a")
    await run_callbacks()
    await harness.finish("a")
    assert harness.results == [OK]


async def test_waiter_cancelled_before_delivery_gets_nothing() -> None:
    harness = Harness()
    cancel: list[Callable[[], None]] = []

    def first(_: LookupResult[str]) -> None:
        cancel[0]()

    harness.lookups.find("a", first)
    cancel.append(harness.find("a"))
    await run_callbacks()
    await harness.finish("a")
    assert harness.results == []


async def test_timeout_is_a_result_and_is_counted() -> None:
    harness = Harness(timeout=0.01)
    results: asyncio.Future[LookupResult[str]] = asyncio.get_running_loop().create_future()
    harness.lookups.find("a", results.set_result)
    assert await results == LookupResult(DnsResult.TIMEOUT)
    assert harness.metrics.dns_timeouts[DnsPurpose.PTR].value == 1
    assert harness.metrics.dns_queries[DnsPurpose.PTR, DnsResult.TIMEOUT].value == 1
    harness.metrics.flush()
    assert sum(harness.metrics.dns_seconds[DnsPurpose.PTR].counts) == 1


@pytest.mark.parametrize("is_started", [True, False])
async def test_closing_delivers_invalid_to_waiters(is_started: bool) -> None:
    harness = Harness()
    harness.find("a")
    if is_started:
        await run_callbacks()
    await harness.lookups.close()
    await run_callbacks()
    assert harness.results == [INVALID_RESULT]


async def test_exception_in_query_is_reported_and_delivers_invalid() -> None:
    metrics = WorkerMetrics()

    async def broken(_: str) -> LookupResult[str]:
        raise ZeroDivisionError

    lookups = LookupCache(DnsPurpose.PTR, broken, timeout=0, valid=None, metrics=metrics)
    results: list[LookupResult[str]] = []
    crashes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    lookups.find("a", results.append)
    await run_callbacks()
    assert results == [INVALID_RESULT]
    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


async def test_cancel_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients behind one address wait for the same lookup, and may disconnect at the same time."""
    compared = 0

    def equal(self: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(Waiter, "__eq__", equal)
    monkeypatch.setattr(Waiter, "__hash__", object.__hash__)
    harness = Harness()
    cancels = [harness.find("key") for _ in range(1_000)]
    for cancel in reversed(cancels):
        cancel()
    assert compared < 1_000
    assert harness.results == []
    await harness.lookups.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.25]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("mailproxy.dns.lookup.time", Clock)
    return now


def found(ttl: int | None) -> LookupResult[str]:
    return LookupResult(DnsResult.OK, "value", ttl)


NOTHING: LookupResult[str] = LookupResult(DnsResult.NXDOMAIN, ttl=0)
INVALID: LookupResult[str] = LookupResult(DnsResult.INVALID, ttl=60)


@pytest.mark.parametrize(
    ("answer", "valid", "last", "gone"),
    [
        (found(60), None, 1060.9, 1061.0),
        (found(0), None, 1000.9, 1001.0),  # valid within its own second
        (found(2**31), None, 1000.0 + 86400, 1001.0 + 86400),
        (found(60), 5.0, 1005.9, 1006.0),
        (found(0), 300.0, 1300.9, 1301.0),
        (found(60), 0.0, 1000.9, 1001.0),
        (NOTHING, None, 1010.9, 1011.0),
        (NOTHING, 300.0, 1010.9, 1011.0),
        (NOTHING, 2.0, 1002.9, 1003.0),
        (INVALID, None, 1060.9, 1061.0),  # an invalid name is cached like a valid one
    ],
)
def test_result_is_cached_until_it_expires(
    clock: list[float], answer: LookupResult[str], valid: float | None, last: float, gone: float
) -> None:
    cache: ResultCache[str, str] = ResultCache(valid, WorkerMetrics())
    cache.put("key", answer)
    clock[0] = last
    assert cache.get("key") is answer
    clock[0] = gone
    assert cache.get("key") is None


def test_result_without_ttl_is_not_cached() -> None:
    cache: ResultCache[str, str] = ResultCache(300.0, WorkerMetrics())
    cache.put("key", LookupResult(DnsResult.SERVFAIL))
    assert cache.get("key") is None


def test_full_cache_removes_oldest_and_gauge_follows() -> None:
    metrics = WorkerMetrics()
    cache: ResultCache[int, str] = ResultCache(None, metrics, LookupLimits(results=3))
    other: ResultCache[int, str] = ResultCache(None, metrics, LookupLimits(results=3))
    other.put(0, found(60))
    for key in (1, 2, 3, 1, 4, 5):
        cache.put(key, found(60))
    assert [key for key in range(6) if cache.get(key)] == [1, 4, 5]
    assert metrics.dns_cache_entries.value == 4
    cache.clear()
    assert cache.get(5) is None
    assert metrics.dns_cache_entries.value == 1


def test_cache_lookups_are_counted_by_result(clock: list[float]) -> None:
    metrics = WorkerMetrics()
    cache: ResultCache[str, str] = ResultCache(None, metrics)
    cache.put("found", found(1))
    cache.put("nothing", NOTHING)
    for key in ("found", "nothing", "unknown"):
        cache.get(key)
    clock[0] += 3
    for key in ("found", "found"):
        cache.get(key)
    assert {result: metrics.dns_cache[result].value for result in CacheResult} == {
        CacheResult.HIT: 1,
        CacheResult.NEGATIVE_HIT: 1,
        CacheResult.MISS: 2,
        CacheResult.STALE: 1,
    }


@pytest.mark.parametrize(
    ("address", "data"),
    [
        ("192.0.2.1", b"\xc0\0\2\1"),
        ("::1", bytes(15) + b"\1"),
        ("::ffff:192.0.2.1", bytes(10) + b"\xff\xff\xc0\0\2\1"),
        ("fe80::1%eth0", b"\xfe\x80" + bytes(13) + b"\1"),
        ("192.0.2.1:25", None),
        ("unix:", None),
        ("", None),
        ("\0", None),
        ("\u0661.2.3.4", None),
    ],
)
def test_packed_address(address: str, data: bytes | None) -> None:
    assert packed(address) == data
