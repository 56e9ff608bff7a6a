# SPDX-License-Identifier: Apache-2.0
"""Warning events about what pods report: one an hour for each cause that lasts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.observed import Observed

REPEAT = timedelta(hours=1)
"""A cause that lasts gets an event once in this time."""
MAX_EVENTS = 10
"""The maximum of events about one resource in this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """What a pod reports.

    Attributes:
        mark: What makes two reports the same.
        reason: The reason of the event.
        action: What the pod did.
        note: The text of the event, without secrets and names of users.
    """

    mark: tuple[str, ...]
    reason: str
    action: str
    note: str


class HourlyEvents:
    """The events of all resources.

    A cause gets the same name of an event for an hour, so that the API server refuses a second one: a new
    leader repeats none.

    Args:
        find: Returns what the pods of a resource report.
    """

    def __init__(self, find: Callable[[Observed], Iterable[Occurrence]]) -> None:
        self._find = find
        self._created: dict[Key, dict[tuple[str, ...], datetime]] = {}

    def forget(self, key: Key) -> None:
        """Remove a resource."""
        self._created.pop(key, None)

    def due(self, key: Key, body: Mapping[str, Any], observed: Observed, now: datetime) -> list[Manifest]:
        """Return the events to create now.

        Args:
            key: The MailProxy.
            body: The MailProxy as read.
            observed: Its pods and what they report.
            now: The time.
        """
        created = {mark: at for mark, at in self._created.get(key, {}).items() if now - at < REPEAT}
        found: list[Manifest] = []
        for one in self._find(observed):
            if one.mark not in created and len(created) < MAX_EVENTS:
                created[one.mark] = now
                found.append(_event(body["metadata"], one, now))
        if created:
            self._created[key] = created
        else:
            self.forget(key)
        return found


def _event(metadata: Mapping[str, Any], one: Occurrence, now: datetime) -> Manifest:
    mark = (metadata.get("uid"), *one.mark, int(now.timestamp() // 3600))
    digest = hashlib.sha256(repr(mark).encode()).hexdigest()[:16]
    namespace = metadata.get("namespace", "default")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": one.reason,
        "note": one.note[:1000],
        "action": one.action,
        "reportingController": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": namespace,
            "uid": metadata.get("uid", ""),
        },
    }
