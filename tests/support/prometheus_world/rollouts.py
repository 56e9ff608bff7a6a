# SPDX-License-Identifier: Apache-2.0
"""The work of the Deployment controller and of kubelets, on an emulated API server."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mailproxy_operator.api.kinds import DEPLOYMENT, MAIL_PROXY, POD
from support.kube_world import Addresses, Endpoint
from support.operator_fakekube import FakeKube

_SECONDS: Final = 0.2
_NUMBERS: Final = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")

Object = dict[str, Any]


class Rollouts:
    """Keeps ready pods for every Deployment; each pod reports the configuration that is wanted."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube
        self._addresses = Addresses()
        self._endpoints: dict[str, Endpoint] = {}

    async def run(self) -> None:
        """Work until the task is cancelled."""
        while True:
            for name in self._kube.names(DEPLOYMENT):
                self._roll_out(self._kube.found(DEPLOYMENT, name))
            for pod in self._kube.names(POD):
                if self._kube.find(DEPLOYMENT, pod.rpartition("-")[0]) is None:
                    self._kube.remove(POD, pod)
            await asyncio.sleep(_SECONDS)

    def close(self) -> None:
        """Stop the admin endpoints of all pods."""
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _roll_out(self, workload: Object) -> None:
        name, count = workload["metadata"]["name"], workload["spec"].get("replicas", 1)
        resource = self._kube.find(MAIL_PROXY, name) or {}
        for pod in (f"{name}-{number}" for number in range(count)):
            endpoint = self._endpoint(pod)
            endpoint.hash = (resource.get("status") or {}).get("configHash", "")
            stored, template = self._kube.find(POD, pod), workload["spec"]["template"]
            if stored is None or not _is_of(template, stored):
                self._kube.put(_pod(workload, pod, endpoint.address), "kubelet")
        status = {
            "observedGeneration": workload["metadata"].get("generation", 0),
            **dict.fromkeys(_NUMBERS, count),
        }
        if workload.get("status") != status:
            workload["metadata"].pop("managedFields", None)
            self._kube.put({**workload, "status": status}, "kube-controller-manager")

    def _endpoint(self, pod: str) -> Endpoint:
        if pod not in self._endpoints:
            self._endpoints[pod] = Endpoint(self._addresses.take())
        return self._endpoints[pod]


def _is_of(template: Object, pod: Object) -> bool:
    """Return whether a pod was created from this template, by its labels and containers."""
    has_labels = template["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()
    return has_labels and bool(template["spec"]["containers"] == pod["spec"]["containers"])


def _pod(workload: Object, name: str, address: str) -> Object:
    template = workload["spec"]["template"]
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": f"{workload['metadata']['name']}-1",
        "uid": workload["metadata"]["uid"],
        "controller": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **template["metadata"],
            "name": name,
            "namespace": workload["metadata"]["namespace"],
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "mailproxy", "restartCount": 0, "state": {"running": {}}}],
        },
    }
