# SPDX-License-Identifier: Apache-2.0
"""Injected exceptions, and what must be released after one."""

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
    """An exception with a text that must not be logged."""


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
    """Close what the test has opened."""
    for writer in (*w.writers, *w.upstream.writers, *w.auth.writers):
        abort(writer)


async def descriptors(app: App, expected: int) -> int:
    """Return the open descriptors without pooled pipes; waits until they are as few as expected."""
    found = 0
    for _ in range(100):
        found = invariants.descriptors() - 2 * len(app._engine.pipes._kept)
        if found <= expected:
            break
        await asyncio.sleep(0.02)
    return found


async def polls_per_second(app: App) -> float:
    reactor = app._engine.reactor
    await asyncio.sleep(0.05)
    before = reactor.polls
    await asyncio.sleep(0.2)
    return (reactor.polls - before) / 0.2
