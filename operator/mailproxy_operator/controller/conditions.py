# SPDX-License-Identifier: Apache-2.0
"""Evaluates conditions from the observed state: ordered checks, the first cause found decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mailproxy_operator.api import names
from mailproxy_operator.controller.groups_ready import CONDITION as GROUPS_READY
from mailproxy_operator.controller.groups_ready import groups_ready
from mailproxy_operator.controller.observed import Observed, Pod
from mailproxy_operator.controller.routes_ready import CONDITION as ROUTES
from mailproxy_operator.controller.routes_ready import RouteFiles, routes_ready
from mailproxy_operator.controller.upstream_tls import CONDITION as UPSTREAM_TLS
from mailproxy_operator.controller.upstream_tls import upstream_tls
from mailproxy_operator.errors import ConditionCause, ReportedCause
from mailproxy_operator.members.groups import GroupState
from mailproxy_operator.reasons import Reason

TERMINAL_REASONS = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.LISTENER_CONFLICT,
        Reason.NAME_CONFLICT,
        Reason.INVALID_POD_FIELDS,
        Reason.FORBIDDEN,
    }
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
        unresolved: Why a BackendTLSPolicy cannot be used.
        tls_servers: The servers that use TLS with mail servers.
        route_files: The tables of routes and lists of users; ``None`` for an invalid resource that had some.
        groups: What came of the groups of upstreams that are Services.
        now: The time, for certificates that expire.
        has_references: Whether Secrets or ConfigMaps are mounted besides the configuration.
        reference_paths: The fields that refer to a Secret or ConfigMap, by its kind and name.
    """

    generation: int
    mode: str
    observed: Observed
    config_hash: str = ""
    paused: bool = False
    has_references: bool = False
    reference_paths: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    refused: ConditionCause | None = None
    retrying: ConditionCause | None = None
    sysctl_refused: ConditionCause | None = None
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    unresolved: ConditionCause | None = None
    tls_servers: frozenset[str] = frozenset()
    route_files: RouteFiles | None = field(default_factory=RouteFiles)
    groups: tuple[GroupState, ...] = ()
    now: datetime | None = None

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
    reason: Reason
    message: str

    @property
    def holds(self) -> bool:
        """Whether the condition is True."""
        return self.status == _TRUE


def evaluate_conditions(facts: Facts) -> dict[str, ConditionState]:
    """Evaluate all conditions; those about mail servers only for a resource that they concern."""
    found = {
        "Accepted": _accepted(facts),
        "ResolvedRefs": _resolved_refs(facts),
        "Available": _available(facts),
        "ConfigSynced": _config_synced(facts),
        "Stalled": _stalled(facts),
    }
    found["Reconciling"] = _reconciling(facts, found)
    found["Ready"] = _ready(facts, found)
    tls = upstream_tls(facts.observed, facts.tls_servers, facts.now)
    if tls is not None:
        found[UPSTREAM_TLS] = ConditionState(*tls)
    routes = routes_ready(facts.observed, facts.route_files, facts.reference_paths)
    if routes is not None:
        found[ROUTES] = ConditionState(*routes)
    ready = groups_ready(facts.groups)
    if ready is not None:
        found[GROUPS_READY] = ConditionState(*ready)
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
            "reason": str(one.reason),
            "message": one.message[:32_000],
        }
        for name, one in ((name, found[name]) for name in _ORDER if name in found)
    ]


_ORDER = (
    "Ready",
    "Accepted",
    "ResolvedRefs",
    "Available",
    "ConfigSynced",
    UPSTREAM_TLS,
    ROUTES,
    GROUPS_READY,
    "Reconciling",
    "Stalled",
)


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
    return ConditionState(_TRUE, Reason.ACCEPTED, "; ".join(parts))


