# SPDX-License-Identifier: Apache-2.0
"""The settings of the operator: read once at start and passed as arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mailproxy_operator.api import names
from mailproxy_operator.api.kube_version import OLDEST, KubeVersion

DEFAULT_IMAGE = "ghcr.io/mailproxy/mailproxy:0.1.0"
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The input of rendering besides the resource.

    Attributes:
        kube_version: The oldest version among the nodes that may run the pods.
        image: The default image of the proxy, for resources that set none.
        image_pull_policy: The default pull policy; ``None`` for the default of Kubernetes.
        image_pull_secrets: The default names of image pull Secrets.
        config_dir: Where the configuration is mounted in the container.
        refs_dir: The directory below which referenced Secrets and ConfigMaps are mounted.
        members_dir: Where the members of Services are mounted; empty where nobody writes them.
        refused_sysctls: Names of sysctls that nodes have refused for this generation.
        operator_namespace: Namespace of the operator's pods, for NetworkPolicies; any namespace when empty.
    """

    kube_version: KubeVersion = OLDEST
    image: str = DEFAULT_IMAGE
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    config_dir: str = names.CONFIG_DIR
    refs_dir: str = "/etc/mailproxy-refs"
    members_dir: str = names.MEMBERS_DIR
    refused_sysctls: frozenset[str] = frozenset()
    operator_namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """The webhook that injects sidecars into pods.

    Attributes:
        host: The address to listen on.
        port: The port to listen on.
        configuration: The MutatingWebhookConfiguration whose ``caBundle`` the operator updates.
        certificates: A directory with ``tls.crt`` and ``tls.key``, if the operator does not issue them.
        authorities: The CA certificates for these, as PEM; when empty, the operator does not
            write the ``caBundle``.
        timeout_seconds: The timeout of the API server for a response.
    """

    host: str = "[::]"
    port: int = 9443
    configuration: str = "mailproxy-operator"
    certificates: Path | None = None
    authorities: str = ""
    timeout_seconds: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """The settings of ``mailproxy-operator run``.

    Attributes:
        namespaces: The namespaces to watch; all namespaces when empty.
        image: The default image of the proxy, for resources that set none.
        image_pull_policy: The default pull policy; ``None`` for the default of Kubernetes.
        node_min_version: The version of the oldest node, if it is older than the API server.
        admin_host: The address for metrics and probes.
        admin_port: The port for metrics and probes.
        lease_namespace: The namespace of the Lease; without one, this must be the only operator.
        lease_name: The name of the Lease.
        pod_namespace: The namespace of this process's pod; empty outside of a cluster.
        pod_name: The name of this process's pod, if known.
        pod_uid: The uid of this process's pod, if known.
        image_pull_secrets: The default names of image pull Secrets of proxies.
        identity: The holder identity of this process in the Lease.
        resync_seconds: The interval between two resyncs.
        webhook: The webhook for sidecars; ``None`` when it is not enabled.
    """

    namespaces: tuple[str, ...] = ()
    image: str = DEFAULT_IMAGE
    image_pull_policy: str | None = None
    node_min_version: KubeVersion | None = None
    admin_host: str = "[::]"
    admin_port: int = 8080
    lease_namespace: str = ""
    lease_name: str = "mailproxy-operator"
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    identity: str = ""
    resync_seconds: float = 600.0
    webhook: WebhookSettings | None = None

    def platform(self, version: KubeVersion) -> Platform:
        """Return the settings for rendering.

        Args:
            version: The version of the oldest node.
        """
        return Platform(
            kube_version=version,
            image=self.image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            operator_namespace=self.pod_namespace,
        )

    def lease_owner(self) -> dict[str, object] | None:
        """Return an owner reference to this process's pod, if it is known and in the namespace of the Lease.

        An owner in another namespace is invalid: Kubernetes would delete the Lease immediately.
        """
        is_beside = bool(self.pod_namespace) and self.lease_namespace == self.pod_namespace
        if not (is_beside and self.pod_name and self.pod_uid):
            return None
        return {"apiVersion": "v1", "kind": "Pod", "name": self.pod_name, "uid": self.pod_uid}
