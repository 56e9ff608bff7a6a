# SPDX-License-Identifier: Apache-2.0
"""Observations become conditions: each row is a situation and one of its conditions."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.api.cluster import RunningConfig
from mailproxy_operator.controller.conditions import (
    TERMINAL_REASONS,
    Facts,
    conditions,
    count_synced,
    evaluate_conditions,
)
from mailproxy_operator.controller.observed import Observed, Pod, Workload
from mailproxy_operator.errors import ConditionCause, ReportedCause

GOOD = RunningConfig("new")
SERVING = Workload(desired=1, replicas=1, updated=1, ready=1, available=1)
STARTING = Workload(desired=1, replicas=1, updated=1)
ROLLING = Workload(desired=2, replicas=3, updated=1, ready=2, available=2)
EMPTY = Workload(desired=0)


def pod(name: str = "a", **more: Any) -> Pod:
    return Pod(**{"name": name, "is_ready": True, "has_started": True, "running": GOOD, **more})


def facts(
    workload: Workload | None = SERVING, *pods: Pod, mounts: dict[str, str] | None = None, **more: Any
) -> Facts:
    observed = Observed(workload=workload, pods=pods or (pod(),), mount_failures=mounts or {})
    return Facts(
        **{"generation": 3, "mode": "Deployment", "observed": observed, "config_hash": "new", **more}
    )


def failing(kind: str, message: str, **more: Any) -> Workload:
    return Workload(**{"desired": 1, "failures": {kind: ReportedCause("Because", message)}, **more})


def sidecar_facts(*pods: Pod, without: tuple[str, ...] = ()) -> Facts:
    """A sidecar with these injected pods; ``without`` are pods that request it and run without it."""
    return facts(mode="Sidecar", observed=Observed(pods=pods, without_sidecar=without))


NO_NODES = Workload(desired=0, is_per_node=True)
PENDING = ReportedCause("Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")
UNSCHEDULABLE = pod("b", is_ready=False, has_started=False, running=None, unscheduled=PENDING)
WAITING = pod(is_ready=False, has_started=False, running=None)
TERMINATING = pod("b", is_terminating=True, running=None)
NO_SECRET, NO_CONFIG_MAP = 'secret "x" not found', 'configmap "x" not found'
REFUSAL = ConditionCause("InvalidSpec", "spec.mail.timeout: must be a time")
SYSCTL = ConditionCause("SysctlForbidden", "nodes refuse net.core.somaxconn")


@pytest.mark.parametrize(
    ("given_facts", "name", "status", "reason"),
    [
        (facts(), "Ready", "True", "Ready"),
        (facts(), "Accepted", "True", "Accepted"),
        (facts(refused=REFUSAL), "Accepted", "False", "InvalidSpec"),
        (facts(refused=REFUSAL), "Ready", "False", "InvalidSpec"),
        (facts(refused=REFUSAL), "Stalled", "True", "InvalidSpec"),
        (facts(refused=REFUSAL), "Available", "True", "MinimumReplicasAvailable"),
        # ResolvedRefs
        (facts(), "ResolvedRefs", "True", "ResolvedRefs"),
        (facts(STARTING, WAITING, has_references=True), "ResolvedRefs", "Unknown", "NotYetMounted"),
        (facts(STARTING, WAITING), "ResolvedRefs", "True", "ResolvedRefs"),
        (facts(EMPTY, WAITING, has_references=True), "ResolvedRefs", "True", "ResolvedRefs"),
        (facts(STARTING, WAITING, mounts={"a": NO_SECRET}), "ResolvedRefs", "False", "SecretNotFound"),
        (
            facts(STARTING, WAITING, mounts={"a": "references non-existent secret key: tls.crt"}),
            "ResolvedRefs",
            "False",
            "SecretKeyNotFound",
        ),
        (facts(STARTING, WAITING, mounts={"a": NO_CONFIG_MAP}), "ResolvedRefs", "False", "ConfigMapNotFound"),
        (
            facts(STARTING, WAITING, mounts={"a": "references non-existent config key: ca.crt"}),
            "ResolvedRefs",
            "False",
            "ConfigMapKeyNotFound",
        ),
        (facts(SERVING, pod(), mounts={"a": 'secret "x" not found'}), "ResolvedRefs", "True", "ResolvedRefs"),
        (
            facts(SERVING, pod(running=RunningConfig("old", "certificate /x does not load"))),
            "ResolvedRefs",
            "False",
            "InvalidCertificate",
        ),
        (
            facts(STARTING, WAITING, mounts={"a": "failed to sync secret cache: timed out"}),
            "ResolvedRefs",
            "False",
            "MountFailed",
        ),
        (
            facts(STARTING, WAITING, mounts={"a": 'secrets "x" not found'}),
            "ResolvedRefs",
            "False",
            "SecretNotFound",
        ),
        # Available
        (facts(mode="Sidecar"), "Available", "True", "SidecarMode"),
        (sidecar_facts(), "Ready", "True", "Ready"),
        (sidecar_facts(pod(), without=("b",)), "Available", "False", "SidecarMissing"),
        (sidecar_facts(without=("b",)), "Ready", "False", "SidecarMissing"),
        (sidecar_facts(WAITING), "Available", "False", "PodsNotReady"),
        (sidecar_facts(pod(is_ready=False), pod("b")), "Available", "True", "SidecarMode"),
        (sidecar_facts(TERMINATING), "Ready", "True", "Ready"),
        (facts(NO_NODES), "Available", "False", "NoNodes"),
        (facts(NO_NODES), "Ready", "False", "NoNodes"),
        (facts(STARTING, UNSCHEDULABLE), "Available", "False", "Unschedulable"),
        (facts(EMPTY), "Available", "True", "ScaledToZero"),
        (facts(None), "Available", "False", "PodsNotReady"),
        (facts(STARTING, WAITING), "Available", "False", "PodsNotReady"),
        (facts(failing("ReplicaFailure", "quota")), "Available", "False", "PodsRefused"),
        (facts(failing("Progressing", "too slow")), "Available", "False", "ProgressDeadlineExceeded"),
        (
            facts(STARTING, pod(is_ready=False, waiting=ReportedCause("ImagePullBackOff", "no such image"))),
            "Available",
            "False",
            "ImagePullFailed",
        ),
        (
            facts(Workload(desired=3, replicas=3, updated=3, ready=2, available=2, may_be_unavailable=1)),
            "Available",
            "True",
            "MinimumReplicasAvailable",
        ),
        # ConfigSynced
        (facts(), "ConfigSynced", "True", "AllPodsSynced"),
        (facts(EMPTY), "ConfigSynced", "True", "AllPodsSynced"),
        (facts(SERVING, pod(running=RunningConfig("old"))), "ConfigSynced", "False", "ConfigPropagating"),
        (facts(SERVING, pod(running=None)), "ConfigSynced", "Unknown", "PodsUnreachable"),
        (
            facts(SERVING, pod(running=RunningConfig("old", "no")), pod("b", running=None)),
            "ConfigSynced",
            "False",
            "ConfigRejected",
        ),
        (facts(STARTING, WAITING), "ConfigSynced", "False", "ConfigPropagating"),
        (facts(SERVING, pod(), TERMINATING), "ConfigSynced", "True", "AllPodsSynced"),
        # Reconciling
        (facts(), "Reconciling", "False", "Settled"),
        (facts(paused=True), "Reconciling", "False", "Paused"),
        (facts(ROLLING), "Reconciling", "True", "RollingOut"),
        (facts(None), "Reconciling", "True", "RollingOut"),
        (facts(retrying=ConditionCause("Retrying", "500")), "Reconciling", "True", "Retrying"),
        (facts(SERVING, pod(running=RunningConfig("old"))), "Reconciling", "True", "ConfigPropagating"),
        (facts(mode="Sidecar"), "Reconciling", "False", "Settled"),
        # Stalled
        (facts(), "Stalled", "False", "NotStalled"),
        (facts(sysctl_refused=SYSCTL), "Stalled", "True", "SysctlForbidden"),
        (facts(sysctl_refused=SYSCTL), "Ready", "False", "SysctlForbidden"),
        (facts(sysctl_refused=SYSCTL), "Available", "True", "MinimumReplicasAvailable"),
        (facts(SERVING, pod(running=RunningConfig("old", "no"))), "Stalled", "True", "ConfigRejected"),
        (facts(failing("Progressing", "slow", available=1)), "Stalled", "True", "ProgressDeadlineExceeded"),
        (facts(SERVING, pod(running=None)), "Ready", "Unknown", "PodsUnreachable"),
    ],
)  # fmt: skip
def test_condition(given_facts: Facts, name: str, status: str, reason: str) -> None:
    found = evaluate_conditions(given_facts)[name]
    assert (found.status, found.reason) == (status, reason)
    assert found.message


@pytest.mark.parametrize("reason", sorted(TERMINAL_REASONS))
def test_stalled_resource_is_not_reconciling(reason: str) -> None:
    found = evaluate_conditions(
        facts(ROLLING, refused=ConditionCause(reason, "x"), retrying=ConditionCause("Retrying", "y"))
    )
    assert found["Stalled"].status == "True"
    assert found["Reconciling"].status == "False"


def test_transition_time_changes_only_with_status() -> None:
    first = conditions(evaluate_conditions(facts(STARTING, WAITING)), generation=1, previous=[], now="then")
    second = conditions(evaluate_conditions(facts()), generation=2, previous=first, now="now")
    times = {one["type"]: one["lastTransitionTime"] for one in second}
    assert times == {
        "Ready": "now",
        "Accepted": "then",
        "ResolvedRefs": "then",
        "Available": "now",
        "ConfigSynced": "now",
        "Reconciling": "now",
        "Stalled": "then",
    }
    assert {one["observedGeneration"] for one in second} == {2}


def test_pods_are_counted_as_synced_only_without_an_error() -> None:
    pods = (pod("a"), pod("b", running=RunningConfig("old")), pod("c", running=RunningConfig("new", "no")))
    assert count_synced((*pods, pod("d", is_terminating=True), pod("e", running=None)), "new") == 1


def test_accepted_message_has_notices_and_warnings() -> None:
    found = evaluate_conditions(facts(warnings=("would violate PodSecurity",), notices=("low bits lost",)))[
        "Accepted"
    ]
    assert found.status == "True"
    assert found.message.endswith(
        "; note: low bits lost; warning of the API server: would violate PodSecurity"
    )


def test_ready_message_without_desired_pods() -> None:
    assert evaluate_conditions(facts(EMPTY))["Ready"].message == "no pods are expected: spec.replicas is 0"
    assert "no pod requests the sidecar yet" in evaluate_conditions(sidecar_facts())["Ready"].message
    assert "clients are served" in evaluate_conditions(facts())["Ready"].message


def test_message_lists_pods_without_sidecar_and_advice() -> None:
    names = tuple(f"app-{number}" for number in range(8))
    message = evaluate_conditions(sidecar_facts(without=names))["Available"].message
    assert message.startswith(
        "8 pods request the sidecar and run without it: app-0, app-1, app-2, app-3, app-4 and 3 more"
    )
    assert "delete the pods" in message


def test_unschedulable_pod_is_reported_during_rollout() -> None:
    found = evaluate_conditions(facts(ROLLING, pod(), UNSCHEDULABLE))
    assert found["Available"].status == "True"
    assert found["Reconciling"].reason == "RollingOut"
    assert "pod b: 0/3 nodes are available: 3 Insufficient cpu; change" in found["Reconciling"].message


def test_pod_that_does_not_start_has_what_the_proxy_left() -> None:
    waiting = ReportedCause("CrashLoopBackOff", "back-off 10s restarting failed container")
    ended = pod(
        is_ready=False, running=None, waiting=waiting, exit_message="/refs/moves:2: a name is too long"
    )
    found = evaluate_conditions(facts(STARTING, ended))["Available"]
    assert found.message == (
        "pod a: CrashLoopBackOff back-off 10s restarting failed container; "
        "the proxy ended: /refs/moves:2: a name is too long"
    )
