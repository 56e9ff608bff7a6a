# SPDX-License-Identifier: Apache-2.0
"""The operator's metrics, and the events that change them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailproxy_operator import metrics as meters_module
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.controller.reconciler import Outcome
from mailproxy_operator.errors import ConditionCause, TransientError
from mailproxy_operator.metrics import Metrics

EDGE = Key("mail", "edge")


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"mailproxy_operator_{name}", labels)


def status(ready: str, stalled: str = "NotStalled") -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": ready}, {"type": "Stalled", "reason": stalled}]}


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome(), "ok"),
        (Outcome(failed=TransientError("busy")), "retry"),
        (Outcome(refused=ConditionCause("InvalidSpec", "no")), "hopeless"),
        (None, "error"),
    ],
)
def test_reconciles_are_counted_by_result(outcome: Outcome | None, result: str) -> None:
    metrics = Metrics()
    metrics.reconciled(EDGE, outcome, 0.2)
    for one in ("ok", "retry", "hopeless", "error"):
        assert value(metrics, "reconciles_total", result=one) == (1.0 if one == result else 0.0)
    assert value(metrics, "reconcile_duration_seconds_count") == 1.0
    assert bool(value(metrics, "last_success_timestamp_seconds")) is (result in {"ok", "hopeless"})


def test_resources_are_counted_by_ready_condition() -> None:
    metrics = Metrics()
    metrics.reconciled(EDGE, Outcome(status=status("True")), 0.1)
    metrics.reconciled(Key("mail", "b"), Outcome(status=status("Unknown", "SysctlForbidden")), 0.1)
    assert value(metrics, "resources", ready="true") == 1.0
    assert value(metrics, "resources", ready="unknown") == 1.0
    assert value(metrics, "circuit_breakers_open", reason="sysctl_forbidden") == 1.0
    metrics.reconciled(EDGE, Outcome(is_gone=True), 0.1)
    metrics.reconciled(Key("mail", "b"), Outcome(status=status("False")), 0.1)
    assert value(metrics, "resources", ready="true") == 0.0
    assert value(metrics, "resources", ready="false") == 1.0
    assert value(metrics, "circuit_breakers_open", reason="sysctl_forbidden") == 0.0


def test_repeated_config_error_is_counted_once() -> None:
    metrics = Metrics()
    refused = Outcome(refused=ConditionCause("ListenerConflict", "no"))
    for outcome in (refused, refused, Outcome(), refused):
        metrics.reconciled(EDGE, outcome, 0.1)
    assert value(metrics, "config_errors_total", reason="listener_conflict") == 2.0


def test_repairs_and_prunes_are_counted_by_kind() -> None:
    metrics = Metrics()
    metrics.reconciled(EDGE, Outcome(drifted=("Service",), pruned=("PodMonitor",)), 0.1)
    assert value(metrics, "drift_repairs_total", kind="Service") == 1.0
    assert value(metrics, "prunes_total", kind="PodMonitor") == 1.0


def test_requests_are_counted() -> None:
    metrics = Metrics()
    metrics.requested("apply", "2xx", 0.01)
    metrics.watch_queue(lambda: 3)
    assert value(metrics, "api_requests_total", verb="apply", code="2xx") == 1.0
    assert value(metrics, "api_request_duration_seconds_count", verb="apply") == 1.0
    assert value(metrics, "queue_depth") == 3.0


CATALOGUE = {
    "reconciles_total": ("counter", {"result": {"ok", "retry", "hopeless", "error"}}),
    "reconcile_duration_seconds": ("histogram", {}),
    "queue_depth": ("gauge", {}),
    "last_success_timestamp_seconds": ("gauge", {}),
    "resources": ("gauge", {"ready": {"true", "false", "unknown"}}),
    "config_errors_total": (
        "counter",
        {
            "reason": {
                "invalid_spec",
                "listener_conflict",
                "name_conflict",
                "invalid_pod_fields",
                "forbidden",
            }
        },
    ),
    "drift_repairs_total": ("counter", {"kind": set()}),
    "prunes_total": ("counter", {"kind": set()}),
    "circuit_breakers_open": ("gauge", {"reason": {"sysctl_forbidden"}}),
    "api_requests_total": ("counter", {"verb": set(), "code": set()}),
    "api_request_duration_seconds": ("histogram", {"verb": set()}),
    "watch_restarts_total": ("counter", {"reason": {"expired", "closed", "error", "inactive"}}),
    "leader": ("gauge", {}),
    "condition": ("gauge", {"namespace": set(), "name": set(), "type": set(), "status": set()}),
    "condition_resources_omitted": ("gauge", {}),
    "build_info": (
        "gauge",
        {"version": None, "revision": None, "python_version": None, "kopf_version": None},
    ),
    "sidecar_admissions_total": (
        "counter",
        {"result": {"injected", "present", "ignored", "refused", "error"}},
    ),
}
"""Name, type, and the values of each label: empty before the first event, ``None`` for any value."""


def test_all_metrics_exist_from_start() -> None:
    text, _ = Metrics().exposition()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    expected = {f"mailproxy_operator_{name.removesuffix('_total')}" for name in CATALOGUE}
    assert {name for name in families if not name.endswith("_created")} == expected
    for name, (kind, labels) in CATALOGUE.items():
        family = families[f"mailproxy_operator_{name.removesuffix('_total')}"]
        assert family.type == kind, name
        samples = [one for one in family.samples if not one.name.endswith(("_created", "_bucket"))]
        for label, values in labels.items():
            seen = {sample.labels[label] for sample in samples}
            assert values is None or seen == values, (name, label)
        assert all(sample.labels.keys() == labels.keys() for sample in samples), name


@pytest.mark.parametrize(
    ("package_version", "revision"),
    [("1.2.0+abc1234", "abc1234"), ("1.2.0", "unknown"), ("unknown", "unknown")],
)
def test_build_revision_is_local_part_of_version(
    monkeypatch: pytest.MonkeyPatch, package_version: str, revision: str
) -> None:
    monkeypatch.setattr(meters_module, "version", lambda _: package_version)
    text, _ = Metrics().exposition()
    assert f'revision="{revision}",version="{package_version}"' in text.decode()


def test_duration_of_watch_is_not_observed() -> None:
    metrics = Metrics()
    metrics.requested("watch", "2xx", 300.0)
    assert value(metrics, "api_requests_total", verb="watch", code="2xx") == 1.0
    assert value(metrics, "api_request_duration_seconds_count", verb="watch") is None


def test_condition_series_have_resource_labels() -> None:
    metrics = Metrics()
    resource_labels = {"namespace": "mail", "name": "edge"}
    for ready in ("True", "False"):
        metrics.reconciled(EDGE, Outcome(status=status(ready)), 0.1)
        for one in ("True", "False", "Unknown"):
            found = value(metrics, "condition", **resource_labels, type="Ready", status=one)
            assert found == (1.0 if one == ready else 0.0)
    metrics.reconciled(EDGE, Outcome(is_gone=True), 0.1)
    assert value(metrics, "condition", **resource_labels, type="Ready", status="False") is None
    assert b"edge" not in metrics.exposition()[0]


def test_condition_series_are_limited_and_unready_resources_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meters_module, "MAX_RESOURCES", 3)
    metrics = Metrics()
    for number in range(5):
        metrics.reconciled(Key("mail", f"good-{number}"), Outcome(status=status("True")), 0.1)
    metrics.reconciled(Key("mail", "sick"), Outcome(status=status("False")), 0.1)
    families = {one.name: one for one in metrics.registry.collect()}
    samples = families["mailproxy_operator_condition"].samples
    assert {one.labels["name"] for one in samples} == {"sick", "good-0", "good-1"}
    assert value(metrics, "condition_resources_omitted") == 3.0


def test_invalid_resource_counts_as_successful_reconcile() -> None:
    metrics = Metrics()
    metrics.reconciled(
        EDGE, Outcome(refused=ConditionCause("InvalidSpec", "no"), status=status("False")), 0.1
    )
    assert value(metrics, "reconciles_total", result="error") == 0.0
    assert value(metrics, "last_success_timestamp_seconds")
    assert value(metrics, "condition", namespace="mail", name="edge", type="Ready", status="False") == 1.0
