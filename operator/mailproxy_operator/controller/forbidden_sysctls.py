# SPDX-License-Identifier: Apache-2.0
"""The circuit breaker for sysctls: a sysctl that nodes refuse is removed from the pod template.

A ReplicaSet replaces a pod that the kubelet refused for its sysctl immediately and
without a back-off, four pods a second.  So the first such pod is handled before any
other work, and while an unsafe sysctl is requested, a Deployment creates one pod at
a time.  Without the sysctl the template is the previous one, so running pods are not
replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.reasons import Reason
from mailproxy_operator.render import refused_sysctls
from mailproxy_operator.render.sysctls import PORT_START

REFUSAL = "SysctlForbidden"
"""The reason of a pod that the kubelet refused."""
MAX_DELETED = 50
_QUOTED = re.compile(r'"([^"]+)"')


def remembered(workloads: Iterable[Manifest], generation: int) -> frozenset[str]:
    """Read the sysctls that nodes have refused for this generation of the resource."""
    return frozenset[str]().union(*(refused_sysctls.read(workload, generation) for workload in workloads))


def refused_names(observed: Observed) -> frozenset[str]:
    """Return the sysctls that pods of the newest template were refused for."""
    return frozenset(
        name
        for pod in observed.pods
        if pod.failed and pod.failed.reason == REFUSAL and pod.is_of_template
        for name in _QUOTED.findall(pod.failed.message)
    )


def refused_by(pod: Mapping[str, Any]) -> frozenset[str]:
    """Return the sysctls that a pod was refused for; empty when it was not refused."""
    status = pod.get("status") or {}
    refused = (status.get("phase"), status.get("reason")) == ("Failed", REFUSAL)
    return frozenset(_QUOTED.findall(str(status.get("message")))) if refused else frozenset()


def refused_pods(pods: Sequence[Manifest]) -> list[Manifest]:
    """Return the refused pods to delete: Kubernetes does not delete them."""
    refused = [pod for pod in pods if (pod.get("status") or {}).get("reason") == REFUSAL]
    return [pod for pod in refused if "deletionTimestamp" not in pod["metadata"]][:MAX_DELETED]


def finding(refused: frozenset[str]) -> ConditionCause | None:
    """Return the cause: the refused sysctls and how to fix it."""
    if not refused:
        return None
    listed = ", ".join(sorted(refused))
    advice = (
        "add it to the kubelet's allowedUnsafeSysctls on the nodes that spec.pod.nodeSelector selects, "
        "or set spec.sysctls.unsafe: Forbid"
    )
    if PORT_START in refused:
        # Containers that cannot listen are restarted with the kubelet's back-off; the pods are not replaced.
        advice = "set spec.portStrategy: HighPort, which needs no sysctl"
    return ConditionCause(
        Reason.SYSCTL_FORBIDDEN, f"nodes refuse the sysctl {listed}; pods run without it; {advice}"
    )
