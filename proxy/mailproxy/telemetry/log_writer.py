# SPDX-License-Identifier: Apache-2.0
"""Writes log lines to the outputs of a configuration, each of which is open once.

``Destinations`` opens outputs; ``LogWriter`` formats lines and writes them to
the outputs that take their level.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from weakref import WeakValueDictionary

from mailproxy.telemetry import log_format
from mailproxy.telemetry.log_format import SessionRecord, TimestampFormatter
from mailproxy.telemetry.log_sinks import FileSink, LogSink, StreamSink, SyslogSink, open_log_file
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ErrorLog, LogLevel, SyslogServer

SEVERITY_RANKS: Final = {level: rank for rank, level in enumerate(LogLevel)}
_SESSION_RANK: Final = SEVERITY_RANKS[LogLevel.ERROR]
_STANDARD_STREAMS: Final = {
    "/dev/stderr": 2,
    "/dev/fd/2": 2,
    "/proc/self/fd/2": 2,
    "/dev/stdout": 1,
    "/dev/fd/1": 1,
    "/proc/self/fd/1": 1,
}
_MAX_LINKS: Final = 40
_DEBUG: Final = SEVERITY_RANKS[LogLevel.DEBUG]
_NO_OUTPUT_RANK: Final = len(SEVERITY_RANKS)
_FLUSH_RANK: Final = SEVERITY_RANKS[LogLevel.WARN]
_MAX_PENDING_SESSIONS: Final = 64
"""Ended sessions whose lines are formatted without waiting for ``flush``."""
_FLUSH_SIZE: Final = 32 * 1024
"""Queued bytes that are written without waiting for ``flush``."""

Target = int | str | SyslogServer
"""An inherited descriptor, the path of a file, or a syslog server."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output and its minimum severity; it takes session lines too, unless that is above ``error``."""

    sink: LogSink
    rank: int

    @property
    def takes_sessions(self) -> bool:
        """Whether session lines are written to it."""
        return self.rank <= _SESSION_RANK


class Destinations:
    """The open outputs of one process.

    An output is closed when no writer uses it any more: sessions of a replaced
    configuration still write to its logs.

    Args:
        standard_error: The descriptor of standard error, which is always open.
    """

    def __init__(self, standard_error: int) -> None:
        self.standard_error = StreamSink(standard_error)
        self._standard_error_fd = standard_error
        self._open: WeakValueDictionary[Target, LogSink] = WeakValueDictionary()
        self._lock = threading.Lock()  # files are opened in a thread, while lines are flushed
        self._hostname = socket.gethostname()

    def outputs(self, logs: Sequence[ErrorLog], level: LogLevel | None = None) -> tuple[Output, ...]:
        """Open outputs, or return those that are open already.

        Args:
            logs: The configured logs; of duplicates, the lowest level is used.
            level: Replaces each log's own level.

        Raises:
            ConfigError: A file cannot be written to.
        """
        ranks: dict[int, tuple[LogSink, int]] = {}
        for log in logs:
            sink, rank = self._sink(log), SEVERITY_RANKS[level or log.level]
            _, known = ranks.get(id(sink), (sink, rank))
            ranks[id(sink)] = sink, min(known, rank)
        return tuple(Output(sink, rank) for sink, rank in ranks.values())

    def sinks(self) -> Iterable[LogSink]:
        """Return every open output."""
        with self._lock:
            return {id(sink): sink for sink in (self.standard_error, *self._open.values())}.values()

    def files(self) -> Iterable[tuple[str, FileSink]]:
        """Return every open log file, with its path."""
        with self._lock:
            return [(str(key), sink) for key, sink in self._open.items() if isinstance(sink, FileSink)]

    def _sink(self, log: ErrorLog) -> LogSink:
        if log.file is None and log.syslog is None:
            return self.standard_error
        target = log.syslog or _resolve_links(log.file or "")
        if target == 2:
            return self.standard_error
        sink = self._open.get(target)
        if sink is None:
            sink = self._opened(target)
            with self._lock:
                self._open[target] = sink
        return sink

    def _opened(self, target: Target) -> LogSink:
        if isinstance(target, SyslogServer):
            return SyslogSink(target, hostname=self._hostname)
        if isinstance(target, int):
            return StreamSink(target)
        try:
            return open_log_file(target)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(
                [
                    Problem(
                        "error_log",
                        f'cannot open "{target}": {reason}; '
                        'name a file that this user may write, or "error_log stderr"',
                    )
                ]
            ) from error


