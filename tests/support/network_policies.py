# SPDX-License-Identifier: Apache-2.0
"""Evaluates NetworkPolicies, as Kubernetes documents them.

Namespaces are selected by their label ``kubernetes.io/metadata.name``; named ports are those of the pod's
containers.  ``ipBlock`` is ignored: all peers are pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMESPACE_LABEL = "kubernetes.io/metadata.name"

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod: its namespace, its labels, and the ports that its containers name."""

    namespace: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]

    @classmethod
    def of(cls, namespace: str, template: Mapping[str, Any]) -> Peer:
        """Create a peer from a pod or a pod template."""
        spec = template["spec"]
        listed = [
            port
            for one in (*spec.get("initContainers", []), *spec["containers"])
            for port in one.get("ports", [])
        ]
        ports = {port["name"]: port["containerPort"] for port in listed if "name" in port}
        return cls(namespace, template["metadata"]["labels"], ports)


def allows_connection(policies: Sequence[Policy], source: Peer, target: Peer, port: int) -> bool:
    """Whether the policies of both sides allow a connection to a TCP port of a pod."""
    egress = [one for one in policies if _applies_to(one, source, "Egress")]
    ingress = [one for one in policies if _applies_to(one, target, "Ingress")]
    return (
        not egress or any(_allows(rule, "to", target, target, port) for rule in _rules(egress, "egress"))
    ) and (
        not ingress or any(_allows(rule, "from", source, target, port) for rule in _rules(ingress, "ingress"))
    )


def _applies_to(policy: Policy, pod: Peer, direction: str) -> bool:
    return (
        policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], pod.labels)
    )


def _rules(policies: Sequence[Policy], name: str) -> Iterator[Mapping[str, Any]]:
    for policy in policies:
        for rule in policy["spec"].get(name, []):
            yield {**rule, "namespace": policy["metadata"]["namespace"]}


def _allows(rule: Mapping[str, Any], side: str, other: Peer, target: Peer, port: int) -> bool:
    numbers = [target.ports.get(one["port"], one["port"]) for one in rule.get("ports", [])]
    if numbers and port not in numbers:
        return False
    return side not in rule or any(_is_peer(one, other, rule["namespace"]) for one in rule[side])


def _is_peer(peer: Mapping[str, Any], pod: Peer, namespace: str) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], {NAMESPACE_LABEL: pod.namespace}):
            return False
    elif pod.namespace != namespace:
        return False
    return _selects(peer.get("podSelector", {}), pod.labels)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    match_labels: Mapping[str, str] = selector.get("matchLabels", {})
    for one in selector.get("matchExpressions", []):
        assert one["operator"] in {"Exists", "In", "NotIn"}
        has_label = one["key"] in labels
        is_listed = labels.get(one["key"]) in one.get("values", [])
        if not {"Exists": has_label, "In": is_listed, "NotIn": not is_listed}[one["operator"]]:
            return False
    return match_labels.items() <= labels.items()
