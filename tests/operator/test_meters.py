# SPDX-License-Identifier: Apache-2.0
"""The operator's metrics: what moves when."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.cluster import Key
from mailproxy_operator.errors import Finding, Retryable
from mailproxy_operator.meters import Meters
from mailproxy_operator.reconcile import Outcome

EDGE = Key("mail", "edge")


def value(meters: Meters, name: str, **labels: str) -> float | None:
    return meters.registry.get_sample_value(f"mailproxy_operator_{name}", labels)


def status(ready: str, stalled: str = "NotStalled") -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": ready}, {"type": "Stalled", "reason": stalled}]}


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome(), "ok"),
        (Outcome(failed=Retryable("busy")), "retry"),
        (Outcome(refused=Finding("InvalidSpec", "no")), "hopeless"),
        (None, "error"),
    ],
)
def test_results_are_counted(outcome: Outcome | None, result: str) -> None:
    meters = Meters()
    meters.reconciled(EDGE, outcome, 0.2)
    for one in ("ok", "retry", "hopeless", "error"):
        assert value(meters, "reconciles_total", result=one) == (1.0 if one == result else 0.0)
    assert value(meters, "reconcile_duration_seconds_count") == 1.0
    assert bool(value(meters, "last_success_timestamp_seconds")) is (result == "ok")


def test_resources_are_counted_by_their_condition_and_forgotten_with_it() -> None:
    meters = Meters()
    meters.reconciled(EDGE, Outcome(status=status("True")), 0.1)
    meters.reconciled(Key("mail", "b"), Outcome(status=status("Unknown", "SysctlForbidden")), 0.1)
    assert value(meters, "resources", ready="true") == 1.0
    assert value(meters, "resources", ready="unknown") == 1.0
    assert value(meters, "circuit_breakers_open", reason="sysctl_forbidden") == 1.0
    meters.reconciled(EDGE, Outcome(is_gone=True), 0.1)
    meters.reconciled(Key("mail", "b"), Outcome(status=status("False")), 0.1)
    assert value(meters, "resources", ready="true") == 0.0
    assert value(meters, "resources", ready="false") == 1.0
    assert value(meters, "circuit_breakers_open", reason="sysctl_forbidden") == 0.0


def test_a_refusal_counts_once_until_it_is_over() -> None:
    meters = Meters()
    refused = Outcome(refused=Finding("ListenerConflict", "no"))
    for outcome in (refused, refused, Outcome(), refused):
        meters.reconciled(EDGE, outcome, 0.1)
    assert value(meters, "config_errors_total", reason="listener_conflict") == 2.0


def test_repairs_and_prunes_are_counted_by_kind() -> None:
    meters = Meters()
    meters.reconciled(EDGE, Outcome(drifted=("Service",), pruned=("PodMonitor",)), 0.1)
    assert value(meters, "drift_repairs_total", kind="Service") == 1.0
    assert value(meters, "prunes_total", kind="PodMonitor") == 1.0


def test_requests_are_counted() -> None:
    meters = Meters()
    meters.requested("apply", "2xx", 0.01)
    meters.watch_queue(lambda: 3)
    assert value(meters, "api_requests_total", verb="apply", code="2xx") == 1.0
    assert value(meters, "api_request_duration_seconds_count", verb="apply") == 1.0
    assert value(meters, "queue_depth") == 3.0


def test_the_exposition_names_no_resource() -> None:
    meters = Meters()
    meters.reconciled(EDGE, Outcome(status=status("True")), 0.1)
    text, content_type = meters.exposition()
    assert content_type.startswith("text/plain")
    assert b"mailproxy_operator_build_info" in text
    assert b"edge" not in text
