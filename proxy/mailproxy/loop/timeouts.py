# SPDX-License-Identifier: Apache-2.0
"""Timeouts that cost one dictionary entry to set: those of equal length expire in the order they were set.

A queue holds all timeouts of one length in a dictionary, which keeps that
order.  Only the first is checked, and only when its deadline has passed.
To find its first entry, a dictionary walks over all entries that were deleted
before it.  So a queue takes many entries at a time, and its total work is
linear in the number of timeouts.

The lengths are those of a few directives.  Any other length is rounded up to
that of one of a limited number of queues: by 0.1 s up to 12.8 s, by at most
an eighth above that; never down.
"""

from __future__ import annotations

import asyncio
import math
import time
from itertools import islice
from typing import Final, Protocol

from mailproxy.loop.epoll import Epoll

_STEPS: Final = ((12.8, 0.1), (102.4, 0.8), (819.2, 6.4))
"""Lengths up to the first number of seconds are rounded up to a multiple of the second."""
_COARSEST: Final = 102.4
_SHARE: Final = 8
"""A queue's entries are taken by the eighth, but not fewer or more at a time than the next two."""
_FEWEST, _MOST = 64, 8192


class Timed(Protocol):
    """What can have one timeout at a time; ``timer`` is set by this module alone."""

    timer: Deadlines | None

    def on_timeout(self) -> None:
        """Called once at the deadline."""
        ...


Deadlines = dict[Timed, float]
"""What waits in a queue, in the order of its deadlines (monotonic, in seconds)."""


class TimeoutQueue:
    """All timeouts of one length.

    Args:
        loop: Calls ``expire`` at the first deadline.
        epoll: Its ``now`` is the time at which a timeout starts.
        seconds: The length.

    Attributes:
        waiting: What waits, and until when.
    """

    __slots__ = ("_epoll", "_first", "_loop", "_wake_up", "seconds", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: Epoll, seconds: float) -> None:
        self._loop = loop
        self._epoll = epoll
        self._wake_up: asyncio.TimerHandle | None = None
        self.seconds = seconds
        self.waiting: Deadlines = {}
        self._first: list[tuple[Timed, float]] = []
        """The first entries of ``waiting`` in reverse; those no longer in it are skipped."""

    def arm(self, timed: Timed) -> None:
        """Start the timeout of ``timed``; an earlier one is replaced."""
        if timed.timer is not None:
            del timed.timer[timed]
        timed.timer = waiting = self.waiting
        waiting[timed] = deadline = self._epoll.now + self.seconds
        if self._wake_up is None:
            self._wake_up = self._loop.call_at(deadline, self.expire)

    def expire(self) -> None:
        """Call ``on_timeout`` where the deadline has passed, and wait for the next one.

        An exception ends only what raised it.
        """
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        waiting, now = self.waiting, time.monotonic()
        try:
            while (first := self._next()) is not None and first[1] <= now:
                timed, _ = self._first.pop()
                del waiting[timed]
                timed.timer = None
                try:
                    timed.on_timeout()
                except Exception as error:  # an entry point
                    self._epoll.handle_error(timed, error)
        finally:
            first = self._next()
            if first is not None and self._wake_up is None:
                self._wake_up = self._loop.call_at(first[1], self.expire)

    def _next(self) -> tuple[Timed, float] | None:
        """Return the entry with the earliest deadline; it is the last of ``_first``."""
        waiting, first = self.waiting, self._first
        while waiting:
            while first:
                timed, deadline = entry = first[-1]
                if waiting.get(timed) == deadline:
                    return entry
                first.pop()
            share = min(max(len(waiting) // _SHARE, _FEWEST), _MOST)
            first.extend(islice(waiting.items(), share))
            first.reverse()
        first.clear()
        return None


class Timeouts:
    """All timeouts of a worker.

    Attributes:
        queues: By length, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: Epoll) -> None:
        self._loop = loop
        self._epoll = epoll
        self.queues: dict[float, TimeoutQueue] = {}

    def queue(self, seconds: float) -> TimeoutQueue:
        """Return the queue of timeouts of exactly this length; for lengths from the configuration."""
        queue = self.queues.get(seconds)
        if queue is None:
            queue = self.queues[seconds] = TimeoutQueue(self._loop, self._epoll, seconds)
        return queue

    def arm(self, timed: Timed, seconds: float) -> None:
        """Start the timeout of ``timed``, of any length; an earlier one is replaced."""
        queue = self.queues.get(seconds)
        (self.queue(_rounded(seconds)) if queue is None else queue).arm(timed)

    def disarm(self, timed: Timed) -> None:
        """Cancel the timeout of ``timed``, if it has one."""
        if timed.timer is not None:
            del timed.timer[timed]
            timed.timer = None

    def waiting(self) -> list[Timed]:
        """Return everything that has a timeout."""
        return [timed for queue in self.queues.values() for timed in queue.waiting]


def _rounded(seconds: float) -> float:
    step = next((step for limit, step in _STEPS if seconds <= limit), _COARSEST)
    return max(math.ceil(seconds / step), 1) * step
