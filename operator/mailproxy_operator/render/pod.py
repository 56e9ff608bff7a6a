# SPDX-License-Identifier: Apache-2.0
"""The pod template: one container that conforms to the Pod Security Standard *restricted*."""

from __future__ import annotations

import hashlib
import json
import math

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import DEPLOYMENT, Manifest
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.render.volumes import volume_mounts, volumes

USER_ID = 65532
MARGIN_SECONDS = 10
"""Time that is added to the drain in ``terminationGracePeriodSeconds``."""


def pod_template(plan: Plan) -> Manifest:
    """Render the pod template, with a hash of everything that requires new pods."""
    spec = _spec(plan)
    digest = hashlib.sha256(json.dumps([spec, _labels(plan)], sort_keys=True).encode()).hexdigest()[:16]
    annotations = {**_annotations(plan), names.TEMPLATE_HASH: digest}
    return {"metadata": {"labels": _labels(plan), "annotations": annotations}, "spec": spec}


def _labels(plan: Plan) -> dict[str, str]:
    return {**plan.resource.deployment.pod.labels, **names.labels(plan.resource.name)}


def _annotations(plan: Plan) -> dict[str, str]:
    return {**scraping(plan), **plan.resource.deployment.pod.annotations}


def scraping(plan: Plan) -> dict[str, str]:
    """Render the annotations for Prometheus, unless the resource disables them."""
    if not plan.resource.deployment.monitoring.is_annotated:
        return {}
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(names.ADMIN_PORT),
        "prometheus.io/path": "/metrics",
    }


def _spec(plan: Plan) -> Manifest:
    drain = plan.resource.deployment.drain
    grace = math.ceil(drain.delay) + math.ceil(drain.timeout) + MARGIN_SECONDS
    return {
        "serviceAccountName": _service_account(plan),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": _security_context(plan),
        "containers": [
            container(plan),
            *(dict(one) for one in plan.resource.deployment.pod.extra_containers),
        ],
        "volumes": volumes(plan),
        **_passed_through(plan),
    }


def _service_account(plan: Plan) -> str:
    return plan.resource.deployment.pod.service_account_name or plan.resource.name


def _security_context(plan: Plan) -> Manifest:
    context: Manifest = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    applied = [{"name": one.name, "value": one.value} for one in plan.sysctls if one.applied]
    if applied:
        context["sysctls"] = applied
    return {**context, **plan.resource.deployment.pod.security_context}


def _passed_through(plan: Plan) -> Manifest:
    """Return the pod fields that come from the resource, without empty ones."""
    pod = plan.resource.deployment.pod
    fields: Manifest = {
        "imagePullSecrets": [{"name": name} for name in plan.pull_secrets],
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [dict(one) for one in pod.tolerations],
        "affinity": dict(pod.affinity),
        "topologySpreadConstraints": _spread(plan),
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "hostNetwork": pod.host_network,
        "dnsPolicy": pod.dns_policy or ("ClusterFirstWithHostNet" if pod.host_network else None),
        "dnsConfig": dict(pod.dns_config),
        "hostAliases": [dict(one) for one in pod.host_aliases],
    }
    given = {name: value for name, value in fields.items() if value}
    return given if pod.host_users is None else {**given, "hostUsers": pod.host_users}


def _spread(plan: Plan) -> list[Manifest]:
    """Spread a Deployment over nodes and zones if possible, unless the resource sets constraints."""
    given = plan.resource.deployment.pod.topology_spread_constraints
    if given is not None:
        return [dict(one) for one in given]
    if plan.resource.mode != DEPLOYMENT.name:
        return []
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector_labels(plan.resource.name)},
            # Pods of the previous template are not counted: they are about to be deleted.
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def container(plan: Plan) -> Manifest:
    """Render the proxy's container."""
    deployment = plan.resource.deployment
    made: Manifest = {
        "name": names.CONTAINER,
        "image": deployment.image or plan.platform.image,
        "command": ["mailproxy"],
        "args": [
            "run",
            "-f",
            f"{plan.platform.config_dir}/{names.CONFIG_KEY}",
            "--admin",
            f"[::]:{names.ADMIN_PORT}",
        ],
        "ports": _ports(plan),
        "resources": _resources(plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **_probes(),
        "volumeMounts": volume_mounts(plan),
    }
    if policy := deployment.image_pull_policy or plan.platform.image_pull_policy:
        made["imagePullPolicy"] = policy
    if deployment.pod.extra_env:
        made["env"] = [dict(one) for one in deployment.pod.extra_env]
    if plan.pods_sleep_before_stop and deployment.drain.delay > 0:
        # Load balancers remove the endpoint before the proxy stops accepting connections.
        made["lifecycle"] = {"preStop": {"sleep": {"seconds": math.ceil(deployment.drain.delay)}}}
    return made


def _ports(plan: Plan) -> list[Manifest]:
    mail = [
        {
            "name": port.name,
            "containerPort": port.container_port,
            "protocol": "TCP",
            **({"hostPort": port.host_port} if port.host_port else {}),
        }
        for port in plan.ports
    ]
    admin = {"name": names.ADMIN_PORT_NAME, "containerPort": names.ADMIN_PORT, "protocol": "TCP"}
    return sorted([*mail, admin], key=lambda port: int(str(port["containerPort"])))


def _resources(plan: Plan) -> Manifest:
    asked = plan.resource.deployment.resources
    parts = {"requests": dict(asked.requests), "limits": dict(asked.limits)}
    return {name: quantities for name, quantities in parts.items() if quantities}


def _probes() -> Manifest:
    def http_probe(path: str) -> Manifest:
        return {"httpGet": {"path": path, "port": names.ADMIN_PORT_NAME}}

    return {
        # Each failed probe is a warning event, so the first probe is sent after the duration of a normal
        # start, one second.  On a busy node or with a small CPU limit, a successful start takes minutes.
        "startupProbe": {
            **http_probe("/healthz"),
            "initialDelaySeconds": 3,
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 300,
        },
        "livenessProbe": {
            **http_probe("/healthz"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            **http_probe("/readyz"),
            "periodSeconds": 5,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
    }
