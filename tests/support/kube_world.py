# SPDX-License-Identifier: Apache-2.0
"""One namespace on an API server, with the work of controllers, kubelets and pods done by tests."""

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
from support.reasons_page import check_world
from support.servers.programs import eventually

T = TypeVar("T")

TIMEOUT: Final = 90.0
ADMIN_PORT: Final = 9113
TEMPLATE_HASH: Final = "mailproxy.dev/template-hash"
OWN_LABELS: Final = {
    "app.kubernetes.io/name": "mailproxy",
    "app.kubernetes.io/managed-by": "mailproxy-operator",
}

_numbers = itertools.count(1)
_network = random.SystemRandom()


class Addresses:
    """Allocates addresses of this machine's loopback network; no address is allocated twice."""

    def __init__(self) -> None:
        self._prefix = f"127.{_network.randint(16, 250)}.{_network.randint(0, 250)}"
        self._last = itertools.count(1)

    def take(self) -> str:
        """Return an address."""
        return f"{self._prefix}.{next(self._last)}"


class Endpoint:
    """The admin endpoint of a pod, at the pod's own address.

    Attributes:
        hash: The configuration hash it reports.
        last_error: Why it rejected the newest configuration.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.hash = ""
        self.last_error: str | None = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/config" else 404)
                self.end_headers()
                self.wfile.write(
                    json.dumps({"hash": endpoint.hash, "last_error": endpoint.last_error}).encode()
                )

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, ADMIN_PORT), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class World:
    """A namespace for one test.

    Attributes:
        endpoints: The admin endpoints of pods, by pod name.
    """

    def __init__(self, cluster: Cluster, operator: Operator | None, addresses: Addresses) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.operator = operator
        self.namespace = f"mail-{next(_numbers)}-{_network.randrange(16**6):06x}"
        self.endpoints: dict[str, Endpoint] = {}
        self._addresses = addresses
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        # A server that has just restarted rejects requests for a short time (429).
        eventually(lambda: self.api.create(namespace).status in {201, 409}, "a namespace")

    def close(self) -> None:
        """Check what the operator has reported, and delete the MailProxies, their objects and pods."""
        check_world(self.api.list("MailProxy", self.namespace), self.api.list("Event", self.namespace))
        for kind in ("MailProxy", *CHILDREN, "Pod"):
            for one in self.api.list(kind, self.namespace):
                self.api.delete(kind, self.namespace, one["metadata"]["name"])
        for endpoint in self.endpoints.values():
            endpoint.close()

    # -- the resource -------------------------------------------------------

    def body(self, name: str = "edge", **spec: Any) -> Object:
        """Return the manifest of a MailProxy in this namespace."""
        made = body(**spec)
        made["metadata"] = {"name": name, "namespace": self.namespace}
        return made

    def put(self, name: str = "edge", **spec: Any) -> Object:
        """Apply a MailProxy as a user does, and return the stored object."""
        return self.api.apply(self.body(name, **spec)).checked_body

    def mail_proxy(self, name: str = "edge") -> Object:
        """Return the MailProxy as stored."""
        return self.api.found("MailProxy", self.namespace, name)

    def status(self, name: str = "edge") -> Object:
        """Return its status; empty if it has none yet."""
        status: Object = self.mail_proxy(name).get("status") or {}
        return status

    def condition(self, kind: str = "Ready", name: str = "edge") -> tuple[str, str]:
        """Return a condition's status and reason, once it is for the newest generation."""
        found = self.mail_proxy(name)
        for one in (found.get("status") or {}).get("conditions") or []:
            if one["type"] == kind and one["observedGeneration"] == found["metadata"]["generation"]:
                return one["status"], one["reason"]
        return "", ""

    def message(self, kind: str = "Ready", name: str = "edge") -> str:
        """Return a condition's message."""
        conditions = self.status(name).get("conditions") or []
        return next((one["message"] for one in conditions if one["type"] == kind), "")

    # -- children -----------------------------------------------------------

    def find(self, kind: str, name: str = "edge") -> Object | None:
        """Return an object of this namespace, or ``None``."""
        return self.api.find(kind, self.namespace, name)

    def found(self, kind: str, name: str = "edge") -> Object:
        """Return an object of this namespace that must exist."""
        return self.api.found(kind, self.namespace, name)

    def children(self) -> dict[tuple[str, str], Object]:
        """Return everything the operator has created here, by kind and name."""
        selector = ",".join(f"{key}={value}" for key, value in OWN_LABELS.items())
        return {
            (kind, one["metadata"]["name"]): one
            for kind in CHILDREN
            for one in self.api.list(kind, self.namespace, labelSelector=selector)
        }

    def versions(self) -> dict[tuple[str, str], str]:
        """Return the resource versions of the MailProxies and of all their children."""
        mail = {
            ("MailProxy", one["metadata"]["name"]): one for one in self.api.list("MailProxy", self.namespace)
        }
        return {key: one["metadata"]["resourceVersion"] for key, one in {**mail, **self.children()}.items()}

    def collect_garbage(self) -> None:
        """Do the garbage collector's work: delete the children whose owner no longer exists."""
        owners = {one["metadata"]["uid"] for one in self.api.list("MailProxy", self.namespace)}
        for (kind, name), one in self.children().items():
            if not owners & {owner["uid"] for owner in one["metadata"].get("ownerReferences") or []}:
                self.api.delete(kind, self.namespace, name)

    # -- controllers, kubelets and pods ----------------------------------------

    def pods(self, name: str = "edge") -> list[Object]:
        """Return the pods of a MailProxy."""
        return self.api.list("Pod", self.namespace, labelSelector=f"app.kubernetes.io/instance={name}")

    def roll_out(
        self, name: str = "edge", *, kind: str = "Deployment", count: int | None = None
    ) -> list[str]:
        """Do the work of the workload's controller and the kubelet: only ready pods of the newest template.

        Existing pods of that template are not changed.

        Returns:
            The pods' names.
        """
        workload = self.found(kind, name)
        wanted = workload["spec"].get("replicas", 1) if count is None else count
        digest = workload["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH]
        names = [f"{name}-{digest[:8]}-{number}" for number in range(wanted)]
        existing = {pod["metadata"]["name"] for pod in self.pods(name)}
        for old in existing - set(names):
            self.remove_pod(old)
        for new in [one for one in names if one not in existing]:
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
        _ = self.api.create(made).checked_body

    def run_pod(self, pod: str, *, has_endpoint: bool = True) -> None:
        """Do the kubelet's work: set the pod to running and ready; with an admin endpoint by default."""
        address = self._addresses.take()
        if has_endpoint:
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
        """Set the status of a pod, as the kubelet does."""
        _ = self.api.patch_status("Pod", self.namespace, pod, status).checked_body

    def remove_pod(self, pod: str) -> None:
        """Delete a pod; there is no node whose kubelet would have to confirm it."""
        self.api.delete("Pod", self.namespace, pod)
        endpoint = self.endpoints.pop(pod, None)
        if endpoint is not None:
            endpoint.close()

    def report(self, workload: Object, count: int, **more: Any) -> None:
        """Do the work of the workload's controller: report all pods as present, current and available."""
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
        _ = self.api.patch_status(workload["kind"], self.namespace, name, status).checked_body

    def report_config(
        self, config_hash: str, error: str | None = None, *, pods: tuple[str, ...] = ()
    ) -> None:
        """Set the configuration hash that pods report, for all pods or some."""
        for name, endpoint in self.endpoints.items():
            if not pods or name in pods:
                endpoint.hash, endpoint.last_error = config_hash, error

    def settle(self, name: str = "edge", *, kind: str = "Deployment", count: int | None = None) -> Object:
        """Let the pods run the desired configuration, and wait until the operator reports it as ready.

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

    def until(self, condition: Callable[[], T], description: str, *, timeout: float = TIMEOUT) -> T:
        """Wait for a condition; on failure, raise an error that shows the statuses and the operator's log."""
        try:
            return eventually(condition, description, timeout=timeout)
        except AssertionError as error:
            log = self.operator.output_text()[-4000:] if self.operator else ""
            statuses = json.dumps([one.get("status") for one in self.api.list("MailProxy", self.namespace)])
            raise AssertionError(f"{error}\n{statuses[:4000]}\n{log}") from None

    def events(self) -> list[Object]:
        """Return the events that the operator has created about resources of this namespace."""
        return [
            one
            for one in self.api.list("Event", self.namespace)
            if one.get("reportingController") == "mailproxy-operator"
        ]

    def path(self, kind: str, name: str = "edge") -> str:
        """Return the path of an object of this namespace."""
        return path_of(kind, self.namespace, name)
