# SPDX-License-Identifier: Apache-2.0
"""The exposition formats of Prometheus.  Only the supervisor imports this module."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mailproxy.telemetry.aggregate import HistogramValue, Labels, MetricsPage
from mailproxy.telemetry.definitions import ALL_METRICS, MetricDefinition, MetricType


@dataclass(frozen=True, slots=True)
class Exposition:
    """The response to a scrape."""

    body: bytes
    content_type: str
    encoding: str | None
    """``gzip``, or ``None`` for none."""


class PageCollector(Collector):
    """Collects one page; without ``_created`` series, which would make it half as large again."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the page."""
        return (_metric(family, series) for family, series in self._page.items())

    def describe(self) -> Iterator[Metric]:
        """Yield every defined metric, so that a registry detects duplicate names."""
        return (_metric(family, {}) for family in ALL_METRICS)


def expose(page: MetricsPage, accept: str = "", accept_encoding: str = "") -> Exposition:
    """Encode a page.

    Args:
        page: The values.
        accept: The ``Accept`` header; OpenMetrics where it is preferred, else the text format.
        accept_encoding: The ``Accept-Encoding`` header.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PageCollector(page))
    encode, content_type = choose_encoder(accept)
    body = encode(registry)
    if _accepts_gzip(accept_encoding):
        return Exposition(gzip.compress(body, compresslevel=5), content_type, "gzip")
    return Exposition(body, content_type, None)


def _accepts_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        name, _, parameters = item.partition(";")
        if name.strip() == "gzip":
            return parameters.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _metric(family: MetricDefinition, series: dict[Labels, float | HistogramValue]) -> Metric:
    if family.type is MetricType.HISTOGRAM:
        return _histogram(family, series)
    shape = CounterMetricFamily if family.type is MetricType.COUNTER else GaugeMetricFamily
    return _numbers(shape(family.name, family.help, labels=family.label_names), series)


def _numbers(
    metric: CounterMetricFamily | GaugeMetricFamily, series: dict[Labels, float | HistogramValue]
) -> Metric:
    for labels, value in series.items():
        metric.add_metric(labels, cast("float", value))
    return metric


def _histogram(family: MetricDefinition, series: dict[Labels, float | HistogramValue]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.label_names)
    bounds = [*map(floatToGoString, family.buckets), "+Inf"]
    for labels, value in series.items():
        total = cast("HistogramValue", value)
        buckets = list(zip(bounds, accumulate(total.counts), strict=True))
        metric.add_metric(labels, buckets, total.sum)
    return metric
