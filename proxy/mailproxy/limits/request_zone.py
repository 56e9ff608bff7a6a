# SPDX-License-Identifier: Apache-2.0
"""Rates of logins by key, in a zone of shared memory."""

from __future__ import annotations

import time
from typing import Final

from mailproxy.limits.mutex import Mutex, trylock, unlock, wait
from mailproxy.limits.zones import KNOWN, MUTEXES, SLOTS, SWEEP, Place, Zone
from mailproxy.telemetry.metrics import LimitZoneMetrics

_ROUNDING: Final = 1e-6


class ReqZone(Zone):
    """Rates of logins by key: a leaky bucket, as in ``ngx_http_limit_req_module``.

    Of each key, one time is kept: when the logins so far would be over, had they come at the rate.  A
    time that is past is the same as none.
    """

    __slots__ = ("_known", "_times")

    def __init__(self, place: Place, results: LimitZoneMetrics | None = None) -> None:
        super().__init__(place, results)
        self._times = place.times
        self._known: dict[bytes, tuple[int, Mutex]] = {}
        """By hash: the slot and the lock."""

    def close(self) -> None:
        """Count nothing any more."""
        super().close()
        self._known.clear()

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
        known = self._known.get(pattern)
        if known is None:
            return self._charge_unknown(key, interval, burst)
        slot, mutex = known
        times = self._times
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            if self._hashes[slot] == number:
                now = time.monotonic()
                free_at = times[slot]
                if free_at <= now:
                    times[slot] = now + interval
                    return 0.0
                excess = (free_at - now) / interval
                if excess > burst + _ROUNDING:
                    return -1.0
                times[slot] = free_at + interval
                return excess
        finally:
            unlock(mutex)
        return self._charge_unknown(key, interval, burst)

    def _charge_unknown(self, key: tuple[int, bytes], interval: float, burst: int) -> float:
        """Count a login whose slot is not known; as ``charge``."""
        if self.is_closed:
            return 0.0
        number, pattern = key
        shard = number % self._shards
        mutex = self._mutexes[shard % MUTEXES]
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            now = time.monotonic()
            slot = self._search(pattern, shard)
            free_at = max(self._times[slot], now) if slot >= 0 else now
            excess = (free_at - now) / interval
            if excess > burst + _ROUNDING:
                return -1.0
            if slot < 0:
                slot = self._insert(number, shard, now, free_at + interval)
            else:
                self._times[slot] = free_at + interval
        finally:
            unlock(mutex)
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[pattern] = slot, mutex
        return excess

    def give_back(self, key: tuple[int, bytes], interval: float) -> None:
        """Undo ``charge``: another limit refused the login.

        Raises:
            Busy: As ``charge``.
        """
        if self.is_closed:
            return
        number, pattern = key
        shard = number % self._shards
        mutex = self.mutex_of(shard)
        if code := trylock(mutex):
            wait(mutex, code)
        try:
            slot = self._search(pattern, shard)
            if slot >= 0:
                self._times[slot] -= interval
        finally:
            unlock(mutex)

    def _insert(self, number: int, shard: int, now: float, free_at: float) -> int:
        """Add a key, and return its slot; in a full shard, in place of the one whose time is over first."""
        if self._used[shard] and self._used[shard] % SWEEP == 0:
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
