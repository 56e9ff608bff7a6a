"""Deadlines in coarse buckets: a fraction of a microsecond to set, and never early.

A deadline that lies far away may be late by about one part in sixty; one of a few
seconds by a tenth of a second.  Who needs better asks the loop.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Final, Protocol

_PER_SECOND: Final = 10
_STEPS: Final = ((128, 1), (1024, 8), (8192, 64))
"""Up to so many tenths of a second ahead, round up to so many."""
_COARSEST: Final = 1024


class Timed(Protocol):
    """Whatever can have one deadline at a time; ``timer`` belongs to ``Timers``."""

    timer: int

    def on_timeout(self) -> None:
        """The time is over."""
        ...


class Timers:
    """All coarse deadlines of a worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Timed]] = {}
        self._order: list[int] = []
        self._wake: asyncio.TimerHandle | None = None
        self._wakes_at = 0

    def arm(self, timed: Timed, seconds: float) -> None:
        """Set the one deadline of ``timed``; an earlier one is forgotten."""
        if timed.timer:
            self.disarm(timed)
        moment = _bucket(time.monotonic(), seconds)
        timed.timer = moment
        bucket = self._buckets.get(moment)
        if bucket is None:
            self._buckets[moment] = {timed}
            heapq.heappush(self._order, moment)
            if self._wake is None or moment < self._wakes_at:
                self._schedule()
        else:
            bucket.add(timed)

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline of ``timed``, if it has one."""
        moment = timed.timer
        if moment:
            timed.timer = 0
            bucket = self._buckets.get(moment)
            if bucket is not None:
                bucket.discard(timed)  # an empty bucket stays: the steps bound how many there are

    def close(self) -> None:
        """Forget everything."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._buckets.clear()
        self._order.clear()

    def _schedule(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._order:
            self._wakes_at = self._order[0]
            delay = self._wakes_at / _PER_SECOND - time.monotonic()
            self._wake = self._loop.call_later(max(delay, 0.0), self._fire)

    def _fire(self) -> None:
        self._wake = None
        moment = int(time.monotonic() * _PER_SECOND)
        while self._order and self._order[0] <= moment:
            bucket = self._buckets.pop(heapq.heappop(self._order), None)
            for timed in bucket or ():
                timed.timer = 0
            for timed in bucket or ():
                if not timed.timer:  # not armed anew by one that fired before it
                    timed.on_timeout()
        self._schedule()


def _bucket(now: float, seconds: float) -> int:
    ahead = seconds * _PER_SECOND
    moment = int(now * _PER_SECOND + ahead) + 1
    for limit, step in _STEPS:
        if ahead <= limit:
            return moment if step == 1 else -(-moment // step) * step
    return -(-moment // _COARSEST) * _COARSEST
