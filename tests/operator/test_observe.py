# SPDX-License-Identifier: Apache-2.0
"""Objects that are read from a cluster become one value."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.controller.observe import exit_message, observe
from mailproxy_operator.controller.observed import Pod, Workload
from mailproxy_operator.errors import ReportedCause
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")
HASH = "mailproxy.dev/template-hash"
TEMPLATE = {"metadata": {"annotations": {HASH: "new"}}}


def deployment(status: dict[str, Any], replicas: int = 2) -> dict[str, Any]:
    spec = {"replicas": replicas, "template": TEMPLATE}
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (
            deployment({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2}),
            Workload(desired=2, replicas=3, updated=1, ready=2),
        ),
        (deployment({"observedGeneration": 1}), Workload(desired=2, is_current=False)),
        (
            deployment(
                {
                    "observedGeneration": 2,
                    "conditions": [
                        {
                            "type": "ReplicaFailure",
                            "status": "True",
                            "reason": "FailedCreate",
                            "message": "quota",
                        },
                        {"type": "Progressing", "status": "True", "reason": "x", "message": "y"},
                    ],
                }
            ),
            Workload(desired=2, failures={"ReplicaFailure": ReportedCause("FailedCreate", "quota")}),
        ),
        (
            {
                "kind": "DaemonSet",
                "metadata": {"generation": 1},
                "spec": {"template": TEMPLATE},
                "status": {"observedGeneration": 1, "desiredNumberScheduled": 3, "numberAvailable": 2},
            },
            Workload(desired=3, available=2, may_be_unavailable=1, is_per_node=True),
        ),
        (
            {"kind": "DaemonSet", "metadata": {"generation": 1}, "spec": {"template": TEMPLATE}},
            Workload(desired=1, may_be_unavailable=1, is_per_node=True, is_current=False),
        ),
    ],
)
async def test_observed_workload(live: dict[str, Any], expected: Workload) -> None:
    observed, _ = await observe(MemoryCluster(), EDGE, live, None)
    assert observed.workload == expected


async def test_deployment_with_node_ports_is_available_with_one_pod_missing() -> None:
    """As with a DaemonSet: the old pod is deleted first, so a rollout is not an outage."""
    live = deployment({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1})
    live["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    observed, _ = await observe(MemoryCluster(), EDGE, live, None)
    assert observed.workload is not None
    assert observed.workload.is_available
    live["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}
    observed, _ = await observe(MemoryCluster(), EDGE, live, None)
    assert observed.workload is not None
    assert not observed.workload.is_available


def pod(state: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "a",
            "namespace": "mail",
            "labels": {"app.kubernetes.io/name": "mailproxy", "app.kubernetes.io/instance": "edge"},
            "annotations": {HASH: "new"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "edge-1", "uid": "rs", "controller": True}],
        },
        "status": {
            "containerStatuses": [{"name": "mailproxy", "state": state}],
            "podIP": "192.0.2.1",
            **status,
        },
    }


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (
            pod({"running": {}}, conditions=[{"type": "Ready", "status": "True"}]),
            Pod(name="a", is_ready=True, has_started=True, running=RunningConfig("h")),
        ),
        (
            pod({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
            Pod(
                name="a",
                waiting=ReportedCause("ImagePullBackOff", "no such image"),
                running=RunningConfig("h"),
            ),
        ),
        (
            pod(
                {},
                phase="Pending",
                conditions=[
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}
                ],
            ),
            Pod(name="a", unscheduled=ReportedCause("Unschedulable", "0/3"), running=RunningConfig("h")),
        ),
        (
            pod({}, phase="Failed", reason="SysctlForbidden", message="m", podIP=""),
            Pod(name="a", failed=ReportedCause("SysctlForbidden", "m")),
        ),
    ],
)
async def test_observed_pod(live: dict[str, Any], expected: Pod) -> None:
    cluster = MemoryCluster()
    cluster.put(live)
    cluster.running["a"] = RunningConfig("h")
    observed, pods = await observe(cluster, EDGE, deployment({}), None)
    assert observed.pods == (expected,)
    assert len(pods) == 1


async def test_terminating_pods_get_no_request() -> None:
    cluster = MemoryCluster()
    cluster.put(pod({"running": {}}))["metadata"]["deletionTimestamp"] = "now"
    cluster.running["a"] = RunningConfig("h")
    observed, _ = await observe(cluster, EDGE, deployment({}), None)
    assert observed.pods[0].is_terminating
    assert observed.pods[0].running is None


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
async def test_ended_pods_get_no_request(phase: str) -> None:
    """An evicted pod keeps its address in its status, and another pod may have that address now."""
    cluster = MemoryCluster()
    cluster.put(pod({}, phase=phase, reason="Evicted", message="m"))
    cluster.running["a"] = RunningConfig("h", "another pod's error about a certificate")
    observed, _ = await observe(cluster, EDGE, deployment({}), None)
    assert observed.pods[0].running is None


async def test_mount_failures_are_read_only_while_a_pod_is_starting() -> None:
    cluster = MemoryCluster()
    cluster.mounts = {"a": 'secret "x" not found'}
    cluster.put(pod({"waiting": {"reason": "ContainerCreating"}}))
    observed, _ = await observe(cluster, EDGE, deployment({}), None)
    assert observed.mount_failures == cluster.mounts
    cluster.put(pod({"running": {}}))
    observed, _ = await observe(cluster, EDGE, deployment({}), None)
    assert observed.mount_failures == {}


@pytest.mark.parametrize(
    ("service", "addresses"),
    [
        (None, ()),
        ({"spec": {"clusterIPs": ["None"]}}, ()),
        (
            {
                "spec": {"clusterIPs": ["10.0.0.1", "fd00::1"]},
                "status": {
                    "loadBalancer": {"ingress": [{"hostname": "lb.example.com"}, {"ip": "192.0.2.7"}]}
                },
            },
            (
                ("Hostname", "lb.example.com"),
                ("IPAddress", "192.0.2.7"),
                ("IPAddress", "10.0.0.1"),
                ("IPAddress", "fd00::1"),
            ),
        ),
    ],
)
async def test_addresses_of_service(
    service: dict[str, Any] | None, addresses: tuple[tuple[str, str], ...]
) -> None:
    observed, _ = await observe(MemoryCluster(), EDGE, None, service)
    assert observed.addresses == addresses


@pytest.mark.parametrize(
    ("state", "last", "message"),
    [
        (
            {"waiting": {"reason": "CrashLoopBackOff"}},
            {"terminated": {"message": "table:2: no"}},
            "table:2: no",
        ),
        ({"terminated": {"message": "table:2: no"}}, {}, "table:2: no"),
        ({"running": {}}, {"terminated": {"message": "table:2: no"}}, ""),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": {}}, ""),
        ({}, {}, ""),
    ],
)
def test_exit_message_is_that_of_a_container_that_does_not_run(
    state: dict[str, Any], last: dict[str, Any], message: str
) -> None:
    assert exit_message({"state": state, "lastState": last}) == message
