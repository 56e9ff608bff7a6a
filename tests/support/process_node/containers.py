# SPDX-License-Identifier: Apache-2.0
"""Containers as processes: own mounts, the pod's network, and the user of the security context."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from support.kube_api import Object
from support.process_node.images import Image, write_programs
from support.process_node.network import API_SERVICE, PodNetwork
from support.process_node.volumes import NotThereError, Sources

_PRIVILEGES: Final = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


def environment_of(container: Object, image: Image, sources: Sources) -> dict[str, str]:
    """Return the environment of a container: of the image, of the cluster, of its definition."""
    found = {
        **image.environment,
        "HOSTNAME": sources.field("metadata.name"),
        "KUBERNETES_SERVICE_HOST": API_SERVICE,
        "KUBERNETES_SERVICE_PORT": "443",
    }
    for one in container.get("env") or []:
        found[one["name"]] = _expand(str(one.get("value") or ""), found)
        if "valueFrom" in one:
            found[one["name"]] = _value_from(one["valueFrom"], sources)
    return found


def _value_from(source: Mapping[str, Any], sources: Sources) -> str:
    [(kind, body)] = source.items()
    match kind:
        case "fieldRef":
            return sources.field(body["fieldPath"])
        case "secretKeyRef" | "configMapKeyRef":
            name = "Secret" if kind == "secretKeyRef" else "ConfigMap"
            data = sources.data(name, body["name"], optional=bool(body.get("optional")))
            if body["key"] not in data and not body.get("optional"):
                raise NotThereError(f"couldn't find key {body['key']} in {name} {body['name']}")
            return data.get(body["key"], b"").decode()
    raise NotThereError(f"this node has no variables from {kind}")


def _expand(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text


class Container:
    """One container of a pod, and its current process.

    Attributes:
        restarts: How often its process was started again.
        log: The file with the output of all its processes.
    """

    def __init__(self, definition: Object, image: Image, folder: Path, network: PodNetwork) -> None:
        self.name = str(definition["name"])
        self.definition = definition
        self.restarts = -1
        self.log = folder / f"{self.name}.log"
        self._image = image
        self._folder = folder / self.name
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code of its last process; ``None`` while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def start(
        self, pod: Object, mounts: Mapping[str, Path], files: Mapping[str, Path], sources: Sources
    ) -> None:
        """Start its process.

        Args:
            pod: The pod.
            mounts: The directory of each volume, by the volume's name.
            files: Files of the node that replace those of the image, by path.
            sources: What variables refer to.
        """
        environment = environment_of(self.definition, self._image, sources)
        script = self._script(pod, mounts, files)
        command = [
            *self._network.enter(),
            *("unshare", "--mount", "--uts", "--ipc", "sh", "-ec", script, "sh"),
            *(f"{key}={value}" for key, value in environment.items()),
            *self._command(environment),
        ]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.restarts += 1

    def _command(self, environment: Mapping[str, str]) -> list[str]:
        command = [_expand(one, environment) for one in self.definition.get("command") or []]
        args = [_expand(one, environment) for one in self.definition.get("args") or []]
        if command:
            return command + args
        return [*self._image.entrypoint, *(args or self._image.command)]

    def _script(self, pod: Object, mounts: Mapping[str, Path], files: Mapping[str, Path]) -> str:
        """Return the shell script that mounts the container's files and becomes its process."""
        layer, work, root = (self._folder / name for name in ("layer", "work", "root"))
        for made in (layer, work, root):
            made.mkdir(parents=True, exist_ok=True)
        write_programs(layer)
        steps = [
            f"hostname {shlex.quote(str(pod['metadata']['name']))}",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={layer},workdir={work} {root}",
            f"mount --rbind /dev {root}/dev",
            f"mount --rbind /proc {root}/proc",
        ]
        for path, source in files.items():
            steps.append(f"mount --bind {source} {root}{path}")
        for mount in self.definition.get("volumeMounts") or []:
            source = mounts[mount["name"]] / mount.get("subPath", "")
            # Links of the image, such as /var/run, are followed inside the root.
            steps.append(f"at={root}$(chroot {root} realpath -m {shlex.quote(mount['mountPath'])})")
            steps.append('mkdir -p "$at"' if source.is_dir() else 'mkdir -p "${at%/*}" && touch "$at"')
            steps.append(f'mount --bind {source} "$at"')
            if mount.get("readOnly"):
                steps.append('mount -o remount,bind,ro "$at"')
        context = {
            **(pod["spec"].get("securityContext") or {}),
            **(self.definition.get("securityContext") or {}),
        }
        if context.get("readOnlyRootFilesystem"):
            steps.append(f"mount -o remount,ro {root}")
        where = self.definition.get("workingDir", "/")
        become = shlex.join(["/usr/bin/setpriv", *_identity(context, self._image)])
        steps.append(f'exec chroot {root} {become} /usr/bin/env --chdir={shlex.quote(where)} -i "$@"')
        return " && ".join(steps)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End its process and all processes that this has started."""
        if self._process is None:
            return
        for pid in _session(self._process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(10)


def _identity(context: Mapping[str, Any], image: Image) -> list[str]:
    user = int(context.get("runAsUser", image.user))
    group = int(context.get("runAsGroup", user and 65532))
    extra = context.get("fsGroup")
    groups = f"--groups={extra}" if extra is not None else "--clear-groups"
    return [f"--reuid={user}", f"--regid={group}", groups, *_PRIVILEGES]


def _session(leader: int) -> list[int]:
    """Return the processes of the session that a process has started."""
    found = [leader]
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader:
                found.append(int(path.name))
    return found
