# SPDX-License-Identifier: Apache-2.0
"""Which logs there are, each open once however many levels and servers write to it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from mailproxy.telemetry.log_files import FileSink, open_log
from mailproxy.telemetry.log_syslog import SyslogSink
from mailproxy.telemetry.log_writer import LogSink, Sink
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ErrorLog, LogLevel, SyslogServer

RANKS: Final = {level: rank for rank, level in enumerate(LogLevel)}
_SESSIONS: Final = RANKS[LogLevel.ERROR]
_STANDARD: Final = {
    "/dev/stderr": 2,
    "/dev/fd/2": 2,
    "/proc/self/fd/2": 2,
    "/dev/stdout": 1,
    "/dev/fd/1": 1,
    "/proc/self/fd/1": 1,
}
_MOST_LINKS: Final = 40

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
        self.standard_error = Sink(standard_error)
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
            sink, rank = self._sink(log), RANKS[level or log.level]
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
            return Sink(target)
        try:
            return open_log(target)
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
