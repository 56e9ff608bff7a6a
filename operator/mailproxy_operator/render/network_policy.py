# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy: permitted connections to and from the pods.

It is disabled by default: with an authentication service, only that service has the addresses of the
mail servers, so the resource must list the permitted egress.  The operator may always connect
to the admin port: it reads the running configuration of the pods there.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailproxy_config.addresses import parse_host_port
from mailproxy_config.upstream_groups import default_port
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import NETWORK_POLICY, Manifest
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.settings import Platform

DNS_PORT = 53


def network_policy(plan: Plan) -> Manifest | None:
    """Render the policy, if the resource enables it; never for pods of other workloads."""
    if not plan.has_workload or not plan.resource.deployment.network_policy.enabled:
        return None
    return {
        "apiVersion": NETWORK_POLICY.api_version,
        "kind": NETWORK_POLICY.name,
        "metadata": plan.resource.metadata(plan.resource.name),
        "spec": {
            "podSelector": {"matchLabels": names.selector_labels(plan.resource.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _ingress(plan),
            "egress": _egress(plan),
        },
    }


def _ingress(plan: Plan) -> list[Manifest]:
    asked = plan.resource.deployment.network_policy
    mail: Manifest = {"ports": [_tcp(port.container_port) for port in plan.ports]}
    if asked.clients_from:
        mail["from"] = [dict(peer) for peer in asked.clients_from]
    peers = [_operator(plan.platform), *(dict(peer) for peer in asked.metrics_from)]
    admin: Manifest = {"from": peers, "ports": [_tcp(names.ADMIN_PORT)]}
    return [mail, admin] if plan.ports else [admin]


def _operator(platform: Platform) -> Manifest:
    """Select the operator's pods by their namespace and labels."""
    namespace = platform.operator_namespace
    selector: Manifest = {"matchLabels": {names.NAMESPACE_LABEL: namespace}} if namespace else {}
    return {"namespaceSelector": selector, "podSelector": {"matchLabels": dict(names.OPERATOR_LABELS)}}


def _egress(plan: Plan) -> list[Manifest]:
    found = (server.auth_http for server in plan.config.servers)
    services = {each.port for each in found if each is not None and each.unix_path is None}
    services |= set(_upstream_ports(plan))
    name_servers = sorted(_name_server_ports(plan))
    rules: list[Manifest] = [
        {"ports": [{"port": port, "protocol": kind} for port in name_servers for kind in ("UDP", "TCP")]}
    ]
    if services:
        rules.append({"ports": [_tcp(port) for port in sorted(services)]})
    return rules + [dict(rule) for rule in plan.resource.deployment.network_policy.egress]


def _upstream_ports(plan: Plan) -> Iterator[int]:
    """Yield the ports of all servers that routes lead to, and of the members of Services."""
    yield from plan.members.ports
    for config in plan.config.servers:
        configs = config.group_configs
        for group in config.upstream_groups:
            default = default_port(config.protocol, configs.get(group.name, config).proxy_ssl)
            servers = (server for server in group.servers if not server.host.startswith("unix:"))
            yield from (server.port or default for server in servers)


def _name_server_ports(plan: Plan) -> set[int]:
    """Return the ports of every ``resolver`` and of the cluster's name servers."""
    resolvers = [server.resolver for server in plan.config.servers if server.resolver]
    ports = {parse_host_port(address).port for resolver in resolvers for address in resolver.addresses}
    return {DNS_PORT, *(port for port in ports if port)}


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}
