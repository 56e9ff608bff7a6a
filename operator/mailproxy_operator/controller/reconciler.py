# SPDX-License-Identifier: Apache-2.0
"""Reconciles a MailProxy: applies its objects and reports the result in its status.

A reconcile always compares the complete state and does not depend on the event that
enqueued it.  It is idempotent and can be repeated after an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from mailproxy_config.errors import ConfigError
from mailproxy_config.upstream_members import MEMBERS_KEY
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Cluster, Key, RunningConfig
from mailproxy_operator.api.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    MAIL_PROXY,
    POD,
    WORKLOADS,
    Kind,
    Manifest,
    kind_of,
)
from mailproxy_operator.controller import forbidden_sysctls, status
from mailproxy_operator.controller.children import AppliedCache, Children
from mailproxy_operator.controller.injected_pods import observe_injected_pods
from mailproxy_operator.controller.observe import belongs_to_workload, is_reachable, observe
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.controller.policy_status import PolicyStatus
from mailproxy_operator.controller.routes_ready import RouteEvents
from mailproxy_operator.controller.selected_secrets import RELIST_SECONDS, select_secrets
from mailproxy_operator.controller.upstream_events import UpstreamEvents
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import ConditionCause, OperatorError, TerminalError, TransientError
from mailproxy_operator.members.groups import ServiceStates, service_groups
from mailproxy_operator.members.member_lists import NO_MEMBERS, Members, members
from mailproxy_operator.policies.resolve import Resolution, resolve
from mailproxy_operator.reasons import Reason
from mailproxy_operator.render import Plan, planned, render
from mailproxy_operator.render.config_map import members_config_map
from mailproxy_operator.render.plan import SIDECAR
from mailproxy_operator.settings import Platform

ROLLOUT_REQUEUE_SECONDS = 5.0
"""Requeue delay while a rollout is in progress; an event requeues earlier."""
FORBIDDEN_SECONDS = 60.0
"""Requeue delay after ``Forbidden``: no watched object changes when a quota or RBAC is changed."""

UNRESOLVED_SECONDS = 60.0
"""Requeue delay while a policy cannot be used: ConfigMaps of others are not watched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a reconcile.

    Attributes:
        is_gone: The resource was deleted or is being deleted.
        refused: Why the resource cannot be applied.
        failed: The transient error after which the reconcile is retried.
        again_after: Seconds until the next requeue, if any; the delay grows with each one.
        changes_after: Seconds until time alone changes the result, if it does; this delay does not grow.
        status: The computed status; it is written only if it differs from the previous one.
        drifted: The kinds with drift: an apply changed the object although the rendering had not changed.
        pruned: The kinds of the objects that were deleted because they are no longer rendered.
        responses: The pods with a reachable admin endpoint and their responses to ``/config``.
    """

    is_gone: bool = False
    refused: ConditionCause | None = None
    failed: TransientError | None = None
    again_after: float | None = None
    changes_after: float | None = None
    status: Manifest = field(default_factory=dict)
    drifted: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()
    responses: tuple[tuple[Manifest, RunningConfig | None], ...] = ()


@dataclass(slots=True)
class _Run:
    """The state of one reconcile in progress."""

    key: Key
    body: Manifest
    resource: Resource | None = None
    policies: Resolution | None = None
    plan: Plan | None = None
    members: Members = NO_MEMBERS
    refused: ConditionCause | None = None
    failed: TransientError | None = None
    paused: bool = False
    drifted: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()


class Reconciler:
    """Reconciles resources, called by the work queue.

    Args:
        cluster: The cluster port.
        platform: The input of rendering besides the resource.
        services: The Services that groups of upstreams are; without them, their DNS names are used.
        now: Returns the time.
    """

    def __init__(
        self,
        cluster: Cluster,
        platform: Platform,
        services: ServiceStates | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._platform = platform
        self._services = services
        self._now = now
        self._applied = AppliedCache()
        self._unused: dict[Key, frozenset[str]] = {}
        self._pod_events = (UpstreamEvents(), RouteEvents())
        self._policy_status = PolicyStatus(cluster)

    def unchanged_since_apply(self, key: Key, kind: Kind, manifest: Manifest) -> bool:
        """Return whether an object has not changed since the operator's last apply."""
        return self._applied.unchanged_since_apply(key, (kind, manifest["metadata"]["name"]), manifest)

    async def reconcile(self, key: Key) -> Outcome:
        """Reconcile the objects and the status of one resource."""
        body = await self._cluster.get(MAIL_PROXY, key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self._applied.forget(key)
            self._unused.pop(key, None)
            for events in self._pod_events:
                events.forget(key)
            await self._policy_status.remove(key)
            if self._services is not None:
                await self._services.read(key, frozenset())
            return Outcome(is_gone=True)
        children = Children(self._cluster, self._applied, key, body["metadata"]["uid"])
        await children.read()
        run = await self._plan(key, body, children)
        await self._add_members(run, children)
        await self._try_with_one_pod(run, children)
        await self._apply(run, children)
        await self._hand_out_members(run, children)
        observed, pods = await self._observe(run, children)
        await self._handle_forbidden_sysctls(run, children, observed, pods)
        await self._prune_and_annotate(run, children, observed, pods)
        outcome = await self._update_status(run, observed)
        return replace(outcome, responses=_responses(observed, pods))

    async def _observe(self, run: _Run, children: Children) -> tuple[Observed, list[Manifest]]:
        if _mode(run) == SIDECAR:
            return await observe_injected_pods(self._cluster, run.key, run.plan, children.service())
        workload = children.workload(_mode(run))
        return await observe(self._cluster, run.key, workload, children.service())

    async def _plan(self, key: Key, body: Manifest, children: Children) -> _Run:
        """Read the resource and plan its objects, if it is valid."""
        run = _Run(key, body, paused=bool(body.get("spec", {}).get("paused")))
        try:
            run.policies = await resolve(self._cluster, Resource.read(body))
            run.resource = run.policies.resource
            refused = forbidden_sysctls.remembered(children.workloads(), run.resource.generation)
            selection = await select_secrets(self._cluster, run.resource)
            run.plan = planned(run.resource, replace(self._platform, refused_sysctls=refused), selection)
        except ConfigError as error:
            run.refused = _refusal(error)
        except TerminalError as error:
            run.refused = ConditionCause(error.reason, str(error))
        except OperatorError as error:
            run.failed = TransientError(str(error))
        return run

    async def _add_members(self, run: _Run, children: Children) -> None:
        """Add the members of the Services that groups of upstreams are."""
        if self._services is None or run.plan is None:
            return  # of an invalid resource, the last members stay
        plan = run.plan
        groups = service_groups(plan.config, plan.resource.manifest.upstreams)
        states = await self._services.read(run.key, frozenset(group.service for group in groups))
        run.members = members(groups, states, _members_text(run, children), self._now().timestamp())
        run.plan = replace(plan, members=run.members)

    async def _hand_out_members(self, run: _Run, children: Children) -> None:
        """Annotate the pods with the hash of the members, before anything that takes time."""
        if run.plan is None or not run.members.text or run.members.text != _members_text(run, children):
            return  # not applied; failures of other objects do not matter
        digest = hashlib.sha256(run.members.text.encode()).hexdigest()[:16]
        with _recording_failure(run):
            for pod in await self._cluster.list_labelled(POD, run.key.namespace, run.plan.pod_labels):
                metadata = pod["metadata"]
                if (metadata.get("annotations") or {}).get(names.MEMBERS_HASH) != digest:
                    key = Key(metadata["namespace"], metadata["name"])
                    await self._cluster.patch_annotations(POD, key, {names.MEMBERS_HASH: digest})

    async def _try_with_one_pod(self, run: _Run, children: Children) -> None:
        """Start with one pod when nodes may refuse it: a refused pod is replaced immediately."""
        plan = run.plan
        if plan is None or run.paused or not plan.requests_unsafe_sysctls:
            return
        if not plan.has_workload or plan.workload_kind is not DEPLOYMENT:
            return
        with _recording_failure(run):
            live = children.workload(plan.resource.mode) or await self._cluster.get(DEPLOYMENT, run.key)
            run.plan = replace(plan, is_trial=live is None or _has_no_pods_yet(live))

    async def _apply(self, run: _Run, children: Children) -> None:
        if run.plan is None or run.refused:
            return
        if run.paused:
            await self._apply_members(run, children)
            return
        try:
            run.refused = await children.apply(render(run.plan))
        except TransientError as failure:
            run.failed = failure
        run.drifted, run.lacking = tuple(children.drifted), tuple(sorted(children.lacking))

    async def _apply_members(self, run: _Run, children: Children) -> None:
        """Apply the members of a paused resource: they are no setting, and its logins go on."""
        name = names.members_name(run.key.name)
        manifest = run.plan and members_config_map(run.plan)
        if manifest and children.config_map(name):
            with _recording_failure(run):
                await children.apply_one(manifest)

    async def remove_forbidden_sysctls(self, key: Key, pod: Manifest) -> bool:
        """Remove refused sysctls from the workload immediately; the next reconcile does the rest.

        Args:
            key: The MailProxy of the pod.
            pod: The pod as received from the watch.

        Returns:
            Whether the workload was changed.

        Raises:
            OperatorError: The workload could not be changed; the next reconcile retries.
        """
        body = await self._cluster.get(MAIL_PROXY, key)
        refused = forbidden_sysctls.refused_by(pod)
        if not refused or body is None or "deletionTimestamp" in body["metadata"]:
            return False
        children = Children(self._cluster, self._applied, key, body["metadata"]["uid"])
        run = await self._plan(key, body, children)
        if run.plan is None or run.resource is None or run.paused or not run.plan.has_workload:
            return False
        await children.read((run.plan.workload_kind,))
        live = children.workload(run.plan.resource.mode)
        is_ours = belongs_to_workload(pod, key.name)
        if live is None or not is_ours or not _is_of_template(pod, live):
            return False
        known = forbidden_sysctls.remembered([live], run.resource.generation)
        platform = replace(self._platform, refused_sysctls=known | refused)
        plan = planned(run.resource, platform, run.plan.selection)
        for manifest in render(plan):
            if kind_of(manifest) is plan.workload_kind:
                await children.apply_one(manifest)
        return True

    async def _handle_forbidden_sysctls(
        self, run: _Run, children: Children, observed: Observed, pods: list[Manifest]
    ) -> None:
        """Handle pods that nodes refused for a sysctl: render without it, and record it on the workload."""
        if run.plan is None or run.resource is None or run.paused or run.refused:
            return
        if not run.plan.has_workload:
            return  # the pods belong to other workloads
        known = run.plan.platform.refused_sysctls
        newly = forbidden_sysctls.refused_names(observed) - known
        if newly:
            platform = replace(self._platform, refused_sysctls=known | newly)
            run.plan = replace(planned(run.resource, platform, run.plan.selection), members=run.members)
            await self._apply(run, children)
        # Delete the pods last: until the workload has changed, each one is replaced immediately.
        with _recording_failure(run):
            for pod in forbidden_sysctls.refused_pods(pods):
                await self._cluster.delete(pod)

    async def _prune_and_annotate(
        self, run: _Run, children: Children, observed: Observed, pods: list[Manifest]
    ) -> None:
        """Prune, and annotate the pods with the hash of the expected configuration."""
        if run.plan is None or run.refused or run.failed or run.paused:
            return
        workload = observed.workload
        can_prune_old = workload is None or workload.is_available or workload.is_scaled_to_zero
        with _recording_failure(run):
            # The operator has no permission to delete ConfigMaps: members that nobody mounts stay.
            run.pruned = await children.prune(keep=(CONFIG_MAP, *(() if can_prune_old else WORKLOADS)))
            for pod in pods:
                await self._annotate_pod(run.plan, pod)
            if run.policies is not None:
                await self._policy_status.update(run.key, run.policies, self._time())

    async def _annotate_pod(self, plan: Plan, pod: Manifest) -> None:
        metadata = pod["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        # Pods of an older release lack the label that scrape configurations and NetworkPolicies select by.
        lacks_label = names.PROXY not in (metadata.get("labels") or {})
        labels = names.proxy_labels(plan.resource.name) if lacks_label else {}
        # A changed annotation makes the kubelet refresh the pod's volumes immediately, not within a minute.
        is_annotated = (metadata.get("annotations") or {}).get(names.CONFIG_HASH) == plan.config_hash
        if labels or not is_annotated:
            await self._cluster.patch_annotations(
                POD, key, {names.CONFIG_HASH: plan.config_hash}, labels=labels
            )

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")

    async def _update_status(self, run: _Run, observed: Observed) -> Outcome:
        now = self._now()
        previous = run.body.get("status") or {}
        facts = status.facts(
            run.body,
            run.plan,
            observed,
            refused=run.refused,
            failed=run.failed,
            warnings=self._applied.warnings(run.key),
            lacking=run.lacking,
        )
        facts = status.with_policies(facts, run.policies, now, run.members.groups)
        written = status.status(facts, run.plan, previous=previous, now=self._time())
        if written != previous:
            identity = {"name": run.key.name, "namespace": run.key.namespace}
            await self._cluster.apply_status(
                {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": identity, "status": written}
            )
            event = status.transition(run.body, previous, written, now=now)
            if event:
                await self._cluster.create_event(event)
        await self._report_certificates(run, observed, now)
        for events in self._pod_events:
            for event in events.due(run.key, run.body, observed, now):
                await self._cluster.create_event(event)
        return Outcome(
            refused=run.refused,
            failed=run.failed,
            again_after=_again_after(run, written),
            changes_after=_changes_after(run.members, now.timestamp()),
            status=written,
            drifted=run.drifted,
            pruned=run.pruned,
        )

    async def _report_certificates(self, run: _Run, observed: Observed, now: datetime) -> None:
        """Create an event for each certificate that a pod has begun not to use."""
        unused = status.unused_certificates(observed)
        before = self._unused.get(run.key, frozenset())
        if unused:
            self._unused[run.key] = frozenset(unused)
        else:
            self._unused.pop(run.key, None)
        for number, problem in enumerate(one for one in unused if one not in before):
            await self._cluster.create_event(status.certificate_event(run.body, problem, number, now=now))


@contextmanager
def _recording_failure(run: _Run) -> Iterator[None]:
    """Record a failure of a secondary step and continue, so that the status is still updated."""
    try:
        yield
    except OperatorError as failure:
        run.failed = failure if isinstance(failure, TransientError) else TransientError(str(failure))


def _responses(observed: Observed, pods: list[Manifest]) -> tuple[tuple[Manifest, RunningConfig | None], ...]:
    pairs = zip(pods, observed.pods, strict=True)
    return tuple((pod, one.running) for pod, one in pairs if is_reachable(pod))


def _has_no_pods_yet(live: Manifest) -> bool:
    ready = (live.get("status") or {}).get("readyReplicas")
    return int(live["spec"].get("replicas", 1)) <= 1 and not ready


def _is_of_template(pod: Manifest, workload: Manifest) -> bool:
    holders = pod["metadata"], workload["spec"]["template"]["metadata"]
    made, newest = ((one.get("annotations") or {}).get(names.TEMPLATE_HASH) for one in holders)
    return bool(made == newest)


def _again_after(run: _Run, written: Manifest) -> float | None:
    if run.refused and run.refused.reason == Reason.FORBIDDEN:
        return FORBIDDEN_SECONDS
    if run.policies is not None and run.policies.cause is not None:
        return UNRESOLVED_SECONDS
    if status.is_in_progress(written):
        return ROLLOUT_REQUEUE_SECONDS
    return RELIST_SECONDS if run.plan is not None and run.plan.selection else None


def _members_text(run: _Run, children: Children) -> str:
    """Return the document in the ConfigMap of the members; empty without one."""
    live = children.config_map(names.members_name(run.key.name)) or {}
    return str((live.get("data") or {}).get(MEMBERS_KEY, ""))


def _changes_after(found: Members, now: float) -> float | None:
    """Return the delay until the first member that is kept is removed."""
    return None if found.changes_at is None else max(found.changes_at - now, 0.0)


def _refusal(error: ConfigError) -> ConditionCause:
    only_conflicts = all("address and port pair" in problem.reason for problem in error.problems)
    reason = Reason.LISTENER_CONFLICT if only_conflicts else Reason.INVALID_SPEC
    return ConditionCause(reason, "; ".join(map(str, error.problems)))


def _mode(run: _Run) -> str:
    spec: dict[str, Any] = run.body.get("spec") or {}
    return run.resource.mode if run.resource else str(spec.get("mode", "Deployment"))
