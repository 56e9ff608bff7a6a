# SPDX-License-Identifier: Apache-2.0
"""Metrics of several workers on one page: no counter decreases, in whatever order workers exit."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.enums import AuthErrorReason, ReloadResult, RestartReason
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.aggregate import Aggregator, BuildInfo, HistogramValue, MetricsPage, SupervisorFacts
from mailproxy.telemetry.metrics import Snapshot, Value, WorkerMetrics
from mailproxy_config.model import Protocol
from support.fuzz import examples

BUILD = BuildInfo(version="1", revision="abc", python_version="3.11", openssl_version="3.0")
OWN = SupervisorFacts(build=BUILD, workers=2, started=1000.0)


def snapshot(
    cells: Iterable[tuple[c.MetricDefinition, tuple[str, ...], Value]], *, life: int = 1, number: int = 1
) -> Snapshot:
    """A worker's snapshot with these series."""
    series: dict[str, list[tuple[tuple[str, ...], Value]]] = {}
    for family, labels, value in cells:
        series.setdefault(family.name, []).append((labels, value))
    return {"life": life, "number": number, "series": series}  # type: ignore[typeddict-item]


def merged(
    family: c.MetricDefinition, *values: Value, own: SupervisorFacts = OWN
) -> float | HistogramValue | None:
    """Return the aggregated value of a metric without labels, for a value of each worker."""
    totals = Aggregator()
    for worker, value in enumerate(values):
        totals.update(worker, snapshot([(family, (), value)]))
    return totals.page(own).get(family, {}).get(())


