# SPDX-License-Identifier: Apache-2.0
"""The log: one line per session when it ends, and one per event.

No password is ever logged: records have no field for one, ``Secret`` prints as
``***``, and everything that a client sent is escaped and truncated.
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

_WRITE_POLL_SECONDS: Final = 0.05


class Log(LogWriter):
    """The log of a process, on standard error until a configuration names others.

    Args:
        stream: The descriptor of standard error.
        format: The format of all logs.
        level: The least severe level that is written to standard error.
        now: Returns the Unix time.
        is_fixed: Whether ``level`` is that of the command line (``--log-level``),
            which replaces the level of every log in the configuration.
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
        self._session_prefix = f"{os.urandom(4).hex()}-"
        self._sessions = 0
        self._servers: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next_outputs: Sequence[Output] = ()  # keeps open what is not adopted yet

    @property
    def level(self) -> LogLevel:
        """The least severe level that is written to standard error; a reload may change it."""
        return self._level

    @level.setter
    def level(self, level: LogLevel) -> None:
        self._level = level
        self.outputs = [Output(self._destinations.standard_error, SEVERITY_RANKS[level])]

    def session_id(self) -> str:
        """Return the ID of the next session: a random number of this process and a counter, in hex."""
        self._sessions += 1
        return self._session_prefix + hex(self._sessions)[2:]

    # -- the logs of a configuration

    def open(self, config: ProxyConfig) -> None:
        """Open the logs of a configuration; they are used after ``adopt``.

        This may block on a disk.

        Raises:
            ConfigError: A file cannot be written to.
        """
        forced = self._level if self._is_fixed else None
        prepared: dict[Sequence[ErrorLog], LogWriter] = {}
        self._next_outputs = self._destinations.outputs(_configured_logs(config), forced)
        for server in config.servers:
            self._writer(prepared, _configured_logs(server))
        self._next = prepared

    def for_server(self, server: ServerConfig) -> LogWriter:
        """Return the log of a server block."""
        return self._writer(self._next, _configured_logs(server))

    def _writer(self, known: dict[Sequence[ErrorLog], LogWriter], logs: Sequence[ErrorLog]) -> LogWriter:
        writer = known.get(logs) or self._servers.get(logs)
        if writer is None:
            outputs = self._destinations.outputs(logs, self._level if self._is_fixed else None)
            writer = LogWriter(outputs, self._format, self._now)
        known[logs] = writer
        return writer

    def adopt(self, config: ProxyConfig, *, notices: bool = False) -> None:
        """Use the logs of a configuration from now on.

        Args:
            config: The argument of the last ``open``.
            notices: Whether notices are written to standard error in any case.
        """
        self.flush()
        outputs = list(
            self._destinations.outputs(_configured_logs(config), self._level if self._is_fixed else None)
        )
        if notices and not self._is_fixed:
            outputs = _with_notices(outputs, self._destinations.standard_error)
        self.outputs = outputs
        for logs, writer in self._servers.items():
            writer.is_retired = logs not in self._next
        self._servers, self._next, self._next_outputs = self._next, {}, ()

    def reopen(self) -> None:
        """Reopen every log file (``SIGUSR1``); the old file stays in use where that fails."""
        self.flush()
        for sink in self._destinations.sinks():
            sink.reopen()

    def flush(self) -> None:
        """Write the queued lines of all logs, as far as that does not block."""
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
        """Write the queued lines before the process exits, for at most ``seconds``.

        Lines that were dropped are reported behind those that were queued.
        """
        deadline = time.monotonic() + seconds
        self.flush()
        stream = self._destinations.standard_error
        while stream.size and time.monotonic() < deadline:
            stream.wait(_WRITE_POLL_SECONDS)
            self.flush()
        for sink in self._destinations.sinks():
            sink.close(max(deadline - time.monotonic(), 0.0))


def _configured_logs(config: ProxyConfig | ServerConfig) -> tuple[ErrorLog, ...]:
    """Return the logs of a configuration; standard error where there are none."""
    return config.error_logs or (ErrorLog(level=config.error_log),)


def _with_notices(outputs: Sequence[Output], standard_error: LogSink) -> list[Output]:
    """Return the same logs, with notices on standard error."""
    others = [each for each in outputs if each.sink is not standard_error]
    ranks = [each.rank for each in outputs if each.sink is standard_error]
    return [*others, Output(standard_error, min([*ranks, SEVERITY_RANKS[LogLevel.NOTICE]]))]


class LibraryLogHandler(logging.Handler):
    """Writes records of the standard library's ``logging`` to the log: those of asyncio, above all."""

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
