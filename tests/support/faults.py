# SPDX-License-Identifier: Apache-2.0
"""Exceptions of our own, injected where a test says, and what must be left after one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from mailproxy.app import App
from support import invariants
from support.streams import abort
from support.world import World

HIDDEN: Final = "what-nobody-may-read-in-a-log"
Break = Callable[[], None]


class Fault(Exception):
    """Ours, and about something that must not be logged."""


def breaking(monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]) -> Break:
    """Patch a function so that it raises once, after it has been broken."""
    holder, name = where
    original = getattr(holder, name)
    broken: list[bool] = []

    def once(*arguments: Any, **named: Any) -> Any:
        if broken and broken.pop():
            raise Fault(HIDDEN)
        return original(*arguments, **named)

    is_bound = getattr(original, "__self__", None) is not None
    monkeypatch.setattr(holder, name, staticmethod(once) if is_bound else once)
    return lambda: broken.append(True)


def clear(w: World) -> None:
    """Close what the test itself has opened."""
    for writer in (*w.writers, *w.upstream.writers, *w.auth.writers):
        abort(writer)


async def descriptors(app: App, expected: int) -> int:
    """How many descriptors are open besides the pipes in stock; waits until no more than expected are."""
    found = 0
    for _ in range(100):
        found = invariants.descriptors() - 2 * len(app.context.pipes.kept)
        if found <= expected:
            break
        await asyncio.sleep(0.02)
    return found


async def polls_per_second(app: App) -> float:
    epoll = app.context.epoll
    await asyncio.sleep(0.05)
    before = epoll.iterations
    await asyncio.sleep(0.2)
    return (epoll.iterations - before) / 0.2
