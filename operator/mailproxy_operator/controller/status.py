# SPDX-License-Identifier: Apache-2.0
"""Computes the status of a MailProxy from the plan and the observed state, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from mailproxy_config.model import ProxySsl
from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller import forbidden_sysctls
from mailproxy_operator.controller.conditions import Facts, conditions, count_synced, evaluate_conditions
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.controller.routes_ready import CONDITION as ROUTES
from mailproxy_operator.controller.routes_ready import RouteFiles
from mailproxy_operator.controller.upstream_tls import CONDITION as UPSTREAM_TLS
from mailproxy_operator.crd.reference_paths import reference_paths
from mailproxy_operator.errors import ConditionCause, OperatorError
from mailproxy_operator.members.groups import GroupState
from mailproxy_operator.policies.resolve import Resolution
from mailproxy_operator.reasons import EventReason, Reason
from mailproxy_operator.render import Plan
from mailproxy_operator.render.plan import SIDECAR

_ROLLOUT_REASONS = frozenset({Reason.PODS_NOT_READY, Reason.NOT_YET_MOUNTED, Reason.CONFIG_PROPAGATING})
"""Reasons of a resource that is not ready during a normal rollout; other reasons produce a warning event."""
_WAITING_FOR_EVENT = frozenset({Reason.NO_NODES, Reason.SIDECAR_MISSING})
"""Reasons of a resource that is not ready until a watch delivers an event."""
_MAX_EVENTS = 20
"""The maximum number of unused certificates that are reported."""
_KEPT_FIELDS = ("configHash", "listeners", "sysctls")


def facts(
    body: Mapping[str, Any],
    plan: Plan | None,
    observed: Observed,
    *,
    refused: ConditionCause | None,
    failed: OperatorError | None,
    warnings: tuple[str, ...] = (),
    lacking: tuple[str, ...] = (),
) -> Facts:
    """Collect the input of the conditions.

    Args:
        body: The resource as read.
        plan: The plan; ``None`` when the resource is not valid.
        observed: The observed state.
        refused: Why the resource cannot be applied.
        failed: The error that will be retried.
        warnings: The warnings of the API server about accepted objects.
        lacking: Kinds that are rendered and that the cluster does not have.
    """
    spec = body.get("spec") or {}
    previous = body.get("status") or {}
    is_valid = plan is not None and refused is None
    return Facts(
        generation=int(body["metadata"].get("generation", 1)),
        mode=plan.resource.mode if plan else str(spec.get("mode", "Deployment")),
        observed=observed,
        config_hash=plan.config_hash if plan and is_valid else str(previous.get("configHash", "")),
        paused=bool(spec.get("paused")),
        has_references=bool(plan and plan.mounts_references),
        reference_paths=reference_paths(spec),
        refused=refused,
        warnings=warnings,
        notices=(
            *(plan.notices if plan else ()),
            *(f"there is no {kind} until its CRD is installed in the cluster" for kind in lacking),
        ),
        retrying=ConditionCause(Reason.RETRYING, str(failed)) if failed else None,
        sysctl_refused=forbidden_sysctls.finding(plan.platform.refused_sysctls) if plan else None,
        tls_servers=_tls_servers(plan, observed, previous),
        route_files=_route_files(plan, previous),
    )


def with_policies(
    inputs: Facts, policies: Resolution | None, now: datetime, groups: tuple[GroupState, ...] = ()
) -> Facts:
    """Add what BackendTLSPolicies and Services mean for the resource, and the time."""
    inputs = replace(inputs, now=now, groups=groups)
    if policies is None:
        return inputs
    return replace(inputs, notices=(*inputs.notices, *policies.notices), unresolved=policies.cause)


def _tls_servers(plan: Plan | None, observed: Observed, previous: Mapping[str, Any]) -> frozenset[str]:
    """Return the servers with ``proxySsl``; of an invalid resource, those that the pods still report."""
    if plan is not None:
        return frozenset(one.name for one in plan.config.servers if one.proxy_ssl is not ProxySsl.DISABLED)
    if all(one.get("type") != UPSTREAM_TLS for one in previous.get("conditions") or []):
        return frozenset()
    running = (pod.running for pod in observed.pods if pod.running is not None)
    return frozenset(state.server for config in running for state in config.upstreams)


def _route_files(plan: Plan | None, previous: Mapping[str, Any]) -> RouteFiles | None:
    """Return the tables of routes and lists of users; ``None`` for an invalid resource that had some."""
    if plan is not None:
        servers = plan.config.servers
        tables = (route.table for server in servers for route in server.route)
        users = (server.used_user_file for server in servers)
        return RouteFiles(
            frozenset(path for path in tables if path is not None),
            frozenset(path for path in users if path is not None),
        )
    had = any(one.get("type") == ROUTES for one in previous.get("conditions") or [])
    return None if had else RouteFiles()


def status(inputs: Facts, plan: Plan | None, *, previous: Mapping[str, Any], now: str) -> Manifest:
    """Return the complete status.

    Args:
        inputs: The input of the conditions.
        plan: The plan; without one, the fields of the last valid plan are kept in the status.
        previous: The previous status.
        now: The time, as RFC 3339 text.
    """
    replicas, ready, wanted = _numbers(inputs)
    written: Manifest = {
        "observedGeneration": inputs.generation,
        "replicas": replicas,
        "readyReplicas": ready,
        "ready": f"{ready}/{wanted}",
        "podsSynced": count_synced(inputs.observed.pods, inputs.config_hash),
    }
    if plan is not None and inputs.refused is None:
        written |= {
            "configHash": inputs.config_hash,
            "selector": names.label_selector(plan.pod_labels),
            "listeners": _listeners(plan),
            "sysctls": _sysctls(plan),
        }
    else:
        written |= {name: previous[name] for name in (*_KEPT_FIELDS, "selector") if name in previous}
    if inputs.observed.addresses:
        written["addresses"] = [{"type": kind, "value": value} for kind, value in inputs.observed.addresses]
    if inputs.groups:
        written["upstreams"] = [
            {"name": one.name, "ready": one.ready, "total": one.total} for one in inputs.groups
        ]
    before = previous.get("conditions") or []
    written["conditions"] = conditions(
        evaluate_conditions(inputs), generation=inputs.generation, previous=before, now=now
    )
    return written


def _numbers(inputs: Facts) -> tuple[int, int, int]:
    """Return the numbers of pods, ready pods and desired pods."""
    if inputs.mode == SIDECAR:
        staying = [pod for pod in inputs.observed.pods if not pod.is_terminating]
        return (
            len(staying),
            sum(pod.is_ready for pod in staying),
            len(staying) + len(inputs.observed.without_sidecar),
        )
    workload = inputs.observed.workload
    return (workload.replicas, workload.ready, workload.desired) if workload else (0, 0, 0)


def _listeners(plan: Plan) -> list[Manifest]:
    found: list[Manifest] = []
    for listener in plan.listeners:
        entry: Manifest = {
            "server": listener.server,
            "protocol": listener.protocol,
            "address": listener.listen.address,
            "tls": listener.listen.ssl,
        }
        if listener.port is not None:
            entry |= {
                "port": listener.port,
                "containerPort": listener.container_port,
                "servicePort": listener.port,
            }
        if listener.host_port is not None:
            entry["hostPort"] = listener.host_port
        found.append(entry)
    return found


def _sysctls(plan: Plan) -> list[Manifest]:
    return [
        {
            "name": one.name,
            **({} if one.value is None else {"value": one.value}),
            "safe": one.safe,
            "applied": one.applied,
            "reason": str(one.reason),
            **({"message": one.message} if one.message else {}),
        }
        for one in plan.sysctls
    ]


def is_in_progress(written: Mapping[str, Any]) -> bool:
    """Return whether the state is still changing, so that a requeue is needed soon."""
    found = {one["type"]: one for one in written.get("conditions", [])}
    stalled = found.get("Stalled", {}).get("status") == "True"
    paused = found.get("Reconciling", {}).get("reason") == Reason.PAUSED
    ready = found.get("Ready", {})
    is_settled = ready.get("status") == "True" or (
        ready.get("reason") in _WAITING_FOR_EVENT and not _is_reconciling(written)
    )
    return not stalled and not paused and not is_settled


def transition(
    body: Mapping[str, Any], previous: Mapping[str, Any], written: Mapping[str, Any], *, now: datetime
) -> Manifest | None:
    """Return an event if ``Ready`` has changed, ``None`` otherwise."""
    before, after = _ready(previous), _ready(written)
    if (before.get("status"), before.get("reason")) == (after.get("status"), after.get("reason")):
        return None
    is_rollout = after.get("reason") in _ROLLOUT_REASONS and _is_reconciling(written)
    is_normal = after.get("status") == "True" or is_rollout
    reason, note = str(after.get("reason", "")), str(after.get("message", ""))
    return _event(body, ("Normal" if is_normal else "Warning", "Reconcile"), reason, note, now)


def unused_certificates(observed: Observed) -> tuple[str, ...]:
    """Return the certificates that pods of the newest template do not use, each once."""
    reports = (pod.running for pod in observed.pods if pod.is_of_template and not pod.is_terminating)
    found = dict.fromkeys(problem for running in reports if running for problem in running.certificates)
    return tuple(found)[:_MAX_EVENTS]


def certificate_event(body: Mapping[str, Any], problem: str, number: int, *, now: datetime) -> Manifest:
    """Return the event about a certificate that pods do not use."""
    at = now + timedelta(microseconds=1 + number)
    return _event(body, ("Warning", "LoadCertificate"), EventReason.CERTIFICATE_NOT_USED, problem, at)


def _event(
    body: Mapping[str, Any], kind_and_action: tuple[str, str], reason: str, note: str, now: datetime
) -> Manifest:
    metadata = body["metadata"]
    kind, action = kind_and_action
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{round(now.timestamp() * 1e6):x}",
            "namespace": metadata.get("namespace", "default"),
        },
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": kind,
        "reason": str(reason),
        "note": note[:1000],
        "action": action,
        "reportingController": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata.get("namespace", "default"),
            "uid": metadata.get("uid", ""),
        },
    }


def _ready(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((one for one in status.get("conditions") or [] if one["type"] == "Ready"), {})


def _is_reconciling(status: Mapping[str, Any]) -> bool:
    found = (one for one in status.get("conditions") or [] if one["type"] == "Reconciling")
    return any(one["status"] == "True" for one in found)