def _resolve_links(path: str) -> int | str:
    """Follow links: a log file is often a link to ``/dev/stderr``, which not every process may open."""
    for _ in range(_MAX_LINKS):
        if path in _STANDARD_STREAMS:
            return _STANDARD_STREAMS[path]
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except (OSError, ValueError):
            break
    return path


class LogFormat(StrEnum):
    """The format of log lines (``--log-format``)."""

    JSON = "json"
    TEXT = "text"


class LogWriter:
    """Writes lines to one set of outputs: those of the process, or those of a server block.

    An output takes events from its level on.  Session lines are written at
    every level from ``debug`` to ``error`` (the default, as in nginx), but not
    at ``crit`` and above.  The line of a session in which the client sent
    nothing is written at ``debug`` only.

    Lines are buffered.  The worker and the supervisor call ``flush`` about
    every second and when idle; warnings and worse are written at once.
    Writing never blocks: see ``log_sinks``.
    """

    def __init__(self, outputs: Sequence[Output], format: LogFormat, now: Callable[[], float]) -> None:
        self._format = format
        self._now = now
        self._format_time = TimestampFormatter().format
        self._session = log_format.json_session if format is LogFormat.JSON else log_format.text_session
        self._event = log_format.json_event if format is LogFormat.JSON else log_format.text_event
        self._ended_sessions: list[tuple[SessionRecord, float]] = []
        self.is_retired = False
        self.outputs = outputs

    @property
    def outputs(self) -> Sequence[Output]:
        """The outputs."""
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: Sequence[Output]) -> None:
        self.write_sessions()  # to the outputs that were chosen for them
        self._outputs = tuple(outputs)
        self._sinks = tuple({id(each.sink): each.sink for each in outputs}.values())
        self._rank = min((each.rank for each in outputs), default=_NO_OUTPUT_RANK)
        self._takes_sessions = any(each.takes_sessions for each in outputs)

    def session(self, record: SessionRecord) -> None:
        """Write the line of an ended session; the record must not change after this.

        Lines are formatted in batches: one by one, each would find its code
        and tables evicted from the CPU caches by a whole login.
        """
        if self._takes_sessions and (not record.is_silent or self._rank == _DEBUG):
            ended = self._ended_sessions
            ended.append((record, self._now()))
            if len(ended) >= _MAX_PENDING_SESSIONS or self.is_retired:
                self.write_sessions()
                if self.is_retired or self._sinks[0].size > _FLUSH_SIZE:
                    self.flush()

    def write_sessions(self) -> None:
        """Format the lines of ended sessions; ``flush`` calls this first."""
        ended = self._ended_sessions
        if not ended:
            return
        format_line, format_time = self._session, self._format_time
        lines = loud = [format_line(record, format_time(when)) for record, when in ended]
        if self._rank == _DEBUG:  # else there are no silent sessions
            loud = [line for line, (record, _) in zip(lines, ended, strict=True) if not record.is_silent]
        for output in self._outputs:
            if output.takes_sessions:
                output.sink.put(lines if output.rank == _DEBUG else loud)
        ended.clear()

    def takes(self, level: LogLevel) -> bool:
        """Return whether an event of this level would be written; for events whose fields are costly."""
        return SEVERITY_RANKS[level] >= self._rank

    def event(self, level: LogLevel, name: str, /, **fields: log_format.Field) -> None:
        """Write an event.

        Args:
            level: Its severity.
            name: Its fixed name, with underscores.
            fields: Its details; names are fixed, values are escaped and
                truncated.
        """
        rank = SEVERITY_RANKS[level]
        if rank < self._rank:
            return
        self.write_sessions()
        line = [self._event(level, name, self._format_time(self._now()), fields)]
        for output in self._outputs:
            if rank >= output.rank:
                output.sink.put(line, level)
        if rank >= _FLUSH_RANK or self.is_retired or self._sinks[0].size > _FLUSH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write queued lines, as far as that does not block."""
        self.write_sessions()
        for sink in self._sinks:
            self._flush(sink)

    def _flush(self, sink: LogSink) -> None:
        if sink.flush() and sink.dropped:
            count, sink.dropped = sink.dropped, 0
            fields = {"count": count}
            line = self._event(LogLevel.ERROR, "log_lines_dropped", self._format_time(self._now()), fields)
            sink.put([line], LogLevel.ERROR)
            sink.flush()
