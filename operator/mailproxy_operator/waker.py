# SPDX-License-Identifier: Apache-2.0
"""Decides who is reconciled when something happens, and with what they look at the world."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

from mailproxy_operator import names
from mailproxy_operator.cluster import Key
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.kinds import POD, SERVICE, WORKLOADS, Kind, Manifest
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

    Attributes:
        queue: Who waits.
    """

    def __init__(self, reconciler: Reconciler, *, told: Told) -> None:
        self.queue = WorkQueue(self._work, told=told)
        self._reconciler = reconciler
        self._seen: dict[Key, object] = {}
        self._views: dict[Key, Snapshot] = {}
        self._touched: set[Key] = set()
        self._tripping: set[Key] = set()

    async def _work(self, key: Key) -> Outcome:
        return await self._reconciler.reconcile(key, self._views.pop(key, None))

    def resource_changed(self, metadata: Mapping[str, Any], *, is_deleted: bool) -> None:
        """A MailProxy was made, edited or deleted; its status alone does not count."""
        key = Key(str(metadata["namespace"]), str(metadata["name"]))
        if not is_deleted and self._seen.get(key) == _state(metadata):
            return
        self._seen[key] = _state(metadata)
        if is_deleted:
            del self._seen[key]
        self._touch(key)
        self.queue.wake(key, urgent=True)

    def owned_changed(self, kind: Kind, manifest: Manifest) -> None:
        """Something that a MailProxy owns has changed."""
        metadata = manifest["metadata"]
        key = Key(str(metadata["namespace"]), names.instance_of(metadata.get("labels") or {}))
        is_ours = kind not in _WITH_TELLING_STATUS and self._reconciler.is_as_left(key, kind, manifest)
        if key.name and not is_ours:
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    async def pod_refused(self, pod: Manifest) -> None:
        """A node has refused a pod for a sysctl: that cannot wait for a place in the queue."""
        metadata = pod["metadata"]
        key = Key(str(metadata["namespace"]), names.instance_of(metadata.get("labels") or {}))
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

    def owned_listed(self, kind: Kind, manifest: Manifest) -> None:
        """A watch that begins, or begins anew, lists what there is: it may have changed in the gap."""
        metadata = manifest["metadata"]
        key = Key(str(metadata["namespace"]), names.instance_of(metadata.get("labels") or {}))
        if key.name and self._reconciler.differs(key, kind, manifest):
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    def owned_deleted(self, metadata: Mapping[str, Any]) -> None:
        """Something that a MailProxy owned is gone."""
        key = Key(str(metadata["namespace"]), names.instance_of(metadata.get("labels") or {}))
        if key.name:
            self._touch(key)
            self.queue.wake(key, SETTLE_SECONDS)

    def carrier_changed(self, metadata: Mapping[str, Any]) -> None:
        """A pod that asks for a sidecar was made, has changed or is gone."""
        name = str((metadata.get("labels") or {}).get(names.INJECT, ""))
        if name:
            self.queue.wake(Key(str(metadata["namespace"]), name), SETTLE_SECONDS)

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
        for key in self._seen.keys() - resources.keys() - self._touched:
            # It vanished while no watch was there to see: what is remembered of it has to go.
            del self._seen[key]
            self.queue.wake(key)
        for key, body in resources.items():
            if key not in self._touched:
                self._seen[key] = _state(body["metadata"])
                self._views[key] = snapshot
            self.queue.wake(key, random.uniform(0, spread))  # noqa: S311  nobody is to guess at it


def _state(metadata: Mapping[str, Any]) -> object:
    return metadata.get("generation"), metadata.get("uid"), "deletionTimestamp" in metadata
