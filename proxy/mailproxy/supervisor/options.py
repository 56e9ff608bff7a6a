# SPDX-License-Identifier: Apache-2.0
"""The options of ``mailproxy run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mailproxy.telemetry.log_writer import LogFormat
from mailproxy_config.model import LogLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of ``mailproxy run``.

    Attributes:
        file: The configuration.
        workers: A number or ``auto``; ``None`` for that of the configuration.
        admin_address: The address of the admin endpoint.
        admin_port: Its port; 0 for any free one.
        log_format: The format of log lines.
        log_level: The least severe level that is logged; ``None`` for the
            level of the configuration's ``error_log``, except that the
            supervisor's own notices are always logged.
        worker_module: The name of the module that a worker process runs; see ``fork_server.WorkerModule``.
    """

    file: Path
    workers: int | Literal["auto"] | None = None
    admin_address: str = "127.0.0.1"
    admin_port: int = 9113
    log_format: LogFormat = LogFormat.JSON
    log_level: LogLevel | None = None
    worker_module: str = "mailproxy.worker"
