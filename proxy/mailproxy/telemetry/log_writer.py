# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: whole, in pieces that a pipe takes at once, and never at the price of waiting.

A reader that does not read costs lines, which are counted, and nothing else.
What was inherited is opened anew where that is possible, because making it
non-blocking would make it so for everybody who shares it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from mailproxy_config.model import LogLevel

PIECE: Final = 4096
"""Bytes per write; at most so many go into a pipe undivided (``PIPE_BUF``, pipe(7))."""
CAPACITY: Final = 256 * 1024
"""Bytes that may wait for a slow reader."""

Writer = Callable[[bytes], int]


def _nothing() -> None:
    pass


def _closed(_: bytes) -> int:
    raise OSError(errno.EBADF, "closed")


def _writer(fd: int) -> tuple[Writer, Callable[[], None]]:
    """Find the way to write to a descriptor that never waits, and how to let go of it."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return (lambda piece: os.write(fd, piece)), _nothing
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(fd))
        return (lambda piece: peer.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)), peer.close
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY)
    except OSError:  # somebody else's (a container's output, often), or no /proc
        return _shared(fd, mode), _nothing
    return (lambda piece: os.write(own, piece)), lambda: os.close(own)


def _shared(fd: int, mode: int) -> Writer:
    """Write to a descriptor that cannot be opened anew.

    A pipe into somebody else's hands is shared with processes of ours alone,
    so it may become non-blocking.  A terminal is shared with a shell, which
    would suffer; so poll(2) has to promise room.
    """
    if stat.S_ISFIFO(mode):
        os.set_blocking(fd, False)
        return lambda piece: os.write(fd, piece)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def write(piece: bytes) -> int:
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(fd, piece)

    return write


class LogSink(Protocol):
    """Where finished lines go; nothing here waits.

    Attributes:
        dropped: Lines lost since they were last reported.
    """

    dropped: int

    @property
    def size(self) -> int:
        """Bytes that wait."""
        ...

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed, all of one level."""
        ...

    def flush(self) -> bool:
        """Write what can be written without waiting; returns whether all of it was."""
        ...

    def reopen(self) -> None:
        """Open a file anew."""
        ...

    def failure(self) -> str | None:
        """Why it could not be opened anew, once."""
        ...

    def close(self, seconds: float) -> None:
        """Write what waits, for at most so many seconds; nothing is written after that."""
        ...


class Sink:
    """A bounded queue of lines in front of a descriptor.

    Attributes:
        size: Bytes that wait.
        dropped: Lines lost since the last time anybody was told.
    """

    def __init__(self, fd: int, *, owns: bool = False) -> None:
        self._fd = fd
        self._owns = owns
        self._write, self._release = _writer(fd)
        self._lines: list[str] = []
        self._waiting = b""
        self._start = 0  # in it, of what is in no piece yet
        self._piece = b""
        self.size = 0
        self.dropped = 0

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed; count as dropped what the queue has no room for."""
        del level
        size = self.size + sum(map(len, lines))
        if size <= CAPACITY:
            self.size = size
            self._lines += lines
            return
        for line in lines:
            if self.size + len(line) <= CAPACITY:
                self.size += len(line)
                self._lines.append(line)
            else:
                self.dropped += 1

    def flush(self) -> bool:
        """Write what can be written without waiting.

        Returns:
            Whether nothing waits any more and nothing was lost on the way.
        """
        while piece := self._piece or self._next_piece():
            try:
                sent = self._write(piece)
            except (BlockingIOError, InterruptedError):
                self._piece = piece
                return False
            except OSError:  # nobody reads any more, or the disk is full
                self._lose(piece)
                return False
            self._piece = piece[sent:]
            self.size -= sent
        return True

    def close(self, seconds: float) -> None:
        """Write what waits, for at most so many seconds; nothing is written after that."""
        deadline = time.monotonic() + seconds
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        while not self.flush() and self.size and (left := deadline - time.monotonic()) > 0:
            room.poll(min(left, 0.05) * 1000)
        self._end()

    def reopen(self) -> None:
        """Nothing to open anew: whoever started the process opened this."""

    def failure(self) -> str | None:
        """Why it could not be opened anew: there is nothing to fail."""
        return None

    def _end(self) -> None:
        self._release()
        if self._owns:
            os.close(self._fd)
        self._write, self._release, self._owns = _closed, _nothing, False

    def __del__(self) -> None:
        if "_lines" in self.__dict__:  # it was opened
            self._end()

    def _next_piece(self) -> bytes:
        """Take as many whole lines as a pipe takes at once; at least one, if there is any."""
        if self._start == len(self._waiting):
            self._waiting, self._start = "".join(self._lines).encode("ascii"), 0
            self._lines.clear()
        waiting, start = self._waiting, self._start
        end = waiting.rfind(b"\n", start, start + PIECE) + 1 or waiting.find(b"\n", start) + 1
        self._start = end
        return waiting[start:end]

    def _lose(self, piece: bytes) -> None:
        self.dropped += piece.count(b"\n") + self._waiting.count(b"\n", self._start) + len(self._lines)
        self._lines.clear()
        self._waiting, self._start = b"", 0
        self._piece = b""
        self.size = 0
