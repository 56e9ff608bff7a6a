# SPDX-License-Identifier: Apache-2.0
"""Zones that several processes share: exact counts, reloads, and processes that are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from mailproxy.limits import mutex
from mailproxy.limits.mutex import lock
from mailproxy.limits.table import LimitTable
from mailproxy.limits.zones import PROCESSES, ConnZone, no_results
from mailproxy.net import shared_memory
from mailproxy.net.shared_memory import Area, SharedMemory

SIZE: Final = 64 * 1024
BOB: Final = b"bob"


@pytest.fixture
def descriptor() -> Iterator[int]:
    found = shared_memory.create()
    yield found
    os.close(found)


def begun(memory: SharedMemory) -> LimitTable:
    table = LimitTable(memory)
    table.begin()
    return table


def opened(
    table: LimitTable, name: str = "sessions", key: str = "$remote_user", size: int = SIZE
) -> ConnZone:
    zone = table.open_conn(name, key, size, no_results())
    assert zone is not None
    return zone


def begun_as(descriptor: int, number: int) -> LimitTable:
    """Return the table as another process has it; the locks of numbers are those of the test's process."""
    table = begun(SharedMemory(descriptor))
    table.number = number
    return table


class Child:
    """A process with the zone; it runs until it is killed or let go."""

    def __init__(self, descriptor: int, work: Callable[[LimitTable, ConnZone], int]) -> None:
        read, write = os.pipe()
        self._go, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                table = begun(SharedMemory(descriptor))
                os.write(write, work(table, opened(table)).to_bytes(4))
                os.close(go)
                os.read(self._go, 1)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        self._let_go = go
        self._result = read
        self._counted = -1

    def result(self) -> int:
        """Return what the process has counted."""
        if self._counted < 0:
            found = os.read(self._result, 4)
            assert found, "the process has failed"
            self._counted = int.from_bytes(found)
        return self._counted

    def end(self, signum: int = 0) -> None:
        """Kill the process, or let it end without giving back what it holds; not before it has counted."""
        self.result()
        if signum:
            os.kill(self.pid, signum)
        os.write(self._let_go, b".")
        os.close(self._let_go)
        os.waitpid(self.pid, 0)
        os.close(self._go)
        os.close(self._result)


def acquire(times: int, limit: int) -> Callable[[LimitTable, ConnZone], int]:
    def work(table: LimitTable, zone: ConnZone) -> int:
        return sum(zone.acquire(table.hash_key(BOB), limit)[0] >= 0 for _ in range(times))

    return work


def test_processes_count_the_same_sessions(descriptor: int) -> None:
    children = [Child(descriptor, acquire(8, 20)) for _ in range(3)]
    assert [child.result() for child in children] == [8, 8, 4]
    table = begun(SharedMemory(descriptor))
    assert opened(table).acquire(table.hash_key(BOB), 20) == (-1, True)
    assert table.number == 4
    for child in children:
        child.end()


def test_counts_are_exact_while_processes_count_at_the_same_time(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutex, "MAX_WAIT_SECONDS", 30.0)  # the machine may be busy with other things

    def work(table: LimitTable, zone: ConnZone) -> int:
        for _ in range(2000):
            for slot in [zone.acquire(table.hash_key(BOB), 10_000)[0] for _ in range(3)]:
                zone.release(slot)
        return acquire(5, 10_000)(table, zone)

    children = [Child(descriptor, work) for _ in range(2)]
    assert [child.result() for child in children] == [5, 5]
    table = begun(SharedMemory(descriptor))
    assert opened(table).count(table.hash_key(BOB)) == 10
    for child in children:
        child.end(signal.SIGKILL)
    assert table.reclaim() == 2
    assert opened(table).count(table.hash_key(BOB)) == 0


