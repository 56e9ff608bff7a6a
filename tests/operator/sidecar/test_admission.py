# SPDX-License-Identifier: Apache-2.0
"""Admission of pods that request a sidecar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import TransientError
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.admission import MAX_EVENTS, Admission, AdmissionDecision, AdmissionRequest
from mailproxy_operator.sidecar.inject import has_sidecar
from support.operator_cluster import MemoryCluster
from support.sidecars import INJECT, PLATFORM, pod, rendered_sidecar, sidecar_body

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


async def platform() -> Platform:
    return PLATFORM


async def decide(
    cluster: MemoryCluster,
    requesting_pod: Manifest,
    *,
    dry_run: bool = False,
    namespaces: tuple[str, ...] = (),
) -> AdmissionDecision:
    admission = Admission(cluster, platform, namespaces=namespaces, now=lambda: NOW)
    return await admission.review(AdmissionRequest.read(requesting_pod, "mail", dry_run=dry_run))


def cluster_with(**spec: Any) -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.put(sidecar_body(**spec))
    return cluster


async def test_pod_gets_sidecar_and_config_hash() -> None:
    cluster = cluster_with(drain={"delay": "1s", "timeout": "5s"})
    decision = await decide(cluster, pod())
    assert decision.result == "injected"
    assert decision.pod is not None
    assert has_sidecar(decision.pod)
    annotations = decision.pod["metadata"]["annotations"]
    assert (
        annotations["mailproxy.dev/config-hash"]
        == rendered_sidecar(drain={"delay": "1s", "timeout": "5s"}).config_hash
    )
    assert (decision.warnings, decision.refusal, cluster.events) == ((), "", [])


async def test_pod_with_sidecar_is_admitted_without_reading_resource() -> None:
    class Broken(MemoryCluster):
        async def get(self, *_: Any) -> Manifest:
            raise TransientError("no response")

    decision = await decide(cluster_with(), pod())
    assert decision.pod is not None
    assert await decide(Broken(), decision.pod) == AdmissionDecision(result="present")


async def test_pod_with_sidecar_but_without_label_is_labelled() -> None:
    decision = await decide(cluster_with(), pod())
    assert decision.pod is not None
    del decision.pod["metadata"]["labels"]["mailproxy.dev/proxy"]
    again = await decide(MemoryCluster(), decision.pod)
    assert again.result == "present"
    assert again.pod is not None
    assert again.pod["metadata"]["labels"]["mailproxy.dev/proxy"] == "edge"
    assert again.pod["spec"] == decision.pod["spec"]


@pytest.mark.parametrize(
    ("spec", "reason", "expected"),
    [
        ({"mode": "DaemonSet"}, "NotASidecar", "MailProxy edge has mode DaemonSet"),
        ({"sidecar": {"selector": {"matchLabels": {"app": "x"}}}}, "NotSelected", "is for other pods"),
        ({"servers": []}, "InvalidSpec", "MailProxy edge is not valid: spec.servers"),
        (
            {"servers": [{"name": "a", "protocol": "imap", "listen": [{"port": 31143}]}]},
            "PortConflict",
            "port 31143 is used by container dovecot",
        ),
    ],
)
@pytest.mark.parametrize("is_strict", [False, True])
async def test_conflicting_pod_is_admitted_or_denied_by_failure_policy(
    spec: dict[str, Any], reason: str, expected: str, is_strict: bool
) -> None:
    policy = {"failurePolicy": "Fail" if is_strict else "Ignore", **spec.get("sidecar", {})}
    cluster = cluster_with(**{**spec, "sidecar": policy})
    decision = await decide(cluster, pod())
    assert decision.pod is None
    assert decision.result == ("refused" if is_strict else "ignored")
    text = decision.refusal if is_strict else decision.warnings[0]
    assert text.startswith("no mailproxy sidecar (mailproxy.dev/inject: edge): ")
    assert expected in text
    [event] = cluster.events
    assert event["reason"] == ("SidecarRefused" if is_strict else "SidecarMissing")
    assert event["note"].startswith(f"{reason}: ")
    assert event["type"] == "Warning"
    assert event["regarding"]["kind"] == "MailProxy"


@pytest.mark.parametrize("is_going", [False, True])
async def test_missing_resource_denies_no_pod(is_going: bool) -> None:
    cluster = MemoryCluster()
    if is_going:
        body = sidecar_body()
        body["metadata"]["deletionTimestamp"] = "2026-07-01T12:00:00Z"
        cluster.put(body)
    decision = await decide(cluster, pod())
    assert decision.result == "ignored"
    assert decision.warnings == (
        "no mailproxy sidecar (mailproxy.dev/inject: edge): there is no MailProxy edge in namespace mail; "
        "create it before the pod",
    )


@pytest.mark.parametrize(
    ("owned", "named", "regarding"),
    [
        (True, "", ("apps/v1", "ReplicaSet", "dovecot-5d9c")),
        (False, "dovecot-0", ("v1", "Pod", "dovecot-0")),
        (False, "", ("v1", "Pod", "dovecot-5d9c")),
    ],
)
async def test_event_regards_owner_of_pod(owned: bool, named: str, regarding: tuple[str, str, str]) -> None:
    cluster, requesting_pod = MemoryCluster(), pod()
    requesting_pod["metadata"]["name"] = named
    if not owned:
        del requesting_pod["metadata"]["ownerReferences"]
    await decide(cluster, requesting_pod)
    about = cluster.events[0]["regarding"]
    assert (about["apiVersion"], about["kind"], about["name"]) == regarding


async def test_pods_of_one_workload_make_one_event() -> None:
    cluster = MemoryCluster()
    for number in range(3):
        requesting_pod = pod()
        requesting_pod["metadata"]["name"] = f"dovecot-{number}"
        await decide(cluster, requesting_pod)
    assert len({event["metadata"]["name"] for event in cluster.events}) == 1


async def test_number_of_events_is_limited() -> None:
    cluster, clock = MemoryCluster(), [NOW]
    admission = Admission(cluster, platform, now=lambda: clock[0])
    for number in range(MAX_EVENTS + 5):
        requesting_pod = pod()
        requesting_pod["metadata"]["labels"][INJECT] = f"nobody-{number}"
        assert (await admission.review(AdmissionRequest.read(requesting_pod, "mail", dry_run=False))).warnings
    assert len(cluster.events) == MAX_EVENTS
    clock[0] += timedelta(minutes=1)
    await admission.review(AdmissionRequest.read(pod(), "mail", dry_run=False))
    assert len(cluster.events) == MAX_EVENTS + 1


async def test_dry_run_creates_no_event() -> None:
    cluster = MemoryCluster()
    decision = await decide(cluster, pod(), dry_run=True)
    assert (decision.result, cluster.events) == ("ignored", [])


async def test_pods_of_unwatched_namespaces_are_ignored() -> None:
    cluster = cluster_with()
    decision = await decide(cluster, pod(), namespaces=("other",))
    assert (decision.result, cluster.events) == ("ignored", [])
    assert "does not watch this namespace" in decision.warnings[0]
    assert (await decide(cluster, pod(), namespaces=("other", "mail"))).result == "injected"
