# SPDX-License-Identifier: Apache-2.0
"""The kinds of objects that the operator reads and writes: a static table instead of discovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from mailproxy_operator.api import names

Manifest: TypeAlias = dict[str, Any]
"""A Kubernetes object as a mapping."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and its path in the API.

    Attributes:
        optional: The cluster may not have it (it is defined by the CRDs of another product).
    """

    api_version: str
    name: str
    plural: str
    optional: bool = False

    @property
    def id(self) -> str:
        """A name for indexes and handlers; the plural, with an older version of an API also that."""
        version = self.api_version.rpartition("/")[2]
        return f"{self.plural}_{version}" if self in OLDER_POLICIES else self.plural

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return the path of one object, of all objects in a namespace, or of all objects."""
        root = f"/api/{self.api_version}" if self.api_version == "v1" else f"/apis/{self.api_version}"
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{middle}/{self.plural}" + (f"/{name}" if name else "")


MAIL_PROXY = Kind(names.API_VERSION, names.KIND, "mailproxies")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("events.k8s.io/v1", "Event", "events")
MUTATING_WEBHOOK = Kind(
    "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"
)
SECRET = Kind("v1", "Secret", "secrets")
"""Only the metadata of Secrets is read."""
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
SERVICE = Kind("v1", "Service", "services")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
DAEMON_SET = Kind("apps/v1", "DaemonSet", "daemonsets")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors", optional=True)
PROMETHEUS_RULE = Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules", optional=True)

GATEWAY_GROUP = "gateway.networking.k8s.io"
BACKEND_TLS_POLICY = Kind(f"{GATEWAY_GROUP}/v1", "BackendTLSPolicy", "backendtlspolicies", optional=True)
OLDER_POLICIES = (Kind(f"{GATEWAY_GROUP}/v1alpha3", "BackendTLSPolicy", "backendtlspolicies", optional=True),)
POLICIES = (BACKEND_TLS_POLICY, *OLDER_POLICIES)
"""The versions of BackendTLSPolicy; the first one that the cluster has is used."""

OWNED = (
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    SERVICE,
    NETWORK_POLICY,
    DISRUPTION_BUDGET,
    DEPLOYMENT,
    DAEMON_SET,
    AUTOSCALER,
    POD_MONITOR,
    PROMETHEUS_RULE,
)
"""The kinds that a MailProxy may own, in the order in which they are applied."""

WORKLOADS = (DEPLOYMENT, DAEMON_SET)

ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")

_BY_NAME = {
    (kind.api_version, kind.name): kind
    for kind in (*OWNED, *POLICIES, MAIL_PROXY, POD, EVENT, LEASE, MUTATING_WEBHOOK)
}


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """Return the kind of an object.

    Raises:
        KeyError: The kind is not in the table.
    """
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]


def uid_of(manifest: Mapping[str, Any]) -> str:
    """Return the uid of an object; empty before it has one."""
    return str(manifest.get("metadata", {}).get("uid", ""))


def is_controlled_by(manifest: Mapping[str, Any], uid: str) -> bool:
    """Return whether the controller of an object has this uid."""
    owners = manifest.get("metadata", {}).get("ownerReferences") or []
    return any(owner.get("controller") and owner.get("uid") == uid for owner in owners)
