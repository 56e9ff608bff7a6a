# SPDX-License-Identifier: Apache-2.0
"""Deadlines that cost a dictionary entry to set: those of one length expire in the order they were set.

A lane holds all deadlines of one length, in a dictionary, which keeps that
order; only the first of them needs a look, and only when its time has come.
A dictionary finds its first entry by walking over all that were deleted before
it, so a lane takes many of the first at a time: the work is linear in the
number of deadlines, and setting or forgetting one costs nothing for that.
Lengths are those of a few directives.  Any other length is rounded up to one
of a bounded number of lanes: late by a tenth of a second where it is one of
seconds, by about one part in sixty where it is longer; never early.
"""

from __future__ import annotations

import asyncio
import math
import time
from itertools import islice
from typing import Final, Protocol

from mailproxy.loop.epoll import Reactor

_STEPS: Final = ((12.8, 0.1), (102.4, 0.8), (819.2, 6.4))
"""Lengths up to so many seconds are rounded up to so many."""
_COARSEST: Final = 102.4
_SHARE: Final = 8
"""The part of a lane that is taken at a time: its eighth, within the next two."""
_FEWEST, _MOST = 64, 8192


class Timed(Protocol):
    """Whatever can have one deadline at a time; ``timer`` belongs to this module."""

    timer: Deadlines | None

    def on_timeout(self) -> None:
        """The time is over."""
        ...


Deadlines = dict[Timed, float]
"""Who waits in a lane, first come first, and until when (monotonic, in seconds)."""


class TimeoutQueue:
    """All deadlines of one length.

    Args:
        loop: Wakes the lane when its first deadline has come.
        reactor: Knows what time it is, as of its newest poll.
        seconds: The length.
    """

    __slots__ = ("_first", "_loop", "_reactor", "_wake", "seconds", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, reactor: Reactor, seconds: float) -> None:
        self._loop = loop
        self._reactor = reactor
        self._wake: asyncio.TimerHandle | None = None
        self.seconds = seconds
        self.waiting: Deadlines = {}
        self._first: list[tuple[Timed, float]] = []
        """The first of ``waiting``, in reverse; those forgotten or set anew since are passed over."""

    def arm(self, timed: Timed) -> None:
        """Set the one deadline of ``timed``; an earlier one is forgotten."""
        if timed.timer is not None:
            timed.timer.pop(timed, None)
        timed.timer = waiting = self.waiting
        waiting[timed] = moment = self._reactor.now + self.seconds
        if self._wake is None:
            self._wake = self._loop.call_at(moment, self._fire)

    def _fire(self) -> None:
        """Call those whose time is over, and return when the next deadline has come.

        What one of them raises ends its owner, and no other waits for that.
        """
        self._wake = None
        waiting, now = self.waiting, time.monotonic()
        try:
            while (first := self._next()) is not None and first[1] <= now:
                timed, _ = self._first.pop()
                del waiting[timed]
                timed.timer = None
                try:
                    timed.on_timeout()
                except Exception as crash:  # an entry point
                    self._reactor.crashed(timed, crash)
        finally:
            first = self._next()
            if first is not None and self._wake is None:
                self._wake = self._loop.call_at(first[1], self._fire)

    def _next(self) -> tuple[Timed, float] | None:
        """Give whoever waits for the earliest deadline, and that; it is the last of ``_first``."""
        waiting, first = self.waiting, self._first
        while waiting:
            while first:
                timed, moment = entry = first[-1]
                if waiting.get(timed) == moment:
                    return entry
                first.pop()
            share = min(max(len(waiting) // _SHARE, _FEWEST), _MOST)
            first.extend(islice(waiting.items(), share))
            first.reverse()
        first.clear()
        return None


class Timeouts:
    """All lanes of a worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reactor: Reactor) -> None:
        self._loop = loop
        self._reactor = reactor
        self._lanes: dict[float, TimeoutQueue] = {}

    def lane(self, seconds: float) -> TimeoutQueue:
        """Give the lane for deadlines of exactly this length; for the lengths that the configuration sets."""
        lane = self._lanes.get(seconds)
        if lane is None:
            lane = self._lanes[seconds] = TimeoutQueue(self._loop, self._reactor, seconds)
        return lane

    def arm(self, timed: Timed, seconds: float) -> None:
        """Set the one deadline of ``timed``, of any length; an earlier one is forgotten."""
        lane = self._lanes.get(seconds)
        (self.lane(_rounded(seconds)) if lane is None else lane).arm(timed)

    def disarm(self, timed: Timed) -> None:
        """Forget the deadline of ``timed``, if it has one."""
        if timed.timer is not None:
            timed.timer.pop(timed, None)
            timed.timer = None

    def waiting(self) -> list[Timed]:
        """List everybody who has a deadline."""
        return [timed for lane in self._lanes.values() for timed in lane.waiting]


def _rounded(seconds: float) -> float:
    step = next((step for limit, step in _STEPS if seconds <= limit), _COARSEST)
    return max(math.ceil(seconds / step), 1) * step
