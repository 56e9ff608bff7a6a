# SPDX-License-Identifier: Apache-2.0
"""PromQL that several panels share, with the dashboard variables namespace, job and protocol."""

from __future__ import annotations

from typing import Final

JOB: Final = 'namespace=~"$namespace", job=~"$job"'
"""Selects the proxies of the dashboard."""
FILTER: Final = JOB + ', protocol=~"$protocol"'
"""The same, with the protocol."""
LOGIN: Final = "mailproxy_logins_total"
SUCCESSFUL: Final = FILTER + ', result="success"'
COMPLETED: Final = FILTER + ', result!="aborted"'
FAILED: Final = FILTER + ', result!~"success|aborted"'
DENIED: Final = FILTER + ', result="denied"'
FROM_CACHE: Final = JOB + ', result!="miss"'
BAD_HIGH: Final = ((None, "green"), (0.7, "orange"), (0.9, "red"))
BAD_LOW: Final = ((None, "red"), (0.8, "orange"), (0.95, "green"))


def rate(metric: str, by: str = "", where: str = FILTER) -> str:
    """Return the rate of a counter, added up by labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def count(metric: str, by: str, where: str = FILTER, window: str = "$__rate_interval") -> str:
    """Return how often a counter was increased in a time window, by labels.

    ``increase`` extrapolates to the whole window, so its result is rounded: events are whole numbers.
    """
    return f"round (sum by ({by}) (increase({metric}{{{where}}}[{window}])))"


def ranking(metric: str, by: str, where: str) -> str:
    """Return the counts over the dashboard's time range, the highest first, without zeros."""
    return f"sort_desc ({count(metric, by, where, '$__range')} > 0)"


def quantile(share: float, metric: str, by: str = "", where: str = FILTER) -> str:
    """Return a quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, where)})"


def buckets(metric: str) -> str:
    """Return the buckets of a histogram for a heat map."""
    return f"sum by (le) (increase({metric}_bucket{{{FILTER}}}[$__rate_interval]))"
