# SPDX-License-Identifier: Apache-2.0
"""Aggregates the metrics of several workers, so that no counter ever decreases.

Pure.  The counters and histograms of a worker that has exited are kept: its
last snapshot is added to a base.  Its gauges are dropped.  All values come
from snapshots, so no value decreases when a worker is killed.

All sums are of integers, so they do not depend on the order in which workers
exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mailproxy.enums import ReloadResult, RestartReason
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.definitions import Aggregation, MetricDefinition, MetricType
from mailproxy.telemetry.metrics import Snapshot, Value
from mailproxy.telemetry.upstream_report import ReportState, summarize

Labels = tuple[str, ...]
_Series = dict[Labels, Value]

MAX_RETIRED: Final = 1024
"""Retired workers whose late snapshots are still ignored."""


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """The sum of a histogram in seconds, and the count of each bucket, ``+Inf`` included; not cumulative."""

    sum: float
    counts: tuple[int, ...]


MetricsPage = dict[MetricDefinition, dict[Labels, "float | HistogramValue"]]
"""The content of ``/metrics``: values by metric and label values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """The labels of ``mailproxy_build_info``."""

    version: str
    revision: str
    python_version: str
    openssl_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFacts:
    """The supervisor's own values.

    ``process`` is its ``process_stats()``, ``started`` a Unix time.
    ``config_rejected`` is true when the last configuration was rejected.
    ``unhealthy_upstreams`` is the number of addresses that are last in order, ``limit_zones`` has the
    entries in use of each zone, and how many it has place for.
    ``kept_route_tables`` is the number of tables of routes of which an earlier version is used,
    ``kept_user_files`` that of lists of users, ``kept_member_lists`` that of files with members.
    ``members`` has the number of members by group and state.
    """

    build: BuildInfo
    workers: int
    started: float
    restarts: Mapping[RestartReason, int] = field(default_factory=dict)
    reloads: Mapping[ReloadResult, int] = field(default_factory=dict)
    config_rejected: bool = False
    draining: bool = False
    unhealthy_upstreams: int = 0
    limit_zones: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    kept_route_tables: int = 0
    kept_user_files: int = 0
    members: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    kept_member_lists: int = 0
    process: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _LastSnapshot:
    life: int
    number: int
    series: dict[str, _Series]
    upstreams: Mapping[str, ReportState]


class Aggregator:
    """The sums over all workers since the start.

    Call ``update`` for every snapshot, ``retire`` after a worker's last
    snapshot, ``keep_servers`` when a reload has removed servers.
    """

    def __init__(self) -> None:
        self._base: dict[str, _Series] = {}
        self._last: dict[object, _LastSnapshot] = {}
        self.retired: dict[object, int] = {}
        self._servers: frozenset[str] | None = None
        self._zones: frozenset[str] | None = None
        self._groups: frozenset[str] | None = None

    def update(self, worker_id: object, snapshot: Snapshot) -> None:
        """Store a worker's snapshot; older ones, and those of retired workers, are ignored.

        A snapshot of a new process under a known ID retires the old process.
        """
        life, number = snapshot["life"], snapshot["number"]
        last = self._last.get(worker_id)
        if life <= self.retired.get(worker_id, -1):
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
        self._last[worker_id] = _LastSnapshot(life, number, series, snapshot.get("upstreams", {}))

    def retire(self, worker_id: object) -> None:
        """Keep the counters of a worker that has exited, and drop its gauges."""
        last = self._last.pop(worker_id, None)
        if last is None:
            return
        self.retired.pop(worker_id, None)
        self.retired[worker_id] = last.life
        while len(self.retired) > MAX_RETIRED:
            del self.retired[next(iter(self.retired))]
        for name, series in last.series.items():
            family = c.BY_NAME[name]
            if family.aggregation is Aggregation.SUM:
                _add(self._base.setdefault(name, {}), _retained(family, series))

    def keep_servers(
        self, names: Iterable[str], zones: Iterable[str] = (), groups: Iterable[str] = ()
    ) -> None:
        """Drop the series of all servers, zones and groups but these, now and in later snapshots."""
        self._servers, self._zones, self._groups = frozenset(names), frozenset(zones), frozenset(groups)
        for name, series in self._base.items():
            self._base[name] = self._of_configured(c.BY_NAME[name], series)

    def page(self, supervisor: SupervisorFacts) -> MetricsPage:
        """Return the sums of all workers and the supervisor."""
        page: MetricsPage = {}
        for family in c.ALL_METRICS:
            merged = (
                _supervisor_series(family, supervisor)
                if family.aggregation is Aggregation.OWN
                else self._merged(family, supervisor)
            )
            if merged:
                page[family] = {labels: _in_base_unit(family, value) for labels, value in merged.items()}
        return page

    def upstreams(self, now: float) -> dict[str, dict[str, object]]:
        """Return what running workers have found out about the upstreams of each server.

        Args:
            now: A Unix time.
        """
        found: dict[str, list[ReportState]] = {}
        for last in self._last.values():
            for name, state in last.upstreams.items():
                if self._servers is None or name in self._servers:
                    found.setdefault(name, []).append(state)
        expiries: _Series = {}
        for last in self._last.values():
            series = last.series.get(c.UPSTREAM_CERTIFICATE_EXPIRY.name, {})
            _combine(Aggregation.MIN, expiries, series)
        return {
            name: summarize(states, now, expiries.get((name,)))  # type: ignore[arg-type]  # a gauge
            for name, states in sorted(found.items())
        }

    def _merged(self, family: MetricDefinition, supervisor: SupervisorFacts) -> _Series:
        merged: _Series = {}
        parts = [self._base.get(family.name, {}), _supervisor_part(family, supervisor)]
        parts += [last.series.get(family.name, {}) for last in self._last.values()]
        for series in parts:
            _combine(family.aggregation, merged, self._of_configured(family, series))
        return merged

    def _of_configured(self, family: MetricDefinition, series: _Series) -> _Series:
        by_label = {"server": self._servers, "zone": self._zones, "group": self._groups}
        kept = by_label.get("".join(family.label_names[:1]))
        if kept is None:
            return series
        return {labels: value for labels, value in series.items() if labels[0] in kept}


