# SPDX-License-Identifier: Apache-2.0
"""A log file: written by a thread of its own, so that no disk makes an event loop wait.

The queue in front of the thread is limited.  What a full or broken disk does
not take is lost, counted, and reported once the file takes lines again.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final

from mailproxy.telemetry.log_writer import CAPACITY, Sink
from mailproxy_config.model import LogLevel

FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Appending: several processes write into one file, each write in one piece."""
MODE: Final = 0o644
_REOPEN: Final = b""


class _Writer:
    """What the thread works with.  It must not hold the sink, whose end is its own end."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.queue: SimpleQueue[bytes | None] = SimpleQueue()
        self.done = 0
        """Bytes that were written or lost; only the thread changes it."""
        self.lost = 0
        """Lines that were lost; only the thread changes it."""
        self.is_healthy = True
        """Whether the last line was written."""
        self.failure: str | None = None
        """Why the file could not be opened anew."""
        self._is_torn = False

    def run(self) -> None:
        """Write until there is no more to come."""
        while (piece := self.queue.get()) is not None:
            if piece is _REOPEN:
                self._reopen()
            else:
                self._write(piece)
                self.done += len(piece)
        os.close(self.fd)

    def _write(self, piece: bytes) -> None:
        rest = b"\n" + piece if self._is_torn else piece
        while rest:
            try:
                sent = os.write(self.fd, rest)
            except OSError:  # the disk is full, or gone
                self.lost += rest.count(b"\n", 1 if rest[:1] == b"\n" else 0)
                self.is_healthy = False
                return
            self._is_torn = rest[sent - 1 : sent] != b"\n"
            rest = rest[sent:]
        self.is_healthy = True

    def _reopen(self) -> None:
        try:
            fd = os.open(self.path, FLAGS, MODE)
        except OSError as error:
            self.failure = os.strerror(error.errno or 0)
            return
        os.close(self.fd)
        self.fd = fd
        self._is_torn = False


class FileSink:
    """A bounded queue of lines in front of a file.

    Attributes:
        dropped: Lines lost since they were last reported.

    Raises:
        OSError: The file cannot be opened for writing.
    """

    def __init__(self, path: str) -> None:
        self._writer = _Writer(path, os.open(path, FLAGS, MODE))
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []
        self._put = 0
        self._known_lost = 0
        self._is_closed = False
        self.dropped = 0

    @property
    def size(self) -> int:
        """Bytes that wait, those that the thread has among them."""
        return self._put - self._writer.done

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed; count what the queue has no room for."""
        del level
        if self._is_closed:
            return
        for line in lines:
            if self.size + len(line) <= CAPACITY:
                self._put += len(line)
                self._lines.append(line)
            else:
                self.dropped += 1

    def flush(self) -> bool:
        """Hand what waits to the thread; returns whether all of it was written, and the last line too."""
        if self._lines:
            if self._thread is None:
                self._thread = threading.Thread(target=self._writer.run, name="log", daemon=True)
                self._thread.start()
            self._writer.queue.put("".join(self._lines).encode("ascii"))
            self._lines.clear()
        lost, self._known_lost = self._writer.lost - self._known_lost, self._writer.lost
        self.dropped += lost
        return not lost and self._writer.is_healthy and self.size == 0

    def reopen(self) -> None:
        """Open the file anew, after what was logged before; it may have been moved away (``SIGUSR1``)."""
        self.flush()
        if self._thread is None:
            self._writer._reopen()  # noqa: SLF001 - there is no thread that could do it
        else:
            self._writer.queue.put(_REOPEN)

    def failure(self) -> str | None:
        """Why the file could not be opened anew, once."""
        failure, self._writer.failure = self._writer.failure, None
        return failure

    def close(self, seconds: float = 0.0) -> None:
        """Write what waits, for at most so many seconds; nothing is written after that."""
        if not self._is_closed:
            self.flush()
            self._end()
            if self._thread is not None:
                self._thread.join(seconds)

    def _end(self) -> None:
        self._is_closed = True
        if self._thread is None:
            os.close(self._writer.fd)
        else:
            self._writer.queue.put(None)

    def __del__(self) -> None:
        if not self.__dict__.get("_is_closed", True):
            self._end()


def open_log(path: str) -> FileSink | Sink:
    """Open a log file; what is no regular file (a pipe, a device) is written like standard error.

    Raises:
        OSError: It cannot be opened for writing.
    """
    fd = os.open(path, FLAGS, MODE)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return FileSink(path)
    return Sink(fd, owns=True)
