# SPDX-License-Identifier: Apache-2.0
"""The node: it registers itself, and runs the pods that are bound to it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from support.kube_api import Api, Object
from support.process_node.kubelet_server import PORT as KUBELET_PORT
from support.process_node.kubelet_server import serve_logs
from support.process_node.names import NameServer
from support.process_node.network import NODE_ADDRESS, Network
from support.process_node.pods import PodWorker, now
from support.process_node.policies import PolicyRules
from support.process_node.services import ServiceRules, addresses_by_name

NODE: Final = "processes"
_PERIOD: Final = 0.4
_LEASE_SECONDS: Final = 40
_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Node:
    """One node.

    Args:
        api: The API server.
        folder: The folder of the cluster's certificate, and for files of pods.
        network: Gives addresses to pods.
        version: The version of the kubelet that it reports.
    """

    def __init__(self, api: Api, folder: Path, network: Network, version: str) -> None:
        self._api = api
        self._folder = folder
        self._version = version
        self._network = network
        self._rules = ServiceRules()
        self._policies = PolicyRules()
        self._names = NameServer()
        self._workers: dict[str, PodWorker] = {}
        self._lease_at = 0.0

    def run(self) -> None:
        """Run until the process ends."""
        serve_logs(self._find_log, self._folder / "server.crt", self._folder / "server.key")
        self._register()
        while True:
            try:
                self._step()
            except (OSError, AssertionError, RuntimeError) as error:
                sys.stderr.write(f"node: {error}\n")
                sys.stderr.flush()
            time.sleep(_PERIOD)

    def _register(self) -> None:
        labels = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
        _ = self._api.post("/api/v1/nodes", node).checked_body
        resources = {"cpu": "64", "memory": "64Gi", "pods": "250", "ephemeral-storage": "64Gi"}
        status = {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": NODE_ADDRESS}],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "lastTransitionTime": now(),
                    "lastHeartbeatTime": now(),
                }
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
            "nodeInfo": {
                **dict.fromkeys(
                    ("machineID", "systemUUID", "bootID", "osImage", "containerRuntimeVersion"), "processes"
                ),
                "kernelVersion": Path("/proc/sys/kernel/osrelease").read_text().strip(),
                "kubeletVersion": self._version,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
        }
        content = "application/merge-patch+json"
        path = f"/api/v1/nodes/{NODE}/status"
        _ = self._api.user.request("PATCH", path, {"status": status}, content).checked_body

    def _step(self) -> None:
        self._renew_lease()
        services = self._api.list("Service")
        slices = self._api.get("/apis/discovery.k8s.io/v1/endpointslices").checked_body["items"]
        self._rules.update(services, slices)
        self._names.addresses = addresses_by_name(services, slices)
        listed = self._api.list("Pod", fieldSelector=f"spec.nodeName={NODE}")
        self._update_policies(listed)
        pods = {one["metadata"]["uid"]: one for one in listed}
        for uid, pod in pods.items():
            worker = self._workers.get(uid)
            if worker is not None:
                worker.pod = pod
            elif "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") != "Failed":
                self._workers[uid] = PodWorker(self._api, pod, self._folder / "pods", self._network)
        self._forget(pods)

    def _update_policies(self, pods: list[Object]) -> None:
        labels = {
            one["metadata"]["name"]: one["metadata"].get("labels") or {}
            for one in self._api.list("Namespace")
        }
        addressed = [one for one in pods if (one.get("status") or {}).get("podIP")]
        self._policies.update(self._api.list("NetworkPolicy"), addressed, labels)

    def _find_log(self, pod: str, container: str) -> Path | None:
        worker = next((one for one in list(self._workers.values()) if one.name == pod), None)
        return None if worker is None else worker.log_of(container)

    def _forget(self, pods: dict[str, Object]) -> None:
        """End the workers of pods that were deleted without a grace period."""
        for uid in [one for one in self._workers if one not in pods]:
            worker = self._workers[uid]
            metadata = worker.pod["metadata"]
            metadata.setdefault("deletionTimestamp", now())
            metadata["deletionGracePeriodSeconds"] = metadata.get("deletionGracePeriodSeconds", 0)
            if not worker.thread.is_alive():
                del self._workers[uid]

    def _renew_lease(self) -> None:
        """Report that the node is alive, as the node's controller expects it."""
        if time.monotonic() < self._lease_at:
            return
        self._lease_at = time.monotonic() + 10
        renewed = f"{now()[:-1]}.000000Z"
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": renewed}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NODE, "namespace": "kube-node-lease"},
            "spec": spec,
        }
        self._api.user.request(
            "PATCH", f"{_LEASES}/{NODE}?fieldManager=node&force=true", lease, "application/apply-patch+yaml"
        )
