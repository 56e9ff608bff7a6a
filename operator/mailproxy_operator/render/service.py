# SPDX-License-Identifier: Apache-2.0
"""The Services: one for mail, and a headless one for the admin port."""

from __future__ import annotations

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import SERVICE, Manifest
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.render.ports import Port


def service(plan: Plan) -> Manifest | None:
    """Render the Service of the mail ports, if there are any; for a sidecar only if the resource sets it."""
    if not plan.ports or not (plan.has_workload or plan.resource.has_service_settings):
        return None
    asked = plan.resource.deployment.service
    metadata = plan.resource.metadata(plan.resource.name)
    metadata["labels"] = {**asked.labels, **metadata["labels"]}
    if asked.annotations:
        metadata["annotations"] = dict(asked.annotations)
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.name,
        "metadata": metadata,
        "spec": _spec(plan),
    }


def _spec(plan: Plan) -> Manifest:
    asked = plan.resource.deployment.service
    node_ports = {one["port"]: one["nodePort"] for one in asked.node_ports}
    spec: Manifest = {
        "type": asked.type,
        "selector": plan.pod_labels,
        "ipFamilyPolicy": asked.ip_family_policy,
        "ports": [
            {
                "name": port.name,
                "port": port.number,
                "protocol": "TCP",
                "targetPort": _target(plan, port),
                **({"nodePort": node_ports[port.number]} if port.number in node_ports else {}),
            }
            for port in plan.ports
        ],
    }
    if asked.type != "ClusterIP":
        # Local preserves the client's address, which is needed for block lists, Client-IP and XCLIENT.
        spec["externalTrafficPolicy"] = asked.external_traffic_policy or "Local"
    if asked.internal_traffic_policy:
        spec["internalTrafficPolicy"] = asked.internal_traffic_policy
    if asked.ip_families:
        spec["ipFamilies"] = list(asked.ip_families)
    if asked.type == "LoadBalancer" and asked.load_balancer_class:
        spec["loadBalancerClass"] = asked.load_balancer_class
    if asked.type == "LoadBalancer" and asked.load_balancer_source_ranges:
        spec["loadBalancerSourceRanges"] = list(asked.load_balancer_source_ranges)
    return spec


def _target(plan: Plan, port: Port) -> str | int:
    # Pods of other workloads may use these port names, and a sidecar opens new ports without a new pod.
    return port.name if plan.has_workload else port.container_port


def metrics_service(plan: Plan) -> Manifest | None:
    """Render the headless Service of the admin port; draining pods are scraped as well."""
    if not plan.has_workload:
        return None
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.name,
        "metadata": plan.resource.metadata(names.metrics_service_name(plan.resource.name)),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "ipFamilyPolicy": "PreferDualStack",
            "publishNotReadyAddresses": True,
            "selector": names.selector_labels(plan.resource.name),
            "ports": [
                {
                    "name": names.ADMIN_PORT_NAME,
                    "port": names.ADMIN_PORT,
                    "protocol": "TCP",
                    "targetPort": names.ADMIN_PORT_NAME,
                }
            ],
        },
    }
