# SPDX-License-Identifier: Apache-2.0
"""The PodDisruptionBudget: how many pods may be unavailable while nodes are drained."""

from __future__ import annotations

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import DISRUPTION_BUDGET, Manifest
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.render.plan import Plan

_EVICTION_POLICY_SINCE = KubeVersion(1, 27)


def disruption_budget(plan: Plan) -> Manifest | None:
    """Render the budget, if the resource has a workload whose pods are not bound to their nodes."""
    asked = plan.resource.deployment.pod_disruption_budget
    if plan.resource.mode != "Deployment":
        return None
    bound = (
        {"minAvailable": asked.min_available}
        if asked.min_available is not None
        else {"maxUnavailable": 1 if asked.max_unavailable is None else asked.max_unavailable}
    )
    spec: Manifest = {**bound, "selector": {"matchLabels": names.selector_labels(plan.resource.name)}}
    if plan.platform.kube_version >= _EVICTION_POLICY_SINCE:
        # A pod that is not ready must not block the drain of a node.
        spec["unhealthyPodEvictionPolicy"] = "AlwaysAllow"
    return {
        "apiVersion": DISRUPTION_BUDGET.api_version,
        "kind": DISRUPTION_BUDGET.name,
        "metadata": plan.resource.metadata(plan.resource.name),
        "spec": spec,
    }
