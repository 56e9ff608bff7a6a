# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.deadlines``: the cost of deadlines, by their number.

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

from mailproxy.app import WorkerLoop
from mailproxy.loop import timeouts as timers_module
from mailproxy.loop.timeouts import Deadlines, TimeoutQueue, Timeouts

SIZES: Final = (10_000, 40_000, 160_000)
_LENGTH: Final = 60.0
_BATCHES: Final = 1_000
"""Moments at which deadlines expire, where they do not all expire at once."""


class Item:
    """An object with a deadline."""

    __slots__ = ("over", "timer")

    def __init__(self) -> None:
        self.timer: Deadlines | None = None
        self.over = False

    def on_timeout(self) -> None:
        """Count the timeout."""
        self.over = True


@dataclass
class Setup:
    """A timeout queue, its items, and the clock."""

    timers: Timeouts
    queue: TimeoutQueue
    timed: list[Item]
    now: float = 0.0

    def fire(self) -> None:
        """Do what a timer of the event loop does."""
        if self.queue._wake is not None:  # noqa: SLF001 - the measured part itself
            self.queue._wake.cancel()  # noqa: SLF001
        self.queue._fire()  # noqa: SLF001


def arm(setup: Setup) -> None:
    """Set all deadlines."""
    for one in setup.timed:
        setup.queue.arm(one)


def disarm(setup: Setup) -> None:
    """Cancel them, in the order in which they were set."""
    for one in setup.timed:
        setup.timers.disarm(one)


def expire_at_once(setup: Setup) -> None:
    """Let all expire at the same time."""
    setup.now += _LENGTH
    setup.fire()


def expire_in_batches(setup: Setup) -> None:
    """Let them expire at a thousand times, as those of clients that connected one after the other."""
    waiting = setup.queue.waiting
    step = len(setup.timed) // _BATCHES
    for number, one in enumerate(setup.timed):
        waiting[one] = number // step + 1.0
    for moment in range(1, _BATCHES + 1):
        setup.now = moment + 0.0
        setup.fire()


def expire_behind_others(setup: Setup) -> None:
    """Let the last thousand expire one by one, after all others were cancelled."""
    disarm_count = len(setup.timed) - _BATCHES
    for one in setup.timed[:disarm_count]:
        setup.timers.disarm(one)
    waiting = setup.queue.waiting
    for number, one in enumerate(setup.timed[disarm_count:]):
        waiting[one] = number + 1.0
    for moment in range(1, _BATCHES + 1):
        setup.now = moment + 0.0
        setup.fire()


Operation = Callable[[Setup], None]
OPERATIONS: Final[dict[str, tuple[Sequence[Operation], Operation]]] = {
    # what: done before, measured
    "set": ((), arm),
    "forget": ((arm,), disarm),
    "expire, all at one moment": ((arm,), expire_at_once),
    "expire, at 1,000 moments": ((arm,), expire_in_batches),
    "expire, 1,000 behind those that were forgotten": ((arm,), expire_behind_others),
}


def measure(before: Sequence[Operation], work: Operation, size: int, rounds: int) -> float:
    """Return the CPU time of an operation in seconds: the minimum of several rounds."""
    return min(_once(before, work, size) for _ in range(rounds))


def _once(before: Sequence[Operation], work: Operation, size: int) -> float:
    loop = WorkerLoop()
    try:
        asyncio.set_event_loop(loop)
        timers = Timeouts(loop, loop.reactor)
        loop.reactor.now = 0.0
        setup = Setup(timers, timers.queue(_LENGTH), [Item() for _ in range(size)])
        with mock.patch.object(timers_module, "time", mock.Mock(monotonic=lambda: setup.now)):
            for one in before:
                one(setup)
            started = time.process_time()
            work(setup)
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
    for name, (before, work) in OPERATIONS.items():
        spent = [measure(before, work, size, options.rounds) for size in SIZES]
        cells = [f"{seconds * 1e9 / size:.0f} ns" for seconds, size in zip(spent, SIZES, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
