# SPDX-License-Identifier: Apache-2.0
"""Queues of timeouts, with a clock that the test sets."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailproxy.loop import epoll as epoll_module
from mailproxy.loop import timeouts as timeouts_module
from mailproxy.loop.timeouts import Deadlines, Timeouts
from mailproxy.loop.worker_loop import WorkerLoop


class Clock(WorkerLoop):
    """A worker's event loop whose time is set by the test."""

    moment = 1000.0

    def time(self) -> float:
        return self.moment

    def pass_to(self, seconds: float) -> None:
        """Set the clock to so many seconds after the start, and run what is due."""
        self.moment = 1000.0 + seconds
        self.run_until_complete(asyncio.sleep(0))


class Waiting:
    """Records when its timeout expired, and calls ``then``."""

    def __init__(self, clock: Clock, then: Callable[[], object] = lambda: None) -> None:
        self.timer: Deadlines | None = None
        self.expired_at: list[float] = []
        self._clock = clock
        self._then = then

    def on_timeout(self) -> None:
        self.expired_at.append(self._clock.moment - 1000.0)
        self._then()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made: list[Clock] = []
    time = types.SimpleNamespace(monotonic=lambda: made[0].moment if made else Clock.moment)
    monkeypatch.setattr(epoll_module, "monotonic", time.monotonic)
    monkeypatch.setattr(timeouts_module, "time", time)
    made.append(Clock())
    yield made[0]
    made[0].close()


@pytest.fixture
def timers(clock: Clock) -> Timeouts:
    return Timeouts(clock, clock.epoll)


def test_timeout_expires_once_at_its_deadline(clock: Clock, timers: Timeouts) -> None:
    waiting = Waiting(clock)
    timers.queue(60.0).arm(waiting)
    for moment in (1.0, 59.9, 60.0, 61.0, 1000.0):
        clock.pass_to(moment)
    assert waiting.expired_at == [60.0]
    assert waiting.timer is None
    assert timers.waiting() == []


def test_timeouts_of_one_length_expire_in_order(clock: Clock, timers: Timeouts) -> None:
    order: list[int] = []
    queue = timers.queue(60.0)
    for number in range(3):
        clock.pass_to(number)
        queue.arm(Waiting(clock, lambda number=number: order.append(number)))  # type: ignore[misc]
    clock.pass_to(61.0)
    assert order == [0, 1]
    clock.pass_to(62.0)
    assert order == [0, 1, 2]


@pytest.mark.parametrize(
    ("first", "then", "over"),
    [
        (10.0, 10.0, 14.0),  # the same queue, from now on
        (10.0, 60.0, 64.0),
        (60.0, 10.0, 14.0),
    ],
)
def test_new_timeout_replaces_the_old_one(
    clock: Clock, timers: Timeouts, first: float, then: float, over: float
) -> None:
    waiting = Waiting(clock)
    timers.queue(first).arm(waiting)
    clock.pass_to(4.0)
    timers.queue(then).arm(waiting)
    for moment in (10.0, 13.0, 14.0, 60.0, 64.0, 100.0):
        clock.pass_to(moment)
    assert waiting.expired_at == [over]


def test_timeout_can_be_cancelled(clock: Clock, timers: Timeouts) -> None:
    kept, cancelled = Waiting(clock), Waiting(clock)
    timers.queue(10.0).arm(cancelled)
    timers.queue(10.0).arm(kept)
    assert timers.waiting() == [cancelled, kept]
    timers.disarm(cancelled)
    timers.disarm(cancelled)
    assert timers.waiting() == [kept]
    clock.pass_to(10.0)
    assert (cancelled.expired_at, kept.expired_at) == ([], [10.0])


def test_timeout_can_be_started_again_when_it_expires(clock: Clock, timers: Timeouts) -> None:
    queue = timers.queue(10.0)
    waiting = Waiting(clock, lambda: queue.arm(waiting))
    queue.arm(waiting)
    for moment in (10.0, 20.0, 30.0):
        clock.pass_to(moment)
    assert waiting.expired_at == [10.0, 20.0, 30.0]


