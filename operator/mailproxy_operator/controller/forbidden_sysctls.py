# SPDX-License-Identifier: Apache-2.0
"""The circuit breaker: what nodes refuse is left out instead of being asked for again and again.

A ReplicaSet replaces a pod that the kubelet refused for its sysctl at once and
without a pause, four a second.  So the first such pod is acted upon before anything
else is done, and while an unsafe sysctl is asked for, a Deployment makes one pod at
a time.  Leaving the sysctl out gives the previous template back, so pods that run
stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.render import refused_sysctls
from mailproxy_operator.render.sysctls import PORT_START

REFUSAL = "SysctlForbidden"
MAX_DELETED = 50
_QUOTED = re.compile(r'"([^"]+)"')


def remembered(workloads: Iterable[Manifest], generation: int) -> frozenset[str]:
    """Read what nodes have refused for this generation of the resource."""
    return frozenset[str]().union(*(refused_sysctls.read(workload, generation) for workload in workloads))


def refused_names(observed: Observed) -> frozenset[str]:
    """Name the sysctls that pods of the newest template were refused for."""
    return frozenset(
        name
        for pod in observed.pods
        if pod.failed and pod.failed.reason == REFUSAL and pod.is_of_template
        for name in _QUOTED.findall(pod.failed.message)
    )


def refused_by(pod: Mapping[str, Any]) -> frozenset[str]:
    """Name the sysctls that a pod was refused for; none where it was not."""
    status = pod.get("status") or {}
    refused = (status.get("phase"), status.get("reason")) == ("Failed", REFUSAL)
    return frozenset(_QUOTED.findall(str(status.get("message")))) if refused else frozenset()


def refused_pods(pods: Sequence[Manifest]) -> list[Manifest]:
    """Choose the pods to delete: they stay as they are for ever otherwise."""
    refused = [pod for pod in pods if (pod.get("status") or {}).get("reason") == REFUSAL]
    return [pod for pod in refused if "deletionTimestamp" not in pod["metadata"]][:MAX_DELETED]


def finding(refused: frozenset[str]) -> ConditionCause | None:
    """Say what was refused and what to do about it."""
    if not refused:
        return None
    listed = ", ".join(sorted(refused))
    advice = "add it to the kubelet's allowedUnsafeSysctls on nodes that the pods are bound to"
    if PORT_START in refused:
        # Pods that cannot listen are started again with the kubelet's pauses; nobody replaces them.
        advice = "use portStrategy: HighPort, which needs no sysctl"
    return ConditionCause(
        REFUSAL, f"nodes refuse the sysctl {listed}; it is left out, running pods stay; {advice}"
    )
