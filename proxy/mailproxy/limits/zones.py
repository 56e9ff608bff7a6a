# SPDX-License-Identifier: Apache-2.0
"""Tables in shared memory: sessions by key, and rates of logins by key.

A zone has shards of 32 slots.  The hash of a key selects its shard, and ``mmap.find`` finds its slots
there.  A lock protects each shard; nothing else is ever locked, and nothing takes longer than one shard.

A process may be killed between any two of its writes.  So each one leaves the table valid: the hash is
written last, and a slot without a hash is free.
"""

from __future__ import annotations

import mmap
import time
from functools import cached_property
from typing import Final

from mailproxy.limits.mutex import MUTEX_BYTES, lock_patiently, make_mutex, trylock, unlock, wait
from mailproxy.telemetry.metrics import Counter, LimitZoneMetrics

SLOTS: Final = 32
"""Slots of a shard."""
FILL: Final = 3
"""A zone has three slots per key that it has place for: with a third of them used, no shard is full."""
KNOWN: Final = 2048
"""Keys of a zone whose slots a process remembers, so that it does not search for those that come often."""
CONN: Final = 1
"""The kind of zones that count sessions."""

_MUTEXES: Final = 64
_SWEEP: Final = 16
"""So many new keys of a shard later, slots that are not needed any more are made free."""
_BYTES: Final = {CONN: 8 + 4 + 2, 0: 8 + 8}
"""Bytes of a slot: hash, number of sessions, process; or hash, time."""
_FREE: Final = bytes(8)
_ROUNDING: Final = 1e-6


def no_results() -> LimitZoneMetrics:
    """Counters that nobody reads."""
    return LimitZoneMetrics(*(Counter() for _ in LimitZoneMetrics._fields))


