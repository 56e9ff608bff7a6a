# SPDX-License-Identifier: Apache-2.0
"""Tables in shared memory, and the one of sessions by key.

A zone has shards of 32 slots.  The hash of a key selects its shard, and ``mmap.find`` finds its slots
there.  A lock protects each shard; nothing else is ever locked, and nothing takes longer than one shard.
A session of a key that is well below its limit is counted without a lock (``ConnZone.acquire_known``).

A process may be killed between any two of its writes.  So each one leaves the table valid: the hash is
written last, and a slot without a hash is free.
"""

from __future__ import annotations

import errno
import mmap
from collections import OrderedDict
from contextlib import suppress
from functools import cached_property
from typing import Final

from mailproxy.limits.mutex import (
    MUTEX_BYTES,
    Busy,
    Mutex,
    lock_patiently,
    make_mutex,
    mutex_at,
    trylock,
    unlock,
    wait,
)
from mailproxy.telemetry.metrics import Counter, LimitZoneMetrics

SLOTS: Final = 32
"""Slots of a shard."""
FILL: Final = 3
"""A zone has three slots per key that it has place for: with a third of them used, no shard is full."""
KNOWN: Final = 2048
"""Keys of a zone whose slots a process remembers, so that it does not search for those that come often."""
CONN: Final = 1
"""The kind of zones that count sessions."""
PROCESSES: Final = slice(16, 18)
"""Where the area has the highest number that a process had: no more of them run at the same time."""
MOST_IDLE: Final = 1024
"""Slots of a process without sessions that it keeps for the next session of their keys; in a small zone,
or with many processes, fewer."""

