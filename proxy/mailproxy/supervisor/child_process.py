# SPDX-License-Identifier: Apache-2.0
"""A child process: its exit, and whether it still works.

``ChildProcess`` waits for the exit, and does not use the process ID after it.

``Heartbeat`` decides whether a process hangs.  Silence alone does not show
that: on a busy machine, or with a small CPU limit, a process may wait long
for a processor.  So its CPU time is read too.  A silent process hangs if it
does not run at all (it is stopped, or waits for something that does not
come), or if it uses CPU without returning to its event loop.

Time is counted in the supervisor's own checks.  When the supervisor itself
was stopped (a suspended machine, SIGSTOP), the gap counts as one check.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from typing import Final

UNKNOWN: Final = 255
"""The exit code of a process that was reaped elsewhere."""


class ChildProcess:
    """A child of this process.

    A thread waits for it and the event loop reaps it, so that ``kill`` cannot
    hit another process that was given the same process ID.  asyncio's own
    subprocesses lose the exit code of a process that is killed at the wrong
    moment.

    Args:
        pid: Its process ID.

    Attributes:
        pid: Its process ID.
        exit_code: The exit code, negative for a signal, ``None`` while it runs.
        exited: Set when it has exited.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name=f"child-{pid}", daemon=True).start()

    def kill(self) -> None:
        """Send SIGKILL, unless it has exited."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):  # it was reaped elsewhere
                os.kill(self.pid, signal.SIGKILL)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        try:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.exit_code = UNKNOWN
        self.exited.set()


CHECK_SECONDS: Final = 1.0
"""Interval between two checks."""

LATE_SECONDS: Final = 12.0
"""Silence after which a worker is unresponsive: two reports, due every 5 seconds, did not come."""

HUNG_SECONDS: Final = 30.0
"""Silence after which a worker that uses no CPU time hangs."""

HUNG_CPU_SECONDS: Final = 30.0
"""CPU time after which a silent worker that uses the CPU hangs."""

HUNG_LIMIT_SECONDS: Final = 300.0
"""Silence after which a worker hangs in any case, unless it is loading a configuration."""

_IDLE_SHARE: Final = 0.001
"""A process that used less than this share of the time is idle."""


class Heartbeat:
    """When a process last sent a message, and its CPU time since then.

    Args:
        pid: The process ID.

    Attributes:
        silent_seconds: Seconds since the last message, counted in checks.
    """

    def __init__(self, pid: int) -> None:
        self.silent_seconds = 0.0
        self._pid = pid
        self._cpu_before: float | None = None

    def beat(self) -> None:
        """Record a message."""
        self.silent_seconds = 0.0
        self._cpu_before = None

    def check(self) -> None:
        """Record that no message came since the last check; call this every ``CHECK_SECONDS``."""
        if self.silent_seconds == 0:
            self._cpu_before = cpu_seconds(self._pid)
        self.silent_seconds += CHECK_SECONDS

    @property
    def is_late(self) -> bool:
        """Whether messages that were due did not come."""
        return self.silent_seconds >= LATE_SECONDS

    def is_hung(self, *, is_loading: bool) -> bool:
        """Return whether the process must be killed.

        Args:
            is_loading: Whether it is applying a configuration; then it may be
                silent for any time in which it uses the CPU.
        """
        if self.silent_seconds < HUNG_SECONDS:
            return False
        if self.silent_seconds >= HUNG_LIMIT_SECONDS and not is_loading:
            return True
        now = cpu_seconds(self._pid)
        if now is None or self._cpu_before is None:
            return self.silent_seconds >= HUNG_LIMIT_SECONDS
        ran = now - self._cpu_before
        return ran < self.silent_seconds * _IDLE_SHARE or ran >= HUNG_CPU_SECONDS


def cpu_seconds(pid: int) -> float | None:
    """Read the CPU time that a process has used (clock_getcpuclockid(3)); ``None`` where there is none."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return None
