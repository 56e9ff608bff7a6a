# SPDX-License-Identifier: Apache-2.0
"""Event handlers: an event of an object enqueues its owner; the reconcile decides everything else.

Plain event handlers of kopf do not write to objects: no annotation, no finalizer.
The queue retries failures, and the next resync finds missed events.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import kopf

from mailproxy_config.upstream_service import refers_to_service
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import (
    MAIL_PROXY,
    OWNED,
    POD,
    POLICIES,
    SERVICE,
    WORKLOADS,
    Kind,
    Manifest,
)
from mailproxy_operator.controller import forbidden_sysctls
from mailproxy_operator.controller.cache import Cache, slim
from mailproxy_operator.controller.config_poll import ConfigPoll, RequestConfig
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.controller.work_queue import Recorder, WorkQueue
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.policies import ancestors

SETTLE_SECONDS = 0.2
"""Delay before a reconcile: changes of owned objects come in bursts, and one reconcile handles all."""
WATCHED = (MAIL_PROXY, *OWNED, POD, *POLICIES)

_BY_NAME = frozenset(kind.name for kind in (MAIL_PROXY, *POLICIES))
"""Kinds that are indexed by their own name; the others belong to a MailProxy."""

_log = logging.getLogger(__name__)

_WITH_STATUS = frozenset({*WORKLOADS, POD, SERVICE})
"""Kinds whose status is read: every change enqueues the owner."""


class EventHandlers:
    """Enqueues owners, except for the operator's own writes.

    Args:
        reconciler: Reconciles the enqueued resources.
        cache: Updated from events.
        recorder: Called after every reconcile.
        request_config: Requests the running configuration of a pod.

    Attributes:
        queue: The work queue.
        poll: Polls running pods.
    """

    def __init__(
        self, reconciler: Reconciler, cache: Cache, *, recorder: Recorder, request_config: RequestConfig
    ) -> None:
        self.queue = WorkQueue(self._work, recorder=recorder)
        self.poll = ConfigPoll(request_config, self.enqueue)
        self._reconciler = reconciler
        self._cache = cache
        self._seen: dict[Key, object] = {}
        self._removing_sysctls: set[Key] = set()

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Register an event handler for each kind."""
        for kind in WATCHED:
            kopf.on.event(*_resource(kind), id=kind.id, labels=_labels(kind), registry=registry)(
                self._handler(kind)
            )

    def _handler(self, kind: Kind) -> Any:  # noqa: ANN401  kopf's own type is not public
        async def handle(event: kopf.RawEvent, **_: object) -> None:
            manifest, is_deleted = dict(event["object"]), event["type"] == "DELETED"
            if kind is POD and not is_deleted and forbidden_sysctls.refused_by(manifest):
                await self.pod_refused(manifest)
            self.changed(kind, manifest, is_deleted=is_deleted)

        return handle

    async def _work(self, key: Key) -> Outcome:
        outcome = await self._reconciler.reconcile(key)
        self.poll.store(key, outcome.responses)
        return outcome

    def enqueue(self, key: Key) -> None:
        """Enqueue a resource after ``SETTLE_SECONDS``."""
        self.queue.enqueue(key, SETTLE_SECONDS)

    def changed(self, kind: Kind, manifest: Manifest, *, is_deleted: bool) -> None:
        """Handle an event of a watch."""
        if is_deleted:
            self._cache.deleted(manifest)
        else:
            self._cache.observed(manifest)
        self.differs(kind, manifest, is_deleted=is_deleted)

    def differs(self, kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
        """Enqueue the MailProxies that an object belongs to."""
        if kind is MAIL_PROXY:
            self.resource_changed(manifest["metadata"], is_deleted=is_deleted)
            return
        if kind in POLICIES:
            self.policy_changed(manifest)
            return
        metadata = manifest["metadata"]
        for name in names.owners_of(metadata.get("labels") or {}):
            key = Key(str(metadata["namespace"]), name)
            if (
                is_deleted
                or kind in _WITH_STATUS
                or not self._reconciler.unchanged_since_apply(key, kind, manifest)
            ):
                self.enqueue(key)

    def resource_changed(self, metadata: Mapping[str, Any], *, is_deleted: bool) -> None:
        """Enqueue a MailProxy that was created, edited or deleted; a change of its status is ignored."""
        key = Key(str(metadata["namespace"]), str(metadata["name"]))
        state = None if is_deleted else _state(metadata)
        if self._seen.get(key) == state and not is_deleted:
            return
        if is_deleted:
            self._seen.pop(key, None)
        else:
            self._seen[key] = state
        self.queue.enqueue(key, reset_backoff=True)

    def policy_changed(self, policy: Manifest) -> None:
        """Enqueue the MailProxies that a policy may concern: all of its namespace that refer to a Service."""
        namespace = str(policy["metadata"]["namespace"])
        found = ancestors.names_in(policy)
        for one in self._cache.resources():
            metadata = one["metadata"]
            if metadata["namespace"] == namespace and refers_to_service(one.get("spec")):
                found.add(metadata["name"])
        for name in found:
            self.enqueue(Key(namespace, name))

    async def pod_refused(self, pod: Manifest) -> None:
        """Remove refused sysctls immediately: the controller replaces a refused pod without a back-off."""
        for name in names.owners_of(pod["metadata"].get("labels") or {}):
            key = Key(str(pod["metadata"]["namespace"]), name)
            if key in self._removing_sysctls:
                continue
            self._removing_sysctls.add(key)
            try:
                if await self._reconciler.remove_forbidden_sysctls(key, pod):
                    message = pod["status"]["message"]
                    _log.warning("%s: nodes refuse a sysctl, it is omitted: %s", key, message)
            except OperatorError as failure:
                _log.warning("%s: a refused sysctl could not be removed: %s", key, failure)
            finally:
                self._removing_sysctls.discard(key)

    def resync(self, *, spread: float) -> None:
        """Enqueue every resource.

        Args:
            spread: Seconds over which to distribute the work.
        """
        resources = [one["metadata"] for one in self._cache.resources()]
        found = {Key(one["namespace"], one["name"]) for one in resources}
        for key in found | self._seen.keys():
            self.queue.enqueue(key, random.uniform(0, spread))  # noqa: S311  no secret
        for key in self._seen.keys() - found:
            del self._seen[key]


def register_indexes(registry: kopf.OperatorRegistry) -> None:
    """Register an index for each kind: objects by their MailProxy.

    kopf creates its indexes first, so they are registered before the handlers.
    """
    for kind in WATCHED:
        kopf.index(*_resource(kind), id=kind.id, labels=_labels(kind), registry=registry)(_indexed)


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


def _labels(kind: Kind) -> dict[str, Any] | None:
    return None if kind in (MAIL_PROXY, *POLICIES) else {names.PROXY: kopf.PRESENT}


async def _indexed(body: kopf.Body, **_: object) -> dict[Key, Manifest]:
    manifest = slim(body)
    metadata = manifest["metadata"]
    if manifest["kind"] in _BY_NAME:
        return {Key(metadata["namespace"], metadata["name"]): manifest}
    return {Key(metadata["namespace"], name): manifest for name in names.owners_of(metadata["labels"])}


def _state(metadata: Mapping[str, Any]) -> object:
    return metadata.get("generation"), metadata.get("uid"), "deletionTimestamp" in metadata
