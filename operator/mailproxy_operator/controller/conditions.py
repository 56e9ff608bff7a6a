# SPDX-License-Identifier: Apache-2.0
"""Evaluates conditions from the observed state: ordered checks, the first cause found decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.errors import ConditionCause

TERMINAL_REASONS = frozenset(
    {"InvalidSpec", "ListenerConflict", "NameConflict", "InvalidPodFields", "Forbidden"}
)
"""Reasons of ``Accepted=False`` that a retry does not resolve."""

_TRUE, _FALSE, _UNKNOWN = "True", "False", "Unknown"
_NAMED = 5
"""The maximum number of pod names in a message."""
_IMAGE_PULL_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The input of the conditions.

    Attributes:
        refused: Why the resource cannot be applied.
        retrying: The error that will be retried.
        sysctl_refused: The sysctls that nodes have refused.
        config_hash: The hash of the expected configuration of every pod.
        warnings: The warnings of the API server about accepted objects.
        notices: Notices about an accepted resource.
        has_references: Whether Secrets or ConfigMaps are mounted besides the configuration.
    """

    generation: int
    mode: str
    observed: Observed
    config_hash: str = ""
    paused: bool = False
    has_references: bool = False
    refused: ConditionCause | None = None
    retrying: ConditionCause | None = None
    sysctl_refused: ConditionCause | None = None
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def needs_pods(self) -> bool:
        """Whether pods are expected; for a sidecar, only injected pods are."""
        if self.mode == "Sidecar":
            return any(not pod.is_terminating for pod in self.observed.pods)
        workload = self.observed.workload
        return not (workload is not None and workload.desired == 0)


@dataclass(frozen=True, slots=True)
class ConditionState:
    """The status, reason and message of one condition."""

    status: str
    reason: str
    message: str

    @property
    def holds(self) -> bool:
        """Whether the condition is True."""
        return self.status == _TRUE


def evaluate_conditions(facts: Facts) -> dict[str, ConditionState]:
    """Evaluate all seven conditions."""
    found = {
        "Accepted": _accepted(facts),
        "ResolvedRefs": _resolved_refs(facts),
        "Available": _available(facts),
        "ConfigSynced": _config_synced(facts),
        "Stalled": _stalled(facts),
    }
    found["Reconciling"] = _reconciling(facts, found)
    found["Ready"] = _ready(facts, found)
    return found


def conditions(
    found: Mapping[str, ConditionState],
    *,
    generation: int,
    previous: Iterable[Mapping[str, object]],
    now: str,
) -> list[dict[str, object]]:
    """Return the states as Kubernetes conditions.

    Args:
        found: The states by condition type.
        generation: The observed generation.
        previous: The previous conditions; ``lastTransitionTime`` changes only with the status.
        now: The time, as RFC 3339 text.
    """
    before = {one.get("type"): one for one in previous}
    return [
        {
            "type": name,
            "status": one.status,
            "observedGeneration": generation,
            "lastTransitionTime": _since(before.get(name), one.status, now),
            "reason": one.reason,
            "message": one.message[:32_000],
        }
        for name, one in ((name, found[name]) for name in _ORDER)
    ]


_ORDER = ("Ready", "Accepted", "ResolvedRefs", "Available", "ConfigSynced", "Reconciling", "Stalled")


def _since(before: Mapping[str, object] | None, status: str, now: str) -> object:
    if before is not None and before.get("status") == status:
        return before.get("lastTransitionTime") or now
    return now


def count_synced(pods: Iterable[Pod], config_hash: str) -> int:
    """Count the pods that report running a configuration."""
    return sum(_runs(pod, config_hash) for pod in pods if not pod.is_terminating)


def _runs(pod: Pod, config_hash: str) -> bool:
    return pod.running is not None and pod.running.hash == config_hash and not pod.running.last_error


def _accepted(facts: Facts) -> ConditionState:
    if facts.refused:
        return ConditionState(_FALSE, facts.refused.reason, facts.refused.message)
    parts = ["the configuration is valid and every object was applied"]
    parts += [f"note: {notice}" for notice in facts.notices]
    parts += [f"warning of the API server: {warning}" for warning in facts.warnings]
    return ConditionState(_TRUE, "Accepted", "; ".join(parts))


