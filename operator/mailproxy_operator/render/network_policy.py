# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy: who may reach the pods, and whom they may reach.

It is off unless asked for: where backends are is known to the authorization
service only, so what leaves the pods has to be listed in the resource.
"""

from __future__ import annotations

from mailproxy_operator import names
from mailproxy_operator.kinds import NETWORK_POLICY, Manifest
from mailproxy_operator.render.plan import Plan


def network_policy(plan: Plan) -> Manifest | None:
    """Render the policy, if the resource asks for one; what others' pods may do is not ours to say."""
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
    rules = [mail] if plan.ports else []
    if asked.metrics_from:
        peers = [dict(peer) for peer in asked.metrics_from]
        rules.append({"from": peers, "ports": [_tcp(names.ADMIN_PORT)]})
    return rules


def _egress(plan: Plan) -> list[Manifest]:
    services = {server.auth_http.port for server in plan.config.servers if server.auth_http.unix_path is None}
    rules: list[Manifest] = [{"ports": [{"port": 53, "protocol": "UDP"}, _tcp(53)]}]
    if services:
        rules.append({"ports": [_tcp(port) for port in sorted(services)]})
    return rules + [dict(rule) for rule in plan.resource.deployment.network_policy.egress]


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}
