# SPDX-License-Identifier: Apache-2.0
"""``mailproxy run``, with the stand-in application in its workers: ``FILE [--workers N]``."""

from __future__ import annotations

import sys
from pathlib import Path

from mailproxy.observe.log import LogFormat
from mailproxy.supervisor.run import run
from mailproxy.supervisor.settings import Settings
from support.processes import ROOT

if __name__ == "__main__":
    sys.exit(
        run(
            Settings(
                file=Path(sys.argv[1]),
                admin_port=0,
                log_format=LogFormat.JSON,
                worker_command=(str(ROOT / "tests/support/standin_worker.py"),),
            )
        )
    )
