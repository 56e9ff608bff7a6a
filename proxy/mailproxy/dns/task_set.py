# SPDX-License-Identifier: Apache-2.0
"""The owner of the tasks that look names up.

Look-ups are begun by sessions, which are not tasks and cannot hold a task group
open; so the resolver owns what it begins, for as long as it lives itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class TaskSet:
    """Holds tasks until they end, and ends them with itself.

    An exception that escapes from one is a bug; the loop's exception handler is told.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something.  There must be a running loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel what still runs, and see it end."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            context = {"message": "a look-up broke down", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
