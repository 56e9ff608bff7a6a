# SPDX-License-Identifier: Apache-2.0
"""Plain requests of a test to an API server, real or emulated, without any of the product's code."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

Object = dict[str, Any]

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
_SECONDS: Final = 30.0

PLURALS: Final = {
    "Namespace": ("v1", "namespaces"),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    "Role": ("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings"),
    "MailProxy": ("mailproxy.dev/v1alpha1", "mailproxies"),
    "Pod": ("v1", "pods"),
    "ConfigMap": ("v1", "configmaps"),
    "Secret": ("v1", "secrets"),
    "Service": ("v1", "services"),
    "EndpointSlice": ("discovery.k8s.io/v1", "endpointslices"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "Event": ("events.k8s.io/v1", "events"),
    "Deployment": ("apps/v1", "deployments"),
    "DaemonSet": ("apps/v1", "daemonsets"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
    "PodMonitor": ("monitoring.coreos.com/v1", "podmonitors"),
    "PrometheusRule": ("monitoring.coreos.com/v1", "prometheusrules"),
    "BackendTLSPolicy": ("gateway.networking.k8s.io/v1", "backendtlspolicies"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    "ResourceQuota": ("v1", "resourcequotas"),
}
_CLUSTER_WIDE: Final = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}

CHILDREN: Final = (
    "ServiceAccount",
    "ConfigMap",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
    "HorizontalPodAutoscaler",
)
"""The kinds a MailProxy may own and that every cluster has."""


@dataclass(frozen=True)
class Response:
    """A response: its status, its body and its warnings."""

    status: int
    body: Object
    warnings: tuple[str, ...] = ()

    @property
    def checked_body(self) -> Object:
        """The body of a response whose status must be 2xx."""
        assert 200 <= self.status < 300, f"{self.status}: {self.body.get('message', self.body)}"
        return self.body

    @property
    def message(self) -> str:
        """The message of the response's body."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class ApiUser:
    """Sends requests as one user."""

    url: str
    token: str = field(default="", repr=False)
    authority: Path | None = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Response:
        """Send one request on a new connection."""
        connection = self._connection()
        headers = {"Accept": accept, "Content-Type": content}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return Response(response.status, _parsed(text), tuple(response.headers.get_all("Warning") or ()))

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_SECONDS)
        context = ssl.create_default_context(cafile=str(self.authority))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as every Kubernetes client except Python's does
        return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)


def _parsed(text: bytes) -> Object:
    try:
        body = json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace")}
    return body if isinstance(body, dict) else {"value": body}


def path_of(kind: str, namespace: str = "", name: str = "", **query: str) -> str:
    """Return the path of one object, of a namespace's objects of a kind, or of all objects of a kind."""
    version, plural = PLURALS[kind]
    root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    middle = f"/namespaces/{namespace}" if namespace and kind not in _CLUSTER_WIDE else ""
    path = f"{root}{middle}/{plural}" + (f"/{quote(name)}" if name else "")
    return path + (f"?{urlencode(query)}" if query else "")


class Api:
    """An API server, with requests sent as one user."""

    def __init__(self, user: ApiUser) -> None:
        self.user = user

    def get(self, path: str) -> Response:
        """Read the path."""
        return self.user.request("GET", path)

    def post(self, path: str, body: Object) -> Response:
        """Post an object to a path."""
        return self.user.request("POST", path, body)

    def create(self, manifest: Object, **query: str) -> Response:
        """Create an object."""
        metadata = manifest["metadata"]
        return self.post(path_of(manifest["kind"], metadata.get("namespace", ""), **query), manifest)

    def apply(self, manifest: Object, manager: str = "kubectl", **query: str) -> Response:
        """Apply an object server-side, with force."""
        path = _path(manifest, fieldManager=manager, force="true", **query)
        return self.user.request("PATCH", path, manifest, APPLY)

    def patch(self, kind: str, namespace: str, name: str, change: Object, **query: str) -> Response:
        """Merge a change into an object."""
        return self.user.request("PATCH", path_of(kind, namespace, name, **query), change, MERGE)

    def patch_status(self, kind: str, namespace: str, name: str, status: Object) -> Response:
        """Merge a change into an object's status, as its controller does."""
        path = f"{path_of(kind, namespace, name)}/status"
        return self.user.request("PATCH", path, {"status": status}, MERGE)

    def replace(self, manifest: Object) -> Response:
        """Replace an object, as an editor does."""
        return self.user.request("PUT", _path(manifest), manifest)

    def delete(self, kind: str, namespace: str, name: str) -> Response:
        """Delete an object."""
        return self.user.request("DELETE", path_of(kind, namespace, name), {"gracePeriodSeconds": 0})

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object, or ``None``."""
        response = self.get(path_of(kind, namespace, name))
        return None if response.status == 404 else response.checked_body

    def found(self, kind: str, namespace: str, name: str) -> Object:
        """Return an object that must exist."""
        return self.get(path_of(kind, namespace, name)).checked_body

    def list(self, kind: str, namespace: str = "", **query: str) -> list[Object]:
        """Return the objects of a kind."""
        return list(self.get(path_of(kind, namespace, **query)).checked_body["items"])


def _path(manifest: Mapping[str, Any], **query: str) -> str:
    metadata = manifest["metadata"]
    return path_of(manifest["kind"], metadata.get("namespace", ""), metadata["name"], **query)