def test_limit_is_reached_and_not_exceeded_while_processes_count_at_the_same_time(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far below the limit no lock is taken, near to it a lock decides."""
    monkeypatch.setattr(mutex, "MAX_WAIT_SECONDS", 30.0)
    children = [Child(descriptor, acquire(900, 2000)) for _ in range(3)]
    assert sum(child.result() for child in children) == 2000
    table = begun(SharedMemory(descriptor))
    assert opened(table).count(table.hash_key(BOB)) == 2000
    for child in children:
        child.end()


def test_sessions_of_a_process_that_came_later_are_counted(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    zone, key = opened(table), table.hash_key(BOB)
    assert [zone.acquire(key, 20)[1] for _ in range(5)] == [False] * 5
    child = Child(descriptor, acquire(12, 20))
    assert child.result() == 12
    assert [zone.acquire(key, 20)[1] for _ in range(4)] == [False] * 3 + [True]
    child.end(signal.SIGKILL)
    assert table.reclaim() == 1
    assert [zone.acquire(key, 20)[1] for _ in range(13)] == [False] * 12 + [True]


def test_counts_of_a_killed_process_are_given_back_by_the_supervisor(descriptor: int) -> None:
    survivor, victim = Child(descriptor, acquire(3, 20)), Child(descriptor, acquire(7, 20))
    supervisor = LimitTable(SharedMemory(descriptor))
    assert supervisor.reclaim() == 0
    victim.end(signal.SIGKILL)
    assert supervisor.reclaim() == 1
    table = begun(SharedMemory(descriptor))
    assert opened(table).count(table.hash_key(BOB)) == 3
    survivor.end()


def test_next_process_gives_back_the_counts_of_a_killed_one(descriptor: int) -> None:
    victim = Child(descriptor, acquire(20, 20))
    victim.end(signal.SIGKILL)
    table = begun(SharedMemory(descriptor))
    assert table.number == 1  # that of the killed one
    assert opened(table).acquire(table.hash_key(BOB), 20)[0] >= 0


def test_process_that_is_killed_with_a_lock_does_not_keep_it(descriptor: int) -> None:
    def lock_and_stay(table: LimitTable, zone: ConnZone) -> int:
        zone.acquire(table.hash_key(BOB), 20)
        lock(zone.mutex_of(table.hash_key(BOB)[0] % zone._shards))
        return 1

    victim = Child(descriptor, lock_and_stay)
    victim.end(signal.SIGKILL)
    table = begun(SharedMemory(descriptor))
    assert [opened(table).acquire(table.hash_key(BOB), 2)[1] for _ in range(3)] == [False, False, True]


def test_zone_of_the_same_name_key_and_size_keeps_its_counts(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    key = table.hash_key(BOB)
    opened(table).acquire(key, 20)
    assert opened(table).count(key) == 1
    assert opened(table, key="$remote_addr").count(key) == 0
    assert opened(table, size=2 * SIZE).count(key) == 0
    assert opened(table, name="other").count(key) == 0


def test_place_of_a_closed_zone_is_given_to_another_one_empty(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    size = Area.LIMITS.value // 2 - 64 * 1024
    zones = [opened(table, name, size=size) for name in ("a", "b")]
    slot, _ = zones[0].acquire(table.hash_key(BOB), 1)
    assert table.open_conn("c", "$remote_user", size, no_results()) is None
    zones[0].release(slot)
    table.close(zones[0])
    assert opened(table, "c", size=size).count(table.hash_key(BOB)) == 0
    assert set(table.entries()) == {"b", "c"}


def test_directory_has_a_limited_number_of_zones(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    found = [table.open_conn(f"z{number}", "$domain", SIZE, no_results()) for number in range(65)]
    assert found[-1] is None
    assert None not in found[:-1]


def test_hashes_depend_on_a_random_key(descriptor: int) -> None:
    table, same = begun(SharedMemory(descriptor)), begun(SharedMemory(descriptor))
    assert table.hash_key(BOB) == same.hash_key(BOB)
    assert begun(SharedMemory()).hash_key(BOB) != table.hash_key(BOB)


def test_zone_takes_memory_only_for_what_it_holds(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    zone = opened(table, size=16 * 1024 * 1024)
    zone.acquire(table.hash_key(BOB), 1)
    assert os.fstat(descriptor).st_blocks * 512 < 100 * 1024


def test_closed_zone_keeps_no_slots(descriptor: int) -> None:
    table, other = begun(SharedMemory(descriptor)), opened(begun_as(descriptor, 2))
    zone = opened(table)
    keys = [table.hash_key(b"%d" % number) for number in range(8)]
    slots = [zone.acquire(key, 20)[0] for key in keys]
    assert other.acquire(keys[0], 20)[0] >= 0
    for slot in slots:
        zone.release(slot)
    assert table.entries()["sessions"][0] == 9
    table.close(zone)
    assert table.entries()["sessions"][0] == 1
    assert other.count(keys[0]) == 1


def test_closed_zone_counts_nothing_more(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    key = table.hash_key(BOB)
    zone, rates = opened(table), table.open_req("logins", "$remote_user", SIZE, no_results())
    assert rates is not None
    zone.release(zone.acquire(key, 1)[0])
    rates.charge(key, 60.0, 0)
    for each in (zone, rates):
        table.close(each)
    assert zone.acquire(key, 0) == (-1, False)
    assert rates.charge(key, 60.0, 0) == 0.0
    assert (zone.count(key), zone.held) == (0, 0)


def test_idle_slots_of_many_processes_leave_most_of_a_zone_free(descriptor: int) -> None:
    table = begun(SharedMemory(descriptor))
    opened(table)
    slots = 3 * table.entries()["sessions"][1]
    table._memory[PROCESSES].cast("H")[0] = 64
    for number in range(1, 65):
        zone = opened(begun_as(descriptor, number))
        for key in range(slots // 32):
            zone.release(zone.acquire(table.hash_key(b"%d %d" % (number, key)), 1000)[0])
    assert table.entries()["sessions"][0] <= slots // 8
