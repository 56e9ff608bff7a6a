# SPDX-License-Identifier: Apache-2.0
"""Deadlines in lanes, by a clock that a test turns."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailproxy.app import WorkerLoop
from mailproxy.loop import epoll as reactor_module
from mailproxy.loop import timeouts as timers_module
from mailproxy.loop.timeouts import Deadlines, Timeouts


class Clock(WorkerLoop):
    """A worker's loop that turns when it is told to, and by as much."""

    moment = 1000.0

    def time(self) -> float:
        return self.moment

    def pass_to(self, seconds: float) -> None:
        """Turn the clock to so many seconds after its beginning, and do what is due."""
        self.moment = 1000.0 + seconds
        self.run_until_complete(asyncio.sleep(0))


class Waiting:
    """Something with a deadline, which notes when it was over and then does something."""

    def __init__(self, clock: Clock, then: Callable[[], object] = lambda: None) -> None:
        self.timer: Deadlines | None = None
        self.over: list[float] = []
        self._clock = clock
        self._then = then

    def on_timeout(self) -> None:
        self.over.append(self._clock.moment - 1000.0)
        self._then()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made: list[Clock] = []
    time = types.SimpleNamespace(monotonic=lambda: made[0].moment if made else Clock.moment)
    monkeypatch.setattr(reactor_module, "time", time)
    monkeypatch.setattr(timers_module, "time", time)
    made.append(Clock())
    yield made[0]
    made[0].close()


@pytest.fixture
def timers(clock: Clock) -> Timeouts:
    return Timeouts(clock, clock.reactor)


def test_a_deadline_is_over_when_its_time_has_come_and_once(clock: Clock, timers: Timeouts) -> None:
    waiting = Waiting(clock)
    timers.lane(60.0).arm(waiting)
    for moment in (1.0, 59.9, 60.0, 61.0, 1000.0):
        clock.pass_to(moment)
    assert waiting.over == [60.0]
    assert waiting.timer is None
    assert timers.waiting() == []


def test_those_of_one_length_are_over_in_their_order(clock: Clock, timers: Timeouts) -> None:
    order: list[int] = []
    lane = timers.lane(60.0)
    for number in range(3):
        clock.pass_to(number)
        lane.arm(Waiting(clock, lambda number=number: order.append(number)))  # type: ignore[misc]
    clock.pass_to(61.0)
    assert order == [0, 1]
    clock.pass_to(62.0)
    assert order == [0, 1, 2]


@pytest.mark.parametrize(
    ("first", "then", "over"),
    [
        (10.0, 10.0, 14.0),  # the same lane, from now on
        (10.0, 60.0, 64.0),
        (60.0, 10.0, 14.0),
    ],
)
def test_a_new_deadline_takes_the_place_of_the_old_one(
    clock: Clock, timers: Timeouts, first: float, then: float, over: float
) -> None:
    waiting = Waiting(clock)
    timers.lane(first).arm(waiting)
    clock.pass_to(4.0)
    timers.lane(then).arm(waiting)
    for moment in (10.0, 13.0, 14.0, 60.0, 64.0, 100.0):
        clock.pass_to(moment)
    assert waiting.over == [over]


def test_a_deadline_can_be_forgotten(clock: Clock, timers: Timeouts) -> None:
    kept, gone = Waiting(clock), Waiting(clock)
    timers.lane(10.0).arm(gone)
    timers.lane(10.0).arm(kept)
    assert timers.waiting() == [gone, kept]
    timers.disarm(gone)
    timers.disarm(gone)
    assert timers.waiting() == [kept]
    clock.pass_to(10.0)
    assert (gone.over, kept.over) == ([], [10.0])


def test_what_is_over_can_wait_again(clock: Clock, timers: Timeouts) -> None:
    lane = timers.lane(10.0)
    waiting = Waiting(clock, lambda: lane.arm(waiting))
    lane.arm(waiting)
    for moment in (10.0, 20.0, 30.0):
        clock.pass_to(moment)
    assert waiting.over == [10.0, 20.0, 30.0]


def test_who_fails_does_not_keep_the_others_waiting(clock: Clock, timers: Timeouts) -> None:
    told: list[dict[str, Any]] = []
    clock.set_exception_handler(lambda _, context: told.append(context))
    failing, other = Waiting(clock, lambda: 1 // 0), Waiting(clock)
    timers.lane(10.0).arm(failing)
    timers.lane(10.0).arm(other)
    clock.pass_to(10.0)
    clock.pass_to(10.1)
    assert isinstance(told[0]["exception"], ZeroDivisionError)
    assert failing.over == [10.0]
    assert len(other.over) == 1


def test_who_is_over_may_forget_another_that_would_be(clock: Clock, timers: Timeouts) -> None:
    second = Waiting(clock)
    first = Waiting(clock, lambda: timers.disarm(second))
    timers.lane(10.0).arm(first)
    timers.lane(10.0).arm(second)
    clock.pass_to(10.0)
    assert (first.over, second.over) == ([10.0], [])


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
def test_any_length_is_rounded_up_a_little(
    clock: Clock, timers: Timeouts, seconds: float, latest: float
) -> None:
    waiting = Waiting(clock)
    timers.arm(waiting, seconds)
    (lane,) = (lane for lane in timers._lanes.values() if waiting in lane.waiting)
    assert seconds <= lane.seconds <= seconds + latest + 1e-9


def test_a_length_that_the_configuration_sets_is_not_rounded(clock: Clock, timers: Timeouts) -> None:
    lane = timers.lane(7.03)
    waiting = Waiting(clock)
    timers.arm(waiting, 7.03)
    assert waiting in lane.waiting
    assert timers.lane(7.03) is lane


def test_there_are_only_so_many_lanes(clock: Clock, timers: Timeouts) -> None:
    waiting = Waiting(clock)
    for milliseconds in range(0, 3_600_000, 77):
        timers.arm(waiting, milliseconds / 1000)
    assert len(timers._lanes) < 450
    assert timers.waiting() == [waiting]


class Walked(dict[Any, float]):
    """A lane's dictionary that counts how often it is walked over from its beginning."""

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
def test_expiry_does_not_walk_over_what_was_deleted_for_every_deadline(
    clock: Clock, timers: Timeouts, moments: int
) -> None:
    lane = timers.lane(60.0)
    lane.waiting = walked = Walked()
    everybody = [Waiting(clock) for _ in range(10_000)]
    step = len(everybody) // moments
    for number, one in enumerate(everybody):
        clock.reactor.now = 1000.0 + number // step / 1000
        lane.arm(one)
    for moment in range(moments):
        clock.moment = 1060.0 + moment / 1000
        lane._fire()
    assert all(one.over for one in everybody)
    assert walked.walks < 100


def test_who_was_set_anew_while_others_expire_keeps_the_new_deadline(clock: Clock, timers: Timeouts) -> None:
    lane = timers.lane(10.0)
    crowd = [Waiting(clock) for _ in range(300)]
    for number, one in enumerate(crowd):
        clock.reactor.now = 1000.0 + number / 1000
        lane.arm(one)
    clock.pass_to(10.0)  # the first are looked at
    clock.reactor.now = 1010.0
    lane.arm(crowd[5])
    timers.disarm(crowd[6])
    clock.pass_to(15.0)
    assert [number for number, one in enumerate(crowd) if not one.over] == [5, 6]
    clock.pass_to(20.0)
    assert (crowd[5].over, crowd[6].over) == ([20.0], [])
    assert lane._first == []
