# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.deadlines``: what deadlines cost, by how many there are.

Needs no nginx and no network: deadlines are set and expire in this process, by a
clock that the measurement turns.  Processor time of this process, the best of
several rounds, divided by the number of deadlines: where the work is linear,
the columns are the same for 10,000, 40,000 and 160,000.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from unittest import mock

from mailproxy.loop import timeouts as timeouts_module
from mailproxy.loop.timeouts import Deadlines, TimeoutQueue, Timeouts
from mailproxy.loop.worker_loop import WorkerLoop

SIZES: Final = (10_000, 40_000, 160_000)
_LENGTH: Final = 60.0
_BATCHES: Final = 1_000
"""Moments at which deadlines expire, where they do not all expire at once."""


class Timed:
    """Something with a deadline."""

    __slots__ = ("over", "timer")

    def __init__(self) -> None:
        self.timer: Deadlines | None = None
        self.over = False

    def on_timeout(self) -> None:
        """Note that the time is over."""
        self.over = True


@dataclass
class Scene:
    """A queue, what waits in it, and the clock."""

    timers: Timeouts
    queue: TimeoutQueue
    timed: list[Timed]
    now: float = 0.0

    def fire(self) -> None:
        """Expire what is due, as the event loop does."""
        self.queue.expire()


def arm(scene: Scene) -> None:
    """Set them."""
    for one in scene.timed:
        scene.queue.arm(one)


def disarm(scene: Scene) -> None:
    """Forget them, in the order in which they were set."""
    for one in scene.timed:
        scene.timers.disarm(one)


def expire_at_once(scene: Scene) -> None:
    """Let all expire at one moment."""
    scene.now += _LENGTH
    scene.fire()


def expire_in_batches(scene: Scene) -> None:
    """Let them expire at a thousand moments, as clients do that came one after the other."""
    waiting = scene.queue.waiting
    step = len(scene.timed) // _BATCHES
    for number, one in enumerate(scene.timed):
        waiting[one] = number // step + 1.0
    for moment in range(1, _BATCHES + 1):
        scene.now = moment + 0.0
        scene.fire()


def expire_behind_others(scene: Scene) -> None:
    """Let the last thousand expire one by one, behind all the others, which were forgotten."""
    disarm_count = len(scene.timed) - _BATCHES
    for one in scene.timed[:disarm_count]:
        scene.timers.disarm(one)
    waiting = scene.queue.waiting
    for number, one in enumerate(scene.timed[disarm_count:]):
        waiting[one] = number + 1.0
    for moment in range(1, _BATCHES + 1):
        scene.now = moment + 0.0
        scene.fire()


Work = Callable[[Scene], None]
WORKS: Final[dict[str, tuple[Sequence[Work], Work]]] = {
    # what: done before, measured
    "set": ((), arm),
    "forget": ((arm,), disarm),
    "expire, all at one moment": ((arm,), expire_at_once),
    "expire, at 1,000 moments": ((arm,), expire_in_batches),
    "expire, 1,000 behind those that were forgotten": ((arm,), expire_behind_others),
}


def measure(before: Sequence[Work], work: Work, size: int, rounds: int) -> float:
    """Give the processor time that some work takes, in seconds: the least of several rounds."""
    return min(_once(before, work, size) for _ in range(rounds))


def _once(before: Sequence[Work], work: Work, size: int) -> float:
    loop = WorkerLoop()
    try:
        asyncio.set_event_loop(loop)
        timers = Timeouts(loop, loop.epoll)
        loop.epoll.now = 0.0
        scene = Scene(timers, timers.queue(_LENGTH), [Timed() for _ in range(size)])
        with mock.patch.object(timeouts_module, "time", mock.Mock(monotonic=lambda: scene.now)):
            for one in before:
                one(scene)
            started = time.process_time()
            work(scene)
            return time.process_time() - started
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deadlines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    print("| deadlines | " + " | ".join(f"{size:,}" for size in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for name, (before, work) in WORKS.items():
        spent = [measure(before, work, size, options.rounds) for size in SIZES]
        cells = [f"{seconds * 1e9 / size:.0f} ns" for seconds, size in zip(spent, SIZES, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
