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
MAX_ASKED_AT_ONCE = 32
"""Maximum of concurrent requests.  With a timeout of two seconds: sixteen pods a second if none responds."""

Ask = Callable[[Manifest], Awaitable[RunningConfig | None]]


@dataclass(slots=True)
class _Polled:
    """A pod and its last response."""

    pod: Manifest
    answer: RunningConfig | None


class ConfigPoll:
    """The poll of the leading operator.

    Args:
        ask: Requests the configuration of a pod.
        changed: Called with a resource when the response of one of its pods has changed.
    """

    def __init__(self, ask: Ask, changed: Callable[[Key], None]) -> None:
        self._request = ask
        self._changed = changed
        self._known: dict[Key, list[_Polled]] = {}

    def note(self, key: Key, answers: Sequence[tuple[Manifest, RunningConfig | None]]) -> None:
        """Store the pods of a resource and their responses, as observed by the last reconcile."""
        if answers:
            self._known[key] = [_Polled(_address(pod), answer) for pod, answer in answers]
        else:
            self._known.pop(key, None)

    async def run(self) -> None:
        """Poll until cancelled."""
        gate = asyncio.Semaphore(MAX_ASKED_AT_ONCE)
        await asyncio.sleep(POLL_SECONDS * random.random())  # noqa: S311  not used for security
        async with asyncio.TaskGroup() as tasks:
            while True:
                asked = [(key, polled) for key, pods in self._known.items() for polled in pods]
                random.shuffle(asked)
                for key, polled in asked:
                    await gate.acquire()
                    tasks.create_task(self._look(key, polled, gate))
                    await asyncio.sleep(POLL_SECONDS / len(asked))
                if not asked:
                    await asyncio.sleep(POLL_SECONDS)

    async def _look(self, key: Key, polled: _Polled, gate: asyncio.Semaphore) -> None:
        try:
            answer = await self._request(polled.pod)
        finally:
            gate.release()
        is_known = any(one is polled for one in self._known.get(key, ()))
        if is_known and answer != polled.answer:
            polled.answer = answer
            self._changed(key)


def _address(pod: Manifest) -> Manifest:
    """Return the part of a pod that a request needs."""
    metadata, status = pod["metadata"], pod["status"]
    kept = {"name": metadata["name"], "namespace": metadata["namespace"]}
    return {"metadata": kept, "status": {"podIP": status["podIP"]}}