def _resolved_refs(facts: Facts) -> ConditionState:
    if facts.unresolved:
        return ConditionState(_FALSE, facts.unresolved.reason, facts.unresolved.message)
    current = [pod for pod in facts.observed.pods if pod.is_of_template and not pod.is_terminating]
    for pod in current:
        message = facts.observed.mount_failures.get(pod.name)
        if message and not pod.has_started:
            return _mount_failure(facts, pod.name, message)
    broken = next(
        (pod for pod in current if pod.running and _names_certificate(pod.running.last_error)), None
    )
    if broken and broken.running:
        return ConditionState(
            _FALSE,
            Reason.INVALID_CERTIFICATE,
            f"pod {broken.name}: {broken.running.last_error}; renew this Secret or ConfigMap, "
            "which pods load without a restart, or refer to another one",
        )
    return _unusable_certificate(current) or _mounted(facts, current)


def _mounted(facts: Facts, current: Sequence[Pod]) -> ConditionState:
    if not facts.needs_pods:
        return ConditionState(_TRUE, Reason.RESOLVED_REFS, "no pods are expected, so nothing is mounted")
    if facts.has_references and not any(pod.has_started for pod in current):
        return ConditionState(
            _UNKNOWN, Reason.NOT_YET_MOUNTED, "no pod of the current template has started yet"
        )
    return ConditionState(_TRUE, Reason.RESOLVED_REFS, "all referenced Secrets and ConfigMaps are mounted")


def _unusable_certificate(pods: Iterable[Pod]) -> ConditionState | None:
    """Name the certificates that clients choose by name and that a pod cannot load."""
    for pod in pods:
        found = [one for one in (pod.running.certificates if pod.running else ()) if _LOAD_FAILURE in one]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return ConditionState(
                _FALSE,
                Reason.INVALID_CERTIFICATE,
                f"pod {pod.name}: {found[0]}{more}; renew this Secret, which pods load without a restart; "
                "all other certificates are used",
            )
    return None


_LOAD_FAILURE = "cannot load certificate"
_MOUNT_REASONS = (
    (re.compile(r'secrets? "([^"]*)" not found', re.IGNORECASE), Reason.SECRET_NOT_FOUND),
    (re.compile(r"non-existent secret key:? ?()", re.IGNORECASE), Reason.SECRET_KEY_NOT_FOUND),
    (re.compile(r'configmaps? "([^"]*)" not found', re.IGNORECASE), Reason.CONFIG_MAP_NOT_FOUND),
    (re.compile(r"non-existent config ?(?:map )?key:? ?()", re.IGNORECASE), Reason.CONFIG_MAP_KEY_NOT_FOUND),
)
"""What the kubelet reports about a volume, with the name of a missing object."""
_MOUNT_ADVICE = {
    Reason.SECRET_NOT_FOUND: "create the Secret in the MailProxy's namespace, or correct the field",
    Reason.SECRET_KEY_NOT_FOUND: "add the key to the Secret, or correct the field",
    Reason.CONFIG_MAP_NOT_FOUND: "create the ConfigMap in the MailProxy's namespace, or correct the field",
    Reason.CONFIG_MAP_KEY_NOT_FOUND: "add the key to the ConfigMap, or correct the field",
    Reason.MOUNT_FAILED: "kubectl describe pod shows the events of the volume",
}


def _mount_failure(facts: Facts, pod: str, message: str) -> ConditionState:
    reason, name = next(
        ((reason, found[1]) for pattern, reason in _MOUNT_REASONS if (found := pattern.search(message))),
        (Reason.MOUNT_FAILED, ""),
    )
    kind = "Secret" if reason is Reason.SECRET_NOT_FOUND else "ConfigMap"
    paths = facts.reference_paths.get((kind, name), ())
    referring = f"; {name} is the value of {', '.join(paths)}" if paths else ""
    return ConditionState(_FALSE, reason, f"pod {pod}: {message}{referring}; {_MOUNT_ADVICE[reason]}")


def _names_certificate(error: str) -> bool:
    return bool(re.search(r"certificate|private key", error, re.IGNORECASE))


