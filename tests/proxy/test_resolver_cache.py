# SPDX-License-Identifier: Apache-2.0
"""How long and how many answers are remembered."""

from __future__ import annotations

import pytest

from mailproxy.dns.cache import Cache
from mailproxy.dns.measures import Answer
from mailproxy.enums import CacheResult, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.25]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("mailproxy.dns.cache.time", Clock)
    return now


def found(ttl: int | None) -> Answer[str]:
    return Answer(DnsResult.OK, "value", ttl)


NOTHING: Answer[str] = Answer(DnsResult.NXDOMAIN, ttl=0)
INVALID: Answer[str] = Answer(DnsResult.INVALID, ttl=60)


@pytest.mark.parametrize(
    ("answer", "valid", "last", "gone"),
    [
        (found(60), None, 1060.9, 1061.0),
        (found(0), None, 1000.9, 1001.0),  # good within its own second
        (found(2**31), None, 1000.0 + 86400, 1001.0 + 86400),
        (found(60), 5.0, 1005.9, 1006.0),
        (found(0), 300.0, 1300.9, 1301.0),
        (found(60), 0.0, 1000.9, 1001.0),
        (NOTHING, None, 1010.9, 1011.0),
        (NOTHING, 300.0, 1010.9, 1011.0),
        (NOTHING, 2.0, 1002.9, 1003.0),
        (INVALID, None, 1060.9, 1061.0),  # a bad name is an answer, as lasting as a good one
    ],
)
def test_an_answer_is_believed_for_a_time(
    clock: list[float], answer: Answer[str], valid: float | None, last: float, gone: float
) -> None:
    cache: Cache[str, str] = Cache(valid, WorkerMetrics())
    cache.put("key", answer)
    clock[0] = last
    assert cache.get("key") is answer
    clock[0] = gone
    assert cache.get("key") is None


def test_a_failure_that_may_pass_is_not_kept() -> None:
    cache: Cache[str, str] = Cache(300.0, WorkerMetrics())
    cache.put("key", Answer(DnsResult.SERVFAIL))
    assert cache.get("key") is None


def test_the_oldest_makes_room_and_the_gauge_knows() -> None:
    metrics = WorkerMetrics()
    cache: Cache[int, str] = Cache(None, metrics, size=3)
    other: Cache[int, str] = Cache(None, metrics, size=3)
    other.put(0, found(60))
    for key in (1, 2, 3, 1, 4, 5):
        cache.put(key, found(60))
    assert [key for key in range(6) if cache.get(key)] == [1, 4, 5]
    assert metrics.dns_cache_entries.value == 4
    cache.clear()
    assert cache.get(5) is None
    assert metrics.dns_cache_entries.value == 1


def test_every_look_up_is_counted_by_how_it_ended(clock: list[float]) -> None:
    metrics = WorkerMetrics()
    cache: Cache[str, str] = Cache(None, metrics)
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
