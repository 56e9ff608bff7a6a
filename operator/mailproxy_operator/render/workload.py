# SPDX-License-Identifier: Apache-2.0
"""The Deployment or the DaemonSet with the pod template."""

from __future__ import annotations

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import DEPLOYMENT, Manifest
from mailproxy_operator.render import refused_sysctls
from mailproxy_operator.render.plan import Plan
from mailproxy_operator.render.pod import pod_template

MIN_READY_SECONDS = 5
REVISIONS_KEPT = 5
_ONE_POD_PER_NODE: Manifest = {"maxUnavailable": 1, "maxSurge": 0}
"""Two pods cannot use the same ports of a node, so the old pod is deleted first."""


def workload(plan: Plan) -> Manifest | None:
    """Render the workload, unless the mode is ``Sidecar``."""
    if not plan.has_workload:
        return None
    kind = plan.workload_kind
    metadata = plan.resource.metadata(plan.resource.name)
    if plan.platform.refused_sysctls:
        metadata["annotations"] = refused_sysctls.written(
            plan.platform.refused_sysctls, plan.resource.generation
        )
    spec = {
        "selector": {"matchLabels": names.selector_labels(plan.resource.name)},
        "minReadySeconds": MIN_READY_SECONDS,
        "revisionHistoryLimit": REVISIONS_KEPT,
        **(_deployment_part(plan) if kind is DEPLOYMENT else _daemon_set_part()),
        "template": pod_template(plan),
    }
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, "spec": spec}


def _deployment_part(plan: Plan) -> Manifest:
    deployment = plan.resource.deployment
    # A sysctl that a node may refuse is tried with one pod: a refused pod is replaced immediately.
    surge: int | str = 1 if plan.requests_unsafe_sysctls else "25%"
    rolling: Manifest = {"maxUnavailable": 0, "maxSurge": surge}
    if plan.takes_node_ports:
        rolling = dict(_ONE_POD_PER_NODE)
    part: Manifest = {"strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}
    # An autoscaler owns replicas: an apply with the field would take the ownership back.
    if deployment.autoscaling:
        return part
    return {"replicas": min(deployment.replicas, 1) if plan.is_trial else deployment.replicas, **part}


def _daemon_set_part() -> Manifest:
    return {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": dict(_ONE_POD_PER_NODE)}}
