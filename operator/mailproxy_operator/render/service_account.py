# SPDX-License-Identifier: Apache-2.0
"""The ServiceAccount of the pods: they never talk to the API server, so it carries no rights and no token."""

from __future__ import annotations

from mailproxy_operator.api.kinds import SERVICE_ACCOUNT, Manifest
from mailproxy_operator.render.plan import Plan


def service_account(plan: Plan) -> Manifest | None:
    """Render the ServiceAccount, unless the resource names one or has no pods."""
    if not plan.has_workload or plan.resource.deployment.pod.service_account_name:
        return None
    return {
        "apiVersion": SERVICE_ACCOUNT.api_version,
        "kind": SERVICE_ACCOUNT.name,
        "metadata": plan.resource.metadata(plan.resource.name),
        "automountServiceAccountToken": False,
    }
