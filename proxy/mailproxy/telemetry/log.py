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
from enum import StrEnum
from typing import Final

from mailproxy.telemetry import log_format
from mailproxy.telemetry.escape import Stamp
from mailproxy.telemetry.log_destinations import RANKS, Destinations, Output
from mailproxy.telemetry.log_writer import LogSink
from mailproxy.telemetry.session_record import SessionRecord
from mailproxy_config.model import ErrorLog, LogLevel, ProxyConfig, ServerConfig

_DEBUG: Final = RANKS[LogLevel.DEBUG]
_NOTHING: Final = len(RANKS)
_URGENT: Final = RANKS[LogLevel.WARN]
_AT_ONCE: Final = 64
"""Sessions whose lines are put together without waiting for somebody to call ``flush``."""
_ENOUGH: Final = 32 * 1024
"""Bytes that are written without waiting for somebody to call ``flush``."""


class LogFormat(StrEnum):
    """How lines look (``--log-format``)."""

    JSON = "json"
    TEXT = "text"


class LogWriter:
    """Lines for one set of logs: those of the process, or those of a server block.

    A log takes the events from its level on.  Session lines are no errors and
    come at every level from ``debug`` to ``error`` (nginx's default, and
    ours); ``crit`` and above leave them out.  The line of a session in which
    the client sent nothing comes at ``debug`` alone.

    Lines are buffered.  Whoever owns the event loop calls ``flush`` about
    every second and when things are quiet; warnings and worse are written at
    once.  Writing never waits: see ``sink`` and ``file_sink``.
    """

    def __init__(self, outputs: Sequence[Output], format: LogFormat, now: Callable[[], float]) -> None:
        self._format = format
        self._now = now
        self._stamp = Stamp()
        self._session = log_format.json_session if format is LogFormat.JSON else log_format.text_session
        self._event = log_format.json_event if format is LogFormat.JSON else log_format.text_event
        self._ended: list[tuple[SessionRecord, float]] = []
        self.is_retired = False
        self.outputs = outputs

    @property
    def outputs(self) -> Sequence[Output]:
        """The logs."""
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: Sequence[Output]) -> None:
        self._outputs = tuple(outputs)
        self._sinks = tuple({id(each.sink): each.sink for each in outputs}.values())
        self._rank = min((each.rank for each in outputs), default=_NOTHING)
        self._takes_sessions = any(each.takes_sessions for each in outputs)

    def session(self, record: SessionRecord) -> None:
        """Write the line of a session that is over; the record is this log's from now on.

        Lines are put together many at a time: one by one, each would find its
        code and tables driven out of the processor's caches by a whole login.
        """
        if self._takes_sessions and (not record.is_silent or self._rank == _DEBUG):
            ended = self._ended
            ended.append((record, self._now()))
            if len(ended) >= _AT_ONCE or self.is_retired:
                self.write_sessions()
                if self.is_retired or self._sinks[0].size > _ENOUGH:
                    self.flush()

    def write_sessions(self) -> None:
        """Put the lines of ended sessions together; ``flush`` does that first."""
        if self._ended:
            line, stamp = self._session, self._stamp
            written = [line(record, stamp(when)) for record, when in self._ended]
            for output in self._outputs:
                if output.rank == _DEBUG:
                    output.sink.put(written)
                elif output.takes_sessions:
                    output.sink.put(
                        [
                            text
                            for text, (record, _) in zip(written, self._ended, strict=True)
                            if not record.is_silent
                        ]
                    )
            self._ended.clear()

    def takes(self, level: LogLevel) -> bool:
        """Whether an event of this level would be written; for events that are costly to describe."""
        return RANKS[level] >= self._rank

    def event(self, level: LogLevel, name: str, /, **fields: log_format.Field) -> None:
        """Write that something happened.

        Args:
            level: How bad it is.
            name: A fixed word for it, with underscores.
            fields: What is known about it; names are fixed words, values are
                escaped and cut.
        """
        rank = RANKS[level]
        if rank < self._rank:
            return
        self.write_sessions()
        line = [self._event(level, name, self._stamp(self._now()), fields)]
        for output in self._outputs:
            if rank >= output.rank:
                output.sink.put(line, level)
        if rank >= _URGENT or self.is_retired or self._sinks[0].size > _ENOUGH:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as that goes without waiting."""
        self.write_sessions()
        for sink in self._sinks:
            self._flush(sink)

    def _flush(self, sink: LogSink) -> None:
        if sink.flush() and sink.dropped:
            count, sink.dropped = sink.dropped, 0
            fields = {"count": count}
            line = self._event(LogLevel.ERROR, "log_lines_dropped", self._stamp(self._now()), fields)
            sink.put([line], LogLevel.ERROR)
            sink.flush()


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
        super().__init__([Output(self._destinations.standard_error, RANKS[level])], format, now)
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
        self.outputs = [Output(self._destinations.standard_error, RANKS[level])]

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
    return [*others, Output(standard_error, min([*ranks, RANKS[LogLevel.NOTICE]]))]


class Bridge(logging.Handler):
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
