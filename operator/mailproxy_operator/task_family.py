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
        self._alive: dict[asyncio.Task[Any], asyncio.Task[Any] | None] = {}

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
        """Cancel them all, parents before their children: whoever tidies up needs its helpers for that.

        Args:
            patience: Seconds; whoever takes longer is left behind.
        """
        asked: set[asyncio.Task[Any]] = set()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._alive:
                    orphans = {task for task, parent in self._alive.items() if parent not in self._alive}
                    for task in orphans - asked:
                        task.cancel()
                    asked |= orphans
                    await asyncio.wait(self._alive, return_when=asyncio.FIRST_COMPLETED)

    def add(self, task: asyncio.Task[Any], parent: asyncio.Task[Any] | None) -> None:
        """Count a task until it ends; what became of it is for whoever waits for it."""
        self._alive[task] = parent
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._alive.pop(task, None)
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
        family.add(task, asyncio.current_task(loop) if loop.is_running() else None)
    return task


_FACTORY: Any = _make  # the type of factories has changed from one Python to the next
