# SPDX-License-Identifier: Apache-2.0
"""The log: one line per session when it ends, and one per event worth an administrator's time.

Nothing here knows a password: records have no field for one, ``Secret`` prints
as ``***``, and everything a stranger said is escaped and cut.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from mailproxy.telemetry.log_sinks import LogSink
from mailproxy.telemetry.log_writer import SEVERITY_RANKS, Destinations, LogFormat, LogWriter, Output
from mailproxy_config.model import ErrorLog, LogLevel, ProxyConfig, ServerConfig


class Log(LogWriter):
    """The log of a process, on standard error until a configuration names others.

    Args:
        stream: The descriptor of standard error.
        format: How lines look, in every log.
        level: The least severe level that is written there.
        now: Unix time.
        is_fixed: Whether ``level`` comes from the command line (``--log-level``):
            it then holds for every log, whatever the configuration says.
    """

    def __init__(
        self,
        stream: int,
        format: LogFormat = LogFormat.JSON,
        level: LogLevel = LogLevel.ERROR,
        now: Callable[[], float] = time.time,
        *,
        is_fixed: bool = False,
    ) -> None:
        self._destinations = Destinations(stream)
        super().__init__([Output(self._destinations.standard_error, SEVERITY_RANKS[level])], format, now)
        self._level = level
        self._is_fixed = is_fixed
        self._life = os.urandom(4).hex()
        self._sessions = 0
        self._servers: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next_outputs: Sequence[Output] = ()  # keeps what was opened until it is adopted

    @property
    def level(self) -> LogLevel:
        """The least severe level that is written to standard error; a reload may change it."""
        return self._level

    @level.setter
    def level(self, level: LogLevel) -> None:
        self._level = level
        self.outputs = [Output(self._destinations.standard_error, SEVERITY_RANKS[level])]

    def session_id(self) -> str:
        """Make the next session's name: this process's random one, and a number, both hexadecimal."""
        self._sessions += 1
        return f"{self._life}-{self._sessions:x}"

    # -- what a configuration says

    def open(self, config: ProxyConfig) -> None:
        """Open what a configuration logs to; nothing is written there before ``adopt``.

        This may wait for a disk.

        Raises:
            ConfigError: A file cannot be written to.
        """
        forced = self._level if self._is_fixed else None
        prepared: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next_outputs = self._destinations.outputs(_logs(config), forced)
        for server in config.servers:
            self._writer(prepared, _logs(server))
        self._next = prepared

    def of(self, server: ServerConfig) -> LogWriter:
        """The logs of a server block."""
        return self._writer(self._next, _logs(server))

    def _writer(self, known: dict[Sequence[ErrorLog], LogWriter], logs: Sequence[ErrorLog]) -> LogWriter:
        writer = known.get(logs) or self._servers.get(logs)
        if writer is None:
            outputs = self._destinations.outputs(logs, self._level if self._is_fixed else None)
            writer = LogWriter(outputs, self._format, self._now)
        known[logs] = writer
        return writer

    def adopt(self, config: ProxyConfig, *, notices: bool = False) -> None:
        """Write to the logs of a configuration that runs from now on.

        Args:
            config: What was given to ``open``.
            notices: Whether standard error gets the notices of this process in
                any case.
        """
        self.flush()
        outputs = list(self._destinations.outputs(_logs(config), self._level if self._is_fixed else None))
        if notices and not self._is_fixed:
            outputs = _with_notices(outputs, self._destinations.standard_error)
        self.outputs = outputs
        for logs, writer in self._servers.items():
            writer.is_retired = logs not in self._next
        self._servers, self._next, self._next_outputs = self._next, {}, ()

    def reopen(self) -> None:
        """Open every log file anew (``SIGUSR1``); what cannot be opened goes on as it is."""
        self.flush()
        for sink in self._destinations.sinks():
            sink.reopen()

    def flush(self) -> None:
        """Write what waits in any log of this process, as far as that goes without waiting."""
        self.write_sessions()
        for writer in self._servers.values():
            writer.write_sessions()
        for writer in self._next.values():
            writer.write_sessions()
        for sink in self._destinations.sinks():
            self._flush(sink)
        for path, file in self._destinations.files():
            failure = file.failure()
            if failure is not None:
                self.event(LogLevel.ERROR, "log_not_reopened", path=path, reason=failure)

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits before the process ends, for at most so many seconds."""
        self.flush()
        for sink in self._destinations.sinks():
            sink.close(seconds)


def _logs(config: ProxyConfig | ServerConfig) -> tuple[ErrorLog, ...]:
    """The logs of a configuration; without any, standard error."""
    return config.error_logs or (ErrorLog(level=config.error_log),)


def _with_notices(outputs: Sequence[Output], standard_error: LogSink) -> list[Output]:
    """The same logs, with notices on standard error."""
    others = [each for each in outputs if each.sink is not standard_error]
    ranks = [each.rank for each in outputs if each.sink is standard_error]
    return [*others, Output(standard_error, min([*ranks, SEVERITY_RANKS[LogLevel.NOTICE]]))]


class LibraryLogHandler(logging.Handler):
    """Hands on what libraries tell the standard library's ``logging``: asyncio's complaints above all."""

    _LEVELS: Final = (
        (logging.CRITICAL, LogLevel.CRIT),
        (logging.ERROR, LogLevel.ERROR),
        (logging.WARNING, LogLevel.WARN),
        (logging.INFO, LogLevel.INFO),
    )

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as an event named ``library``."""
        level = next((ours for theirs, ours in self._LEVELS if record.levelno >= theirs), LogLevel.DEBUG)
        if self._log.takes(level):
            self._log.event(level, "library", logger=record.name, text=self.format(record))