def _available(facts: Facts) -> ConditionState:
    workload = facts.observed.workload
    if facts.mode == "Sidecar":
        return _sidecar_available(facts)
    if workload is None:
        return ConditionState(_FALSE, Reason.PODS_NOT_READY, f"the {facts.mode} does not exist yet")
    if workload.desired == 0 and workload.is_per_node:
        return ConditionState(_FALSE, Reason.NO_NODES, _NO_NODES)
    if workload.desired == 0:
        return ConditionState(_TRUE, Reason.SCALED_TO_ZERO, _NO_PODS)
    numbers = f"{workload.available} of {workload.desired} pods are available"
    if workload.is_available:
        return ConditionState(_TRUE, Reason.MINIMUM_REPLICAS_AVAILABLE, numbers)
    cause = _cause_of_unavailability(facts) or ConditionCause(Reason.PODS_NOT_READY, numbers)
    return ConditionState(_FALSE, cause.reason, cause.message)


_NO_PODS = "no pods are expected: spec.replicas is 0"
_NO_NODES = (
    "no node matches spec.pod.nodeSelector and spec.pod.affinity, or all nodes have taints that "
    "spec.pod.tolerations does not tolerate; change these fields, or add a node"
)


def _sidecar_available(facts: Facts) -> ConditionState:
    """Evaluate a sidecar: its pods belong to other workloads, and injection happens only at creation."""
    without = facts.observed.without_sidecar
    staying = [pod for pod in facts.observed.pods if not pod.is_terminating]
    numbers = _sidecar_numbers(staying)
    if without:
        return ConditionState(_FALSE, Reason.SIDECAR_MISSING, f"{_missing_sidecars(without)}; {numbers}")
    if not staying:
        return ConditionState(
            _TRUE, Reason.SIDECAR_MODE, f"no pod requests the sidecar yet (label {names.INJECT})"
        )
    if not any(pod.is_ready for pod in staying):
        cause = _start_failure(staying) or ConditionCause(Reason.PODS_NOT_READY, numbers)
        return ConditionState(_FALSE, cause.reason, cause.message)
    return ConditionState(_TRUE, Reason.SIDECAR_MODE, numbers)


def _sidecar_numbers(staying: Sequence[Pod]) -> str:
    parts = [f"pods with the sidecar: {len(staying)}, ready: {sum(pod.is_ready for pod in staying)}"]
    older = sum(not pod.is_of_template for pod in staying)
    if older:
        parts.append(
            f"created before the last change of the MailProxy, to be deleted and created again: {older}"
        )
    return "; ".join(parts)


def _missing_sidecars(without: Sequence[str]) -> str:
    more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
    named = ", ".join(without[:_NAMED]) + more
    count = len(without)
    requesting = (
        "1 pod requests the sidecar and runs" if count == 1 else f"{count} pods request the sidecar and run"
    )
    advice = "it is injected only when a pod is created: read the events, then delete the pods"
    return f"{requesting} without it: {named}; {advice}"


def _cause_of_unavailability(facts: Facts) -> ConditionCause | None:
    failures = facts.observed.workload.failures if facts.observed.workload else {}
    if "ReplicaFailure" in failures:
        advice = "change the quota or the policy of the namespace, or the field of spec"
        return ConditionCause(Reason.PODS_REFUSED, f"{_sentence(failures['ReplicaFailure'])}; {advice}")
    cause = _start_failure([pod for pod in facts.observed.pods if not pod.is_terminating])
    if "Progressing" in failures and (cause is None or cause.reason is Reason.PODS_NOT_READY):
        return _deadline_exceeded(facts)
    return cause


def _sentence(reported: ReportedCause) -> str:
    return reported.message.rstrip(" .")


def _start_failure(pods: Sequence[Pod]) -> ConditionCause | None:
    """Return why pods do not start; causes that need a user's action come first."""
    causes = [cause for cause in map(_pod_start_failure, pods) if cause is not None]
    return min(causes, key=lambda one: one.reason is Reason.PODS_NOT_READY, default=None)


