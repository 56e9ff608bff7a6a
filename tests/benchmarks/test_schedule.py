# SPDX-License-Identifier: Apache-2.0
"""Arrivals, percentiles and the search for the highest rate."""

from __future__ import annotations

import pytest
from benchmarks.schedule import arrivals, highest_rate, percentile


def test_arrivals_without_seed_have_equal_gaps() -> None:
    assert arrivals(4, 1.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_arrivals_with_seed_are_the_same_each_time_and_differ_between_seeds() -> None:
    assert arrivals(100, 1, seed=1) == arrivals(100, 1, seed=1)
    assert arrivals(100, 1, seed=1) != arrivals(100, 1, seed=2)


def test_arrivals_with_seed_are_in_order_and_have_the_rate_on_average() -> None:
    times = arrivals(100, 200, seed=1)
    assert times == sorted(times)
    assert len(times) == 20_000
    assert times[-1] == pytest.approx(200, rel=0.03)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        (list(range(100)), 0.5, 50),
        (list(range(100)), 0.99, 99),
        (list(range(1000)), 0.99, 990),
        (list(range(10)), 1.0, 9),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def _sustained_up_to(limit: float, tried: list[float]) -> object:
    def is_sustained(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    return is_sustained


@pytest.mark.parametrize("limit", [300, 555, 700, 999])
def test_highest_rate_is_found_to_the_width_of_the_last_step(limit: float) -> None:
    tried: list[float] = []
    found = highest_rate(_sustained_up_to(limit, tried), 300, 1000, 5)  # type: ignore[arg-type]
    assert found <= limit
    assert limit - found <= 700 / 2**5
    assert len(tried) == 7


def test_highest_rate_is_the_upper_end_if_that_is_sustained() -> None:
    tried: list[float] = []
    assert highest_rate(_sustained_up_to(5000, tried), 300, 1000, 5) == 1000  # type: ignore[arg-type]
    assert tried == [1000]


def test_highest_rate_is_nought_if_the_lower_end_is_not_sustained() -> None:
    tried: list[float] = []
    assert highest_rate(_sustained_up_to(100, tried), 300, 1000, 5) == 0  # type: ignore[arg-type]
    assert tried == [1000, 300]
