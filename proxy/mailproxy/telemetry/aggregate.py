# SPDX-License-Identifier: Apache-2.0
"""Several workers' numbers become one page, on which no counter ever falls.

Pure.  A worker's counters and histograms outlive it: what its last snapshot
said is added to a base.  Its gauges die with it.  Everything shown came from a
snapshot, so even a worker that was killed takes nothing back.

All that adds up are whole numbers, so no order of dying changes a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mailproxy.enums import ReloadResult, RestartReason
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.definitions import Aggregation, MetricDefinition, MetricType
from mailproxy.telemetry.metrics import Snapshot, Value

Labels = tuple[str, ...]
_Series = dict[Labels, Value]

MAX_RETIRED: Final = 1024
"""Retired workers whose late snapshots are recognised."""


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """A histogram's totals: the sum in seconds, and one count per bucket and for what lies above."""

    sum: float
    counts: tuple[int, ...]


MetricsPage = dict[MetricDefinition, dict[Labels, "float | HistogramValue"]]
"""What ``/metrics`` shows: values by metric and label values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What is running: the labels of ``mailproxy_build_info``."""

    version: str
    revision: str
    python_version: str
    openssl_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFacts:
    """What only the supervisor knows.

    ``process`` is its own ``process_figures()``; ``started`` a Unix time.
    ``config_refused`` says that the newest configuration was refused before
    any worker saw it.
    """

    build: BuildInfo
    workers: int
    started: float
    restarts: Mapping[RestartReason, int] = field(default_factory=dict)
    reloads: Mapping[ReloadResult, int] = field(default_factory=dict)
    config_refused: bool = False
    draining: bool = False
    process: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Last:
    life: int
    number: int
    series: dict[str, _Series]


class Aggregator:
    """The sums over all workers that ever lived.

    Call ``update`` for every snapshot, ``retire`` once a worker is gone and
    its channel is read empty, ``keep_servers`` when a reload removed servers.
    """

    def __init__(self) -> None:
        self._base: dict[str, _Series] = {}
        self._last: dict[object, _Last] = {}
        self._gone: dict[object, int] = {}
        self._servers: frozenset[str] | None = None

    def update(self, worker_id: object, snapshot: Snapshot) -> None:
        """Take in a worker's snapshot; late ones, and those of retired workers, are left out.

        A snapshot of a new life under a known id retires the old life.
        """
        life, number = snapshot["life"], snapshot["number"]
        last = self._last.get(worker_id)
        if life <= self._gone.get(worker_id, -1):
            return
        if last is not None and (life, number) <= (last.life, last.number):
            return
        if last is not None and life > last.life:
            self.retire(worker_id)
        series = {
            name: {tuple(labels): value for labels, value in cells}
            for name, cells in snapshot["series"].items()
            if name in c.BY_NAME
        }
        self._last[worker_id] = _Last(life, number, series)

    def retire(self, worker_id: object) -> None:
        """Keep what a worker that is gone has counted, and drop its gauges."""
        last = self._last.pop(worker_id, None)
        if last is None:
            return
        self._gone.pop(worker_id, None)
        self._gone[worker_id] = last.life
        while len(self._gone) > MAX_RETIRED:
            del self._gone[next(iter(self._gone))]
        for name, series in last.series.items():
            family = c.BY_NAME[name]
            if family.merge is Aggregation.SUM:
                _add(self._base.setdefault(name, {}), _remains(family, series))

    def keep_servers(self, names: Iterable[str]) -> None:
        """Show no server but these from now on, and forget what was counted for others."""
        self._servers = frozenset(names)
        for name, series in self._base.items():
            self._base[name] = self._shown(c.BY_NAME[name], series)

    def page(self, own: SupervisorFacts) -> MetricsPage:
        """Add everything up."""
        page: MetricsPage = {}
        for family in c.ALL_METRICS:
            merged = _own(family, own) if family.merge is Aggregation.OWN else self._merged(family, own)
            if merged:
                page[family] = {labels: _shown_value(family, value) for labels, value in merged.items()}
        return page

    def _merged(self, family: MetricDefinition, own: SupervisorFacts) -> _Series:
        merged: _Series = {}
        parts = [self._base.get(family.name, {}), _supervisor_part(family, own)]
        parts += [last.series.get(family.name, {}) for last in self._last.values()]
        for series in parts:
            _join(family.merge, merged, self._shown(family, series))
        return merged

    def _shown(self, family: MetricDefinition, series: _Series) -> _Series:
        if self._servers is None or family.label_names[:1] != ("server",):
            return series
        return {labels: value for labels, value in series.items() if labels[0] in self._servers}


def _remains(family: MetricDefinition, series: _Series) -> _Series:
    """What is left of a dead worker's series: a gauge goes on as 0, so that no series vanishes with it."""
    return dict.fromkeys(series, 0) if family.kind is MetricType.GAUGE else series


def _join(rule: Aggregation, into: _Series, series: _Series) -> None:
    match rule:
        case Aggregation.SUM:
            _add(into, series)
        case Aggregation.MIN:
            into |= {k: min(into[k], v) if k in into else v for k, v in series.items()}
        case Aggregation.MAX:
            into |= {k: max(into[k], v) if k in into else v for k, v in series.items()}
        case _:
            into |= series


def _add(into: _Series, series: _Series) -> None:
    for labels, value in series.items():
        known = into.get(labels)
        if known is None:
            into[labels] = value
        elif isinstance(value, list):
            into[labels] = [a + b for a, b in zip(known, value, strict=True)]  # type: ignore[arg-type]
        else:
            into[labels] = known + value  # type: ignore[operator]


def _shown_value(family: MetricDefinition, value: Value) -> float | HistogramValue:
    if isinstance(value, list):
        return HistogramValue(value[0] / c.NANO, tuple(value[1:]))
    return value if family.parts == 1 else value / family.parts


def _supervisor_part(family: MetricDefinition, own: SupervisorFacts) -> _Series:
    """What the supervisor adds to a metric of the workers."""
    if family.name in own.process:
        return {(): own.process[family.name]}
    if family is c.CONFIG_SUCCESSFUL and own.config_refused:
        return {(): 0}
    if family is c.DRAINING:
        return {(): int(own.draining)}
    return {}


def _own(family: MetricDefinition, own: SupervisorFacts) -> _Series:
    """The metrics that are the supervisor's alone."""
    build = own.build
    values: dict[MetricDefinition, _Series] = {
        c.BUILD_INFO: {(build.version, build.revision, build.python_version, build.openssl_version): 1},
        c.WORKERS: {(): own.workers},
        c.WORKER_RESTARTS: {(reason.value,): own.restarts.get(reason, 0) for reason in RestartReason},
        c.CONFIG_RELOADS: {(result.value,): own.reloads.get(result, 0) for result in ReloadResult},
        c.PROCESS_START: {(): own.started},
    }
    return values[family]
