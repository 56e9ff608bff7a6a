# SPDX-License-Identifier: Apache-2.0
"""A child process: its end is noticed, and its number is not used after that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import Final

UNKNOWN: Final = 255
"""Stands for an exit code that somebody else took."""


class Child:
    """A child process of ours.

    It is waited for in a thread and reaped on the event loop, so that
    ``kill`` cannot hit another process that was given the same number.
    asyncio's own subprocesses lose the exit code of one that is killed at the
    wrong moment.

    Args:
        pid: Its number.

    Attributes:
        pid: Its number.
        exit_code: The exit code, negative for a signal, ``None`` while it runs.
        over: Set when it has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.over = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name=f"child-{pid}", daemon=True).start()

    def kill(self) -> None:
        """End it by force."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):  # somebody else took its exit code
                os.kill(self.pid, signal.SIGKILL)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        try:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.exit_code = UNKNOWN
        self.over.set()