def _retained(family: MetricDefinition, series: _Series) -> _Series:
    """Return what stays of the series of a retired worker: gauges become 0, so that no series disappears."""
    return dict.fromkeys(series, 0) if family.type is MetricType.GAUGE else series


def _combine(rule: Aggregation, into: _Series, series: _Series) -> None:
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


def _in_base_unit(family: MetricDefinition, value: Value) -> float | HistogramValue:
    if isinstance(value, list):
        return HistogramValue(value[0] / c.NANO, tuple(value[1:]))
    return value if family.units_per_base == 1 else value / family.units_per_base


def _supervisor_part(family: MetricDefinition, supervisor: SupervisorFacts) -> _Series:
    """Return what the supervisor adds to a metric of the workers."""
    if family.name in supervisor.process:
        return {(): supervisor.process[family.name]}
    if family is c.CONFIG_SUCCESSFUL and supervisor.config_rejected:
        return {(): 0}
    if family is c.DRAINING:
        return {(): int(supervisor.draining)}
    return {}


def _supervisor_series(family: MetricDefinition, supervisor: SupervisorFacts) -> _Series:
    """Return the series of a metric of the supervisor alone."""
    build = supervisor.build
    values: dict[MetricDefinition, _Series] = {
        c.BUILD_INFO: {(build.version, build.revision, build.python_version, build.openssl_version): 1},
        c.WORKERS: {(): supervisor.workers},
        c.WORKER_RESTARTS: {(reason.value,): supervisor.restarts.get(reason, 0) for reason in RestartReason},
        c.CONFIG_RELOADS: {(result.value,): supervisor.reloads.get(result, 0) for result in ReloadResult},
        c.PROCESS_START: {(): supervisor.started},
        c.UPSTREAM_UNHEALTHY: {(): supervisor.unhealthy_upstreams},
        c.LIMIT_ZONE_ENTRIES: {(zone,): used for zone, (used, _) in supervisor.limit_zones.items()},
        c.LIMIT_ZONE_CAPACITY: {(zone,): places for zone, (_, places) in supervisor.limit_zones.items()},
        c.ROUTE_TABLES_REFUSED: {(): supervisor.kept_route_tables},
        c.USER_FILES_REFUSED: {(): supervisor.kept_user_files},
        c.GROUP_MEMBERS: dict(supervisor.members),
        c.MEMBER_LISTS_REFUSED: {(): supervisor.kept_member_lists},
    }
    return values[family]
