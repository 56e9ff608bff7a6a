# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.controller import service_watch
from mailproxy_operator.controller.service_watch import ServiceWatch
from mailproxy_operator.errors import TerminalError, TransientError
from mailproxy_operator.reasons import Reason
from support.endpoint_slices import Object, endpoint, service, slice_of

EDGE, OTHER = Key("mail", "edge"), Key("mail", "other")
DOVECOT, COURIER = Key("mail", "dovecot"), Key("mail", "courier")
_END: Any = ("END", {})


class Reader:
    """Services and slices in memory; watches yield what a test sends."""

    def __init__(self) -> None:
        self.services: dict[Key, Object] = {DOVECOT: service()}
        self.listed: list[Object] = [slice_of(endpoint(0), name="a")]
        self.failures: list[Exception] = []
        self.events: dict[Key, asyncio.Queue[tuple[str, Object]]] = {}
        self.lists = 0

    async def service(self, key: Key) -> Object | None:
        return self.services.get(key)

    async def slices(self, key: Key) -> tuple[list[Object], str]:
        self.lists += 1
        if self.failures:
            raise self.failures.pop(0)
        return list(self.listed), "1"

    async def watch(self, key: Key, version: str) -> AsyncIterator[tuple[str, Object]]:
        assert version == "1"
        queue = self.events[key] = asyncio.Queue()
        while (event := await queue.get()) is not _END:
            yield event


class World:
    """A running watch."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.changed: list[Key] = []
        self.watch = ServiceWatch(self.reader, self.changed.append)

    async def ids(self, owner: Key = EDGE) -> list[str]:
        found = await self.watch.read(owner, frozenset({DOVECOT}))
        return [each.id for each in found[DOVECOT].endpoints]

    async def send(self, kind: str, one: Object, key: Key = DOVECOT) -> None:
        await self.reader.events[key].put((kind, one))
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.watch.run())
        await settle()
        yield made
        task.cancel()


async def test_reconcile_waits_for_the_first_list_and_is_enqueued_by_changes(world: World) -> None:
    assert await world.ids() == ["dovecot-0"]
    assert world.changed == []
    await settle()
    await world.send("ADDED", slice_of(endpoint(1), name="b"))
    assert world.changed == [EDGE]
    assert await world.ids() == ["dovecot-0", "dovecot-1"]
    await world.send("DELETED", {"metadata": {"name": "a"}})
    assert await world.ids() == ["dovecot-1"]
    assert world.changed == [EDGE, EDGE]


async def test_change_without_an_effect_enqueues_nothing(world: World) -> None:
    await world.ids()
    await settle()
    changed = slice_of(endpoint(0), name="a")
    changed["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "now"}
    await world.send("MODIFIED", changed)
    assert world.changed == []


async def test_services_are_watched_once_and_only_while_a_resource_needs_them(world: World) -> None:
    await world.ids(EDGE)
    await world.ids(OTHER)
    assert (len(world.watch), world.reader.lists) == (1, 1)
    await settle()
    await world.send("ADDED", slice_of(endpoint(1), name="b"))
    assert set(world.changed) == {EDGE, OTHER}
    await world.watch.read(EDGE, frozenset())
    assert len(world.watch) == 1
    await world.watch.read(OTHER, frozenset({COURIER}))
    await settle()
    assert len(world.watch) == 1
    assert list(world.reader.events) == [DOVECOT, COURIER]
    await world.watch.read(OTHER, frozenset())
    assert len(world.watch) == 0


async def test_watch_that_ends_is_begun_again_with_a_list(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_watch, "STEADY_SECONDS", 0.0)
    await world.ids()
    await settle()
    world.reader.listed = [slice_of(endpoint(2), name="a")]
    await world.reader.events[DOVECOT].put(_END)
    await settle()
    assert world.reader.lists == 2
    assert world.changed == [EDGE]
    assert await world.ids() == ["dovecot-2"]


async def test_watch_that_ends_soon_is_begun_again_after_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_watch, "BACK_OFFS", (0.0, 0.0, 3600.0))
    await world.ids()
    for lists in (1, 2, 3, 3):
        await settle()
        assert world.reader.lists == lists
        await world.reader.events[DOVECOT].put(_END)


async def test_failure_after_a_long_watch_has_the_shortest_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_watch, "BACK_OFFS", (0.0, 3600.0))
    monkeypatch.setattr(service_watch, "STEADY_SECONDS", 0.0)
    await world.ids()
    for lists in (1, 3, 5):
        await settle()
        assert world.reader.lists == lists
        world.reader.failures = [TransientError("reset")]
        await world.reader.events[DOVECOT].put(_END)


async def test_service_is_read_again_when_the_ports_of_slices_change(world: World) -> None:
    await world.ids()
    await settle()
    world.reader.services[DOVECOT] = service(ports=[("imap", 1143, "TCP")])
    await world.send("MODIFIED", slice_of(endpoint(0), name="a", ports={"imap": 20143}))
    found = await world.watch.read(EDGE, frozenset({DOVECOT}))
    made = found[DOVECOT].service
    assert made is not None
    assert made["spec"]["ports"][0]["port"] == 1143


async def test_failures_are_retried_and_keep_what_was_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_watch, "BACK_OFFS", (0.0,))
    world.reader.failures = [TransientError("no response")]
    assert await world.ids() in ([], ["dovecot-0"])  # the failure, or already the list after it
    await settle()
    assert await world.ids() == ["dovecot-0"]
    world.reader.failures = [TransientError("no response")] * 3
    await world.reader.events[DOVECOT].put(_END)
    await settle()
    assert await world.ids() == ["dovecot-0"]


async def test_missing_permission_is_a_state_of_the_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_watch, "FORBIDDEN_SECONDS", 0.0)
    world.reader.failures = [TerminalError("endpointslices is forbidden", Reason.FORBIDDEN)]
    found = await world.watch.read(EDGE, frozenset({DOVECOT}))
    failure = found[DOVECOT].failure
    if failure is not None:  # otherwise the next try has already succeeded
        assert failure.reason is Reason.ENDPOINTS_FORBIDDEN
    await settle()
    assert await world.ids() == ["dovecot-0"]


async def test_unexpected_failure_ends_the_watch() -> None:
    world = World()
    world.reader.failures = [RuntimeError("a bug")]

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.watch.run())
            tasks.create_task(world.ids())

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        await run()
