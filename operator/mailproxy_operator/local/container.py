# SPDX-License-Identifier: Apache-2.0
"""What controllers and the kubelet would say about a process of this machine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import DAEMON_SET, Manifest
from mailproxy_operator.local.process import LocalProcess


@dataclass(slots=True)
class Container:
    """The one container of a workload.

    Attributes:
        template: The pod template it was made from.
        name: The pod's.
        problem: Why its volumes cannot be mounted.
        annotations: What was set on the pod since.
    """

    template: Manifest
    name: str
    task: asyncio.Task[None] | None = None
    process: LocalProcess | None = None
    problem: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's spec."""
        spec: dict[str, Any] = self.template["spec"]
        return spec


def workload_status(workload: Manifest, container: Container | None) -> Manifest:
    """Write the status of a workload, as its controller would."""
    there = int(container is not None)
    ready = int(container is not None and container.process is not None and container.process.state.is_ready)
    generation = workload["metadata"]["generation"]
    if workload["kind"] == DAEMON_SET.name:
        return {
            "observedGeneration": generation,
            "desiredNumberScheduled": 1,
            "currentNumberScheduled": there,
            "updatedNumberScheduled": there,
            "numberReady": ready,
            "numberAvailable": ready,
        }
    return {
        "observedGeneration": generation,
        "replicas": there,
        "updatedReplicas": there,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def pod_of(owner: Key, container: Container) -> Manifest:
    """Write the pod that a container would be."""
    metadata = container.template["metadata"]
    is_ready = container.process is not None and container.process.state.is_ready
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": container.name,
            "namespace": owner.namespace,
            "labels": dict(metadata.get("labels", {})),
            "annotations": {**metadata.get("annotations", {}), **container.annotations},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{owner.name}-local", "controller": True}],
        },
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
            "containerStatuses": [_container_status(container)],
        },
    }


def _container_status(container: Container) -> Manifest:
    status: Manifest = {"name": names.CONTAINER, "restartCount": 0}
    if container.process is None:
        return status | {"state": {"waiting": {"reason": "ContainerCreating", "message": container.problem}}}
    state = container.process.state
    status["restartCount"] = state.restarts
    # A process that ended before is said to serve only when it really does: no to and fro while it tries.
    if state.is_ready or (state.is_running and state.exit_code is None):
        return status | {"state": {"running": {}}}
    if state.exit_code is None:
        return status | {"state": {"waiting": {"reason": "ContainerCreating", "message": ""}}}
    said = " / ".join(dict.fromkeys(list(state.last_lines)[-3:]))
    message = f"exit code {state.exit_code}: {said}" + way_out(said)
    return status | {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": message}}}


def way_out(said: str) -> str:
    """Add what to do here where a port is refused: there is no sysctl to set for a process of one's own."""
    if "permission denied" not in said.lower():
        return ""
    return (
        ". On this machine ports below 1024 need root: choose ports above 1023 in spec.servers[].listen,"
        " or set portStrategy: HighPort, which adds 10000 to each"
    )
