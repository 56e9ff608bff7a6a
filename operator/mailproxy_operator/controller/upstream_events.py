# SPDX-License-Identifier: Apache-2.0
"""Warning events about mail servers at which logins fail until somebody changes the configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key, UpstreamConfigError
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.controller.observed import Observed
from mailproxy_operator.reasons import UpstreamEventReason

REPEAT = timedelta(hours=1)
"""An error that lasts gets an event once in this time."""
MAX_EVENTS = 10
"""The maximum of events about one resource in this time."""

_Mark = tuple[str, str, str]
"""What makes an error the same: server, stage, failure."""


class UpstreamEvents:
    """The events of all resources.

    An error gets the same name of an event for an hour, so that the API server refuses a second one:
    a new leader repeats none.
    """

    def __init__(self) -> None:
        self._created: dict[Key, dict[_Mark, datetime]] = {}

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
        for server, error in _errors(observed):
            mark = (server, error.stage, error.failure)
            if mark not in created and len(created) < MAX_EVENTS:
                created[mark] = now
                found.append(_event(body["metadata"], server, error, now))
        if created:
            self._created[key] = created
        else:
            self.forget(key)
        return found


def _errors(observed: Observed) -> Iterator[tuple[str, UpstreamConfigError]]:
    for pod in observed.pods:
        if pod.running is not None and not pod.is_terminating:
            for state in pod.running.upstreams:
                yield from ((state.server, error) for error in state.errors)


def _event(metadata: Mapping[str, Any], server: str, error: UpstreamConfigError, now: datetime) -> Manifest:
    mark = (metadata.get("uid"), server, error.stage, error.failure, int(now.timestamp() // 3600))
    digest = hashlib.sha256(repr(mark).encode()).hexdigest()[:16]
    namespace = metadata.get("namespace", "default")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning",
        "reason": str(UpstreamEventReason.UPSTREAM_MISCONFIGURED),
        "note": f"server {server}, stage {error.stage}: {error.message}"[:1000],
        "action": "LogIn",
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
