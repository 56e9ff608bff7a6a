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
from mailproxy_operator.sidecar.inject import carries
from support.operator_cluster import MemoryCluster
from support.sidecars import INJECT, PLATFORM, made, pod, sidecar_body

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


async def platform() -> Platform:
    return PLATFORM


async def decide(
    cluster: MemoryCluster, asking: Manifest, *, dry_run: bool = False, namespaces: tuple[str, ...] = ()
) -> AdmissionDecision:
    admission = Admission(cluster, platform, namespaces=namespaces, now=lambda: NOW)
    return await admission.review(AdmissionRequest.read(asking, "mail", dry_run=dry_run))


def cluster_with(**spec: Any) -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.put(sidecar_body(**spec))
    return cluster


async def test_it_gets_it_and_knows_what_it_should_run() -> None:
    cluster = cluster_with(drain={"delay": "1s", "timeout": "5s"})
    verdict = await decide(cluster, pod())
    assert verdict.result == "injected"
    assert verdict.pod is not None
    assert carries(verdict.pod)
    annotations = verdict.pod["metadata"]["annotations"]
    assert (
        annotations["mailproxy.dev/config-hash"] == made(drain={"delay": "1s", "timeout": "5s"}).config_hash
    )
    assert (verdict.warnings, verdict.refusal, cluster.events) == ((), "", [])


async def test_who_has_it_is_left_alone_and_nothing_is_looked_up() -> None:
    class Broken(MemoryCluster):
        async def get(self, *_: Any) -> Manifest:
            raise TransientError("no answer")

    verdict = await decide(cluster_with(), pod())
    assert verdict.pod is not None
    assert await decide(Broken(), verdict.pod) == AdmissionDecision(result="present")


async def test_pod_that_carries_it_without_the_label_is_labelled() -> None:
    verdict = await decide(cluster_with(), pod())
    assert verdict.pod is not None
    del verdict.pod["metadata"]["labels"]["mailproxy.dev/proxy"]
    again = await decide(MemoryCluster(), verdict.pod)
    assert again.result == "present"
    assert again.pod is not None
    assert again.pod["metadata"]["labels"]["mailproxy.dev/proxy"] == "edge"
    assert again.pod["spec"] == verdict.pod["spec"]


@pytest.mark.parametrize(
    ("spec", "reason", "told"),
    [
        ({"mode": "DaemonSet"}, "NotASidecar", "MailProxy edge has mode DaemonSet"),
        ({"sidecar": {"selector": {"matchLabels": {"app": "x"}}}}, "NotSelected", "is for other pods"),
        ({"servers": []}, "InvalidSpec", "MailProxy edge is not valid: spec.servers"),
        (
            {"servers": [{"name": "a", "protocol": "imap", "listen": [{"port": 31143}]}]},
            "PortConflict",
            "port 31143 is taken by container dovecot",
        ),
    ],
)
@pytest.mark.parametrize("is_strict", [False, True])
async def test_who_cannot_have_it_runs_without_or_not_at_all(
    spec: dict[str, Any], reason: str, told: str, is_strict: bool
) -> None:
    policy = {"failurePolicy": "Fail" if is_strict else "Ignore", **spec.get("sidecar", {})}
    cluster = cluster_with(**{**spec, "sidecar": policy})
    verdict = await decide(cluster, pod())
    assert verdict.pod is None
    assert verdict.result == ("refused" if is_strict else "ignored")
    text = verdict.refusal if is_strict else verdict.warnings[0]
    assert text.startswith("no mailproxy sidecar (mailproxy.dev/inject: edge): ")
    assert told in text
    [event] = cluster.events
    assert event["reason"] == ("SidecarRefused" if is_strict else "SidecarMissing")
    assert event["note"].startswith(f"{reason}: ")
    assert event["type"] == "Warning"
    assert event["regarding"]["kind"] == "MailProxy"


@pytest.mark.parametrize("is_going", [False, True])
async def test_a_resource_that_is_not_there_cannot_have_pods_refused(is_going: bool) -> None:
    cluster = MemoryCluster()
    if is_going:
        body = sidecar_body()
        body["metadata"]["deletionTimestamp"] = "2026-07-01T12:00:00Z"
        cluster.put(body)
    verdict = await decide(cluster, pod())
    assert verdict.result == "ignored"
    assert verdict.warnings == (
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
async def test_the_event_is_about_what_makes_the_pod(
    owned: bool, named: str, regarding: tuple[str, str, str]
) -> None:
    cluster, asking = MemoryCluster(), pod()
    asking["metadata"]["name"] = named
    if not owned:
        del asking["metadata"]["ownerReferences"]
    await decide(cluster, asking)
    about = cluster.events[0]["regarding"]
    assert (about["apiVersion"], about["kind"], about["name"]) == regarding


async def test_pods_of_one_workload_make_one_event() -> None:
    cluster = MemoryCluster()
    for number in range(3):
        asking = pod()
        asking["metadata"]["name"] = f"dovecot-{number}"
        await decide(cluster, asking)
    assert len({event["metadata"]["name"] for event in cluster.events}) == 1


async def test_nobody_can_have_any_number_of_events_made() -> None:
    cluster, clock = MemoryCluster(), [NOW]
    admission = Admission(cluster, platform, now=lambda: clock[0])
    for number in range(MAX_EVENTS + 5):
        asking = pod()
        asking["metadata"]["labels"][INJECT] = f"nobody-{number}"
        assert (await admission.review(AdmissionRequest.read(asking, "mail", dry_run=False))).warnings
    assert len(cluster.events) == MAX_EVENTS
    clock[0] += timedelta(minutes=1)
    await admission.review(AdmissionRequest.read(pod(), "mail", dry_run=False))
    assert len(cluster.events) == MAX_EVENTS + 1


async def test_a_trial_leaves_nothing_behind() -> None:
    cluster = MemoryCluster()
    verdict = await decide(cluster, pod(), dry_run=True)
    assert (verdict.result, cluster.events) == ("ignored", [])


async def test_other_people_s_namespaces_are_not_served() -> None:
    cluster = cluster_with()
    verdict = await decide(cluster, pod(), namespaces=("other",))
    assert (verdict.result, cluster.events) == ("ignored", [])
    assert "not served" in verdict.warnings[0]
    assert (await decide(cluster, pod(), namespaces=("other", "mail"))).result == "injected"
