# SPDX-License-Identifier: Apache-2.0
"""The log: one line per session when it ends, and one per event worth an administrator's time.

Nothing here knows a password: records have no field for one, ``Secret`` prints
as ``***``, and everything a stranger said is escaped and cut.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from mailproxy.observe import lines
from mailproxy.observe.escape import Stamp
from mailproxy.observe.record import SessionRecord
from mailproxy.observe.sink import Sink
from mailproxy_config.model import LogLevel

_RANKS: Final = {level: rank for rank, level in enumerate(LogLevel)}
_URGENT: Final = _RANKS[LogLevel.WARN]
_AT_ONCE: Final = 64
"""Sessions whose lines are put together without waiting for somebody to call ``flush``."""
_ENOUGH: Final = 32 * 1024
"""Octets that are written without waiting for somebody to call ``flush``."""


class LogFormat(StrEnum):
    """How lines look (``--log-format``)."""

    JSON = "json"
    TEXT = "text"


class Log:
    """Lines for one descriptor.

    Events below ``level`` are left out.  Session lines are no errors and come
    at every level from ``debug`` to ``error`` (nginx's default, and ours);
    ``crit`` and above silence them.

    Lines are buffered.  Whoever owns the event loop calls ``flush`` about
    every second and when things are quiet; warnings and worse are written at
    once.  Writing never waits: see ``sink``.
    """

    def __init__(
        self,
        stream: int,
        format: LogFormat = LogFormat.JSON,
        level: LogLevel = LogLevel.ERROR,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sink = Sink(stream)
        self._format = format
        self._now = now
        self._stamp = Stamp()
        self._session = lines.json_session if format is LogFormat.JSON else lines.text_session
        self._event = lines.json_event if format is LogFormat.JSON else lines.text_event
        self._life = os.urandom(4).hex()
        self._sessions = 0
        self._ended: list[tuple[SessionRecord, float]] = []
        self.level = level

    @property
    def level(self) -> LogLevel:
        """The least severe level that is written; a reload may change it."""
        return self._level

    @level.setter
    def level(self, level: LogLevel) -> None:
        self._level = level
        self._rank = _RANKS[level]
        self._tells_sessions = self._rank <= _RANKS[LogLevel.ERROR]

    def session_id(self) -> str:
        """Make the next session's name: this process's random one, and a number, both hexadecimal."""
        self._sessions += 1
        return f"{self._life}-{self._sessions:x}"

    def session(self, record: SessionRecord) -> None:
        """Write the line of a session that is over; the record is this log's from now on.

        Lines are put together many at a time: one by one, each would find its
        code and tables driven out of the processor's caches by a whole login.
        """
        if self._tells_sessions:
            ended = self._ended
            ended.append((record, self._now()))
            if len(ended) >= _AT_ONCE:
                self._tell_sessions()
                if self._sink.size > _ENOUGH:
                    self.flush()

    def _tell_sessions(self) -> None:
        if self._ended:
            line, stamp = self._session, self._stamp
            self._sink.put([line(record, stamp(when)) for record, when in self._ended])
            self._ended.clear()

    def takes(self, level: LogLevel, least: LogLevel | None = None) -> bool:
        """Whether an event of this level would be written; for events that are costly to describe."""
        return _RANKS[level] >= (self._rank if least is None else _RANKS[least])

    def event(
        self, level: LogLevel, name: str, /, *, least: LogLevel | None = None, **fields: lines.Field
    ) -> None:
        """Write that something happened.

        Args:
            level: How bad it is.
            name: A fixed word for it, with underscores.
            least: A server's own ``error_log`` level, in place of the log's.
            fields: What is known about it; names are fixed words, values are
                escaped and cut.
        """
        if not self.takes(level, least):
            return
        self._tell_sessions()
        self._sink.put([self._event(level, name, self._stamp(self._now()), fields)])
        if _RANKS[level] >= _URGENT or self._sink.size > _ENOUGH:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as that goes without waiting."""
        self._tell_sessions()
        if self._sink.flush() and self._sink.dropped:
            count, self._sink.dropped = self._sink.dropped, 0
            fields = {"count": count}
            line = self._event(LogLevel.ERROR, "log_lines_dropped", self._stamp(self._now()), fields)
            self._sink.put([line])
            self._sink.flush()

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits before the process ends, for at most so many seconds."""
        self._tell_sessions()
        self._sink.close(seconds)


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
