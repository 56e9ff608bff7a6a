# SPDX-License-Identifier: Apache-2.0
"""The ServiceAccount of the pods, without permissions and token: pods send no requests to the API server."""

from __future__ import annotations

from mailproxy_operator.api.kinds import SERVICE_ACCOUNT, Manifest
from mailproxy_operator.render.plan import Plan


def service_account(plan: Plan) -> Manifest | None:
    """Render the ServiceAccount, unless the resource sets one or has no pods."""
    if not plan.has_workload or plan.resource.deployment.pod.service_account_name:
        return None
    return {
        "apiVersion": SERVICE_ACCOUNT.api_version,
        "kind": SERVICE_ACCOUNT.name,
        "metadata": plan.resource.metadata(plan.resource.name),
        "automountServiceAccountToken": False,
    }
