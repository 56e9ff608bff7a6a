# SPDX-License-Identifier: Apache-2.0
"""Asks running pods now and then which configuration they run: no watch reports that.

A renewed certificate that does not load changes nothing in the API server; only
the pod knows, and answers so at ``/config``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.kinds import Manifest

POLL_SECONDS = 30.0
"""Each pod is asked once in this time; the requests are spread over it."""
MAX_ASKED_AT_ONCE = 32
"""With two seconds for each answer: sixteen pods a second where none answers."""

Ask = Callable[[Manifest], Awaitable[RunningConfig | None]]


@dataclass(slots=True)
class _Polled:
    """A pod, and what it answered last."""

    pod: Manifest
    answer: RunningConfig | None


class ConfigPoll:
    """The poll of one operator that works.

    Args:
        ask: Asks a pod.
        changed: Called for a resource one of whose pods answers something else than before.
    """

    def __init__(self, ask: Ask, changed: Callable[[Key], None]) -> None:
        self._request = ask
        self._changed = changed
        self._known: dict[Key, list[_Polled]] = {}

    def note(self, key: Key, answers: Sequence[tuple[Manifest, RunningConfig | None]]) -> None:
        """Remember a resource's pods and what they answered, as the last reconcile has seen it."""
        if answers:
            self._known[key] = [_Polled(_address(pod), answer) for pod, answer in answers]
        else:
            self._known.pop(key, None)

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        gate = asyncio.Semaphore(MAX_ASKED_AT_ONCE)
        await asyncio.sleep(POLL_SECONDS * random.random())  # noqa: S311  nobody is to guess at it
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
    """Keep of a pod what is needed to ask it."""
    metadata, status = pod["metadata"], pod["status"]
    kept = {"name": metadata["name"], "namespace": metadata["namespace"]}
    return {"metadata": kept, "status": {"podIP": status["podIP"]}}
