# SPDX-License-Identifier: Apache-2.0
"""When refused logins get their reply (``auth_mode upstream``)."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Final

import pytest

from mailproxy.session.refusal_times import JITTER, MAX_SECONDS, MIN_SECONDS, WINDOW, RefusalTimes

TRIES: Final = 200
DISTANCE: Final = 0.163
"""The largest distance of two samples of 200 from one distribution in 99 of 100 cases (Kolmogorov)."""


def fixed(value: float) -> Callable[[], float]:
    return lambda: value


def distance(one: list[float], other: list[float]) -> float:
    """Return the largest difference of the empirical distribution functions."""
    points = sorted({*one, *other})
    return max(
        abs(sum(x <= p for x in one) / len(one) - sum(x <= p for x in other) / len(other)) for p in points
    )


def test_first_refusals_are_sent_after_the_minimum() -> None:
    times = RefusalTimes(random=fixed(0.0))
    assert times.seconds_left(0.0, is_upstream=False) == MIN_SECONDS
    assert times.seconds_left(0.5, is_upstream=True) == MIN_SECONDS - 0.5


def test_random_part_is_at_most_a_quarter() -> None:
    times = RefusalTimes(random=fixed(0.999999))
    assert times.seconds_left(0.0, is_upstream=False) == pytest.approx(MIN_SECONDS * (1 + JITTER), rel=1e-5)


def test_refusal_without_an_upstream_is_not_earlier_than_the_median() -> None:
    times = RefusalTimes(random=fixed(0.0))
    for seconds in (3.0, 4.0, 5.0):
        times.seconds_left(seconds, is_upstream=True)
    assert times.seconds_left(0.0, is_upstream=False) == 4.0


def test_refusal_of_an_upstream_is_not_earlier_than_the_median() -> None:
    times = RefusalTimes(random=fixed(0.0))
    for seconds in (3.0, 4.0, 5.0):
        times.seconds_left(seconds, is_upstream=True)
    assert times.seconds_left(0.1, is_upstream=True) == 3.9


def test_refusal_without_an_upstream_does_not_change_the_median() -> None:
    times = RefusalTimes(random=fixed(0.0))
    for _ in range(WINDOW):
        times.seconds_left(9.0, is_upstream=False)
    assert times.seconds_left(0.0, is_upstream=False) == MIN_SECONDS


def test_only_the_last_refusals_count() -> None:
    times = RefusalTimes(random=fixed(0.0))
    for seconds in (*[9.0] * WINDOW, *[0.1] * WINDOW):
        times.seconds_left(seconds, is_upstream=True)
    assert times.seconds_left(0.0, is_upstream=False) == MIN_SECONDS


def test_slow_upstream_delays_refusals_up_to_the_maximum() -> None:
    times = RefusalTimes(random=fixed(0.0))
    for _ in range(WINDOW):
        times.seconds_left(60.0, is_upstream=True)
    assert times.seconds_left(0.0, is_upstream=False) == MAX_SECONDS


def test_refusal_that_comes_late_is_sent_at_once() -> None:
    assert RefusalTimes().seconds_left(30.0, is_upstream=True) == 0.0


def test_configured_minimum_replaces_the_default() -> None:
    assert RefusalTimes(fixed(0.0)).seconds_left(0.0, is_upstream=False, minimum=0.25) == 0.25


@pytest.mark.parametrize("is_upstream", [True, False])
def test_configured_minimum_above_the_maximum_applies(is_upstream: bool) -> None:
    times = RefusalTimes(fixed(0.0))
    for _ in range(WINDOW):
        times.seconds_left(60.0, is_upstream=True)
    assert times.seconds_left(1.0, is_upstream=is_upstream, minimum=20.0) == 19.0


@pytest.mark.parametrize(
    "latency",
    [
        lambda chance: 0.002 + 0.001 * chance.random(),
        lambda chance: 2.0 + chance.random(),
        lambda chance: chance.choice([0.01, 4.0]),
        lambda chance: chance.expovariate(0.4),
        lambda chance: 15.0,
    ],
    ids=["fast", "dovecot", "two upstreams", "exponential", "very slow"],
)
def test_refusals_with_and_without_an_upstream_have_one_distribution(
    latency: Callable[[random.Random], float],
) -> None:
    """As a client sees them on 200 tries each, in random order."""
    chance = random.Random(18)
    times = RefusalTimes(random=chance.random)
    sent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(WINDOW):
        times.seconds_left(latency(chance), is_upstream=True)
    kinds = [True, False] * TRIES
    chance.shuffle(kinds)
    for is_upstream in kinds:
        elapsed = min(latency(chance), MAX_SECONDS) if is_upstream else 0.0
        sent[is_upstream].append(elapsed + times.seconds_left(elapsed, is_upstream=is_upstream))
    assert len(sent[True]) == len(sent[False]) == TRIES
    assert min(sent[False]) >= MIN_SECONDS
    assert distance(sent[True], sent[False]) < DISTANCE
    assert statistics.mean(sent[True]) == pytest.approx(statistics.mean(sent[False]), rel=0.1)
