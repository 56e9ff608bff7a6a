# SPDX-License-Identifier: Apache-2.0
"""Watches the Services that groups of upstreams are: only these, and only in the process that reconciles.

kopf watches a kind with one selector that is fixed at the start.  For EndpointSlices that would be all of the
cluster, which has one for every hundred pods, and each readiness of each pod is a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import ConditionCause, OperatorError, TerminalError
from mailproxy_operator.members.endpoints import endpoints
from mailproxy_operator.members.groups import ServiceState
from mailproxy_operator.reasons import Reason

BACK_OFFS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds after failures in a row, and after watches that ended soon; the last one repeats."""
STEADY_SECONDS: Final = 30.0
"""A watch that was open for longer has worked: when it ends, nothing is wrong."""
FORBIDDEN_SECONDS: Final = 60.0
"""Seconds after ``Forbidden``: no watch reports a change of RBAC."""

_log = logging.getLogger(__name__)


class SliceReader(Protocol):
    """Reads Services and their EndpointSlices; every method may raise ``OperatorError``."""

    async def service(self, key: Key) -> Manifest | None:
        """Read a Service; ``None`` if it does not exist."""

    async def slices(self, key: Key) -> tuple[list[Manifest], str]:
        """Return all EndpointSlices of a Service, and their resource version."""

    def watch(self, key: Key, version: str) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield types and objects of changes after this version, until the watch ends."""


@dataclass(eq=False, slots=True)
class _Watched:
    """One Service."""

    owners: set[Key] = field(default_factory=set)
    state: ServiceState | None = None
    is_known: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class ServiceWatch:
    """The watches of the leading operator; see ``ServiceStates``.

    Args:
        reader: Reads Services and EndpointSlices.
        changed: Called with a MailProxy when one of its Services has changed.
    """

    def __init__(self, reader: SliceReader, changed: Callable[[Key], None]) -> None:
        self._reader = reader
        self._changed = changed
        self._watched: dict[Key, _Watched] = {}
        self._tasks: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        """Return the number of Services that are watched."""
        return len(self._watched)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for key, watched in self._watched.items():
                self._start(key, watched)
            await asyncio.Event().wait()

    async def read(self, owner: Key, services: frozenset[Key]) -> Mapping[Key, ServiceState]:
        """Return the states of the Services of a MailProxy; waits until new ones have been read once."""
        for key in services:
            watched = self._watched.get(key)
            if watched is None:
                watched = self._watched[key] = _Watched()
                self._start(key, watched)
            watched.owners.add(owner)
        for key in [key for key, watched in self._watched.items() if owner in watched.owners]:
            if key not in services:
                self._release(key, owner)
        found: dict[Key, ServiceState] = {}
        for key in services:
            watched = self._watched[key]
            await watched.is_known.wait()
            if watched.state is not None:
                found[key] = watched.state
        return found

    def _start(self, key: Key, watched: _Watched) -> None:
        if self._tasks is not None:
            watched.task = self._tasks.create_task(self._run(key, watched))

    def _release(self, key: Key, owner: Key) -> None:
        watched = self._watched[key]
        watched.owners.discard(owner)
        if not watched.owners:
            del self._watched[key]
            if watched.task is not None:
                watched.task.cancel()

    async def _run(self, key: Key, watched: _Watched) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            started_at = clock()
            failure = await self._try(key, watched)
            if is_steady := clock() - started_at >= STEADY_SECONDS:
                failures = 0
            if failure is None and is_steady:
                continue
            if failure is not None and failure.reason is Reason.ENDPOINTS_FORBIDDEN:
                await asyncio.sleep(FORBIDDEN_SECONDS)
                continue
            # An API server may also end each watch at once, as with 410 Gone.
            await asyncio.sleep(BACK_OFFS[min(failures, len(BACK_OFFS) - 1)])
            failures += 1

    async def _try(self, key: Key, watched: _Watched) -> ConditionCause | None:
        """Follow a Service until the watch ends; return why it has failed."""
        try:
            await self._follow(key, watched)
        except OperatorError as error:
            failure = _failure(key, error)
            _log.warning("members are not read: %s", failure.message)
            if failure.reason is Reason.ENDPOINTS_FORBIDDEN or watched.state is None:
                self._set(watched, ServiceState(failure=failure))
            return failure
        return None

    async def _follow(self, key: Key, watched: _Watched) -> None:
        """Read a Service and its slices, and follow their changes until the watch ends."""
        service = await self._reader.service(key)
        listed, version = await self._reader.slices(key)
        slices = {str(one["metadata"]["name"]): one for one in listed}
        self._set(watched, _state(service, slices))
        async for kind, one in self._reader.watch(key, version):
            name, before = str(one["metadata"]["name"]), _ports(slices)
            if kind == "DELETED":
                slices.pop(name, None)
            else:
                slices[name] = one
            if service is None or before != _ports(slices):
                # A change of the Service's ports changes its slices, and so does its deletion.
                service = await self._reader.service(key)
            self._set(watched, _state(service, slices))

    def _set(self, watched: _Watched, state: ServiceState) -> None:
        is_changed = watched.state != state
        watched.state = state
        if not watched.is_known.is_set():
            watched.is_known.set()  # a reconcile waits for it
        elif is_changed:
            for owner in watched.owners:
                self._changed(owner)


def _failure(key: Key, error: OperatorError) -> ConditionCause:
    message = f"Service {key}: {error}"
    if not isinstance(error, TerminalError):
        return ConditionCause(Reason.ENDPOINTS_UNKNOWN, message)
    advice = "give the operator this permission in the namespace of the Service"
    return ConditionCause(Reason.ENDPOINTS_FORBIDDEN, f"{message}; {advice}")


def _state(service: Manifest | None, slices: Mapping[str, Manifest]) -> ServiceState:
    spec = (service or {}).get("spec") or {}
    kept = ("type", "clusterIP", "ports", "ipFamilies")
    shown = None if service is None else {"spec": {name: spec[name] for name in kept if name in spec}}
    ordered = [slices[name] for name in sorted(slices)]
    return ServiceState(service=shown, endpoints=endpoints(ordered, spec.get("ipFamilies") or ()))


def _ports(slices: Mapping[str, Manifest]) -> list[object]:
    return [slices[name].get("ports") for name in sorted(slices)]
