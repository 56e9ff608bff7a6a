# SPDX-License-Identifier: Apache-2.0
"""The status of all processes, as the admin endpoint reports it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

import pytest

from mailproxy.enums import RestartReason
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.supervisor.status import Status
from mailproxy.supervisor.version import revision, version
from mailproxy.telemetry import definitions as c
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.errors import Problem
from mailproxy_config.model import Protocol
from support.worker_processes import make_revision


@dataclass
class StillWorkers:
    """A pool with constant values."""

    alive: int = 2
    serving: int = 2
    is_settled: bool = True
    wanted: ConfigRevision = field(default_factory=lambda: make_revision([]))
    restarts: dict[RestartReason, int] = field(default_factory=dict)
    unresponsive: dict[int, float] = field(default_factory=dict)
    report_arguments: list[tuple[int, float]] = field(default_factory=list)

    async def report(self, number: int, seconds: float) -> None:
        self.report_arguments.append((number, seconds))


@pytest.fixture
def status() -> Status:
    return Status(UpstreamHealth(SharedMemory()))


@pytest.mark.parametrize(
    ("is_started", "is_draining", "serving", "ready"),
    [
        (False, False, 2, False),
        (True, False, 2, True),
        (True, False, 1, True),
        (True, False, 0, False),
        (True, True, 2, False),
    ],
)
def test_status_is_ready_while_clients_are_accepted(
    status: Status, is_started: bool, is_draining: bool, serving: int, ready: bool
) -> None:
    status.pool = StillWorkers(serving=serving)
    status.is_started, status.is_draining = is_started, is_draining
    assert (status.unready_reason() == "") is ready


def test_status_is_not_ready_without_workers(status: Status) -> None:
    status.is_started = True
    assert status.unready_reason() == "starting"


def test_status_is_not_ready_while_a_worker_is_silent(status: Status) -> None:
    status.pool = StillWorkers(unresponsive={4711: 12.0, 4712: 29.0})
    status.is_started = True
    assert status.unready_reason() == (
        "worker 4711 has not reported for 12 s; worker 4712 has not reported for 29 s"
    )


def test_status_has_the_hash_that_all_workers_run(status: Status) -> None:
    first, second = make_revision([]), make_revision([], "pop3", serial=2)
    nothing = {
        "hash": None,
        "generation": None,
        "loaded_at": None,
        "last_error": None,
        "certificates": [],
        "route_tables": [],
        "user_files": [],
        "upstreams": {},
    }
    assert status.config() == nothing
    status.pool = StillWorkers(wanted=first)
    assert status.config()["hash"] is None
    status.is_started = True
    assert status.config()["hash"] == first.hash
    status.pool = StillWorkers(wanted=second, is_settled=False)
    assert status.config()["hash"] == first.hash
    status.pool = StillWorkers(wanted=second)
    assert status.config() == {
        "hash": second.hash,
        "generation": 4,
        "loaded_at": "1970-01-01T00:20:34.500000+00:00",
        "last_error": None,
        "certificates": [],
        "route_tables": [],
        "user_files": [],
        "upstreams": {},
    }


def test_last_error_stays_until_a_configuration_is_applied(status: Status) -> None:
    status.loaded(make_revision([]))
    status.refused((Problem("spec.servers[0]", "no"), Problem("", "nor that")))
    assert status.config()["last_error"] == "spec.servers[0]: no; nor that"
    page = status.page()
    assert page[c.CONFIG_SUCCESSFUL] == {(): 0}
    assert page[c.CONFIG_RELOADS] == {("success",): 1, ("failure",): 1}
    status.loaded(make_revision([]))
    assert status.config()["last_error"] is None
    assert c.CONFIG_SUCCESSFUL not in status.page()


def test_long_error_is_truncated(status: Status) -> None:
    status.refused(tuple(Problem("spec", "x" * 100) for _ in range(1000)))
    assert len(str(status.config()["last_error"])) == 4096


def test_counters_of_exited_worker_stay(status: Status) -> None:
    meters = [WorkerMetrics(), WorkerMetrics()]
    for key, metrics in enumerate(meters):
        metrics.server("imap", Protocol.IMAP).accepted.value = 5
        status.on_snapshot(key, metrics.snapshot())
    status.on_exit(0)
    assert status.page()[c.CONNECTIONS_ACCEPTED] == {("imap", "imap"): 10}


def test_page_has_the_metrics_of_the_supervisor(status: Status) -> None:
    status.pool = StillWorkers(alive=3, restarts={RestartReason.CRASH: 2})
    status.is_draining = True
    page = status.page()
    assert page[c.WORKERS] == {(): 3}
    assert page[c.WORKER_RESTARTS] == {("crash",): 2, ("killed",): 0, ("requested",): 0, ("unresponsive",): 0}
    assert page[c.DRAINING] == {(): 1}
    ((labels, value),) = page[c.BUILD_INFO].items()
    assert value == 1
    assert labels[:2] == (version(), revision())
    assert labels[3] == ssl.OPENSSL_VERSION


async def test_each_refresh_has_a_new_number(status: Status) -> None:
    workers = StillWorkers()
    await status.refresh()
    status.pool = workers
    await status.refresh()
    await status.refresh()
    assert workers.report_arguments == [(2, 1.0), (3, 1.0)]


@pytest.mark.parametrize(
    ("found", "expected"), [("1.2.0", "unknown"), ("1.2.0+abc1234", "abc1234"), ("unknown", "unknown")]
)
def test_the_revision_is_the_local_part_of_the_version(
    monkeypatch: pytest.MonkeyPatch, found: str, expected: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: found)
    assert version() == found
    assert revision() == expected
