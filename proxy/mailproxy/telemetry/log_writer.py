# SPDX-License-Identifier: Apache-2.0
"""Which logs there are, each open once however many levels and servers write to it."""

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
_SESSIONS: Final = SEVERITY_RANKS[LogLevel.ERROR]
_STANDARD: Final = {
    "/dev/stderr": 2,
    "/dev/fd/2": 2,
    "/proc/self/fd/2": 2,
    "/dev/stdout": 1,
    "/dev/fd/1": 1,
    "/proc/self/fd/1": 1,
}
_MOST_LINKS: Final = 40
_DEBUG: Final = SEVERITY_RANKS[LogLevel.DEBUG]
_NOTHING: Final = len(SEVERITY_RANKS)
_URGENT: Final = SEVERITY_RANKS[LogLevel.WARN]
_AT_ONCE: Final = 64
"""Sessions whose lines are put together without waiting for somebody to call ``flush``."""
_ENOUGH: Final = 32 * 1024
"""Bytes that are written without waiting for somebody to call ``flush``."""

Target = int | str | SyslogServer
"""A descriptor that we were started with, the path of a file, or a syslog server."""


@dataclass(frozen=True, slots=True)
class Output:
    """One log and what it takes: events from a level on, and session lines unless that is above ``error``."""

    sink: LogSink
    rank: int

    @property
    def takes_sessions(self) -> bool:
        """Whether lines about sessions are written here."""
        return self.rank <= _SESSIONS


class Destinations:
    """The open logs of one process.

    A log is closed when nothing that writes to it is left: sessions of a
    configuration that was replaced go on writing to its logs.

    Args:
        standard_error: The descriptor of the log that is always there.
    """

    def __init__(self, standard_error: int) -> None:
        self.standard_error = StreamSink(standard_error)
        self._standard_error_fd = standard_error
        self._open: WeakValueDictionary[Target, LogSink] = WeakValueDictionary()
        self._lock = threading.Lock()  # files are opened in a thread, while lines are flushed
        self._hostname = socket.gethostname()

    def outputs(self, logs: Sequence[ErrorLog], level: LogLevel | None = None) -> tuple[Output, ...]:
        """Open logs, or give those that are open already.

        Args:
            logs: What is wanted; of several that are the same, the one that takes most counts.
            level: What counts instead of each log's own level.

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
        """Every log that is open."""
        with self._lock:
            return {id(sink): sink for sink in (self.standard_error, *self._open.values())}.values()

    def files(self) -> Iterable[tuple[str, FileSink]]:
        """Every log file that is open, with its path."""
        with self._lock:
            return [(str(key), sink) for key, sink in self._open.items() if isinstance(sink, FileSink)]

    def _sink(self, log: ErrorLog) -> LogSink:
        if log.file is None and log.syslog is None:
            return self.standard_error
        target = log.syslog or _followed(log.file or "")
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


def _followed(path: str) -> int | str:
    """Follow links: a log file is often a link to ``/dev/stderr``, which cannot always be opened."""
    for _ in range(_MOST_LINKS):
        if path in _STANDARD:
            return _STANDARD[path]
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        except (OSError, ValueError):
            break
    return path


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
        self._stamp = TimestampFormatter()
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
        return SEVERITY_RANKS[level] >= self._rank

    def event(self, level: LogLevel, name: str, /, **fields: log_format.Field) -> None:
        """Write that something happened.

        Args:
            level: How bad it is.
            name: A fixed word for it, with underscores.
            fields: What is known about it; names are fixed words, values are
                escaped and cut.
        """
        rank = SEVERITY_RANKS[level]
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
