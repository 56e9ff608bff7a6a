# SPDX-License-Identifier: Apache-2.0
"""What was seen becomes conditions: each row is a situation, and what it is called."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.cluster import RunningConfig
from mailproxy_operator.conditions import HOPELESS, Facts, conditions, judged, synced
from mailproxy_operator.errors import Finding
from mailproxy_operator.observed import Observed, Pod, Workload

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
    return Workload(**{"desired": 1, "failures": {kind: Finding("Because", message)}, **more})


WAITING = pod(is_ready=False, has_started=False, running=None)
LEAVING = pod("b", is_terminating=True, running=None)
NO_SECRET, NO_MAP = 'secret "x" not found', 'configmap "x" not found'
REFUSAL = Finding("InvalidSpec", "spec.mail.timeout: must be a time")
SYSCTL = Finding("SysctlForbidden", "nodes refuse net.core.somaxconn")


@pytest.mark.parametrize(
    ("known", "name", "status", "reason"),
    [
        (facts(), "Ready", "True", "Ready"),
        (facts(), "Accepted", "True", "Accepted"),
        (facts(refused=REFUSAL), "Accepted", "False", "InvalidSpec"),
        (facts(refused=REFUSAL), "Ready", "False", "InvalidSpec"),
        (facts(refused=REFUSAL), "Stalled", "True", "InvalidSpec"),
        (facts(refused=REFUSAL), "Available", "True", "MinimumReplicasAvailable"),
        # what is referred to
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
        (facts(STARTING, WAITING, mounts={"a": NO_MAP}), "ResolvedRefs", "False", "ConfigMapNotFound"),
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
        # whether clients are served
        (facts(mode="Sidecar"), "Available", "True", "SidecarMode"),
        (facts(EMPTY), "Available", "True", "ScaledToZero"),
        (facts(None), "Available", "False", "PodsNotReady"),
        (facts(STARTING, WAITING), "Available", "False", "PodsNotReady"),
        (facts(failing("ReplicaFailure", "quota")), "Available", "False", "PodsRefused"),
        (facts(failing("Progressing", "too slow")), "Available", "False", "ProgressDeadlineExceeded"),
        (
            facts(STARTING, pod(is_ready=False, waiting=Finding("ImagePullBackOff", "no such image"))),
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
        # which configuration runs
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
        (facts(SERVING, pod(), LEAVING), "ConfigSynced", "True", "AllPodsSynced"),
        # what is going on
        (facts(), "Reconciling", "False", "Settled"),
        (facts(paused=True), "Reconciling", "False", "Paused"),
        (facts(ROLLING), "Reconciling", "True", "RollingOut"),
        (facts(None), "Reconciling", "True", "RollingOut"),
        (facts(retrying=Finding("Retrying", "500")), "Reconciling", "True", "Retrying"),
        (facts(SERVING, pod(running=RunningConfig("old"))), "Reconciling", "True", "ConfigPropagating"),
        (facts(mode="Sidecar"), "Reconciling", "False", "Settled"),
        # what waiting does not help with
        (facts(), "Stalled", "False", "NotStalled"),
        (facts(sysctl_refused=SYSCTL), "Stalled", "True", "SysctlForbidden"),
        (facts(sysctl_refused=SYSCTL), "Ready", "False", "SysctlForbidden"),
        (facts(sysctl_refused=SYSCTL), "Available", "True", "MinimumReplicasAvailable"),
        (facts(SERVING, pod(running=RunningConfig("old", "no"))), "Stalled", "True", "ConfigRejected"),
        (facts(failing("Progressing", "slow", available=1)), "Stalled", "True", "ProgressDeadlineExceeded"),
        (facts(SERVING, pod(running=None)), "Ready", "Unknown", "PodsUnreachable"),
    ],
)  # fmt: skip
def test_judgement(known: Facts, name: str, status: str, reason: str) -> None:
    found = judged(known)[name]
    assert (found.status, found.reason) == (status, reason)
    assert found.message


@pytest.mark.parametrize("reason", sorted(HOPELESS))
def test_nothing_is_both_reconciling_and_stalled(reason: str) -> None:
    found = judged(facts(ROLLING, refused=Finding(reason, "x"), retrying=Finding("Retrying", "y")))
    assert found["Stalled"].status == "True"
    assert found["Reconciling"].status == "False"


def test_a_time_changes_only_with_its_status() -> None:
    first = conditions(judged(facts(STARTING, WAITING)), generation=1, previous=[], now="then")
    second = conditions(judged(facts()), generation=2, previous=first, now="now")
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
    assert synced((*pods, pod("d", is_terminating=True), pod("e", running=None)), "new") == 1


def test_what_is_worth_telling_stands_with_the_acceptance() -> None:
    found = judged(facts(warnings=("would violate PodSecurity",), notices=("low bits lost",)))["Accepted"]
    assert found.status == "True"
    assert found.message.endswith("; note: low bits lost; the API server warns: would violate PodSecurity")