MUTEXES: Final = 64
SWEEP: Final = 16
"""So many new keys of a shard later, slots that are not needed any more are made free."""
_BYTES: Final = {CONN: 8 + 4 + 2, 0: 8 + 8}
"""Bytes of a slot: hash, number of sessions, process; or hash, time."""
_VERSION_BYTES: Final = 4
_IDLE_PART: Final = 16
"""All processes together keep one slot of so many without a session: others must find free ones."""
_FREE: Final = bytes(8)


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
        shard_bytes = SLOTS * _BYTES[kind] + 2 + _VERSION_BYTES
        self.shards = max((size - MUTEX_BYTES * MUTEXES - 16) // shard_bytes, 1)
        self.slots = self.shards * SLOTS
        self.mutexes = address + offset
        self._versions_at = offset + MUTEX_BYTES * MUTEXES
        self._used_at = self._versions_at + (self.shards * _VERSION_BYTES + 7) // 8 * 8
        self.hashes_at = self._used_at + (self.shards * 2 + 7) // 8 * 8
        self._values_at = self.hashes_at + 8 * self.slots

    @cached_property
    def used(self) -> memoryview:
        """The number of slots in use, by shard."""
        return self.memory[self._used_at : self._used_at + 2 * self.shards].cast("H")

    @cached_property
    def versions(self) -> memoryview:
        """How often hashes of a shard were written or removed."""
        return self.memory[self._versions_at : self._versions_at + _VERSION_BYTES * self.shards].cast("I")

    @cached_property
    def processes(self) -> memoryview:
        """The highest number that a process had."""
        return self.memory[PROCESSES].cast("H")

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
    for number in range(MUTEXES):
        make_mutex(place.mutexes + number * MUTEX_BYTES)


def entries_of(place: Place) -> tuple[int, int]:
    """Return the slots in use, and for how many keys there is place."""
    return sum(place.used), place.slots // FILL


class Zone:
    """What all kinds of zones have: shards with locks, slots found by hash, and the number of used ones."""

    __slots__ = (
        *("_file", "_find", "_first", "_hashes", "_mutexes", "_shards", "_used"),
        *("is_closed", "offset", "results"),
    )

    def __init__(self, place: Place, results: LimitZoneMetrics | None) -> None:
        self._file: mmap.mmap = place.memory.obj  # type: ignore[assignment]
        self._find = self._file.find
        self._first = place.hashes_at
        self._hashes = place.hashes
        self._mutexes = [mutex_at(place.mutexes + number * MUTEX_BYTES) for number in range(MUTEXES)]
        self._shards = place.shards
        self._used = place.used
        self.is_closed = False
        self.offset = place.offset
        self.results = no_results() if results is None else results

    def close(self) -> None:
        """Count nothing any more: sessions of an earlier configuration may still have the zone."""
        self.is_closed = True

    def mutex_of(self, shard: int) -> Mutex:
        """Return the lock of a shard."""
        return self._mutexes[shard % MUTEXES]

    def _free_slot(self, shard: int) -> int:
        """Return a free slot of a shard, -1 for none."""
        return self._search(_FREE, shard)

    def _search(self, pattern: bytes, shard: int) -> int:
        """Return the first slot of a shard with this hash, -1 for none."""
        first = self._first
        start = first + shard * SLOTS * 8
        end = start + SLOTS * 8
        at: int = self._find(pattern, start, end)
        while at >= 0 and (at - first) & 7:  # it begins inside of a hash
            at = self._find(pattern, at + 1, end)
        return -1 if at < 0 else (at - first) >> 3

    def _set_used(self, shard: int) -> None:
        slots = self._hashes[shard * SLOTS : (shard + 1) * SLOTS]
        self._used[shard] = SLOTS - slots.tolist().count(0)


class ConnZone(Zone):
    """Counts sessions by key.

    A process has slots of its own, with the number of its sessions of a key; the sum of all slots of the
    key is compared with the limit.  So what a killed process has counted can be found and removed.  Only
    the process itself writes to its slots, and makes them free.

    Args:
        place: Where it is.
        number: Of this process.
        results: Counters.

    Attributes:
        held: The sessions that this process has counted.
    """

    __slots__ = (
        *("_counts", "_idle", "_known", "_most_idle", "_number", "_owners", "_processes", "_versions"),
        "held",
    )

    def __init__(self, place: Place, number: int, results: LimitZoneMetrics | None = None) -> None:
        super().__init__(place, results)
        self._counts = place.counts
        self._owners = place.owners
        self._versions = place.versions
        self._processes = place.processes
        self._number = number
        self._known: dict[bytes, tuple[int, int, int, tuple[int, ...]]] = {}
        """By hash: the slot of this process, the shard, its version, and the slots of other processes."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._most_idle = min(MOST_IDLE, place.slots // (_IDLE_PART * max(place.processes[0], 1)))
        self.held = 0

    def acquire_known(self, key: tuple[int, bytes], limit: int) -> int:
        """Count a session without a lock, if its key is known and well below the limit.

        Every process first counts, and then compares the sum.  The sum may lack the last session of each
        other process, which runs at the same time: so it is compared with the limit less their number, and
        the limit is never exceeded.

        Args:
            key: The hash of its key.
            limit: How many sessions there may be.

        Returns:
            The slot to release; -1 where the session was not counted: ``acquire`` decides.
        """
        known = self._known.get(key[1])
        if known is None:
            return -1
        slot, shard, version, others = known
        counts = self._counts
        counts[slot] = total = own = counts[slot] + 1
        if self._versions[shard] == version:  # no other process has a new slot
            if others:
                total += sum([counts[other] for other in others])
            if total <= limit - self._processes[0]:
                self.held += 1
                return slot
        counts[slot] = own - 1
        return -1

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
        own = self.acquire_known(key, limit)
        if own >= 0:
            return own, False
        if self.is_closed:
            return -1, False
        number, pattern = key
        shard = number % self._shards
        mutex = self._mutexes[shard % MUTEXES]
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            total, own, others = self._sum(pattern, shard)
            is_over = total >= limit
            if is_over and not dry_run:
                return -1, True
            if own < 0:
                own = self._insert(number, shard)
                if own < 0:
                    self.results.full.value += 1
                    return -1, is_over
            self._remember(pattern, own, shard, others)
            self._counts[own] += 1
        finally:
            unlock(mutex)
        self.held += 1
        return own, is_over

    def _remember(self, pattern: bytes, own: int, shard: int, others: tuple[int, ...]) -> None:
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[pattern] = own, shard, self._versions[shard], others

    def _sum(self, pattern: bytes, shard: int) -> tuple[int, int, tuple[int, ...]]:
        """Return all sessions of a key, this process's slot, -1 for none, and those of other processes."""
        total, own, others = 0, -1, []
        start = self._first + shard * SLOTS * 8
        end = start + SLOTS * 8
        at = self._find(pattern, start, end)
        while at >= 0:
            if not (at - start) & 7:
                slot = (at - self._first) >> 3
                total += self._counts[slot]
                if self._owners[slot] == self._number:
                    own = slot
                else:
                    others.append(slot)
            at = self._find(pattern, at + 1, end)
        return total, own, tuple(others)

    def release(self, slot: int) -> None:
        """A session that was counted is over.  Without a lock: nobody else writes to a slot that is used."""
        self.held -= 1
        left = self._counts[slot]
        if left > 1:
            self._counts[slot] = left - 1
        elif left:
            self._counts[slot] = 0
            if slot not in self._idle:
                self._idle[slot] = None
                while len(self._idle) > self._most_idle and self._free_oldest():
                    pass

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
            mutex = self.mutex_of(shard)
            lock_patiently(mutex)
            try:
                for slot in range(shard * SLOTS, (shard + 1) * SLOTS):
                    if self._owners[slot] == self._number:
                        self._counts[slot] = 0
                self._sweep(shard)
            finally:
                unlock(mutex)

    def _insert(self, number: int, shard: int) -> int:
        if self._used[shard] and self._used[shard] % SWEEP == 0:
            self._sweep(shard)
        slot = self._free_slot(shard)
        if slot < 0:
            self._sweep(shard)
            slot = self._free_slot(shard)
            if slot < 0:
                return -1
        self._counts[slot] = 0
        self._owners[slot] = self._number
        self._change_version(shard)
        self._used[shard] += 1  # first: a shard of which it is 0 has no hash, whenever the process is killed
        self._hashes[slot] = number
        return slot

    def _sweep(self, shard: int) -> None:
        """Make slots of this process free that have no sessions; with the lock of the shard."""
        for slot in range(shard * SLOTS, (shard + 1) * SLOTS):
            if self._hashes[slot] and self._owners[slot] == self._number and not self._counts[slot]:
                self._free(slot)
        self._set_used(shard)
        self._change_version(shard)

    def close(self) -> None:
        """Make the slots free that have no sessions; nothing is counted any more."""
        super().close()
        self._known.clear()
        with suppress(Busy):
            while self._idle:
                slot, _ = self._idle.popitem()
                self._free_idle(slot, trylock(self.mutex_of(slot // SLOTS)))

    def _free_oldest(self) -> bool:
        """Make the slot free that has had no session for the longest time, if that needs no waiting."""
        slot, _ = self._idle.popitem(last=False)
        if self._counts[slot]:
            return True
        code = trylock(self.mutex_of(slot // SLOTS))
        if code == errno.EBUSY:
            self._idle[slot] = None
            return False
        self._free_idle(slot, code)
        return True

    def _free_idle(self, slot: int, code: int) -> None:
        """Make a slot free that has no sessions; ``code`` is the result of ``trylock``."""
        shard = slot // SLOTS
        mutex = self.mutex_of(shard)
        if code:
            wait(mutex, code)
        try:  # with the lock: without it, another process may take the slot between two of these reads
            if self._hashes[slot] and self._owners[slot] == self._number and not self._counts[slot]:
                self._free(slot)
                self._used[shard] -= 1
                self._change_version(shard)
        finally:
            unlock(mutex)

    def _free(self, slot: int) -> None:
        self._known.pop(self._hashes[slot].to_bytes(8, "little"), None)
        self._hashes[slot] = 0

    def _change_version(self, shard: int) -> None:
        self._versions[shard] = (self._versions[shard] + 1) & 0xFFFFFFFF
