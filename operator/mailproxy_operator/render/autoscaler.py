# SPDX-License-Identifier: Apache-2.0
"""The HorizontalPodAutoscaler.

Sessions are long and cannot move to another pod, so the default scale-down is slow.
"""

from __future__ import annotations

from mailproxy_config.kubernetes import Autoscaling
from mailproxy_operator.api.kinds import AUTOSCALER, DEPLOYMENT, Manifest
from mailproxy_operator.render.plan import Plan

DEFAULT_CPU_PERCENT = 80
CONNECTIONS_METRIC = "mailproxy_connections_active"
_LEAVE_SLOWLY: Manifest = {
    "scaleDown": {
        "stabilizationWindowSeconds": 600,
        "policies": [{"type": "Percent", "value": 10, "periodSeconds": 120}],
    }
}


def autoscaler(plan: Plan) -> Manifest | None:
    """Render the autoscaler, if the resource enables it."""
    configured = plan.resource.deployment.autoscaling
    if configured is None or plan.resource.mode != "Deployment":
        return None
    target = {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, "name": plan.resource.name}
    return {
        "apiVersion": AUTOSCALER.api_version,
        "kind": AUTOSCALER.name,
        "metadata": plan.resource.metadata(plan.resource.name),
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": _min_replicas(configured, plan.resource.deployment.replicas),
            "maxReplicas": configured.max_replicas,
            "metrics": _metrics(
                configured.target_cpu_utilization_percentage, configured.target_connections_per_pod
            ),
            "behavior": {**_LEAVE_SLOWLY, **configured.behavior},
        },
    }


def _min_replicas(configured: Autoscaling, replicas: int) -> int:
    """Return ``minReplicas``: by default not fewer pods than without an autoscaler."""
    if configured.min_replicas is not None:
        return configured.min_replicas
    return max(1, min(replicas, configured.max_replicas))


def _metrics(cpu_percent: int | None, connections: int | None) -> list[Manifest]:
    if cpu_percent is None and connections is None:
        cpu_percent = DEFAULT_CPU_PERCENT
    metrics: list[Manifest] = []
    if cpu_percent is not None:
        target = {"type": "Utilization", "averageUtilization": cpu_percent}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": target}})
    if connections is not None:
        pods = {
            "metric": {"name": CONNECTIONS_METRIC},
            "target": {"type": "AverageValue", "averageValue": str(connections)},
        }
        metrics.append({"type": "Pods", "pods": pods})
    return metrics
