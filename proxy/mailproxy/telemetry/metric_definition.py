# SPDX-License-Identifier: Apache-2.0
"""What a metric's definition is: its type, its labels, and how workers are aggregated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class MetricType(StrEnum):
    """A metric's type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Aggregation(StrEnum):
    """How the values of several workers are combined."""

    SUM = "sum"
    """Counters and histograms: over all workers since the start.  Gauges: over running workers."""
    MIN = "minimum"
    MAX = "maximum"
    EACH = "each"
    """Every series of any worker."""
    OWN = "supervisor"
    """A metric of the supervisor alone."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its closed set of values; ``None`` for names of the configuration and facts of a build."""

    name: str
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric.

    With ``from_start``, every series exists with 0 before the first event
    (otherwise ``rate()`` misses the first event).
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    aggregation: Aggregation = Aggregation.SUM
    from_start: bool = False
    units_per_base: int = 1
    """Workers report integers of this fraction of the unit, so that sums do not depend on the order."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' names, in order."""
        return tuple(label.name for label in self.labels)


def closed(name: str, enum: type[Enum]) -> Label:
    """Return a label whose values are those of an enumeration."""
    return Label(name, tuple(str(member.value) for member in enum))
