# SPDX-License-Identifier: Apache-2.0
"""Whether a process still does its work: how long it has been silent, and whether it ran meanwhile.

Silence alone does not show that a process hangs: on a busy machine, or with a
small CPU limit, it may wait long for a processor.  So its CPU time is read
too.  A process that is silent hangs if it does not run at all (it is stopped,
or waits for something that does not come), or if it runs and runs without
coming back to its event loop.

Time is counted in the observer's own looks.  When the observer itself was
stopped (a suspended machine, SIGSTOP), the gap counts as one look.
"""

from __future__ import annotations

import time
from typing import Final

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
