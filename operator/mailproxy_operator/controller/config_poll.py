# SPDX-License-Identifier: Apache-2.0
"""Polls running pods for their configuration, which no watch reports.

A renewed certificate that cannot be loaded changes no object in the API server; only
the pod reports it, at ``/config``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.kinds import Manifest

POLL_SECONDS = 30.0
"""Each pod is polled once in this interval; the requests are distributed over it."""
MAX_CONCURRENT_REQUESTS = 32
"""Maximum of concurrent requests.  With a timeout of two seconds: sixteen pods a second if none responds."""

RequestConfig = Callable[[Manifest], Awaitable[RunningConfig | None]]


@dataclass(slots=True)
class _Polled:
    """A pod and its last response."""

    pod: Manifest
    response: RunningConfig | None


class ConfigPoll:
    """The poll of the leading operator.

    Args:
        request_config: Requests the configuration of a pod.
        changed: Called with a resource when the response of one of its pods has changed.
    """

    def __init__(self, request_config: RequestConfig, changed: Callable[[Key], None]) -> None:
        self._request_config = request_config
        self._changed = changed
        self._polled: dict[Key, list[_Polled]] = {}

    def store(self, key: Key, responses: Sequence[tuple[Manifest, RunningConfig | None]]) -> None:
        """Store the pods of a resource and their responses, as observed by the last reconcile."""
        if responses:
            self._polled[key] = [_Polled(_address(pod), response) for pod, response in responses]
        else:
            self._polled.pop(key, None)

    async def run(self) -> None:
        """Poll until cancelled."""
        gate = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        await asyncio.sleep(POLL_SECONDS * random.random())  # noqa: S311  not used for security
        async with asyncio.TaskGroup() as tasks:
            while True:
                targets = [(key, polled) for key, pods in self._polled.items() for polled in pods]
                random.shuffle(targets)
                for key, polled in targets:
                    await gate.acquire()
                    tasks.create_task(self._poll(key, polled, gate))
                    await asyncio.sleep(POLL_SECONDS / len(targets))
                if not targets:
                    await asyncio.sleep(POLL_SECONDS)

    async def _poll(self, key: Key, polled: _Polled, gate: asyncio.Semaphore) -> None:
        try:
            response = await self._request_config(polled.pod)
        finally:
            gate.release()
        is_known = any(one is polled for one in self._polled.get(key, ()))
        if is_known and response != polled.response:
            polled.response = response
            self._changed(key)


def _address(pod: Manifest) -> Manifest:
    """Return the part of a pod that a request needs."""
    metadata, status = pod["metadata"], pod["status"]
    kept = {"name": metadata["name"], "namespace": metadata["namespace"]}
    return {"metadata": kept, "status": {"podIP": status["podIP"]}}
