# SPDX-License-Identifier: Apache-2.0
"""Reads the cluster through the port into one ``Observed`` value, without evaluating it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Cluster, Key, RunningConfig
from mailproxy_operator.api.kinds import DAEMON_SET, DEPLOYMENT, POD, Manifest
from mailproxy_operator.controller.observed import Observed, Pod, Workload
from mailproxy_operator.errors import ReportedCause

MAX_CONCURRENT_REQUESTS = 10
MAX_ADDRESSES = 16
_MAX_EXIT_MESSAGE = 1000


async def observe(
    cluster: Cluster,
    key: Key,
    workload: Mapping[str, Any] | None,
    service: Mapping[str, Any] | None,
) -> tuple[Observed, list[Manifest]]:
    """Observe the pods of a MailProxy.

    Args:
        cluster: The cluster port.
        key: The MailProxy.
        workload: The live workload, if there is one.
        service: The live mail Service, if there is one.

    Returns:
        The observed state, and the pods.
    """
    found = addresses(service) if service else ()
    if workload is None:
        return Observed(addresses=found), []
    labelled = await cluster.list_labelled(POD, key.namespace, names.selector_labels(key.name))
    pods = [pod for pod in labelled if belongs_to_workload(pod, key.name)]
    wanted = _template_hash(workload["spec"]["template"])
    running = await running_configs(cluster, pods)
    seen = tuple(_pod(pod, wanted, config) for pod, config in zip(pods, running, strict=True))
    stuck = any(not (pod.has_started or pod.is_terminating or pod.failed) for pod in seen)
    failures = await cluster.mount_failures(key.namespace) if stuck else {}
    observed = Observed(workload=_workload(workload), pods=seen, addresses=found, mount_failures=failures)
    return observed, pods


def belongs_to_workload(pod: Mapping[str, Any], name: str) -> bool:
    """Return whether a pod belongs to the operator's workload, by its owner reference and not its labels."""
    owners = pod["metadata"].get("ownerReferences") or []
    controllers = [(owner["kind"], owner["name"]) for owner in owners if owner.get("controller")]
    return any(
        (kind == "ReplicaSet" and owner.startswith(f"{name}-")) or (kind, owner) == (DAEMON_SET.name, name)
        for kind, owner in controllers
    )


def is_reachable(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has an address, is not being deleted and has not ended."""
    status = pod.get("status") or {}
    # A pod that has ended keeps its address in its status, but another pod may use the address.
    has_ended = status.get("phase") in {"Failed", "Succeeded"}
    return bool(status.get("podIP")) and not has_ended and "deletionTimestamp" not in pod["metadata"]


async def running_configs(cluster: Cluster, pods: Sequence[Manifest]) -> list[RunningConfig | None]:
    """Request the running configuration of pods, with a limit of concurrent requests."""
    gate = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    async def request(pod: Manifest) -> RunningConfig | None:
        if not is_reachable(pod):
            return None
        async with gate:
            return await cluster.running_config(pod)

    return list(await asyncio.gather(*(request(pod) for pod in pods)))


def unscheduled(status: Mapping[str, Any]) -> ReportedCause | None:
    """Return from the pod's status why the scheduler has found no node."""
    for one in status.get("conditions") or []:
        if (one.get("type"), one.get("status")) == ("PodScheduled", "False"):
            reason = str(one.get("reason") or "Unschedulable")
            return ReportedCause(reason, str(one.get("message") or reason))
    return None


def addresses(service: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the addresses of a Service for clients: type and value, external addresses first."""
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    outside = [
        ("Hostname", one["hostname"]) if one.get("hostname") else ("IPAddress", one.get("ip", ""))
        for one in ingress
    ]
    inside = [("IPAddress", ip) for ip in service.get("spec", {}).get("clusterIPs") or [] if ip != "None"]
    return tuple([*outside, *inside][:MAX_ADDRESSES])


def _template_hash(holder: Mapping[str, Any]) -> str:
    annotations = holder.get("metadata", {}).get("annotations") or {}
    return str(annotations.get(names.TEMPLATE_HASH, ""))


def _workload(live: Mapping[str, Any]) -> Workload:
    status = live.get("status") or {}
    is_current = int(status.get("observedGeneration", 0)) >= int(live["metadata"].get("generation", 0))
    if live["kind"] == DEPLOYMENT.name:
        return Workload(
            desired=int(live["spec"].get("replicas", 1)),
            replicas=int(status.get("replicas", 0)),
            updated=int(status.get("updatedReplicas", 0)),
            ready=int(status.get("readyReplicas", 0)),
            available=int(status.get("availableReplicas", 0)),
            may_be_unavailable=_max_unavailable(live["spec"]),
            is_current=is_current,
            failures=_failures(status),
        )
    desired = int(status.get("desiredNumberScheduled", 0))
    updated = int(status.get("updatedNumberScheduled", 0))
    return Workload(
        # Until its controller has observed the generation, the status of a DaemonSet has no desired number.
        desired=desired if is_current else max(1, desired),
        replicas=int(status.get("currentNumberScheduled", 0)),
        updated=updated,
        ready=int(status.get("numberReady", 0)),
        available=int(status.get("numberAvailable", 0)),
        may_be_unavailable=1,
        is_per_node=True,
        is_current=is_current,
        failures=_failures(status),
    )


def _max_unavailable(spec: Mapping[str, Any]) -> int:
    """Return ``maxUnavailable`` of a Deployment; the operator sets it as a number."""
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    allowed = rolling.get("maxUnavailable", 0)
    return allowed if isinstance(allowed, int) else 0


def _failures(status: Mapping[str, Any]) -> dict[str, ReportedCause]:
    found: dict[str, ReportedCause] = {}
    for one in status.get("conditions") or []:
        failing = (one.get("type"), one.get("status")) in {
            ("ReplicaFailure", "True"),
            ("Progressing", "False"),
        }
        if failing:
            found[one["type"]] = ReportedCause(one.get("reason", ""), one.get("message", ""))
    return found


def exit_message(container: Mapping[str, Any]) -> str:
    """Return what the proxy left when it ended; empty while it runs."""
    state = container.get("state") or {}
    if "running" in state:
        return ""
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    return str(ended.get("message") or "")[:_MAX_EXIT_MESSAGE]


def _pod(pod: Mapping[str, Any], wanted_template: str, running: RunningConfig | None) -> Pod:
    status = pod.get("status") or {}
    container: Mapping[str, Any] = next(
        (one for one in status.get("containerStatuses") or [] if one.get("name") == names.CONTAINER), {}
    )
    state = container.get("state") or {}
    is_ready = any(
        (one.get("type"), one.get("status")) == ("Ready", "True") for one in status.get("conditions") or []
    )
    waiting, failed = state.get("waiting"), status.get("phase") == "Failed"
    return Pod(
        name=pod["metadata"]["name"],
        is_of_template=_template_hash(pod) == wanted_template,
        is_ready=is_ready,
        is_terminating="deletionTimestamp" in pod["metadata"],
        has_started="running" in state or "terminated" in state or bool(container.get("restartCount")),
        waiting=ReportedCause(waiting.get("reason", ""), waiting.get("message", "")) if waiting else None,
        exit_message=exit_message(container),
        unscheduled=unscheduled(status),
        failed=ReportedCause(status.get("reason", ""), status.get("message", "")) if failed else None,
        running=running,
    )
