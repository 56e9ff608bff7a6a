# SPDX-License-Identifier: Apache-2.0
"""``mailproxy run``, with the stand-in application in its workers: ``FILE [LATE HUNG]``.

A worker is late or hung after so many silent seconds, the real number where none is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mailproxy.supervisor import child_process
from mailproxy.supervisor.options import RunOptions
from mailproxy.supervisor.supervisor import run
from mailproxy.telemetry.log_writer import LogFormat
from support.worker_processes import WORKER

if __name__ == "__main__":
    if sys.argv[2:]:
        child_process.LATE_SECONDS, child_process.HUNG_SECONDS = map(float, sys.argv[2:])  # type: ignore[misc]
    sys.exit(
        run(
            RunOptions(
                file=Path(sys.argv[1]),
                admin_port=0,
                log_format=LogFormat.JSON,
                worker_module=WORKER,
            )
        )
    )
