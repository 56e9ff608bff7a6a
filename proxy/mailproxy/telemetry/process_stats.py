# SPDX-License-Identifier: Apache-2.0
"""Memory, descriptors and CPU time of this process.

Reads ``/proc``; values that are not available are left out.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from mailproxy.telemetry import definitions

_PAGE = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")
FDS = Path("/proc/self/fd")


def process_stats() -> dict[str, int]:
    """Measure this process.

    Returns:
        Values by metric name: bytes, counts, and nanoseconds for CPU time.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    values = {
        definitions.PROCESS_CPU.name: time.process_time_ns(),
        definitions.PROCESS_MAX_FDS.name: limit if limit != resource.RLIM_INFINITY else 2**31,
    }
    try:
        values[definitions.PROCESS_MEMORY.name] = int(STATM.read_bytes().split()[1]) * _PAGE
        # In Linux 6.2 and later the size is the number of entries; listing takes 1 ms per 10,000.
        values[definitions.PROCESS_FDS.name] = FDS.stat().st_size or len(os.listdir(FDS))
    except OSError:
        pass
    return values
