# SPDX-License-Identifier: Apache-2.0
"""The work of a network plug-in that enforces NetworkPolicies: packet filter rules between pods.

Packets from and to the node itself are not filtered, as the kubelet must reach every pod.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from support.kube_api import Object
from support.process_node.commands import run

Pods = Iterable[Object]
_NOBODY: Final = "0.0.0.0"


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects an object with these labels."""
    for one in selector.get("matchExpressions") or []:
        is_there, value = one["key"] in labels, labels.get(one["key"])
        found = {
            "Exists": is_there,
            "DoesNotExist": not is_there,
            "In": is_there and value in one.get("values", []),
            "NotIn": not is_there or value not in one.get("values", []),
        }
        if not found[one["operator"]]:
            return False
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items()


def render_policies(
    policies: Iterable[Object], pods: Pods, namespaces: Mapping[str, Mapping[str, str]]
) -> str:
    """Render the nftables ruleset.

    Args:
        policies: The NetworkPolicies.
        pods: The pods that have an address.
        namespaces: The labels of each namespace.
    """
    known, listed = list(pods), list(policies)
    chains, jumps = "", ""
    for pod in known:
        address = pod["status"]["podIP"]
        for direction, side in (("Ingress", "daddr"), ("Egress", "saddr")):
            about = [one for one in listed if _is_about(one, pod, direction)]
            if about:
                name = f"{direction.lower()}-{address.replace('.', '-')}"
                rules = [rule for one in about for rule in _rules(one, direction, pod, known, namespaces)]
                lines = "".join(f"    {rule}\n" for rule in [*rules, "drop"])
                chains += f"  chain {name} {{\n{lines}  }}\n"
                jumps += f"    ip {side} {address} jump {name}\n"
    return (
        "table ip policies\ndelete table ip policies\ntable ip policies {\n"
        f"{chains}"
        "  chain forward {\n    type filter hook forward priority 0\n"
        f"    ct state established,related accept\n{jumps}  }}\n}}\n"
    )


def _is_about(policy: Object, pod: Object, direction: str) -> bool:
    spec, metadata = policy["spec"], pod["metadata"]
    return (
        policy["metadata"]["namespace"] == metadata["namespace"]
        and direction in spec["policyTypes"]
        and selects(spec.get("podSelector") or {}, metadata.get("labels") or {})
    )


def _rules(
    policy: Object, direction: str, pod: Object, pods: Pods, namespaces: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """Yield a rule for each port of each rule of a policy."""
    peers_of, side = ("from", "saddr") if direction == "Ingress" else ("to", "daddr")
    for rule in policy["spec"].get(direction.lower()) or []:
        match = ""
        if rule.get(peers_of):
            addresses = [
                found
                for peer in rule[peers_of]
                for found in _addresses(peer, policy["metadata"]["namespace"], pods, namespaces)
            ]
            match = f"ip {side} {{ {', '.join(sorted(set(addresses)) or [_NOBODY])} }} "
        for port in rule.get("ports") or [{}]:
            yield f"{match}{_port(port, pod, direction)}return".strip()


def _port(port: Mapping[str, Any], pod: Object, direction: str) -> str:
    protocol = str(port.get("protocol", "TCP")).lower()
    if "port" not in port:
        return f"meta l4proto {protocol} " if "protocol" in port else ""
    number = port["port"]
    if isinstance(number, str):
        assert direction == "Ingress", "named ports of peers are not implemented"
        declared = {one.get("name"): one["containerPort"] for one in _ports(pod)}
        number = declared[number]
    return f"{protocol} dport {number} "


def _ports(pod: Object) -> list[Object]:
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    return [port for one in containers for port in one.get("ports") or []]


def _addresses(
    peer: Mapping[str, Any], own: str, pods: Pods, namespaces: Mapping[str, Mapping[str, str]]
) -> list[str]:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        assert not peer["ipBlock"].get("except"), "exceptions of address ranges are not implemented"
        return [str(network)]
    chosen = {own}
    if "namespaceSelector" in peer:
        chosen = {name for name, labels in namespaces.items() if selects(peer["namespaceSelector"], labels)}
    return [
        one["status"]["podIP"]
        for one in pods
        if one["metadata"]["namespace"] in chosen
        and selects(peer.get("podSelector") or {}, one["metadata"].get("labels") or {})
    ]


class PolicyRules:
    """The rules in the kernel; they are replaced in one step when they change."""

    def __init__(self) -> None:
        self._current = ""

    def update(
        self, policies: Iterable[Object], pods: Pods, namespaces: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Load the rules for these objects."""
        rules = render_policies(policies, pods, namespaces)
        if rules != self._current:
            run("nft", "-f", "-", stdin=rules)
            self._current = rules
