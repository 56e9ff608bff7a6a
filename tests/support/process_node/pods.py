# SPDX-License-Identifier: Apache-2.0
"""The life of one pod on this node: admission, start, probes, status, end."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

from support.kube_api import Api, Object
from support.process_node.containers import Container
from support.process_node.images import find_image
from support.process_node.names import resolv_conf
from support.process_node.network import NODE_ADDRESS, Network, PodNetwork
from support.process_node.probes import Probe
from support.process_node.volumes import NotThereError, Sources, Volume

SAFE_SYSCTLS: Final = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
"""The kubelet's list: https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/."""

_STEP: Final = 0.1
_VOLUME_SECONDS: Final = 1.0
_MAX_BACKOFF: Final = 60.0


def now() -> str:
    """Return the time in the API's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def refused_sysctls(pod: Object) -> list[str]:
    """Return the sysctls that the kubelet refuses without ``allowedUnsafeSysctls``."""
    listed = (pod["spec"].get("securityContext") or {}).get("sysctls") or []
    return [one["name"] for one in listed if one["name"] not in SAFE_SYSCTLS]


class Runner:
    """One container with its probes."""

    def __init__(self, container: Container, address: str, *, is_sidecar: bool) -> None:
        self.container = container
        self.is_sidecar = is_sidecar
        self._address = address
        self.is_started = self.is_ready = False
        self.started_at = ""
        self.finished_at = ""
        self._backoff, self._restart_at = 0.0, 0.0
        self.reset()

    def reset(self) -> None:
        """Begin with the probes of a new process."""
        definition = self.container.definition
        self._probes = {
            kind: Probe(definition.get(f"{kind}Probe"), definition, self._address)
            for kind in ("startup", "liveness", "readiness")
        }
        self.is_started = not self._probes["startup"]
        self.is_ready = False
        self.started_at = now()

    def probe(self, *, is_ending: bool) -> None:
        """Run the probes that are due; a process that fails its liveness probe is terminated."""
        if not self.is_started:
            self._apply_startup(self._probes["startup"].result())
            return
        if self._probes["readiness"]:
            result = self._probes["readiness"].result()
            self.is_ready = self.is_ready if result is None else result
        else:
            self.is_ready = True
        if self._probes["liveness"] and not is_ending and self._probes["liveness"].result() is False:
            self.container.signal(signal.SIGTERM)

    def _apply_startup(self, result: bool | None) -> None:
        self.is_started = bool(result)
        if result is False:
            self.container.signal(signal.SIGTERM)

    def is_due(self) -> bool:
        """Whether its back-off for the next start is over; the first call begins it."""
        if not self._restart_at:
            self.finished_at, self.is_ready = now(), False
            self._restart_at = time.monotonic() + self._backoff
            self._backoff = min(_MAX_BACKOFF, 2 * self._backoff or 2.0)
        if time.monotonic() < self._restart_at:
            return False
        self._restart_at = 0.0
        return True

    def status(self) -> Object:
        """Return its container status."""
        definition, code = self.container.definition, self.container.exit_code
        state: Object = {"running": {"startedAt": self.started_at}}
        if code is not None:
            self.finished_at = self.finished_at or now()
            reason = "Completed" if code == 0 else "Error"
            ended = {"startedAt": self.started_at, "finishedAt": self.finished_at}
            state = {"terminated": {"exitCode": code, "reason": reason, **ended}}
        return {
            "name": self.container.name,
            "image": definition["image"],
            "imageID": definition["image"],
            "ready": self.is_ready and code is None,
            "started": self.is_started and code is None,
            "restartCount": self.container.restarts,
            "state": state,
        }


class PodWorker:
    """Runs one pod in a thread.

    Attributes:
        pod: The newest version of the pod from the API server.
    """

    def __init__(self, api: Api, pod: Object, folder: Path, network: Network) -> None:
        self.pod = pod
        self._api = api
        self._folder: Path = folder / pod["metadata"]["uid"]
        self._networks = network
        self._network: PodNetwork | None = None
        self._sources = Sources(api, pod)
        self._volumes: dict[str, Volume] = {}
        self._runners: list[Runner] = []
        self._written: Object | None = None
        self._stopped = Event()
        self._volumes_at = 0.0
        self.thread = Thread(target=self._guarded, daemon=True)
        self.thread.start()

    @property
    def name(self) -> str:
        """Namespace and name."""
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    def log_of(self, container: str) -> Path:
        """Return the file with a container's output."""
        return self._folder / f"{container}.log"

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception:
            sys.stderr.write(f"{self.name}: {traceback.format_exc()}")
            sys.stderr.flush()
        finally:
            for runner in self._runners:
                runner.container.kill()
            if self._network is not None:
                self._network.remove()
            if self._is_ending():
                self._delete()

    def _run(self) -> None:
        refused = refused_sysctls(self.pod)
        if refused:
            self._write_failure("SysctlForbidden", f'forbidden sysctl: "{refused[0]}" not allowlisted')
            self._wait_for_end()
            return
        listed = (self.pod["spec"].get("securityContext") or {}).get("sysctls") or []
        self._network = self._networks.add({one["name"]: one["value"] for one in listed})
        self._sources.address = self._network.address
        self._folder.mkdir(parents=True)
        if self._prepare_volumes() and self._start_all():
            self._supervise()
        if self._is_ending():
            self._terminate()
        else:
            self._wait_for_end()

    # -- start --------------------------------------------------------------

    def _prepare_volumes(self) -> bool:
        """Create the volumes; wait for objects that are not there yet."""
        group = (self.pod["spec"].get("securityContext") or {}).get("fsGroup")
        for one in self.pod["spec"].get("volumes") or []:
            self._volumes[one["name"]] = Volume(one, self._folder / "volumes" / one["name"], group)
        return self._retry(self._update_volumes)

    def _update_volumes(self) -> None:
        for volume in self._volumes.values():
            volume.update(self._sources)

    def _retry(self, action: Any) -> bool:
        """Repeat an action until everything it needs is there; ``False`` if the pod is to end first."""
        while not self._is_ending():
            try:
                action()
            except NotThereError as error:
                self._write_waiting("ContainerCreating", str(error))
                time.sleep(0.5)
            else:
                return True
        return False

    def _start_all(self) -> bool:
        spec = self.pod["spec"]
        for definition in spec.get("initContainers") or []:
            is_sidecar = definition.get("restartPolicy") == "Always"
            if not self._start(definition, is_sidecar=is_sidecar) or not self._wait_for_init(is_sidecar):
                return False
        return all(self._start(one, is_sidecar=False) for one in spec["containers"])

    def _start(self, definition: Object, *, is_sidecar: bool) -> bool:
        assert self._network is not None
        image = find_image(definition["image"])
        while image is None:
            self._write_waiting("ErrImagePull", f"this node does not have the image {definition['image']}")
            if self._is_ending():
                return False
            time.sleep(0.5)
        container = Container(definition, image, self._folder, self._network)
        runner = Runner(container, self._network.address, is_sidecar=is_sidecar)
        if not self._retry(lambda: self._start_process(runner)):
            return False
        self._runners.append(runner)
        return True

    def _start_process(self, runner: Runner) -> None:
        mounts = {name: volume.path for name, volume in self._volumes.items()}
        runner.container.start(self.pod, mounts, self._node_files(), self._sources)
        runner.reset()

    def _node_files(self) -> dict[str, Path]:
        metadata = self.pod["metadata"]
        resolv, hosts = self._folder / "resolv.conf", self._folder / "hosts"
        resolv.write_text(resolv_conf(metadata["namespace"]))
        hosts.write_text(f"127.0.0.1 localhost\n::1 localhost\n{self._sources.address} {metadata['name']}\n")
        return {"/etc/resolv.conf": resolv, "/etc/hosts": hosts}

    def _wait_for_init(self, is_sidecar: bool) -> bool:
        """Wait until the newest init container has ended, or has started if it is a sidecar."""
        runner = self._runners[-1]
        while not self._is_ending():
            code = runner.container.exit_code
            if (is_sidecar and runner.is_started and code is None) or (not is_sidecar and code == 0):
                return True
            self._advance(runner)
            self._write_status("Pending")
            time.sleep(_STEP)
        return False

    # -- while it runs --------------------------------------------------------

    def _supervise(self) -> None:
        while not self._is_ending():
            for runner in self._runners:
                self._advance(runner)
            codes = [one.container.exit_code for one in self._runners if not one.is_sidecar]
            if self.pod["spec"]["restartPolicy"] != "Always" and all(code is not None for code in codes):
                self._stop_containers(5.0)
                self._write_status("Failed" if any(codes) else "Succeeded")
                return
            self._refresh_volumes()
            self._write_status("Running")
            time.sleep(_STEP)

    def _advance(self, runner: Runner) -> None:
        """Run the probes of a container, or start it again if it has ended and its policy wants it."""
        code = runner.container.exit_code
        if code is None:
            runner.probe(is_ending=self._is_ending())
            return
        policy = self.pod["spec"]["restartPolicy"]
        is_kept = runner.is_sidecar or policy == "Always" or (policy == "OnFailure" and code != 0)
        if is_kept and runner.is_due():
            self._retry(lambda: self._start_process(runner))

    def _refresh_volumes(self) -> None:
        if time.monotonic() < self._volumes_at:
            return
        self._volumes_at = time.monotonic() + _VOLUME_SECONDS
        try:
            self._update_volumes()
        except (NotThereError, OSError, AssertionError) as error:
            sys.stderr.write(f"{self.name}: {error}\n")

    # -- end ------------------------------------------------------------------

    def _is_ending(self) -> bool:
        return "deletionTimestamp" in self.pod["metadata"]

    def _wait_for_end(self) -> None:
        while not self._is_ending():
            time.sleep(_STEP)

    def _terminate(self) -> None:
        """Stop the containers within the grace period; readiness is still reported meanwhile."""
        self._stop_containers(float(self.pod["metadata"].get("deletionGracePeriodSeconds") or 0))

    def _stop_containers(self, seconds: float) -> None:
        """Run hooks and send SIGTERM: first to the containers, then to the sidecars, the last one first."""
        deadline = time.monotonic() + seconds
        running = [one for one in self._runners if one.container.exit_code is None]
        hooks = [_sleep_of(one) for one in running if not one.is_sidecar]
        main = [one for one in running if not one.is_sidecar]
        sidecars = [one for one in reversed(running) if one.is_sidecar]
        self._stop_group(main, hooks, deadline)
        for one in sidecars:
            self._stop_group([one], [_sleep_of(one)], deadline)

    def _stop_group(self, runners: list[Runner], hooks: list[float], deadline: float) -> None:
        began = time.monotonic()
        pending = dict(zip(map(id, runners), hooks, strict=True))
        while any(one.container.exit_code is None for one in runners) and time.monotonic() < deadline:
            for one in runners:
                if id(one) in pending and time.monotonic() >= began + pending[id(one)]:
                    del pending[id(one)]
                    one.container.signal(signal.SIGTERM)
                one.probe(is_ending=True)
            self._write_status("Running")
            time.sleep(_STEP)
        for one in runners:
            one.container.kill()

    def _delete(self) -> None:
        metadata = self.pod["metadata"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._api.user.request("DELETE", path, body)
        shutil.rmtree(self._folder / "volumes", ignore_errors=True)

    # -- status -----------------------------------------------------------------

    def _write_waiting(self, reason: str, message: str) -> None:
        waiting = {"waiting": {"reason": reason, "message": message}}
        statuses = [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": "",
                "ready": False,
                "started": False,
                "restartCount": 0,
                "state": waiting,
            }
            for one in self.pod["spec"]["containers"]
        ]
        self._write({"phase": "Pending", "containerStatuses": statuses})

    def _write_failure(self, reason: str, message: str) -> None:
        self._write({"phase": "Failed", "reason": reason, "message": message})

    def _write_status(self, phase: str) -> None:
        names = {one["name"] for one in self.pod["spec"].get("initContainers") or []}
        statuses = [one.status() for one in self._runners]
        init = [one for one in statuses if one["name"] in names]
        main = [one for one in statuses if one["name"] not in names]
        is_ready = phase == "Running" and all(one["ready"] for one in main) and bool(main)
        sidecars = {one.container.name for one in self._runners if one.is_sidecar}
        is_ready = is_ready and all(one["ready"] for one in init if one["name"] in sidecars)
        conditions = [{"type": kind, "status": str(is_ready)} for kind in ("Ready", "ContainersReady")] + [
            {"type": "Initialized", "status": str(phase != "Pending")}
        ]
        address = self._sources.address
        self._write(
            {
                "phase": phase,
                "podIP": address,
                "podIPs": [{"ip": address}],
                "hostIP": NODE_ADDRESS,
                "conditions": conditions,
                "initContainerStatuses": init,
                "containerStatuses": main,
            }
        )

    def _write(self, status: Object) -> None:
        """Write the status if it has changed; the times of conditions are those of their changes."""
        if json.dumps(status) == json.dumps(self._written):
            return
        times = {one["type"]: one for one in (self.pod.get("status") or {}).get("conditions") or []}
        dated = []
        for one in status.get("conditions") or []:
            old = times.get(one["type"])
            is_same = old is not None and old["status"] == one["status"]
            dated.append(
                {**one, "lastTransitionTime": old["lastTransitionTime"] if is_same and old else now()}
            )
        others = [one for kind, one in times.items() if kind not in {new["type"] for new in dated}]
        written = {
            **status,
            "conditions": [*others, *dated],
            "startTime": self.pod["metadata"]["creationTimestamp"],
        }
        metadata = self.pod["metadata"]
        answer = self._api.patch_status("Pod", metadata["namespace"], metadata["name"], written)
        if answer.status in {200, 404}:
            self._written = status


def _sleep_of(runner: Runner) -> float:
    """Return the seconds of a container's ``preStop`` hook."""
    hook = (runner.container.definition.get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds", 0))