class Place:
    """The place of a zone in the memory, and where its columns are.

    Args:
        memory: The area.
        address: Of the area, in this process.
        offset: Of the zone in the area.
        size: In bytes.
        kind: ``CONN`` or 0.
    """

    def __init__(self, memory: memoryview, address: int, offset: int, size: int, kind: int) -> None:
        self.memory = memory
        self.offset = offset
        self.shards = max((size - MUTEX_BYTES * _MUTEXES - 8) // (SLOTS * _BYTES[kind] + 2), 1)
        self.slots = self.shards * SLOTS
        self.mutexes = address + offset
        self._used_at = offset + MUTEX_BYTES * _MUTEXES
        self.hashes_at = self._used_at + (self.shards * 2 + 7) // 8 * 8
        self._values_at = self.hashes_at + 8 * self.slots

    @cached_property
    def used(self) -> memoryview:
        """The number of slots in use, by shard."""
        return self.memory[self._used_at : self._used_at + 2 * self.shards].cast("H")

    @cached_property
    def hashes(self) -> memoryview:
        """The hash in each slot; 0 for a free one."""
        return self.memory[self.hashes_at : self._values_at].cast("Q")

    @cached_property
    def times(self) -> memoryview[float]:
        """Of a zone that counts logins."""
        return self.memory[self._values_at : self._values_at + 8 * self.slots].cast("d")

    @cached_property
    def counts(self) -> memoryview:
        """Of a zone that counts sessions."""
        return self.memory[self._values_at : self._values_at + 4 * self.slots].cast("I")

    @cached_property
    def owners(self) -> memoryview:
        """The process that each count belongs to."""
        start = self._values_at + 4 * self.slots
        return self.memory[start : start + 2 * self.slots].cast("H")


def make_zone(place: Place) -> None:
    """Prepare a zone in memory that is all zero."""
    for number in range(_MUTEXES):
        make_mutex(place.mutexes + number * MUTEX_BYTES)


def entries_of(place: Place) -> tuple[int, int]:
    """Return the slots in use, and for how many keys there is place."""
    return sum(place.used), place.slots // FILL


class _Zone:
    __slots__ = (
        *("_file", "_find", "_first", "_hashes", "_known", "_mutexes", "_shards", "_used"),
        *("offset", "results"),
    )

    def __init__(self, place: Place, results: LimitZoneMetrics | None) -> None:
        self._file: mmap.mmap = place.memory.obj  # type: ignore[assignment]
        self._find = self._file.find
        self._known: dict[bytes, list[int]] = {}
        self._first = place.hashes_at
        self._hashes = place.hashes
        self._mutexes = place.mutexes
        self._shards = place.shards
        self._used = place.used
        self.offset = place.offset
        self.results = no_results() if results is None else results

    def _locate(self, key: tuple[int, bytes]) -> list[int]:
        """Return shard, offset and end of its hashes, lock, and the last known slot of a key, -1 for none."""
        number, pattern = key
        if len(self._known) >= KNOWN:
            self._known.clear()
        shard = number % self._shards
        start = self._first + shard * SLOTS * 8
        mutex = self._mutexes + (shard % _MUTEXES) * MUTEX_BYTES
        found = self._known[pattern] = [shard, start, start + SLOTS * 8, mutex, -1]
        return found

    def _free_slot(self, shard: int) -> int:
        """Return a free slot of a shard, -1 for none."""
        first = self._first
        start = first + shard * SLOTS * 8
        end = start + SLOTS * 8
        at: int = self._find(_FREE, start, end)
        while at >= 0 and (at - first) & 7:  # it begins inside of a hash
            at = self._find(_FREE, at + 1, end)
        return -1 if at < 0 else (at - first) >> 3

    def _set_used(self, shard: int) -> None:
        slots = self._hashes[shard * SLOTS : (shard + 1) * SLOTS]
        self._used[shard] = SLOTS - slots.tolist().count(0)


class ConnZone(_Zone):
    """Counts sessions by key.

    A process has slots of its own, with the number of its sessions of a key; the sum of all slots of the
    key is compared with the limit.  So what a killed process has counted can be found and removed.

    Args:
        place: Where it is.
        number: Of this process.
        results: Counters.

    Attributes:
        held: The sessions that this process has counted.
    """

    __slots__ = ("_counts", "_number", "_owners", "held")

    def __init__(self, place: Place, number: int, results: LimitZoneMetrics | None = None) -> None:
        super().__init__(place, results)
        self._counts = place.counts
        self._owners = place.owners
        self._number = number
        self.held = 0

    def acquire(self, key: tuple[int, bytes], limit: int, *, dry_run: bool = False) -> tuple[int, bool]:
        """Count a session, unless that is above the limit.

        Args:
            key: The hash of its key.
            limit: How many sessions there may be.
            dry_run: Count it also above the limit.

        Returns:
            The slot to release, -1 where the session was not counted; and whether it is above the limit.

        Raises:
            Busy: A lock is held by a process that does not run.
        """
        number, pattern = key
        where = self._known.get(pattern) or self._locate(key)
        shard, start, end, mutex, own = where
        counts = self._counts
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            if (
                own >= 0
                and self._file[start:end].count(pattern) == 1
                and self._hashes[own] == number
                and self._owners[own] == self._number
            ):
                total = counts[own]
            else:
                total, own = self._sum(pattern, start, end)
            is_over = total >= limit
            if is_over and not dry_run:
                return -1, True
            if own < 0:
                own = self._insert(number, shard)
                if own < 0:
                    self.results.full.value += 1
                    return -1, is_over
            where[4] = own
            counts[own] += 1
        finally:
            unlock(mutex)
        self.held += 1
        return own, is_over

    def _sum(self, pattern: bytes, start: int, end: int) -> tuple[int, int]:
        """Return the sessions of a key, of all processes, and this process's slot, -1 for none."""
        total, own = 0, -1
        at = self._find(pattern, start, end)
        while at >= 0:
            if not (at - start) & 7:
                slot = (at - self._first) >> 3
                total += self._counts[slot]
                if self._owners[slot] == self._number:
                    own = slot
            at = self._find(pattern, at + 1, end)
        return total, own

    def release(self, slot: int) -> None:
        """A session that was counted is over.  Without a lock: nobody else writes to a slot that is used."""
        self.held -= 1
        if self._counts[slot]:
            self._counts[slot] -= 1

    def count(self, key: tuple[int, bytes]) -> int:
        """Return the number of sessions of a key."""
        number, _ = key
        shard = number % self._shards
        slots = range(shard * SLOTS, (shard + 1) * SLOTS)
        return sum(self._counts[slot] for slot in slots if self._hashes[slot] == number)

    def remove_all(self) -> None:
        """Remove everything that this number has counted: its process is gone."""
        for shard in range(self._shards):
            if not self._used[shard]:
                continue
            mutex = self._mutexes + (shard % _MUTEXES) * MUTEX_BYTES
            lock_patiently(mutex)
            try:
                for slot in range(shard * SLOTS, (shard + 1) * SLOTS):
                    if self._owners[slot] == self._number:
                        self._counts[slot] = 0
            finally:
                unlock(mutex)

    def _insert(self, number: int, shard: int) -> int:
        if self._used[shard] and self._used[shard] % _SWEEP == 0:
            self._sweep(shard)
        slot = self._free_slot(shard)
        if slot < 0:
            self._sweep(shard)
            slot = self._free_slot(shard)
            if slot < 0:
                return -1
        self._counts[slot] = 0
        self._owners[slot] = self._number
        self._hashes[slot] = number
        self._used[shard] += 1
        return slot

    def _sweep(self, shard: int) -> None:
        """Make slots without sessions free."""
        for slot in range(shard * SLOTS, (shard + 1) * SLOTS):
            if not self._counts[slot]:
                self._hashes[slot] = 0
        self._set_used(shard)


class ReqZone(_Zone):
    """Rates of logins by key: a leaky bucket, as in ``ngx_http_limit_req_module``.

    Of each key, one time is kept: when the logins so far would be over, had they come at the rate.  A
    time that is past is the same as none.
    """

    __slots__ = ("_times",)

    def __init__(self, place: Place, results: LimitZoneMetrics | None = None) -> None:
        super().__init__(place, results)
        self._times = place.times

    def charge(self, key: tuple[int, bytes], interval: float, burst: int) -> float:
        """Count a login, unless that is above the burst.

        Args:
            key: The hash of its key.
            interval: Seconds between two logins at the rate.
            burst: How many logins may be above the rate.

        Returns:
            The number of logins above the rate, with this one; -1 where it was not counted.

        Raises:
            Busy: A lock is held by a process that does not run.
        """
        number, pattern = key
        where = self._known.get(pattern) or self._locate(key)
        mutex, slot = where[3], where[4]
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            now = time.monotonic()
            if slot < 0 or self._hashes[slot] != number:
                slot = where[4] = self._slot(pattern, where[0])
            free_at = self._times[slot] if slot >= 0 else now
            if free_at <= now:
                free_at, excess = now, 0.0
            else:
                excess = (free_at - now) / interval
                if excess > burst + _ROUNDING:
                    return -1.0
            if slot < 0:
                where[4] = self._insert(number, where[0], now, free_at + interval)
            else:
                self._times[slot] = free_at + interval
            return excess
        finally:
            unlock(mutex)

    def give_back(self, key: tuple[int, bytes], interval: float) -> None:
        """Undo ``charge``: another limit refused the login.

        Raises:
            Busy: As ``charge``.
        """
        number, pattern = key
        shard = number % self._shards
        mutex = self._mutexes + (shard % _MUTEXES) * MUTEX_BYTES
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            slot = self._slot(pattern, shard)
            if slot >= 0:
                self._times[slot] -= interval
        finally:
            unlock(mutex)

    def _slot(self, pattern: bytes, shard: int) -> int:
        first = self._first
        start = first + shard * SLOTS * 8
        at: int = self._find(pattern, start, start + SLOTS * 8)
        while at >= 0 and (at - first) & 7:
            at = self._find(pattern, at + 1, start + SLOTS * 8)
        return -1 if at < 0 else (at - first) >> 3

    def _insert(self, number: int, shard: int, now: float, free_at: float) -> int:
        """Add a key, and return its slot; in a full shard, in place of the one whose time is over first."""
        if self._used[shard] and self._used[shard] % _SWEEP == 0:
            self._sweep(shard, now)
        slot = self._free_slot(shard)
        if slot < 0:
            self._sweep(shard, now)
            slot = self._free_slot(shard)
        if slot < 0:
            self.results.full.value += 1
            slot = min(range(shard * SLOTS, (shard + 1) * SLOTS), key=self._times.__getitem__)
            self._hashes[slot] = 0
            self._set_used(shard)
        self._times[slot] = free_at
        self._hashes[slot] = number
        self._used[shard] += 1
        return slot

    def _sweep(self, shard: int, now: float) -> None:
        """Make slots free whose time is over."""
        for slot in range(shard * SLOTS, (shard + 1) * SLOTS):
            if self._times[slot] <= now:
                self._hashes[slot] = 0
        self._set_used(shard)
