# SPDX-License-Identifier: Apache-2.0
"""Replacements start at once, or one per second when workers exit all the time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.supervisor.launcher import Backoff


@pytest.mark.parametrize(
    ("deaths", "starts"),
    [
        # when they die                   when the replacements start
        ([0], [0]),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 0, 0, 0], [0, 0, 0, 1]),
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3]),
        ([0, 0, 0, 9.5, 10.0], [0, 0, 0, 9.5, 10.0]),
        ([0, 11, 22, 33, 44], [0, 11, 22, 33, 44]),
    ],
)
def test_replacements_of_failed_workers_are_delayed(deaths: list[float], starts: list[float]) -> None:
    backoff = Backoff()
    assert [death + backoff.pause(death) for death in deaths] == starts


@given(st.lists(st.floats(0, 5), min_size=5, max_size=50))
def test_starts_are_limited_to_one_per_second(gaps: list[float]) -> None:
    backoff, now, starts = Backoff(), 0.0, []
    for gap in gaps:
        now += gap
        starts.append(now + backoff.pause(now))
    for first, last in zip(starts, starts[12:], strict=False):
        assert last - first >= 1.0
