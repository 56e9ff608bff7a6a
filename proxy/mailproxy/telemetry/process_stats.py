# SPDX-License-Identifier: Apache-2.0
"""What the operating system says about this process: memory, descriptors, CPU time.

Reads ``/proc`` where there is one; figures that cannot be had are left out.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from mailproxy.telemetry import definitions

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_FDS = Path("/proc/self/fd")


def process_figures() -> dict[str, int]:
    """Measure this process.

    Returns:
        Values by metric name: bytes, counts, and nanoseconds for CPU time.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    figures = {
        definitions.PROCESS_CPU.name: time.process_time_ns(),
        definitions.PROCESS_MAX_FDS.name: limit if limit != resource.RLIM_INFINITY else 2**31,
    }
    try:
        figures[definitions.PROCESS_MEMORY.name] = int(_STATM.read_bytes().split()[1]) * _PAGE
        # Linux 6.2 and later tell the number as the size; listing costs a millisecond per ten thousand.
        figures[definitions.PROCESS_FDS.name] = _FDS.stat().st_size or len(os.listdir(_FDS))
    except OSError:
        pass
    return figures
