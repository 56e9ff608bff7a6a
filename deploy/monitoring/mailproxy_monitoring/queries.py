# SPDX-License-Identifier: Apache-2.0
"""PromQL that many panels share; ``$namespace``, ``$job`` and ``$protocol`` are chosen at the top."""

from __future__ import annotations

from typing import Final

WHO: Final = 'namespace=~"$namespace", job=~"$job"'
ASKED: Final = WHO + ', protocol=~"$protocol"'
LOGIN: Final = "mailproxy_logins_total"
SUCCESSFUL: Final = ASKED + ', result="success"'
SEEN_THROUGH: Final = ASKED + ', result!="aborted"'
DENIED: Final = ASKED + ', result="denied"'
FROM_CACHE: Final = WHO + ', result!="miss"'
BAD_HIGH: Final = ((None, "green"), (0.7, "orange"), (0.9, "red"))
BAD_LOW: Final = ((None, "red"), (0.8, "orange"), (0.95, "green"))


def rate(metric: str, by: str = "", where: str = ASKED) -> str:
    """Give the rate of a counter, added up by labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", where: str = ASKED) -> str:
    """Give a quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, where)})"


def buckets(metric: str) -> str:
    """Give what a heat map shows of a histogram."""
    return f"sum by (le) (increase({metric}_bucket{{{ASKED}}}[$__rate_interval]))"
