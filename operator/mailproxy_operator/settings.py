# SPDX-License-Identifier: Apache-2.0
"""The operator's own settings: read once, where the program starts, and passed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mailproxy_operator.api import names
from mailproxy_operator.api.kube_version import OLDEST, KubeVersion

DEFAULT_IMAGE = "ghcr.io/mailproxy/mailproxy:0.1.0"
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What rendering has to know besides the resource.

    Attributes:
        kube_version: The oldest version among the nodes that may run the pods.
        image: The proxy's image where a resource names none.
        image_pull_policy: When it is pulled where a resource does not say; ``None``: as Kubernetes does.
        image_pull_secrets: Names of Secrets with which it is pulled where a resource names none.
        config_dir: Where the configuration is mounted in the container.
        refs_dir: Below it, what the resource refers to is mounted.
        refused_sysctls: Names that nodes have refused for this generation.
        operator_namespace: Where the operator's pods are, for NetworkPolicies; any namespace when empty.
    """

    kube_version: KubeVersion = OLDEST
    image: str = DEFAULT_IMAGE
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    config_dir: str = names.CONFIG_DIR
    refs_dir: str = "/etc/mailproxy-refs"
    refused_sysctls: frozenset[str] = frozenset()
    operator_namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """The webhook that puts sidecars into pods.

    Attributes:
        host: Where to listen.
        port: Where to listen.
        configuration: The MutatingWebhookConfiguration whose ``caBundle`` the operator keeps.
        certificates: A folder with ``tls.crt`` and ``tls.key``, where somebody else makes them.
        authorities: What the API server has to trust for those, as PEM; when empty, somebody
            else keeps the ``caBundle``.
        timeout_seconds: How long the API server waits for an answer.
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
        namespaces: Which to serve; all of them when empty.
        image: The proxy's image where a resource names none.
        image_pull_policy: When it is pulled where a resource does not say; ``None``: as Kubernetes does.
        node_min_version: Of the oldest node, where that is older than the API server.
        admin_host: Where metrics and probes are answered.
        admin_port: Where metrics and probes are answered.
        lease_namespace: Where the Lease lives; without one, this must be the only operator.
        lease_name: Its name.
        pod_namespace: Where this process's own pod is; empty outside of a cluster.
        pod_name: That pod's name, where it is known.
        pod_uid: That pod's uid, where it is known.
        image_pull_secrets: Names of Secrets with which proxies are pulled where a resource names none.
        identity: Who holds it.
        resync_seconds: How often everything is looked at anew.
        webhook: The webhook for sidecars; there is none unless asked for.
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
        """Give the settings that rendering needs.

        Args:
            version: The oldest one among the nodes.
        """
        return Platform(
            kube_version=version,
            image=self.image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            operator_namespace=self.pod_namespace,
        )

    def lease_owner(self) -> dict[str, object] | None:
        """Refer to this process's own pod, if it is known and in the namespace of the Lease.

        An owner in another namespace does not count: Kubernetes would delete the Lease at once.
        """
        is_beside = bool(self.pod_namespace) and self.lease_namespace == self.pod_namespace
        if not (is_beside and self.pod_name and self.pod_uid):
            return None
        return {"apiVersion": "v1", "kind": "Pod", "name": self.pod_name, "uid": self.pod_uid}
