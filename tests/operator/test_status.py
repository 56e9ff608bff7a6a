# SPDX-License-Identifier: Apache-2.0
"""The whole status, and the events about its changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailproxy_operator.controller import status
from mailproxy_operator.controller.observed import Observed, Workload
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.render import Plan, planned
from mailproxy_operator.settings import Platform
from support.operator_bodies import body, server

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRITTEN = "2026-01-01T00:00:00Z"


def planned_for(**spec: Any) -> Plan:
    return planned(Resource.read(body(**spec)), Platform())


def computed_status(
    plan: Plan | None, previous: dict[str, Any], refused: ConditionCause | None = None, **found: Any
) -> dict[str, Any]:
    resource = {**body(), "metadata": {**body()["metadata"], "generation": 4}, "status": previous}
    facts = status.facts(resource, plan, Observed(**found), refused=refused, failed=None)
    return status.status(facts, plan, previous=previous, now=WRITTEN)


def test_status_of_valid_resource() -> None:
    workload = Workload(desired=2, replicas=3, ready=2)
    found = computed_status(planned_for(), {}, workload=workload, addresses=(("IPAddress", "192.0.2.1"),))
    assert (found["observedGeneration"], found["replicas"], found["readyReplicas"]) == (4, 3, 2)
    assert found["addresses"] == [{"type": "IPAddress", "value": "192.0.2.1"}]
    assert len(found["configHash"]) == 64


def test_status_lists_client_and_container_ports() -> None:
    listen = [{"port": 143}, {"address": "unix:/run/mailproxy/x"}]
    plan = planned_for(
        portStrategy="HighPort", servers=[{"name": "imap", "protocol": "imap", "listen": listen}]
    )
    first, second = computed_status(plan, {})["listeners"]
    assert (first["port"], first["containerPort"], first["servicePort"]) == (143, 10143, 143)
    assert second == {"server": "imap", "protocol": "imap", "address": "unix:/run/mailproxy/x", "tls": False}


def test_conflicting_sysctls_have_no_value() -> None:
    listen = [
        {"port": 1143, "soKeepalive": {"idle": "30m"}},
        {"port": 2143, "soKeepalive": {"idle": "10m"}},
    ]
    plan = planned_for(servers=[{"name": "imap", "protocol": "imap", "listen": listen}])
    [sysctl] = computed_status(plan, {})["sysctls"]
    assert "value" not in sysctl
    assert sysctl["reason"] == "ConflictingListeners"


@pytest.mark.parametrize("plan", [None, planned_for(servers=[server("imap", "imap", 1143)])])
def test_status_of_invalid_resource_keeps_fields_of_last_valid_one(plan: Plan | None) -> None:
    good = computed_status(planned_for(), {})
    refused = computed_status(plan, good, ConditionCause("InvalidSpec", "no"))
    for name in ("configHash", "selector", "listeners", "sysctls"):
        assert refused[name] == good[name]
    assert "configHash" not in computed_status(None, {}, ConditionCause("InvalidSpec", "no"))


def conditions(ready: str, reason: str, reconciling: str = "False") -> dict[str, Any]:
    return {
        "conditions": [
            {"type": "Ready", "status": ready, "reason": reason, "message": "m" * 2000},
            {"type": "Reconciling", "status": reconciling},
        ]
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, conditions("False", "PodsNotReady", "True"), ("Normal", "PodsNotReady")),
        (conditions("False", "A"), conditions("True", "Ready"), ("Normal", "Ready")),
        (
            conditions("True", "Ready"),
            conditions("False", "ConfigPropagating", "True"),
            ("Normal", "ConfigPropagating"),
        ),
        ({}, conditions("False", "SecretNotFound", "True"), ("Warning", "SecretNotFound")),
        ({}, conditions("False", "Unschedulable", "True"), ("Warning", "Unschedulable")),
        ({}, conditions("False", "ImagePullFailed", "True"), ("Warning", "ImagePullFailed")),
        (conditions("True", "Ready"), conditions("True", "Ready"), None),
        (conditions("True", "Ready"), conditions("False", "InvalidSpec"), ("Warning", "InvalidSpec")),
        (conditions("False", "A"), conditions("False", "B"), ("Warning", "B")),
    ],
)
def test_event_is_created_when_ready_changes(
    before: dict[str, Any], after: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    event = status.transition(body(), before, after, now=NOW)
    assert (event and (event["type"], event["reason"])) == expected
    if event:
        assert len(event["note"]) <= 1000


def test_two_events_within_a_second_have_different_names() -> None:
    first, second = (
        status.transition(body(), {}, conditions("True", "Ready"), now=NOW + timedelta(microseconds=step))
        for step in (0, 1)
    )
    assert first is not None
    assert second is not None
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["eventTime"] == "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("written", "is_in_progress"),
    [
        (conditions("True", "Ready"), False),
        (conditions("False", "PodsNotReady"), True),
        # The watches report a node that accepts a pod, and pods that are created again.
        (conditions("False", "NoNodes"), False),
        (conditions("False", "SidecarMissing"), False),
        ({"conditions": [{"type": "Stalled", "status": "True"}]}, False),
        ({"conditions": [{"type": "Reconciling", "status": "False", "reason": "Paused"}]}, False),
    ],
)
def test_status_in_progress_needs_requeue(written: dict[str, Any], is_in_progress: bool) -> None:
    assert status.is_in_progress(written) is is_in_progress
