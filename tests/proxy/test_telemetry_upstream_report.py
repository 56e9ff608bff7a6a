# SPDX-License-Identifier: Apache-2.0
"""Reports about upstreams: what workers record, and the summary of all workers."""

from __future__ import annotations

import json
from typing import Any, Final

from mailproxy.enums import UpstreamStage, UpstreamTlsFailure
from mailproxy.errors import ProxyLoopError, UpstreamConfigError, UpstreamError, UpstreamTlsError
from mailproxy.telemetry.aggregate import Aggregator
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.telemetry.upstream_report import (
    MAX_ERRORS,
    MAX_MESSAGE,
    MAX_UPSTREAMS,
    RECENT_SECONDS,
    UpstreamReport,
    summarize,
)
from mailproxy_config.model import Protocol

NOW: Final = 1_800_000_000.0
PEER: Final = "192.0.2.7:993"
NAME: Final = UpstreamTlsError(UpstreamTlsFailure.NAME, "not among its names (DNS:a): set proxySslName")
TIMEOUT: Final = UpstreamTlsError(UpstreamTlsFailure.TIMEOUT, "TLS handshake timed out")
REFUSED: Final = UpstreamError("connecting failed", stage=UpstreamStage.CONNECT)
LOOP: Final = ProxyLoopError("a proxy loop", stage=UpstreamStage.ID)


def summary(*reports: UpstreamReport, now: float = NOW, expiry: float | None = None) -> Any:
    return summarize([state for one in reports if (state := one.state())], now, expiry)


def test_report_without_events_is_left_out() -> None:
    report = UpstreamReport()
    report.failed(PEER, REFUSED, NOW)
    assert report.state() is None
    assert summary()["tls"]["state"] == "unknown"


def test_failure_is_reported_with_cause_and_count() -> None:
    report = UpstreamReport()
    report.failed(PEER, TIMEOUT, NOW - 9)
    report.failed(PEER, NAME, NOW - 2)
    found = summary(report, expiry=NOW + 86400)
    assert found["tls"] == {
        "state": "failed",
        "succeeded_at": None,
        "certificate_expires_at": "2027-01-16T08:00:00+00:00",
        "upstream": PEER,
        "failure": "name",
        "message": str(NAME),
        "failed_at": "2027-01-15T07:59:58+00:00",
        "count": 2,
        "failing_upstreams": 1,
    }


def test_success_of_any_worker_ends_failure_of_the_same_upstream() -> None:
    one, other = UpstreamReport(), UpstreamReport()
    one.failed(PEER, NAME, NOW - 20)
    other.tls_established("192.0.2.8:993", NOW)
    assert summary(one, other)["tls"]["state"] == "failed"
    other.tls_established(PEER, NOW - 10)
    assert summary(one, other)["tls"]["state"] == "succeeded"
    one.failed(PEER, NAME, NOW - 5)
    assert summary(one, other)["tls"]["state"] == "failed"


def test_failure_is_forgotten_after_a_while() -> None:
    report = UpstreamReport()
    report.failed(PEER, NAME, NOW)
    report.failed(PEER, LOOP, NOW)
    assert len(summary(report, now=NOW + RECENT_SECONDS)["config_errors"]) == 2
    later = summary(report, now=NOW + RECENT_SECONDS + 1)
    assert (later["tls"]["state"], later["config_errors"]) == ("succeeded", [])


def test_only_errors_to_mend_are_config_errors() -> None:
    report = UpstreamReport()
    for error in (TIMEOUT, REFUSED, LOOP, LOOP, NAME):
        report.failed(PEER, error, NOW)
    found = {one["stage"]: (one["failure"], one["count"]) for one in summary(report)["config_errors"]}
    assert found == {"id": ("", 2), "tls": ("name", 1)}


def test_size_is_limited() -> None:
    report = UpstreamReport()
    for number in range(200):
        error = UpstreamTlsError(UpstreamTlsFailure.VERIFY, "x" * 2000)
        report.failed(f"192.0.2.{number}:993", error, NOW + number)
    for stage in UpstreamStage:
        report.failed(PEER, UpstreamConfigError("y" * 2000, stage=stage), NOW)
    state = report.state()
    assert state is not None
    assert len(state["tls"]) == MAX_UPSTREAMS
    assert all(len(one["message"]) == MAX_MESSAGE for one in state["tls"].values())
    found = summary(report, now=NOW + 200)
    assert len(found["config_errors"]) == MAX_ERRORS
    assert len(json.dumps(found)) < 2000


def test_failing_upstream_is_kept_longer_than_working_ones() -> None:
    report = UpstreamReport()
    report.failed(PEER, NAME, NOW)
    for number in range(100):
        report.tls_established(f"192.0.2.{number}:143", NOW + number)
    assert summary(report, now=NOW + 100)["tls"]["upstream"] == PEER


def test_message_has_printable_characters_only() -> None:
    report = UpstreamReport()
    report.failed(PEER, UpstreamTlsError(UpstreamTlsFailure.NAME, "DNS:a\r\nb\x1b[0mé"), NOW)
    assert summary(report)["tls"]["message"] == "DNS:a??b?[0m?"


def test_aggregator_joins_workers_of_configured_servers() -> None:
    aggregator = Aggregator()
    for worker in (1, 2):
        metrics = WorkerMetrics()
        metrics.server("imap", Protocol.IMAP).upstreams.failed(PEER, NAME, NOW)
        metrics.server("old", Protocol.IMAP).upstreams.failed(PEER, NAME, NOW)
        metrics.upstream_certificate_seen("imap", NOW + 3600 * worker)
        aggregator.update(worker, metrics.snapshot())
    aggregator.keep_servers(["imap"])
    found: Any = aggregator.upstreams(NOW)
    assert found.keys() == {"imap"}
    assert found["imap"]["tls"]["count"] == 2
    assert found["imap"]["tls"]["certificate_expires_at"] == "2027-01-15T09:00:00+00:00"
    aggregator.retire(1)
    assert aggregator.upstreams(NOW)["imap"]["tls"]["count"] == 1  # type: ignore[index]
