# SPDX-License-Identifier: Apache-2.0
"""The cluster port on this machine.

Objects are kept in memory.  A workload becomes one process, its volumes become
directories, and Secrets are read from a directory.  What only a cluster has
(Services, autoscalers, policies, sysctls) is stored and otherwise ignored.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import NO_LABELS, Applied, Key, RunningConfig
from mailproxy_operator.api.kinds import CONFIG_MAP, MAIL_PROXY, POD, WORKLOADS, Kind, Manifest, kind_of
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.local.container import Container, pod_of, workload_status
from mailproxy_operator.local.process import LocalProcess, proxy_command
from mailproxy_operator.local.volumes import Files, NotMountable, read_object, volume_files, write_volume

LOCAL_VERSION = KubeVersion(1, 36)
HAND_OVER_SECONDS = 0.5
LONGEST_GRACE = 600.0
CONFIG_TIMEOUT = aiohttp.ClientTimeout(total=2)


class LocalCluster:
    """Objects in memory, containers as processes.

    Args:
        tasks: Owns the processes' tasks.
        wake: Called when something has happened that a reconcile should look at.
        say: Takes a line for people.
        log: Takes a line that a container wrote.
        secrets: Where Secrets and ConfigMaps are looked for: ``DIR/NAME/KEY``.
        launch: Turns a container's command into one for this machine.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        *,
        wake: Callable[[], None],
        say: Callable[[str], None],
        log: Callable[[str], None],
        secrets: Path | None = None,
        launch: Callable[[Sequence[str]], list[str]] = proxy_command,
    ) -> None:
        self._tasks = tasks
        self._wake = wake
        self._say = say
        self._log = log
        self._secrets = secrets
        self._launch = launch
        self._objects: dict[tuple[Kind, Key], Manifest] = {}
        self._containers: dict[Key, Container] = {}
        self._leaving: list[LocalProcess] = []
        self._uids = itertools.count(1)
        self.admin_port = _free_port()

    @property
    def admin_url(self) -> str:
        """Where the proxy's admin endpoint answers."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def restarts(self) -> int:
        """How often containers had to be started again."""
        running = (container.process for container in self._containers.values())
        return sum(process.state.restarts for process in running if process is not None)

    # -- the port ---------------------------------------------------------

    async def version(self) -> KubeVersion:
        """Pretend to be a recent cluster."""
        return LOCAL_VERSION

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object; a workload gets the status that its controller would write."""
        found = self._objects.get((kind, key))
        return None if found is None else self._shown(found)

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the objects that carry these labels."""
        if kind is POD:
            pods = [pod_of(key, one) for key, one in self._containers.items() if key.namespace == namespace]
            return [pod for pod in pods if _carries(pod, labels)]
        return [
            self._shown(one)
            for (its_kind, key), one in self._objects.items()
            if its_kind is kind and key.namespace == namespace and _carries(one, labels)
        ]

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Store an object, and carry it out where it is a workload or a configuration."""
        del manager, force
        kind, key = kind_of(manifest), _key(manifest)
        before = self._objects.get((kind, key))
        after = _stamped(manifest, before, lambda: f"local-{next(self._uids)}")
        self._objects[kind, key] = after
        if kind in WORKLOADS:
            await self._carry_out(key, after)
        if kind is CONFIG_MAP:
            self.refresh_volumes()
        return Applied(self._shown(after))

    async def delete(self, manifest: Manifest) -> None:
        """Forget an object; a workload's process is drained."""
        kind, key = kind_of(manifest), _key(manifest)
        self._objects.pop((kind, key), None)
        if kind in WORKLOADS and not any((other, key) in self._objects for other in WORKLOADS):
            self._retire(key)

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
        """Ask the process which configuration it runs."""
        del pod
        try:
            async with (
                aiohttp.ClientSession(timeout=CONFIG_TIMEOUT) as session,
                session.get(f"{self.admin_url}/config") as answer,
            ):
                told = await answer.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return RunningConfig(str(told.get("hash") or ""), str(told.get("last_error") or ""))

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Tell what could not be mounted."""
        return {
            container.name: container.problem
            for key, container in self._containers.items()
            if key.namespace == namespace and container.problem
        }

    async def create_event(self, manifest: Manifest) -> None:
        """Say what an event would say."""
        self._say(f"{manifest['type']} {manifest['reason']}: {manifest['note']}")

    # -- the machine ------------------------------------------------------

    def refresh_volumes(self) -> None:
        """Bring every mounted volume up to date, as the kubelet does now and then."""
        for container in self._containers.values():
            problem = self._mount(container)
            if problem != container.problem:
                container.problem = problem
                self._wake()
            if not problem and container.task is None:
                self._start(container)

    async def shut_down(self) -> None:
        """Drain every process; called a second time while it waits, it hurries them."""
        self._leaving += [one.process for one in self._containers.values() if one.process is not None]
        self._containers.clear()
        tasks = [self._tasks.create_task(process.stop(LONGEST_GRACE)) for process in self._leaving]
        if tasks:
            await asyncio.wait(tasks)

    async def _carry_out(self, key: Key, workload: Manifest) -> None:
        template = workload["spec"]["template"]
        current = self._containers.get(key)
        if workload["spec"].get("replicas", 1) == 0:
            self._retire(key)
            return
        if current is not None and _template_hash(current.template) == _template_hash(template):
            return
        if current is not None:
            self._retire(key)
            await asyncio.sleep(HAND_OVER_SECONDS)
        if workload["spec"].get("replicas", 1) > 1:
            self._say(
                f"{key.name} asks for {workload['spec']['replicas']} replicas; one machine's ports fit one"
            )
        generation = workload["metadata"]["generation"]
        self._containers[key] = Container(copy.deepcopy(template), f"{key.name}-local-{generation}")
        self.refresh_volumes()

    def _retire(self, key: Key) -> None:
        container = self._containers.pop(key, None)
        if container is not None and container.process is not None:
            self._leaving.append(container.process)
            grace = float(container.spec.get("terminationGracePeriodSeconds", 30))
            self._tasks.create_task(container.process.stop(grace))

    def _start(self, container: Container) -> None:
        wanted = container.spec["containers"][0]
        admin = f"[::]:{names.ADMIN_PORT}"
        arguments = [f"127.0.0.1:{self.admin_port}" if word == admin else word for word in wanted["args"]]
        container.process = LocalProcess(
            self._launch([*wanted["command"], *arguments, "--log-format", "text"]),
            self.admin_url,
            changed=self._wake,
            log=self._log,
        )
        container.task = self._tasks.create_task(container.process.run())

    def _mount(self, container: Container) -> str:
        """Write a container's volumes; tell what is missing."""
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

    # -- what controllers would write -------------------------------------

    def _shown(self, stored: Manifest) -> Manifest:
        """Copy an object; a workload gets its status, and wants no more replicas than one machine takes."""
        found = copy.deepcopy(stored)
        if kind_of(found) in WORKLOADS:
            found["status"] = workload_status(found, self._containers.get(_key(found)))
            if "replicas" in found["spec"]:
                found["spec"]["replicas"] = min(1, found["spec"]["replicas"])
        return found


def _stamped(manifest: Manifest, before: Manifest | None, new_uid: Callable[[], str]) -> Manifest:
    """Give an object what an API server adds: uid, generation, and the status it already has."""
    after = copy.deepcopy(manifest)
    metadata = after["metadata"]
    old = before["metadata"] if before else {}
    metadata["uid"] = old.get("uid") or new_uid()
    same_spec = before is not None and before.get("spec") == after.get("spec")
    metadata["generation"] = int(old.get("generation", 0)) + (0 if same_spec else 1)
    if before is not None and "status" in before:
        after["status"] = before["status"]
    return after


def _carries(manifest: Manifest, labels: Mapping[str, str]) -> bool:
    return labels.items() <= (manifest["metadata"].get("labels") or {}).items()


def _template_hash(template: Manifest) -> str:
    return str(template["metadata"].get("annotations", {}).get(names.TEMPLATE_HASH, ""))


def _key(manifest: Manifest) -> Key:
    return Key(manifest["metadata"].get("namespace", "default"), manifest["metadata"]["name"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
