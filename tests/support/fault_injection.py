# SPDX-License-Identifier: Apache-2.0
"""Exceptions injected into the proxy's own functions, and what must hold after one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from mailproxy.app import App
from support import invariants
from support.loopback_worker import LoopbackWorker
from support.streams import abort

SECRET_TEXT: Final = "text-that-must-not-be-logged"
Inject = Callable[[], None]


class Fault(Exception):
    """The injected exception; its text must not be logged."""


def inject_fault(monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]) -> Inject:
    """Patch a function so that it raises at its next call after the returned function was called."""
    holder, name = where
    original = getattr(holder, name)
    broken: list[bool] = []

    def once(*arguments: Any, **named: Any) -> Any:
        if broken and broken.pop():
            raise Fault(SECRET_TEXT)
        return original(*arguments, **named)

    is_bound = getattr(original, "__self__", None) is not None
    monkeypatch.setattr(holder, name, staticmethod(once) if is_bound else once)
    return lambda: broken.append(True)


def close_peers(w: LoopbackWorker) -> None:
    """Close the connections of the test itself."""
    for writer in (*w.writers, *w.upstream.writers, *w.auth.writers):
        abort(writer)


async def descriptors(app: App, expected: int) -> int:
    """Return the number of open descriptors, kept pipes excluded; waits until there are ``expected``."""
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
