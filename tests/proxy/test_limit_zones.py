# SPDX-License-Identifier: Apache-2.0
"""Zones of limits: counts of sessions, rates of logins, full zones."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.limits import request_zone, zones
from mailproxy.limits.mutex import Busy, lock, unlock
from mailproxy.limits.request_zone import ReqZone
from mailproxy.limits.table import LimitTable
from mailproxy.limits.zones import ConnZone, no_results
from mailproxy.net.shared_memory import SharedMemory
from support.fuzz import examples

SMALLEST: Final = 32 * 1024
HOUR: Final = 3600.0


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(request_zone, "time", found)
    return found


@pytest.fixture
def table() -> LimitTable:
    return new_table()


def new_table() -> LimitTable:
    found = LimitTable(SharedMemory())
    found.begin()
    return found


def conn_zone(table: LimitTable, size: int = SMALLEST) -> ConnZone:
    zone = table.open_conn("sessions", "$remote_addr", size, no_results())
    assert zone is not None
    return zone


def req_zone(table: LimitTable, size: int = SMALLEST) -> ReqZone:
    zone = table.open_req("logins", "$remote_addr", size, no_results())
    assert zone is not None
    return zone


def test_sessions_are_counted_up_to_the_limit(table: LimitTable) -> None:
    zone, key = conn_zone(table), table.hash_key(b"192.0.2.1")
    slots = [zone.acquire(key, 20) for _ in range(20)]
    assert not any(is_over for _, is_over in slots)
    assert zone.acquire(key, 20) == (-1, True)
    assert (zone.count(key), zone.held) == (20, 20)
    zone.release(slots[0][0])
    assert zone.acquire(key, 20) == slots[0]
    assert zone.acquire(table.hash_key(b"192.0.2.2"), 20)[1] is False


def test_dry_run_counts_sessions_above_the_limit(table: LimitTable) -> None:
    zone, key = conn_zone(table), table.hash_key(b"bob")
    found = [zone.acquire(key, 2, dry_run=True) for _ in range(4)]
    assert [is_over for _, is_over in found] == [False, False, True, True]
    assert zone.count(key) == 4
    for slot, _ in found:
        zone.release(slot)
    assert (zone.count(key), zone.held) == (0, 0)


def test_full_zone_lets_in_and_counts_that(table: LimitTable) -> None:
    zone = conn_zone(table)
    keys = [table.hash_key(b"%d" % number) for number in range(4000)]
    counted = [key for key in keys if zone.acquire(key, 1)[0] >= 0]
    assert zone.results.full.value == len(keys) - len(counted) > 0
    assert all(zone.count(key) == 1 for key in counted)
    assert all(zone.acquire(key, 1) == (-1, True) for key in counted)  # still exact for what is counted


def test_places_of_sessions_that_are_over_are_used_again(table: LimitTable) -> None:
    zone = conn_zone(table)
    for number in range(20_000):
        slot, _ = zone.acquire(table.hash_key(b"%d" % number), 1)
        zone.release(slot)
    assert zone.results.full.value == 0
    [(used, places)] = table.entries().values()
    assert used < places


def test_zone_has_place_for_as_many_keys_as_it_states(table: LimitTable) -> None:
    size = 5 * 1024 * 1024
    zone = conn_zone(table, size)
    [(_, places)] = table.entries().values()
    assert places >= 100_000
    for number in range(100_000):
        assert zone.acquire(table.hash_key(b"user%d" % number), 1)[0] >= 0
    assert table.entries()["sessions"][0] == 100_000


def test_lock_of_a_process_that_does_not_run_lets_in(table: LimitTable) -> None:
    zone, key = conn_zone(table), table.hash_key(b"bob")
    mutex = zone.mutex_of(key[0] % zone._shards)
    lock(mutex)
    try:
        with pytest.raises(Busy):
            zone.acquire(key, 1)
    finally:
        unlock(mutex)
    assert zone.acquire(key, 1)[1] is False


def test_session_of_a_known_key_well_below_the_limit_needs_no_lock(table: LimitTable) -> None:
    zone, key = conn_zone(table), table.hash_key(b"bob")
    slot, _ = zone.acquire(key, 3)
    mutex = zone.mutex_of(key[0] % zone._shards)
    lock(mutex)
    try:
        assert zone.acquire_known(key, 3) == slot
        assert zone.acquire_known(key, 3) == -1, "one process runs: the last place is given with the lock"
    finally:
        unlock(mutex)
    assert zone.count(key) == 2
    assert zone.acquire(key, 3) == (slot, False)
    assert zone.acquire(key, 3) == (-1, True)


def test_places_without_sessions_are_kept_for_a_limited_number_of_keys(table: LimitTable) -> None:
    zone = conn_zone(table)
    keys = [table.hash_key(b"%d" % number) for number in range(300)]
    for key in keys:
        zone.release(zone.acquire(key, 3)[0])
    [(used, _)] = table.entries().values()
    assert used == len(zone._idle) == zone._most_idle < len(keys)
    assert zone.acquire_known(keys[-1], 3) >= 0
    assert zone.acquire_known(keys[0], 3) == -1
    assert zone.acquire(keys[0], 3)[1] is False
    assert (zone.count(keys[0]), zone.count(keys[-1])) == (1, 1)


def test_burst_above_the_rate_is_refused_until_the_rate_allows_it(table: LimitTable, clock: Clock) -> None:
    zone, key = req_zone(table), table.hash_key(b"192.0.2.1")
    assert [zone.charge(key, 6.0, 5) for _ in range(7)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0]
    clock.now += 5.9
    assert zone.charge(key, 6.0, 5) < 0
    clock.now += 0.1
    assert zone.charge(key, 6.0, 5) == pytest.approx(5.0)
    zone.give_back(key, 6.0)
    assert zone.charge(key, 6.0, 5) == pytest.approx(5.0)


def test_clock_of_the_day_has_no_influence(table: LimitTable, monkeypatch: pytest.MonkeyPatch) -> None:
    zone, key = req_zone(table), table.hash_key(b"192.0.2.1")
    assert zone.charge(key, HOUR, 0) == 0.0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert zone.charge(key, HOUR, 0) < 0
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert zone.charge(key, HOUR, 0) < 0


def test_million_addresses_need_no_more_memory_than_the_zone(table: LimitTable, clock: Clock) -> None:
    zone = req_zone(table)
    [(_, places)] = table.entries().values()
    for number in range(10 * places):
        zone.charge(table.hash_key(b"%d" % number), HOUR, 0)
    assert table.entries()["logins"][0] <= zones.FILL * (places + 1)
    assert zone.results.full.value > 0
    clock.now += HOUR + 1
    full = zone.results.full.value
    for number in range(places // 2):  # places whose time is over are used again
        zone.charge(table.hash_key(b"x%d" % number), HOUR, 0)
    assert zone.results.full.value == full


def test_full_zone_forgets_the_key_whose_time_is_over_first(table: LimitTable, clock: Clock) -> None:
    zone = req_zone(table)
    guesser = table.hash_key(b"guesser")
    for _ in range(11):
        zone.charge(guesser, HOUR, 10)
    for number in range(8000):
        zone.charge(table.hash_key(b"%d" % number), HOUR, 0)
    assert zone.results.full.value > 0
    assert zone.charge(guesser, HOUR, 10) < 0


class Bucket:
    """A leaky bucket as the documentation of ``ngx_http_limit_req_module`` describes it, in exact numbers."""

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self.excess: Fraction | None = None
        self.last = Fraction(0)

    def charge(self, now: Fraction, burst: int) -> Fraction | None:
        excess = Fraction(0)
        if self.excess is not None:
            excess = max(self.excess - self.rate * (now - self.last) + 1, Fraction(0))
        if excess > burst:
            return None
        self.excess, self.last = excess, now
        return excess


@given(
    rate=st.sampled_from([1, 10, 60, 90, 600]),
    burst=st.integers(0, 5),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20_000)), max_size=40),
)
@settings(max_examples=examples(60), deadline=None)
def test_rate_is_that_of_a_leaky_bucket(rate: int, burst: int, steps: list[tuple[int, int]]) -> None:
    clock, table = Clock(), new_table()
    zone = req_zone(table)
    buckets = [Bucket(Fraction(rate, 60)) for _ in range(3)]
    now = Fraction(1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_zone, "time", clock)
        for key, milliseconds in steps:
            now += Fraction(milliseconds, 1000)
            clock.now = float(now)
            expected = buckets[key].charge(now, burst)
            found = zone.charge(table.hash_key(b"%d" % key), 60.0 / rate, burst)
            assert found == (-1.0 if expected is None else pytest.approx(float(expected), abs=1e-6))


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60), limit=st.integers(1, 4))
@settings(max_examples=examples(60), deadline=None)
def test_counts_are_those_of_a_simple_model(steps: list[tuple[int, bool]], limit: int) -> None:
    table = new_table()
    zone, model, slots = conn_zone(table), Counter[int](), dict[int, list[int]]()
    for key, is_begin in steps:
        if is_begin:
            slot, is_over = zone.acquire(table.hash_key(b"%d" % key), limit)
            assert is_over == (model[key] >= limit)
            if not is_over:
                model[key] += 1
                slots.setdefault(key, []).append(slot)
        elif slots.get(key):
            zone.release(slots[key].pop())
            model[key] -= 1
        assert zone.count(table.hash_key(b"%d" % key)) == model[key]


def test_sweep_takes_no_more_than_one_shard(table: LimitTable, clock: Clock) -> None:
    """Nothing ever goes through a whole zone: a pause is that of 64 slots."""
    zone = req_zone(table)
    swept: list[int] = []

    def spy(shard: int, now: float) -> None:
        swept.append(shard)
        ReqZone._sweep(zone, shard, now)

    class Spied(ReqZone):
        __slots__ = ()

        def _sweep(self, shard: int, now: float) -> None:
            spy(shard, now)

    zone.__class__ = Spied
    clock.now += HOUR
    for number in range(3000):
        before = len(swept)
        zone.charge(table.hash_key(b"%d" % number), 0.001, 0)
        clock.now += 0.01
        assert len(swept) - before <= 2
    assert swept
