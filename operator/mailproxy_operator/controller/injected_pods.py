# SPDX-License-Identifier: Apache-2.0
"""Observes pods with the proxy as a sidecar: they belong to other workloads, so they are only counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Cluster, Key, RunningConfig
from mailproxy_operator.api.kinds import POD, Manifest
from mailproxy_operator.controller.observe import addresses, exit_message, running_configs, unscheduled
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.errors import ReportedCause
from mailproxy_operator.render import Plan
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.sidecar.inject import has_sidecar

_OVER = frozenset({"Succeeded", "Failed"})


async def observe_injected_pods(
    cluster: Cluster, key: Key, plan: Plan | None, service: Mapping[str, Any] | None
) -> tuple[Observed, list[Manifest]]:
    """Observe the pods that request a MailProxy as a sidecar.

    Args:
        cluster: The cluster port.
        key: The MailProxy.
        plan: The plan of the MailProxy; ``None`` when the resource is not valid.
        service: The Service in front of them, if there is one.

    Returns:
        The observed state, and the pods with the sidecar.
    """
    asking = await cluster.list_labelled(POD, key.namespace, names.injected_pod_labels(key.name))
    alive = [pod for pod in asking if (pod.get("status") or {}).get("phase") not in _OVER]
    pods = [pod for pod in alive if has_sidecar(pod)]
    wanted = sidecar(plan).template_hash if plan else ""
    running = await running_configs(cluster, pods)
    seen = tuple(_pod(pod, wanted, config) for pod, config in zip(pods, running, strict=True))
    stuck = any(not (pod.has_started or pod.is_terminating) for pod in seen)
    failures = await cluster.mount_failures(key.namespace) if stuck else {}
    observed = Observed(
        pods=seen,
        addresses=addresses(service) if service else (),
        mount_failures=failures,
        without_sidecar=tuple(sorted(pod["metadata"]["name"] for pod in alive if _lacks_sidecar(pod))),
    )
    return observed, pods


def _lacks_sidecar(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod requests the sidecar and runs without it; a pod in deletion does not count."""
    return not has_sidecar(pod) and "deletionTimestamp" not in pod["metadata"]


def _pod(pod: Mapping[str, Any], wanted: str, running: RunningConfig | None) -> Pod:
    metadata, status = pod["metadata"], pod.get("status") or {}
    container: Mapping[str, Any] = next(
        (one for one in status.get("initContainerStatuses") or [] if one.get("name") == names.CONTAINER), {}
    )
    state = container.get("state") or {}
    waiting = state.get("waiting")
    digest = (metadata.get("annotations") or {}).get(names.TEMPLATE_HASH, "")
    return Pod(
        name=metadata["name"],
        is_of_template=digest == wanted or not wanted,
        # The readiness of the proxy's container; that of the application is independent of it.
        is_ready=bool(container.get("ready")),
        is_terminating="deletionTimestamp" in metadata,
        has_started="running" in state or "terminated" in state or bool(container.get("restartCount")),
        waiting=ReportedCause(waiting.get("reason", ""), waiting.get("message", "")) if waiting else None,
        exit_message=exit_message(container),
        unscheduled=unscheduled(status),
        running=running,
    )
