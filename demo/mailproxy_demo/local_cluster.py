# SPDX-License-Identifier: Apache-2.0
"""A cluster on this machine: objects in memory, one process for each workload.

Volumes are directories, and Secrets are read from a directory.  What only a cluster has (Services,
autoscalers, policies, sysctls) is stored and otherwise ignored.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from mailproxy_demo.container_process import ContainerProcess, proxy_command
from mailproxy_demo.volumes import Files, NotMountable, read_object, volume_files, write_volume
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import NO_LABELS, Applied, Key, RunningConfig
from mailproxy_operator.api.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
    MAIL_PROXY,
    POD,
    WORKLOADS,
    Kind,
    Manifest,
    kind_of,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.api.pod_report import read_config

LOCAL_VERSION = KubeVersion(1, 36)
# How long a process that is replaced has to close its listeners before the next one opens them.
REPLACE_SECONDS = 0.5
MAX_GRACE_SECONDS = 600.0
CONFIG_TIMEOUT = aiohttp.ClientTimeout(total=2)


@dataclass(slots=True)
class Container:
    """The one container of a workload.

    Attributes:
        template: The pod template of the workload.
        name: The name of the pod.
        mount_error: Why its volumes cannot be mounted; empty when they are.
        annotations: Annotations that were set on the pod since it was created.
    """

    template: Manifest
    name: str
    task: asyncio.Task[None] | None = None
    process: ContainerProcess | None = None
    mount_error: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The pod's spec."""
        spec: dict[str, Any] = self.template["spec"]
        return spec


