# SPDX-License-Identifier: Apache-2.0
"""When clients arrive, and what is read from their latencies; without sockets and clocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


def arrivals(rate: float, seconds: float, seed: int | None = None) -> list[float]:
    """Return the times of arrivals in seconds from the start, in order.

    Args:
        rate: Arrivals per second.
        seconds: The length of the schedule.
        seed: Random arrivals, independent of one another (exponential gaps), which are
            the same for the same seed.  Without it, all gaps are equal.
    """
    count = int(rate * seconds)
    if seed is None:
        return [number / rate for number in range(count)]
    source = random.Random(seed)
    times, time = [], 0.0
    for _ in range(count):
        times.append(time)
        time += source.expovariate(rate)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies; nought if there are none.

    Args:
        values: In ascending order.
        share: From 0 to 1.
    """
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def highest_rate(is_sustained: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """Return the highest rate that is sustained, by bisection between ``low`` and ``high``.

    ``high`` is tried first, then ``low``: if ``low`` is not sustained, the result
    is 0.  ``steps`` more rates are tried, so that the result is at most
    ``(high - low) / 2 ** steps`` below the highest one.
    """
    if is_sustained(high):
        return high
    if not is_sustained(low):
        return 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        if is_sustained(middle):
            low = middle
        else:
            high = middle
    return low