def _resolved_refs(facts: Facts) -> ConditionState:
    current = [pod for pod in facts.observed.pods if pod.is_of_template and not pod.is_terminating]
    for pod in current:
        message = facts.observed.mount_failures.get(pod.name)
        if message and not pod.has_started:
            return ConditionState(_FALSE, _mount_reason(message), message)
    broken = next(
        (pod for pod in current if pod.running and _names_certificate(pod.running.last_error)), None
    )
    if broken and broken.running:
        return ConditionState(_FALSE, "InvalidCertificate", f"pod {broken.name}: {broken.running.last_error}")
    if not facts.needs_pods:
        return ConditionState(_TRUE, "ResolvedRefs", "there are no pods to mount Secrets and ConfigMaps")
    if facts.has_references and not any(pod.has_started for pod in current):
        return ConditionState(_UNKNOWN, "NotYetMounted", "no pod of the current template has started yet")
    return ConditionState(_TRUE, "ResolvedRefs", "every referenced Secret and ConfigMap was mounted")


_MOUNT_REASONS = (
    (re.compile(r'secrets? "[^"]*" not found', re.IGNORECASE), "SecretNotFound"),
    (re.compile(r"non-existent secret key", re.IGNORECASE), "SecretKeyNotFound"),
    (re.compile(r'configmaps? "[^"]*" not found', re.IGNORECASE), "ConfigMapNotFound"),
    (
        re.compile(r"non-existent config ?map key|non-existent config key", re.IGNORECASE),
        "ConfigMapKeyNotFound",
    ),
)


def _mount_reason(message: str) -> str:
    return next((reason for pattern, reason in _MOUNT_REASONS if pattern.search(message)), "MountFailed")


def _names_certificate(error: str) -> bool:
    return bool(re.search(r"certificate|private key", error, re.IGNORECASE))


def _available(facts: Facts) -> ConditionState:
    workload = facts.observed.workload
    if facts.mode == "Sidecar":
        return _sidecar_available(facts)
    if workload is None:
        return ConditionState(_FALSE, "PodsNotReady", "there is no workload yet")
    if workload.desired == 0 and workload.is_per_node:
        return ConditionState(_FALSE, "NoNodes", _NO_NODES)
    if workload.desired == 0:
        return ConditionState(_TRUE, "ScaledToZero", "no pods are desired")
    numbers = f"{workload.available} of {workload.desired} pods are available"
    if workload.is_available:
        return ConditionState(_TRUE, "MinimumReplicasAvailable", numbers)
    cause = _cause_of_unavailability(facts) or ConditionCause("PodsNotReady", numbers)
    return ConditionState(_FALSE, cause.reason, cause.message)


_NO_NODES = (
    "no node is eligible for a pod: none matches spec.pod.nodeSelector and spec.pod.affinity, "
    "or all have taints that spec.pod.tolerations does not tolerate"
)


def _sidecar_available(facts: Facts) -> ConditionState:
    """Evaluate a sidecar: its pods belong to other workloads, and injection happens only at creation."""
    without = facts.observed.without_sidecar
    staying = [pod for pod in facts.observed.pods if not pod.is_terminating]
    numbers = _sidecar_numbers(staying)
    if without:
        return ConditionState(_FALSE, "SidecarMissing", f"{_missing_sidecars(without)}; {numbers}")
    if not staying:
        return ConditionState(_TRUE, "SidecarMode", "no pod requests the sidecar yet")
    if not any(pod.is_ready for pod in staying):
        cause = _start_failure(staying) or ConditionCause("PodsNotReady", numbers)
        return ConditionState(_FALSE, cause.reason, cause.message)
    return ConditionState(_TRUE, "SidecarMode", numbers)


def _sidecar_numbers(staying: Sequence[Pod]) -> str:
    parts = [f"pods with the sidecar: {len(staying)}, ready: {sum(pod.is_ready for pod in staying)}"]
    older = sum(not pod.is_of_template for pod in staying)
    if older:
        parts.append(f"created before the last change of the resource, to be created again: {older}")
    return "; ".join(parts)


def _missing_sidecars(without: Sequence[str]) -> str:
    more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
    named = ", ".join(without[:_NAMED]) + more
    count = "1 pod requests" if len(without) == 1 else f"{len(without)} pods request"
    advice = (
        "the sidecar is injected only when a pod is created: see the events, "
        "then delete the pods, so that they are created again"
    )
    return f"{count} the sidecar without having it: {named}; {advice}"


def _cause_of_unavailability(facts: Facts) -> ConditionCause | None:
    failures = facts.observed.workload.failures if facts.observed.workload else {}
    if "ReplicaFailure" in failures:
        return ConditionCause("PodsRefused", failures["ReplicaFailure"].message)
    cause = _start_failure([pod for pod in facts.observed.pods if not pod.is_terminating])
    if "Progressing" in failures and (cause is None or cause.reason == "PodsNotReady"):
        return ConditionCause("ProgressDeadlineExceeded", failures["Progressing"].message)
    return cause


def _start_failure(pods: Sequence[Pod]) -> ConditionCause | None:
    """Return why pods do not start; causes that need a user's action come first."""
    causes = [cause for cause in map(_pod_start_failure, pods) if cause is not None]
    return min(causes, key=lambda one: one.reason == "PodsNotReady", default=None)