def _pod_start_failure(pod: Pod) -> ConditionCause | None:
    if pod.unscheduled:
        advice = (
            "change spec.resources.requests, spec.pod.nodeSelector, spec.pod.affinity or "
            "spec.pod.tolerations, or add a node"
        )
        return ConditionCause(Reason.UNSCHEDULABLE, f"pod {pod.name}: {_sentence(pod.unscheduled)}; {advice}")
    if pod.waiting is None:
        return None
    if pod.waiting.reason in _IMAGE_PULL_REASONS:
        advice = "correct spec.image, or the Secret of the registry in spec.imagePullSecrets"
        return ConditionCause(
            Reason.IMAGE_PULL_FAILED,
            f"pod {pod.name}: {pod.waiting.message or pod.waiting.reason}; {advice}",
        )
    waits = f"pod {pod.name}: {pod.waiting.reason} {pod.waiting.message}".strip()
    ended = f"; the proxy ended: {pod.exit_message}" if pod.exit_message else ""
    return ConditionCause(Reason.PODS_NOT_READY, f"{waits}{ended}")


def _config_synced(facts: Facts) -> ConditionState:
    if not facts.needs_pods:
        return ConditionState(_TRUE, Reason.ALL_PODS_SYNCED, "no pods are expected")
    ready = [pod for pod in facts.observed.pods if pod.is_ready and not pod.is_terminating]
    rejected = _rejected_config(ready)
    if rejected:
        return ConditionState(_FALSE, rejected.reason, rejected.message)
    silent = [pod.name for pod in ready if pod.running is None]
    if silent:
        return ConditionState(
            _UNKNOWN,
            Reason.PODS_UNREACHABLE,
            f"no response from the admin endpoint (port {names.ADMIN_PORT}) of {', '.join(silent)}; "
            "check the NetworkPolicies between the operator and these pods",
        )
    count = count_synced(ready, facts.config_hash)
    numbers = f"{count} of {len(ready)} ready pods run configuration {facts.config_hash[:12]}"
    if ready and count == len(ready):
        return ConditionState(_TRUE, Reason.ALL_PODS_SYNCED, numbers)
    return ConditionState(_FALSE, Reason.CONFIG_PROPAGATING, numbers)


def _rejected_config(pods: Sequence[Pod]) -> ConditionCause | None:
    for pod in pods:
        if pod.running and pod.running.last_error:
            return ConditionCause(
                Reason.CONFIG_REJECTED,
                f"pod {pod.name} keeps its previous configuration: {pod.running.last_error}; "
                "correct this, and the pod loads the new configuration without a restart",
            )
    return None


def _stalled(facts: Facts) -> ConditionState:
    for check in _STALLS:
        finding = check(facts)
        if finding:
            return ConditionState(_TRUE, finding.reason, finding.message)
    return ConditionState(_FALSE, Reason.NOT_STALLED, "no change by a user is needed")


def _deadline_exceeded(facts: Facts) -> ConditionCause | None:
    workload = facts.observed.workload
    finding = workload.failures.get("Progressing") if workload else None
    if finding is None:
        return None
    advice = "pods do not become ready: kubectl get pods and kubectl describe pod show why"
    return ConditionCause(Reason.PROGRESS_DEADLINE_EXCEEDED, f"{_sentence(finding)}; {advice}")


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
        return ConditionState(_FALSE, Reason.PAUSED, _PAUSED)
    if found["Stalled"].holds:
        return ConditionState(
            _FALSE,
            Reason.SETTLED,
            "nothing is in progress; the message of Stalled names the change that is needed",
        )
    if facts.retrying:
        return ConditionState(_TRUE, Reason.RETRYING, facts.retrying.message)
    workload = facts.observed.workload
    if facts.mode != "Sidecar" and (workload is None or not workload.is_rolled_out):
        return ConditionState(_TRUE, Reason.ROLLING_OUT, _progress(facts))
    if found["ConfigSynced"].reason is Reason.CONFIG_PROPAGATING:
        return ConditionState(_TRUE, Reason.CONFIG_PROPAGATING, found["ConfigSynced"].message)
    return ConditionState(_FALSE, Reason.SETTLED, "all objects and pods match the resource")


_PAUSED = (
    "spec.paused is true: the operator writes only the status; "
    "set it to false to apply changes of the resource"
)


def _progress(facts: Facts) -> str:
    workload = facts.observed.workload
    if workload is None:
        return f"the {facts.mode} does not exist yet"
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
        return ConditionState(_TRUE, Reason.READY, found["Available"].message)
    return ConditionState(_TRUE, Reason.READY, "clients are served with the newest configuration")
