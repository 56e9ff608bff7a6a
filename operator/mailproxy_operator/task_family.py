# SPDX-License-Identifier: Apache-2.0
"""Which tasks were begun by whom: so that all of somebody's can be ended, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

_current: ContextVar[TaskFamily | None] = ContextVar("task_family", default=None)


class TaskFamily:
    """The tasks that were begun in ``with family.begun():``, and whatever they have begun themselves."""

    def __init__(self) -> None:
        self._alive: set[asyncio.Task[Any]] = set()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Count what is begun here."""
        asyncio.get_running_loop().set_task_factory(_FACTORY)
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    async def end(self, patience: float) -> None:
        """Cancel them all, and wait for them and for whatever they begin in order to tidy up.

        Args:
            patience: Seconds; whoever takes longer is left behind.
        """
        for task in list(self._alive):
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._alive:
                    await asyncio.wait(self._alive)

    def add(self, task: asyncio.Task[Any]) -> None:
        """Count a task until it ends; what became of it is for whoever waits for it."""
        self._alive.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._alive.discard(task)
        if not task.cancelled():
            task.exception()


def _make(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    **more: Any,  # noqa: ANN401  asyncio's own
) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, **more)
    family = _current.get()
    if family is not None:
        family.add(task)
    return task


_FACTORY: Any = _make  # the type of factories has changed from one Python to the next