def _pod_start_failure(pod: Pod) -> ConditionCause | None:
    if pod.unscheduled:
        return ConditionCause("Unschedulable", f"pod {pod.name}: {pod.unscheduled.message}")
    if pod.waiting is None:
        return None
    if pod.waiting.reason in _IMAGE_PULL_REASONS:
        return ConditionCause(
            "ImagePullFailed", f"pod {pod.name}: {pod.waiting.message or pod.waiting.reason}"
        )
    return ConditionCause(
        "PodsNotReady", f"pod {pod.name}: {pod.waiting.reason} {pod.waiting.message}".strip()
    )


def _config_synced(facts: Facts) -> ConditionState:
    if not facts.needs_pods:
        return ConditionState(_TRUE, "AllPodsSynced", "no pods are desired")
    ready = [pod for pod in facts.observed.pods if pod.is_ready and not pod.is_terminating]
    rejected = _rejected_config(ready)
    if rejected:
        return ConditionState(_FALSE, rejected.reason, rejected.message)
    silent = [pod.name for pod in ready if pod.running is None]
    if silent:
        return ConditionState(
            _UNKNOWN, "PodsUnreachable", f"no response from the admin endpoint of {', '.join(silent)}"
        )
    count = count_synced(ready, facts.config_hash)
    numbers = f"{count} of {len(ready)} ready pods run configuration {facts.config_hash[:12]}"
    if ready and count == len(ready):
        return ConditionState(_TRUE, "AllPodsSynced", numbers)
    return ConditionState(_FALSE, "ConfigPropagating", numbers)


def _rejected_config(pods: Sequence[Pod]) -> ConditionCause | None:
    for pod in pods:
        if pod.running and pod.running.last_error:
            return ConditionCause(
                "ConfigRejected",
                f"pod {pod.name} keeps its previous configuration: {pod.running.last_error}",
            )
    return None


def _stalled(facts: Facts) -> ConditionState:
    for check in _STALLS:
        finding = check(facts)
        if finding:
            return ConditionState(_TRUE, finding.reason, finding.message)
    return ConditionState(_FALSE, "NotStalled", "no manual change is necessary")


def _deadline_exceeded(facts: Facts) -> ConditionCause | None:
    workload = facts.observed.workload
    finding = workload.failures.get("Progressing") if workload else None
    return ConditionCause("ProgressDeadlineExceeded", finding.message) if finding else None


_STALLS: tuple[Callable[[Facts], ConditionCause | None], ...] = (
    lambda facts: facts.refused,
    lambda facts: facts.sysctl_refused,
    lambda facts: _rejected_config(
        [pod for pod in facts.observed.pods if pod.is_ready and not pod.is_terminating]
    ),
    _deadline_exceeded,
)


def _reconciling(facts: Facts, found: Mapping[str, ConditionState]) -> ConditionState:
    if facts.paused:
        return ConditionState(_FALSE, "Paused", "spec.paused is true: only the status is written")
    if found["Stalled"].holds:
        return ConditionState(_FALSE, "Settled", "a user must change something; see Stalled")
    if facts.retrying:
        return ConditionState(_TRUE, "Retrying", facts.retrying.message)
    workload = facts.observed.workload
    if facts.mode != "Sidecar" and (workload is None or not workload.is_rolled_out):
        return ConditionState(_TRUE, "RollingOut", _progress(facts))
    if found["ConfigSynced"].reason == "ConfigPropagating":
        return ConditionState(_TRUE, "ConfigPropagating", found["ConfigSynced"].message)
    return ConditionState(_FALSE, "Settled", "the cluster has the desired state")


def _progress(facts: Facts) -> str:
    workload = facts.observed.workload
    if workload is None:
        return "the workload is being created"
    numbers = f"{workload.updated} of {workload.desired} pods have the newest template"
    newest = [pod for pod in facts.observed.pods if pod.is_of_template and not pod.is_terminating]
    cause = _start_failure(newest)
    return f"{numbers}; {cause.message}" if cause else numbers


def _ready(facts: Facts, found: Mapping[str, ConditionState]) -> ConditionState:
    stalled = found["Stalled"]
    for name in ("Accepted", "Stalled", "ResolvedRefs", "Available", "ConfigSynced"):
        one = found[name]
        if name == "Stalled" and stalled.holds:
            return ConditionState(_FALSE, stalled.reason, stalled.message)
        if name != "Stalled" and not one.holds:
            return ConditionState(one.status, one.reason, one.message)
    if not facts.needs_pods:
        return ConditionState(_TRUE, "Ready", found["Available"].message)
    return ConditionState(_TRUE, "Ready", "clients are served with the desired configuration")
