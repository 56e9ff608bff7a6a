# SPDX-License-Identifier: Apache-2.0
"""Decides who is reconciled when something happens, and with what they look at the world."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

from mailproxy_operator import names
from mailproxy_operator.cluster import Key
from mailproxy_operator.config_poll import Ask, ConfigPoll
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.kinds import MAIL_PROXY, OWNED, POD, SERVICE, WORKLOADS, Kind, Manifest
from mailproxy_operator.listing import Listing, Page
from mailproxy_operator.reconcile import Outcome, Reconciler
from mailproxy_operator.snapshot import Snapshot
from mailproxy_operator.work_queue import Told, WorkQueue

SETTLE_SECONDS = 0.2
"""Changes of owned objects come in bursts; one reconcile is enough for all."""

_log = logging.getLogger(__name__)

_WITH_TELLING_STATUS = frozenset({*WORKLOADS, POD, SERVICE})


class Waker:
    """Knows what was seen, so that nobody is woken for what we did ourselves.

    Args:
        reconciler: What is woken.
        told: Told about every reconcile.
        ask: Asks a pod which configuration it runs.

    Attributes:
        queue: Who waits.
        poll: Asks running pods regularly.
    """

    def __init__(self, reconciler: Reconciler, *, told: Told, ask: Ask) -> None:
        self.queue = WorkQueue(self._work, told=told)
        self.poll = ConfigPoll(ask, self.pods_answer_otherwise)
        self._reconciler = reconciler
        self._seen: dict[Key, object] = {}
        self._views: dict[Key, Snapshot] = {}
        self._touched: set[Key] = set()
        self._tripping: set[Key] = set()
        self._found: dict[str, set[Key]] = {}
        self._owned = Listing(_owner)
        self._carriers = Listing(_asked_for)

    async def _work(self, key: Key) -> Outcome:
        outcome = await self._reconciler.reconcile(key, self._views.pop(key, None))
        self.poll.note(key, outcome.answers)
        return outcome

    def pods_answer_otherwise(self, key: Key) -> None:
        """A pod runs another configuration than before, or has refused one."""
        self.queue.wake(key, SETTLE_SECONDS)

    def resource_changed(self, metadata: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A MailProxy was made, edited or deleted; its status alone does not count."""
        key = Key(str(metadata["namespace"]), str(metadata["name"]))
        if not is_deleted and self._seen.get(key) == _state(metadata):
            return
        if is_deleted:
            self._seen.pop(key, None)
        else:
            self._seen[key] = _state(metadata)
        self._touch(key)
        self.queue.wake(key, urgent=True)

    def owned_changed(self, kind: Kind, manifest: Manifest) -> None:
        """Something that a MailProxy owns has changed."""
        key = _owner(manifest)
        self._owned.seen(kind, manifest)
        if key.name and not self._is_ours(key, kind, manifest):
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    def _is_ours(self, key: Key, kind: Kind, manifest: Manifest) -> bool:
        """Whether a change is nothing but what we have applied."""
        return kind not in _WITH_TELLING_STATUS and self._reconciler.is_as_left(key, kind, manifest)

    async def pod_refused(self, pod: Manifest) -> None:
        """A node has refused a pod for a sysctl: that cannot wait for a place in the queue."""
        key = _owner(pod)
        if not key.name or key in self._tripping:
            return
        self._tripping.add(key)
        try:
            if await self._reconciler.trip(key, pod):
                _log.warning("%s: nodes refuse a sysctl, it is left out: %s", key, pod["status"]["message"])
        except OperatorError as failure:
            _log.warning("%s: a refused sysctl could not be left out: %s", key, failure)
        finally:
            self._tripping.discard(key)

    def listed(self, page: Page) -> None:
        """A watch lists what there is: whoever changed or went while nobody watched is found in it."""
        if page.kind is MAIL_PROXY:
            self._resources_listed(page)
        for key, manifest in self._owned.page(page):
            if key.name and (manifest is None or not self._is_ours(key, page.kind, manifest)):
                self._touch(key)
                self.queue.wake(key, SETTLE_SECONDS)

    def carriers_listed(self, page: Page) -> None:
        """The same for others' pods that ask for a sidecar."""
        for key, _ in self._carriers.page(page):
            if key.name:
                self._touch(key)
                self.queue.wake(key, SETTLE_SECONDS)

    def _resources_listed(self, page: Page) -> None:
        """Find resources that were deleted; kopf hands on those that are there."""
        found = set() if page.is_first else self._found.get(page.namespace, set())
        found |= {Key(one["metadata"]["namespace"], one["metadata"]["name"]) for one in page.items}
        self._found[page.namespace] = found
        if page.is_last:
            del self._found[page.namespace]
            known = [key for key in self._seen if page.namespace in ("", key.namespace)]
            for key in set(known) - found:
                self.resource_changed({"namespace": key.namespace, "name": key.name}, is_deleted=True)

    def owned_deleted(self, kind: Kind, manifest: Manifest) -> None:
        """Something that a MailProxy owned is gone."""
        key = _owner(manifest)
        self._owned.seen(kind, manifest, is_deleted=True)
        if key.name:
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    def carrier_changed(self, manifest: Manifest, *, is_deleted: bool) -> None:
        """A pod that asks for a sidecar was made, has changed or is gone."""
        key = _asked_for(manifest)
        self._carriers.seen(POD, manifest, is_deleted=is_deleted)
        if key.name:
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    def _touch(self, key: Key) -> None:
        """Something has happened that no snapshot may know of: whoever is woken looks for itself."""
        self._views.pop(key, None)
        self._touched.add(key)

    def about_to_look(self) -> None:
        """A snapshot is being taken: what happens from now on may be missing in it."""
        self._touched.clear()

    def resync(self, snapshot: Snapshot, *, spread: float) -> None:
        """Have every resource looked at anew.

        Args:
            snapshot: How everything is.
            spread: Seconds over which to distribute the work.
        """
        resources = snapshot.resources()
        for kind in (*OWNED, POD):
            self._owned.begin_with(kind, snapshot.of(kind))
        for key in self._seen.keys() - resources.keys() - self._touched:
            # It vanished while no watch was there to see: what is remembered of it has to go.
            del self._seen[key]
            self.queue.wake(key)
        for key, body in resources.items():
            if key not in self._touched:
                self._seen[key] = _state(body["metadata"])
                self._views[key] = snapshot
            self.queue.wake(key, random.uniform(0, spread))  # noqa: S311  nobody is to guess at it


def _owner(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return Key(str(metadata["namespace"]), names.instance_of(metadata.get("labels") or {}))


def _asked_for(pod: Manifest) -> Key:
    metadata = pod["metadata"]
    return Key(str(metadata["namespace"]), str((metadata.get("labels") or {}).get(names.INJECT, "")))


def _state(metadata: Mapping[str, Any]) -> object:
    return metadata.get("generation"), metadata.get("uid"), "deletionTimestamp" in metadata