def workload_status(workload: Manifest, container: Container | None) -> Manifest:
    """Return the status of a workload, as its controller writes it."""
    count = int(container is not None)
    ready = int(container is not None and container.process is not None and container.process.state.is_ready)
    generation = workload["metadata"]["generation"]
    if workload["kind"] == DAEMON_SET.name:
        return {
            "observedGeneration": generation,
            "desiredNumberScheduled": 1,
            "currentNumberScheduled": count,
            "updatedNumberScheduled": count,
            "numberReady": ready,
            "numberAvailable": ready,
        }
    return {
        "observedGeneration": generation,
        "replicas": count,
        "updatedReplicas": count,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def build_pod(owner: Key, container: Container) -> Manifest:
    """Return the pod of a container."""
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
        return status | {
            "state": {"waiting": {"reason": "ContainerCreating", "message": container.mount_error}}
        }
    state = container.process.state
    status["restartCount"] = state.restarts
    # After an exit, only a ready process counts as running, so that the state does not alternate.
    if state.is_ready or (state.is_running and state.exit_code is None):
        return status | {"state": {"running": {}}}
    if state.exit_code is None:
        return status | {"state": {"waiting": {"reason": "ContainerCreating", "message": ""}}}
    output = " / ".join(dict.fromkeys(list(state.last_lines)[-3:]))
    message = f"exit code {state.exit_code}: {output}" + port_advice(output)
    return status | {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": message}}}


def port_advice(output: str) -> str:
    """Return how to avoid a port that needs root; empty when the output has no such error.

    A cluster sets a sysctl of the pod instead, which a process of this machine does not have.
    """
    if "permission denied" not in output.lower():
        return ""
    return (
        ". On this machine ports below 1024 need root: choose ports above 1023 in spec.servers[].listen,"
        " or set portStrategy: HighPort, which adds 10000 to each"
    )


class LocalCluster:
    """What the reconciler reads and writes.

    Args:
        tasks: Runs the tasks of processes.
        changed: Called when a change needs a reconcile.
        report: Receives lines for the user.
        log: Receives lines that a container writes.
        secrets: The directory of Secrets and ConfigMaps: ``DIR/NAME/KEY``.
        events: Whether to report the events that the operator creates.
        launch: Translates a container's command into one for this machine.

    Attributes:
        admin_port: The port of the proxy's admin endpoint, on 127.0.0.1.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *,
        changed: Callable[[], None],
        report: Callable[[str], None],
        log: Callable[[str], None],
        secrets: Path | None = None,
        events: bool = False,
        launch: Callable[[Sequence[str]], list[str]] = proxy_command,
    ) -> None:
        self._tasks = tasks
        self._changed = changed
        self._report = report
        self._log = log
        self._secrets = secrets
        self._events = events
        self._launch = launch
        self._objects: dict[tuple[Kind, Key], Manifest] = {}
        self._containers: dict[Key, Container] = {}
        self._stopping: list[ContainerProcess] = []
        self._uids = itertools.count(1)
        self.admin_port = _free_port()

    @property
    def admin_url(self) -> str:
        """The base URL of the proxy's admin endpoint."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def restarts(self) -> int:
        """How often containers were restarted."""
        running = (container.process for container in self._containers.values())
        return sum(process.state.restarts for process in running if process is not None)

    # -- what the operator has an API server for --------------------------

    async def version(self) -> KubeVersion:
        """Return the version of a recent cluster."""
        return LOCAL_VERSION

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Return one object; a workload with the status that its controller writes."""
        found = self._objects.get((kind, key))
        return None if found is None else self._observed(found)

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Return the objects that have these labels."""
        if kind is POD:
            pods = [
                build_pod(key, one) for key, one in self._containers.items() if key.namespace == namespace
            ]
            return [pod for pod in pods if _has_labels(pod, labels)]
        return [
            self._observed(one)
            for (its_kind, key), one in self._objects.items()
            if its_kind is kind and key.namespace == namespace and _has_labels(one, labels)
        ]

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Store an object; start or replace the process of a workload, and mount a configuration."""
        del manager, force
        kind, key = kind_of(manifest), _key(manifest)
        before = self._objects.get((kind, key))
        after = _with_server_fields(manifest, before, lambda: f"local-{next(self._uids)}")
        self._objects[kind, key] = after
        if kind in WORKLOADS:
            await self._run_workload(key, after)
        if kind is CONFIG_MAP:
            self.refresh_volumes()
        return Applied(self._observed(after))

    async def delete(self, manifest: Manifest) -> bool:
        """Remove an object; the process of a workload is drained."""
        kind, key = kind_of(manifest), _key(manifest)
        removed = self._objects.pop((kind, key), None)
        if kind in WORKLOADS and not any((other, key) in self._objects for other in WORKLOADS):
            self._stop(key)
        return removed is not None

    async def apply_status(self, manifest: Manifest) -> None:
        """Store the status of the resource."""
        found = self._objects.get((MAIL_PROXY, _key(manifest)))
        if found is not None:
            found["status"] = copy.deepcopy(manifest["status"])

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> None:
        """Set annotations on an object or a pod; a pod has the labels of its template."""
        for owner, container in self._containers.items():
            if kind is POD and key == Key(owner.namespace, container.name):
                container.annotations.update(annotations)
        found = self._objects.get((kind, key))
        if found is not None:
            found["metadata"].setdefault("annotations", {}).update(annotations)
            found["metadata"].setdefault("labels", {}).update(labels)

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        """Return the configuration that the process runs, from its admin endpoint."""
        del pod
        try:
            async with (
                aiohttp.ClientSession(timeout=CONFIG_TIMEOUT) as session,
                session.get(f"{self.admin_url}/config") as response,
            ):
                running = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return read_config(running)

    async def policies(self, namespace: str) -> None:
        """Return ``None``: there are no BackendTLSPolicies."""

    async def config_map_keys(self, key: Key) -> None:
        """Return ``None``: no policy refers to a ConfigMap."""

    async def write_ancestors(self, policy: Manifest, entries: list[Manifest]) -> None:
        """Do nothing: there are no policies."""

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Return why volumes could not be mounted, by pod."""
        return {
            container.name: container.mount_error
            for key, container in self._containers.items()
            if key.namespace == namespace and container.mount_error
        }

    async def list_tls_secrets(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Return no Secret: files have no labels; ``sslCertificateSelector`` takes a directory instead."""
        del namespace, labels
        return []

    async def create_event(self, manifest: Manifest) -> None:
        """Report an event to the user, if events were requested."""
        if self._events:
            self._report(f"{manifest['type']} {manifest['reason']}: {manifest['note']}")

    # -- what controllers and the kubelet do ------------------------------

    def refresh_volumes(self) -> None:
        """Update every mounted volume, as the kubelet does periodically."""
        for container in self._containers.values():
            error = self._mount(container)
            if error != container.mount_error:
                container.mount_error = error
                self._changed()
            if not error and container.task is None:
                self._start(container)

    async def shut_down(self) -> None:
        """Drain every process; a second call while it waits ends them at once."""
        self._stopping += [one.process for one in self._containers.values() if one.process is not None]
        self._containers.clear()
        tasks = [self._tasks.create_task(process.stop(MAX_GRACE_SECONDS)) for process in self._stopping]
        if tasks:
            await asyncio.wait(tasks)

    async def _run_workload(self, key: Key, workload: Manifest) -> None:
        template = workload["spec"]["template"]
        current = self._containers.get(key)
        if workload["spec"].get("replicas", 1) == 0:
            self._stop(key)
            return
        if current is not None and _template_hash(current.template) == _template_hash(template):
            return
        if current is not None:
            self._stop(key)
            await asyncio.sleep(REPLACE_SECONDS)
        if workload["spec"].get("replicas", 1) > 1:
            self._report(
                f"{key.name} asks for {workload['spec']['replicas']} replicas; one machine has ports for one"
            )
        generation = workload["metadata"]["generation"]
        self._containers[key] = Container(copy.deepcopy(template), f"{key.name}-local-{generation}")
        self.refresh_volumes()

    def _stop(self, key: Key) -> None:
        container = self._containers.pop(key, None)
        if container is not None and container.process is not None:
            self._stopping.append(container.process)
            grace = float(container.spec.get("terminationGracePeriodSeconds", 30))
            self._tasks.create_task(container.process.stop(grace))

    def _start(self, container: Container) -> None:
        spec = container.spec["containers"][0]
        admin = f"[::]:{names.ADMIN_PORT}"
        arguments = [f"127.0.0.1:{self.admin_port}" if word == admin else word for word in spec["args"]]
        container.process = ContainerProcess(
            self._launch([*spec["command"], *arguments, "--log-format", "text"]),
            self.admin_url,
            changed=self._changed,
            log=self._log,
        )
        container.task = self._tasks.create_task(container.process.run())

    def _mount(self, container: Container) -> str:
        """Write a container's volumes; return which object or key is missing."""
        mounts = container.spec["containers"][0].get("volumeMounts", [])
        directories = {mount["name"]: Path(mount["mountPath"]) for mount in mounts}
        try:
            for volume in container.spec.get("volumes", []):
                files = volume_files(volume, self._read)
                if files is not None:
                    write_volume(directories[volume["name"]], files)
        except NotMountable as missing:
            return (
                f"MountVolume.SetUp failed: {missing}; here they are read from --secrets DIR, as DIR/NAME/KEY"
            )
        return ""

    def _read(self, kind: str, name: str) -> Files | None:
        if kind == CONFIG_MAP.name:
            for (its_kind, key), one in self._objects.items():
                if its_kind is CONFIG_MAP and key.name == name:
                    return {path: text.encode() for path, text in one.get("data", {}).items()}
        return read_object(self._secrets, name)

    def _observed(self, stored: Manifest) -> Manifest:
        """Copy an object; a workload with its status, and with one replica at most."""
        found = copy.deepcopy(stored)
        if kind_of(found) in WORKLOADS:
            found["status"] = workload_status(found, self._containers.get(_key(found)))
            if "replicas" in found["spec"]:
                found["spec"]["replicas"] = min(1, found["spec"]["replicas"])
        return found


def _with_server_fields(manifest: Manifest, before: Manifest | None, new_uid: Callable[[], str]) -> Manifest:
    """Add what an API server adds: uid, generation, and the status the object already has."""
    after = copy.deepcopy(manifest)
    metadata = after["metadata"]
    old = before["metadata"] if before else {}
    metadata["uid"] = old.get("uid") or new_uid()
    same_spec = before is not None and before.get("spec") == after.get("spec")
    metadata["generation"] = int(old.get("generation", 0)) + (0 if same_spec else 1)
    if before is not None and "status" in before:
        after["status"] = before["status"]
    return after


def _has_labels(manifest: Manifest, labels: Mapping[str, str]) -> bool:
    return labels.items() <= (manifest["metadata"].get("labels") or {}).items()


def _template_hash(template: Manifest) -> str:
    return str(template["metadata"].get("annotations", {}).get(names.TEMPLATE_HASH, ""))


def _key(manifest: Manifest) -> Key:
    return Key(manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
