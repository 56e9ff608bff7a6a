# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.deadlines``: the cost of deadlines, by their number.

Needs no nginx and no network: deadlines are set and expire in this process, by a
clock that the measurement sets.  CPU time of this process, the minimum of
several rounds, divided by the number of deadlines: if the work is linear, the
values for 10,000, 40,000 and 160,000 are the same.
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
"""Number of different times at which deadlines expire, unless all expire at once."""


class Item:
    """An object with a deadline."""

    __slots__ = ("has_expired", "timer")

    def __init__(self) -> None:
        self.timer: Deadlines | None = None
        self.has_expired = False

    def on_timeout(self) -> None:
        """Mark the item."""
        self.has_expired = True


@dataclass
class Setup:
    """A timeout queue, its items, and the clock."""

    timers: Timeouts
    queue: TimeoutQueue
    items: list[Item]
    now: float = 0.0


def arm(setup: Setup) -> None:
    """Set all deadlines."""
    for item in setup.items:
        setup.queue.arm(item)


def disarm(setup: Setup) -> None:
    """Cancel them, in the order in which they were set."""
    for item in setup.items:
        setup.timers.disarm(item)


def expire_at_once(setup: Setup) -> None:
    """Let all expire at the same time."""
    setup.now += _LENGTH
    setup.queue.expire()


def expire_in_batches(setup: Setup) -> None:
    """Let them expire at a thousand times, as those of clients that connected one after the other."""
    waiting = setup.queue.waiting
    step = len(setup.items) // _BATCHES
    for number, item in enumerate(setup.items):
        waiting[item] = number // step + 1.0
    for moment in range(1, _BATCHES + 1):
        setup.now = moment + 0.0
        setup.queue.expire()


def expire_behind_others(setup: Setup) -> None:
    """Let the last thousand expire one by one, after all others were cancelled."""
    disarm_count = len(setup.items) - _BATCHES
    for item in setup.items[:disarm_count]:
        setup.timers.disarm(item)
    waiting = setup.queue.waiting
    for number, item in enumerate(setup.items[disarm_count:]):
        waiting[item] = number + 1.0
    for moment in range(1, _BATCHES + 1):
        setup.now = moment + 0.0
        setup.queue.expire()


Operation = Callable[[Setup], None]
OPERATIONS: Final[dict[str, tuple[Sequence[Operation], Operation]]] = {
    # name: operations before the measurement, measured operation
    "set": ((), arm),
    "cancel": ((arm,), disarm),
    "expire, all at once": ((arm,), expire_at_once),
    "expire, at 1,000 times": ((arm,), expire_in_batches),
    "expire, 1,000 after all others were cancelled": ((arm,), expire_behind_others),
}


def measure(before: Sequence[Operation], work: Operation, size: int, rounds: int) -> float:
    """Return the CPU time of an operation in seconds: the minimum of several rounds."""
    return min(_once(before, work, size) for _ in range(rounds))


def _once(before: Sequence[Operation], work: Operation, size: int) -> float:
    loop = WorkerLoop()
    try:
        asyncio.set_event_loop(loop)
        timers = Timeouts(loop, loop.epoll)
        loop.epoll.now = 0.0
        setup = Setup(timers, timers.queue(_LENGTH), [Item() for _ in range(size)])
        with mock.patch.object(timeouts_module, "time", mock.Mock(monotonic=lambda: setup.now)):
            for operation in before:
                operation(setup)
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
