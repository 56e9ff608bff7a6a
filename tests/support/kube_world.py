# SPDX-License-Identifier: Apache-2.0
"""One namespace on an API server, and in it what controllers, kubelets and pods would do."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final, TypeVar

from support.kube_api import CHILDREN, Object, path_of
from support.kube_cluster import Cluster, Operator
from support.operator_bodies import body
from support.servers.programs import eventually

T = TypeVar("T")

PATIENCE: Final = 90.0
ADMIN_PORT: Final = 9113
TEMPLATE_HASH: Final = "mailproxy.dev/template-hash"
OWN_LABELS: Final = {
    "app.kubernetes.io/name": "mailproxy",
    "app.kubernetes.io/managed-by": "mailproxy-operator",
}

_numbers = itertools.count(1)
_network = random.SystemRandom()


class Addresses:
    """Gives out addresses of this machine's loopback network, never the same twice."""

    def __init__(self) -> None:
        self._prefix = f"127.{_network.randint(16, 250)}.{_network.randint(0, 250)}"
        self._last = itertools.count(1)

    def take(self) -> str:
        """Give an address."""
        return f"{self._prefix}.{next(self._last)}"


class Endpoint:
    """The admin endpoint of a pod, at the pod's own address.

    Attributes:
        hash: The configuration it says it runs.
        last_error: Why it did not take the newest.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.hash = ""
        self.last_error: str | None = None
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/config" else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"hash": told.hash, "last_error": told.last_error}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, ADMIN_PORT), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class World:
    """A namespace with whatever a test puts there.

    Attributes:
        endpoints: The admin endpoints of pods that answer, by pod name.
    """

    def __init__(self, cluster: Cluster, operator: Operator | None, addresses: Addresses) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.operator = operator
        self.namespace = f"mail-{next(_numbers)}-{_network.randrange(16**6):06x}"
        self.endpoints: dict[str, Endpoint] = {}
        self._addresses = addresses
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        # A server that has just come back puts requests off for a moment (429).
        eventually(lambda: self.api.create(namespace).status in {201, 409}, "a namespace")

    def close(self) -> None:
        """Leave nothing behind that keeps an operator busy."""
        for kind in ("MailProxy", *CHILDREN, "Pod"):
            for one in self.api.list(kind, self.namespace):
                self.api.delete(kind, self.namespace, one["metadata"]["name"])
        for endpoint in self.endpoints.values():
            endpoint.close()

    # -- the resource -------------------------------------------------------

    def body(self, name: str = "edge", **spec: Any) -> Object:
        """A MailProxy of this namespace."""
        made = body(**spec)
        made["metadata"] = {"name": name, "namespace": self.namespace}
        return made

    def put(self, name: str = "edge", **spec: Any) -> Object:
        """Apply a MailProxy as a person would, and give it as it is then."""
        return self.api.apply(self.body(name, **spec)).good

    def mail_proxy(self, name: str = "edge") -> Object:
        """The MailProxy as it is."""
        return self.api.found("MailProxy", self.namespace, name)

    def status(self, name: str = "edge") -> Object:
        """Its status; empty before it has one."""
        status: Object = self.mail_proxy(name).get("status") or {}
        return status

    def condition(self, kind: str = "Ready", name: str = "edge") -> tuple[str, str]:
        """A condition's status and reason, once it is about the newest generation."""
        found = self.mail_proxy(name)
        for one in (found.get("status") or {}).get("conditions") or []:
            if one["type"] == kind and one["observedGeneration"] == found["metadata"]["generation"]:
                return one["status"], one["reason"]
        return "", ""

    def message(self, kind: str = "Ready", name: str = "edge") -> str:
        """A condition's message."""
        conditions = self.status(name).get("conditions") or []
        return next((one["message"] for one in conditions if one["type"] == kind), "")

    # -- children -----------------------------------------------------------

    def find(self, kind: str, name: str = "edge") -> Object | None:
        """An object of this namespace, or ``None``."""
        return self.api.find(kind, self.namespace, name)

    def found(self, kind: str, name: str = "edge") -> Object:
        """An object of this namespace that has to be there."""
        return self.api.found(kind, self.namespace, name)

    def children(self) -> dict[tuple[str, str], Object]:
        """Everything the operator has made here, by kind and name."""
        selector = ",".join(f"{key}={value}" for key, value in OWN_LABELS.items())
        return {
            (kind, one["metadata"]["name"]): one
            for kind in CHILDREN
            for one in self.api.list(kind, self.namespace, labelSelector=selector)
        }

    def versions(self) -> dict[tuple[str, str], str]:
        """The resource versions of the MailProxies and of everything made of them."""
        mail = {
            ("MailProxy", one["metadata"]["name"]): one for one in self.api.list("MailProxy", self.namespace)
        }
        return {at: one["metadata"]["resourceVersion"] for at, one in {**mail, **self.children()}.items()}

    def collect_garbage(self) -> None:
        """Be the garbage collector: delete what belongs to somebody who is no more."""
        owners = {one["metadata"]["uid"] for one in self.api.list("MailProxy", self.namespace)}
        for (kind, name), one in self.children().items():
            if not owners & {owner["uid"] for owner in one["metadata"].get("ownerReferences") or []}:
                self.api.delete(kind, self.namespace, name)

    # -- controllers, kubelets and pods ----------------------------------------

    def pods(self, name: str = "edge") -> list[Object]:
        """The pods of a MailProxy."""
        return self.api.list("Pod", self.namespace, labelSelector=f"app.kubernetes.io/instance={name}")

    def roll_out(
        self, name: str = "edge", *, kind: str = "Deployment", count: int | None = None
    ) -> list[str]:
        """Be the workload's controller and the kubelet: ready pods of the newest template, and no others.

        Pods of that template stay as they are.

        Returns:
            The pods' names.
        """
        workload = self.found(kind, name)
        wanted = workload["spec"].get("replicas", 1) if count is None else count
        digest = workload["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH]
        names = [f"{name}-{digest[:8]}-{number}" for number in range(wanted)]
        there = {pod["metadata"]["name"] for pod in self.pods(name)}
        for old in there - set(names):
            self.remove_pod(old)
        for new in [one for one in names if one not in there]:
            self.make_pod(new, workload)
            self.run_pod(new)
        self.report(workload, wanted)
        return names

    def make_pod(self, pod: str, workload: Object) -> None:
        """Create a pod of a workload's template."""
        template = workload["spec"]["template"]
        name, digest = workload["metadata"]["name"], template["metadata"]["annotations"][TEMPLATE_HASH]
        is_deployment = workload["kind"] == "Deployment"
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet" if is_deployment else "DaemonSet",
            "name": f"{name}-{digest}" if is_deployment else name,
            "uid": workload["metadata"]["uid"],
            "controller": True,
        }
        metadata = {
            **template["metadata"],
            "name": pod,
            "namespace": self.namespace,
            "ownerReferences": [owner],
        }
        metadata.pop("creationTimestamp", None)
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        _ = self.api.create(made).good

    def run_pod(self, pod: str, *, answers: bool = True) -> None:
        """Be the kubelet: the pod runs and is ready; its admin endpoint may answer."""
        address = self._addresses.take()
        if answers:
            self.endpoints[pod] = Endpoint(address)
        ready = {"type": "Ready", "status": "True"}
        container = {
            "name": "mailproxy",
            "image": "mailproxy",
            "imageID": "mailproxy",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
        self.set_pod_status(
            pod,
            {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [ready],
                "containerStatuses": [container],
            },
        )

    def set_pod_status(self, pod: str, status: Object) -> None:
        """Be the kubelet."""
        _ = self.api.patch_status("Pod", self.namespace, pod, status).good

    def remove_pod(self, pod: str) -> None:
        """Delete a pod; without a node nobody has to be waited for."""
        self.api.delete("Pod", self.namespace, pod)
        endpoint = self.endpoints.pop(pod, None)
        if endpoint is not None:
            endpoint.close()

    def report(self, workload: Object, count: int, **more: Any) -> None:
        """Be the workload's controller: all pods are there, current and available."""
        names: tuple[str, ...] = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        if workload["kind"] == "DaemonSet":
            names = (
                "desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled",
                "numberReady", "numberAvailable",
            )  # fmt: skip
            more = {"numberMisscheduled": 0, **more}
        status = {
            "observedGeneration": workload["metadata"]["generation"],
            **dict.fromkeys(names, count),
            **more,
        }
        name = workload["metadata"]["name"]
        _ = self.api.patch_status(workload["kind"], self.namespace, name, status).good

    def answer(self, config_hash: str, error: str | None = None, *, pods: tuple[str, ...] = ()) -> None:
        """Have pods say that they run a configuration, all of them or some."""
        for name, endpoint in self.endpoints.items():
            if not pods or name in pods:
                endpoint.hash, endpoint.last_error = config_hash, error

    def settle(self, name: str = "edge", *, kind: str = "Deployment", count: int | None = None) -> Object:
        """Have the pods run what is wanted, and wait until the operator says so.

        Returns:
            The MailProxy.
        """
        self.until(lambda: self.find(kind, name), f"{kind} {name}")
        self.until(lambda: self.condition("Accepted", name)[0] == "True", "acceptance")
        for pod in self.roll_out(name, kind=kind, count=count):
            self.endpoints[pod].hash = self.status(name)["configHash"]
        self.until(lambda: self.condition("Ready", name) == ("True", "Ready"), f"{name} to be ready")
        return self.mail_proxy(name)

    # -- waiting ----------------------------------------------------------------

    def until(self, found: Callable[[], T], what: str, *, patience: float = PATIENCE) -> T:
        """Wait for something; if it does not come, say how things stand."""
        try:
            return eventually(found, what, patience=patience)
        except AssertionError as error:
            said = self.operator.said()[-4000:] if self.operator else ""
            stand = json.dumps([one.get("status") for one in self.api.list("MailProxy", self.namespace)])
            raise AssertionError(f"{error}\n{stand[:4000]}\n{said}") from None

    def events(self) -> list[Object]:
        """What the operator has told about resources of this namespace."""
        return [
            one
            for one in self.api.list("Event", self.namespace)
            if one.get("reportingController") == "mailproxy-operator"
        ]

    def path(self, kind: str, name: str = "edge") -> str:
        """The path of an object of this namespace."""
        return path_of(kind, self.namespace, name)