def test_exception_in_on_timeout_does_not_stop_other_timeouts(clock: Clock, timers: Timeouts) -> None:
    reported: list[dict[str, Any]] = []
    clock.set_exception_handler(lambda _, context: reported.append(context))
    failing, other = Waiting(clock, lambda: 1 // 0), Waiting(clock)
    timers.queue(10.0).arm(failing)
    timers.queue(10.0).arm(other)
    clock.pass_to(10.0)
    clock.pass_to(10.1)
    assert isinstance(reported[0]["exception"], ZeroDivisionError)
    assert failing.expired_at == [10.0]
    assert len(other.expired_at) == 1


def test_expiring_timeout_can_cancel_another(clock: Clock, timers: Timeouts) -> None:
    second = Waiting(clock)
    first = Waiting(clock, lambda: timers.disarm(second))
    timers.queue(10.0).arm(first)
    timers.queue(10.0).arm(second)
    clock.pass_to(10.0)
    assert (first.expired_at, second.expired_at) == ([10.0], [])


@pytest.mark.parametrize(
    ("seconds", "latest"),
    [
        # a length     late by at most
        (0.0, 0.1),
        (0.05, 0.1),
        (0.1, 0.1),
        (2.5, 0.1),
        (12.8, 0.1),
        (12.9, 0.8),
        (100.0, 0.8),
        (500.0, 6.4),
        (86_399.0, 102.4),
    ],
)
def test_other_lengths_are_rounded_up(clock: Clock, timers: Timeouts, seconds: float, latest: float) -> None:
    waiting = Waiting(clock)
    timers.arm(waiting, seconds)
    (queue,) = (queue for queue in timers.queues.values() if waiting in queue.waiting)
    assert seconds <= queue.seconds <= seconds + latest + 1e-9


def test_configured_length_is_not_rounded(clock: Clock, timers: Timeouts) -> None:
    queue = timers.queue(7.03)
    waiting = Waiting(clock)
    timers.arm(waiting, 7.03)
    assert waiting in queue.waiting
    assert timers.queue(7.03) is queue


def test_number_of_queues_is_limited(clock: Clock, timers: Timeouts) -> None:
    waiting = Waiting(clock)
    for milliseconds in range(0, 3_600_000, 77):
        timers.arm(waiting, milliseconds / 1000)
    assert len(timers.queues) < 450
    assert timers.waiting() == [waiting]


class Walked(dict[Any, float]):
    """A queue's dictionary that counts how often it is iterated from its beginning."""

    walks = 0

    def _count(self) -> None:
        self.walks += 1

    def items(self) -> Any:
        self._count()
        return super().items()

    def values(self) -> Any:
        self._count()
        return super().values()

    def __iter__(self) -> Any:
        self._count()
        return super().__iter__()


@pytest.mark.parametrize("moments", [1, 1_000, 10_000], ids=["at once", "in batches", "one by one"])
def test_expiry_takes_linear_time_after_deletions(clock: Clock, timers: Timeouts, moments: int) -> None:
    queue = timers.queue(60.0)
    queue.waiting = walked = Walked()
    items = [Waiting(clock) for _ in range(10_000)]
    step = len(items) // moments
    for number, item in enumerate(items):
        clock.epoll.now = 1000.0 + number // step / 1000
        queue.arm(item)
    for moment in range(moments):
        clock.moment = 1060.0 + moment / 1000
        queue.expire()
    assert all(item.expired_at for item in items)
    assert walked.walks < 100


def test_timeout_restarted_during_expiry_keeps_the_new_deadline(clock: Clock, timers: Timeouts) -> None:
    queue = timers.queue(10.0)
    waiting = [Waiting(clock) for _ in range(300)]
    for number, item in enumerate(waiting):
        clock.epoll.now = 1000.0 + number / 1000
        queue.arm(item)
    clock.pass_to(10.0)  # the first are looked at
    clock.epoll.now = 1010.0
    queue.arm(waiting[5])
    timers.disarm(waiting[6])
    clock.pass_to(15.0)
    assert [number for number, item in enumerate(waiting) if not item.expired_at] == [5, 6]
    clock.pass_to(20.0)
    assert (waiting[5].expired_at, waiting[6].expired_at) == ([20.0], [])
