# SPDX-License-Identifier: Apache-2.0
"""A child process: its end is noticed, and its number is not used after that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from typing import Final

UNKNOWN: Final = 255
"""Stands for an exit code that somebody else took."""


class ChildProcess:
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


LOOK_SECONDS: Final = 1.0
"""How often to look."""

LATE_SECONDS: Final = 12.0
"""Silence after which a worker is late: two reports, due every 5 seconds, did not come."""

HUNG_SECONDS: Final = 30.0
"""Silence after which a worker that does not run is taken for hung."""

SPIN_SECONDS: Final = 30.0
"""CPU time after which a worker that runs without reporting is taken for hung."""

HUNG_AT_ANY_RATE_SECONDS: Final = 300.0
"""Silence after which a worker is taken for hung, unless it is loading a configuration."""

_IDLE_SHARE: Final = 0.001
"""A process that used less than this share of the time did not run."""


class Heartbeat:
    """The signs of life of one process.

    Args:
        pid: The process.

    Attributes:
        silence: Seconds, in looks, since the last sign.
    """

    def __init__(self, pid: int) -> None:
        self.silence = 0.0
        self._pid = pid
        self._ran_before: float | None = None

    def beat(self) -> None:
        """Note a sign of life."""
        self.silence = 0.0
        self._ran_before = None

    def look(self) -> None:
        """Note that another look found no new sign; call this every ``LOOK_SECONDS``."""
        if self.silence == 0:
            self._ran_before = cpu_seconds(self._pid)
        self.silence += LOOK_SECONDS

    @property
    def is_late(self) -> bool:
        """Whether signs that were due did not come."""
        return self.silence >= LATE_SECONDS

    def is_hung(self, *, is_loading: bool) -> bool:
        """Return whether the process will not come back by itself.

        Args:
            is_loading: Whether it has been given a configuration and has not
                answered yet; that takes as long as it takes while it runs.
        """
        if self.silence < HUNG_SECONDS:
            return False
        if self.silence >= HUNG_AT_ANY_RATE_SECONDS and not is_loading:
            return True
        now = cpu_seconds(self._pid)
        if now is None or self._ran_before is None:
            return self.silence >= HUNG_AT_ANY_RATE_SECONDS
        ran = now - self._ran_before
        return ran < self.silence * _IDLE_SHARE or ran >= SPIN_SECONDS


def cpu_seconds(pid: int) -> float | None:
    """Read the CPU time that a process has used (clock_getcpuclockid(3)); ``None`` where there is none."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return None