@pytest.mark.parametrize(
    ("family", "values", "totals_shown"),
    [
        (c.CONNECTIONS_LIMIT, (512, 512), 1024),
        (c.AUTH_IN_FLIGHT, (1, 2, 3), 6),
        (c.DNS_CACHE_ENTRIES, (5, 6), 11),
        (c.CONFIG_SUCCESSFUL, (1, 0, 1), 0),
        (c.CONFIG_TIMESTAMP, (20.5, 10.5), 10.5),
        (c.CONFIG_GENERATION, (3, 4), 3),
        (c.DRAINING, (0, 1, 0), 1),
        (c.PROCESS_MAX_FDS, (1024, 512), 512),
        (c.PROCESS_MEMORY, (100, 200), 300),
        (c.PROCESS_CPU, (c.NANO, c.NANO // 2), 1.5),
    ],
)
def test_each_metric_is_aggregated_by_its_rule(
    family: c.MetricDefinition, values: tuple[Value, ...], totals_shown: float
) -> None:
    assert merged(family, *values) == totals_shown


def test_histograms_add_bucket_by_bucket() -> None:
    counts = [1] * (len(c.LAG_BUCKETS) + 1)
    totals_shown = merged(c.LOOP_LAG, [c.NANO, *counts], [2 * c.NANO, *counts])
    assert totals_shown == HistogramValue(3.0, tuple(2 * n for n in counts))


def test_config_info_has_every_configuration_of_a_worker() -> None:
    totals = Aggregator()
    totals.update(1, snapshot([(c.CONFIG_INFO, ("old",), 1)]))
    totals.update(2, snapshot([(c.CONFIG_INFO, ("new",), 1)]))
    totals.update(3, snapshot([(c.CONFIG_INFO, ("new",), 1)]))
    assert totals.page(OWN)[c.CONFIG_INFO] == {("old",): 1, ("new",): 1}
    totals.retire(1)
    assert totals.page(OWN)[c.CONFIG_INFO] == {("new",): 1}


def test_certificate_expiry_is_the_minimum() -> None:
    totals = Aggregator()
    totals.update(
        1, snapshot([(c.CERTIFICATE_EXPIRY, ("a", "0"), 50.0), (c.CERTIFICATE_EXPIRY, ("b", "0"), 10.0)])
    )
    totals.update(2, snapshot([(c.CERTIFICATE_EXPIRY, ("a", "0"), 40.0)]))
    assert totals.page(OWN)[c.CERTIFICATE_EXPIRY] == {("a", "0"): 40.0, ("b", "0"): 10.0}


def test_supervisor_adds_its_own_metrics() -> None:
    own = SupervisorFacts(
        build=BUILD,
        workers=3,
        started=1000.0,
        unhealthy_upstreams=2,
        kept_route_tables=1,
        kept_user_files=4,
        kept_member_lists=1,
        members={("dovecot", "Ready"): 3},
        restarts={RestartReason.CRASH: 2},
        reloads={ReloadResult.SUCCESS: 5},
        config_rejected=True,
        draining=True,
        process={c.PROCESS_MEMORY.name: 1000, c.PROCESS_CPU.name: c.NANO, c.PROCESS_MAX_FDS.name: 100},
    )
    totals = Aggregator()
    totals.update(1, snapshot([(c.PROCESS_MEMORY, (), 500), (c.CONFIG_SUCCESSFUL, (), 1)]))
    assert totals.page(own) == {
        c.CONFIG_SUCCESSFUL: {(): 0},
        c.CONFIG_RELOADS: {("success",): 5, ("failure",): 0},
        c.BUILD_INFO: {("1", "abc", "3.11", "3.0"): 1},
        c.WORKERS: {(): 3},
        c.WORKER_RESTARTS: {("crash",): 2, ("killed",): 0, ("requested",): 0, ("unresponsive",): 0},
        c.DRAINING: {(): 1},
        c.PROCESS_MEMORY: {(): 1500},
        c.PROCESS_MAX_FDS: {(): 100},
        c.PROCESS_CPU: {(): 1.0},
        c.PROCESS_START: {(): 1000.0},
        c.UPSTREAM_UNHEALTHY: {(): 2},
        c.ROUTE_TABLES_REFUSED: {(): 1},
        c.USER_FILES_REFUSED: {(): 4},
        c.GROUP_MEMBERS: {("dovecot", "Ready"): 3},
        c.MEMBER_LISTS_REFUSED: {(): 1},
    }


def test_retired_worker_keeps_counters_and_drops_gauges() -> None:
    totals = Aggregator()
    totals.update(
        1,
        snapshot(
            [
                (c.CONNECTIONS_ACCEPTED, ("a", "imap"), 7),
                (c.CONNECTIONS_ACTIVE, ("a", "imap"), 5),
                (c.PROCESS_CPU, (), c.NANO),
                (c.PROCESS_MEMORY, (), 100),
                (c.CONFIG_GENERATION, (), 1),
            ]
        ),
    )
    totals.retire(1)
    page = totals.page(OWN)
    assert page[c.CONNECTIONS_ACCEPTED] == {("a", "imap"): 7}
    assert page[c.CONNECTIONS_ACTIVE] == {("a", "imap"): 0}
    assert page[c.PROCESS_CPU] == {(): 1.0}
    assert page[c.PROCESS_MEMORY] == {(): 0}
    assert c.CONFIG_GENERATION not in page


def test_silent_worker_counts_with_its_last_snapshot() -> None:
    totals = Aggregator()
    totals.update(1, snapshot([(c.DNS_CACHE_ENTRIES, (), 4)]))
    totals.update(2, snapshot([(c.DNS_CACHE_ENTRIES, (), 1)]))
    totals.update(2, snapshot([(c.DNS_CACHE_ENTRIES, (), 2)], number=2))
    assert totals.page(OWN)[c.DNS_CACHE_ENTRIES] == {(): 6}


@pytest.mark.parametrize(
    ("messages", "totals_shown"),
    [
        # life and number of the snapshots in order of arrival; the value of each is its number
        ([(1, 1), (1, 2)], 2),
        ([(1, 2), (1, 1)], 2),  # in reverse order
        ([(1, 2), (1, 2)], 2),  # repeated
        ([(1, 2), (2, 1)], 3),  # a new life under the same name
        ([(1, 2), (2, 1), (1, 3)], 3),  # then a late snapshot of the previous life
        ([(1, 2), "retire", (1, 3)], 2),  # late
        ([(1, 2), "retire", "retire"], 2),
        ([(1, 2), "retire", (2, 1)], 3),
        (["retire", (1, 1)], 1),
    ],
)
def test_order_of_snapshots_does_not_change_totals(messages: list[object], totals_shown: int) -> None:
    totals = Aggregator()
    for word in messages:
        match word:
            case (int(life), int(number)):
                totals.update("w", snapshot([(c.DNS_TIMEOUTS, ("ptr",), number)], life=life, number=number))
            case _:
                totals.retire("w")
    assert totals.page(OWN)[c.DNS_TIMEOUTS] == {("ptr",): totals_shown}


def test_number_of_retired_workers_is_limited() -> None:
    totals = Aggregator()
    for worker in range(3000):
        totals.update(worker, snapshot([(c.DNS_TIMEOUTS, ("ptr",), 1)]))
        totals.retire(worker)
    assert len(totals.retired) == 1024
    assert totals.page(OWN)[c.DNS_TIMEOUTS] == {("ptr",): 3000}


def test_undefined_metric_is_ignored() -> None:
    totals = Aggregator()
    totals.update(1, {"life": 1, "number": 1, "series": {"mailproxy_surprise": [((), 1)]}})
    assert totals.page(OWN).keys() == Aggregator().page(OWN).keys()


def test_removed_server_disappears_from_all_workers() -> None:
    totals = Aggregator()
    both = [(c.CONNECTIONS_ACCEPTED, ("a", "imap"), 1), (c.CONNECTIONS_ACCEPTED, ("b", "imap"), 2)]
    totals.update(1, snapshot(both))
    totals.retire(1)
    totals.update(2, snapshot(both))
    totals.keep_servers(["a"])
    assert totals.page(OWN)[c.CONNECTIONS_ACCEPTED] == {("a", "imap"): 2}
    totals.update(2, snapshot(both, number=2))
    assert totals.page(OWN)[c.CONNECTIONS_ACCEPTED] == {("a", "imap"): 2}


def test_page_of_one_worker_has_its_values() -> None:
    metrics, totals = WorkerMetrics(), Aggregator()
    metrics.server("a", Protocol.IMAP).accepted.value += 3
    metrics.protocol(Protocol.IMAP).login_seconds[True].observe(0.25)
    totals.update(1, metrics.snapshot())
    page = totals.page(OWN)
    assert page[c.CONNECTIONS_ACCEPTED] == {("a", "imap"): 3}
    totals_shown = page[c.LOGIN_DURATION]["imap", "success"]
    assert totals_shown == HistogramValue(0.25, tuple(int(bound == 0.25) for bound in (*c.LOGIN_BUCKETS, 99)))


# -- generated histories

WORKERS = st.integers(0, 2)
STEP = st.one_of(
    st.tuples(st.just("count"), WORKERS, st.floats(0, 1e6, allow_nan=False)),
    st.tuples(st.just("report"), WORKERS, st.none()),
    st.tuples(st.just("deliver late"), WORKERS, st.none()),
    st.tuples(st.just("restart"), WORKERS, st.booleans()),
    st.tuples(st.just("retire"), WORKERS, st.none()),
)


class WorkerSimulation:
    """Three workers that count, report, exit and restart, and the pages so far."""

    def __init__(self) -> None:
        self.totals = Aggregator()
        self._lives = count()
        self.meters = [self._new_worker() for _ in range(3)]
        self.undelivered: list[tuple[int, Snapshot]] = []
        self.totals_shown: MetricsPage = {}

    def _new_worker(self) -> WorkerMetrics:
        metrics = WorkerMetrics()
        metrics.life = next(self._lives)
        return metrics

    def step(self, what: str, worker: int, detail: float | None) -> None:
        metrics = self.meters[worker]
        match what:
            case "count":
                assert detail is not None
                metrics.auth_errors[AuthErrorReason.TLS].value += 1
                metrics.server("a", Protocol.IMAP).accepted.value += 1
                metrics.loop_lag.observe(detail / 1e6)
                metrics.protocol(Protocol.IMAP).session_seconds[True].observe(detail)
            case "report":
                report = metrics.snapshot()
                self.undelivered.append((worker, report))
                self.totals.update(worker, report)
            case "deliver late" if self.undelivered:
                self.totals.update(*self.undelivered[worker % len(self.undelivered)])
            case "restart":
                if detail:  # else it was killed, which is detected only with the next snapshot
                    self.totals.update(worker, metrics.snapshot())
                self.meters[worker] = self._new_worker()
            case "retire":
                self.totals.retire(worker)
                self.meters[worker] = self._new_worker()

    def check_page(self) -> None:
        page = self.totals.page(OWN)
        for family, series in self.totals_shown.items():
            if family.type is not c.MetricType.GAUGE:
                for labels, before in series.items():
                    assert never_decreases(before, page[family][labels]), (family.name, labels)
        self.totals_shown = page


def never_decreases(before: float | HistogramValue, now: float | HistogramValue) -> bool:
    if isinstance(before, HistogramValue) and isinstance(now, HistogramValue):
        return now.sum >= before.sum and all(b >= a for a, b in zip(before.counts, now.counts, strict=True))
    assert not isinstance(before, HistogramValue)
    assert not isinstance(now, HistogramValue)
    return now >= before


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(STEP, max_size=40))
def test_counters_never_decrease(steps: list[tuple[str, int, float | None]]) -> None:
    simulation = WorkerSimulation()
    for step in steps:
        simulation.step(*step)
        simulation.check_page()


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=8), st.randoms(use_true_random=False)
)
def test_sums_do_not_depend_on_the_order_of_exits(spans: list[float], chance: object) -> None:
    def totals_shown(order: list[int]) -> object:
        totals = Aggregator()
        for worker, span in enumerate(spans):
            metrics = WorkerMetrics()
            metrics.loop_lag.observe(span)
            totals.update(worker, metrics.snapshot())
        for worker in order:
            totals.retire(worker)
        return totals.page(OWN)[c.LOOP_LAG]

    order = list(range(len(spans)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    assert totals_shown(order) == totals_shown([]) == totals_shown(sorted(order))
