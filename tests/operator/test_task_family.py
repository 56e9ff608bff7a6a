# SPDX-License-Identifier: Apache-2.0
"""Whose tasks are ended, in which order, and whose are not."""

from __future__ import annotations

import asyncio

import pytest

from mailproxy_operator.task_family import TaskFamily


@pytest.fixture
def told() -> list[str]:
    return []


async def waits(name: str, told: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        told.append(name)


async def needs_its_helper(told: list[str]) -> None:
    """Ends only when its helper has done something for it, as some schedulers do."""
    asked, done = asyncio.Event(), asyncio.Event()

    async def help_out() -> None:
        await asked.wait()
        told.append("helper")
        done.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(help_out())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asked.set()
            await done.wait()
            told.append("parent")


async def begins_and_ends(told: list[str], begun: list[asyncio.Task[None]]) -> None:
    begun.append(asyncio.get_running_loop().create_task(waits("orphan", told)))


async def test_parents_end_before_their_children(told: list[str]) -> None:
    family = TaskFamily()
    with family.begun():
        task = asyncio.get_running_loop().create_task(needs_its_helper(told))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await family.end(5.0)
    assert (task.done(), told) == (True, ["helper", "parent"])


async def test_orphans_are_ended_and_strangers_are_not(told: list[str]) -> None:
    family, begun = TaskFamily(), list[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    with family.begun():
        parent = loop.create_task(begins_and_ends(told, begun))
    stranger = loop.create_task(waits("stranger", told))
    await parent
    await asyncio.sleep(0)
    await family.end(5.0)
    assert told == ["orphan"]
    assert not stranger.done()
    stranger.cancel()
    await asyncio.wait([stranger])


async def test_whoever_does_not_end_is_left_behind(told: list[str]) -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told.append("no")

    family = TaskFamily()
    with family.begun():
        task = asyncio.get_running_loop().create_task(stubborn())
    await asyncio.sleep(0)
    await family.end(0.05)
    assert (told, task.done()) == (["no"], False)
    task.cancel()
    await asyncio.wait([task])


async def test_what_nobody_waits_for_fails_quietly(told: list[str], caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        told.append("failed")
        raise ValueError("no")

    family = TaskFamily()
    with family.begun():
        asyncio.get_running_loop().create_task(fails())
    await asyncio.sleep(0.01)
    await family.end(1.0)
    assert told == ["failed"]
    assert "never retrieved" not in caplog.text
