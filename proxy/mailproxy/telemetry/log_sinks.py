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
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, Protocol

from mailproxy_config.model import LogLevel, SyslogServer
from mailproxy_config.syslog import FACILITIES

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


class StreamSink:
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


def open_log_file(path: str) -> FileSink | StreamSink:
    """Open a log file; what is no regular file (a pipe, a device) is written like standard error.

    Raises:
        OSError: It cannot be opened for writing.
    """
    fd = os.open(path, FLAGS, MODE)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return FileSink(path)
    return StreamSink(fd, owns=True)


_SEVERITIES: Final = {
    LogLevel.EMERG: 0,
    LogLevel.ALERT: 1,
    LogLevel.CRIT: 2,
    LogLevel.ERROR: 3,
    LogLevel.WARN: 4,
    LogLevel.NOTICE: 5,
    LogLevel.INFO: 6,
    LogLevel.DEBUG: 7,
}
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EINTR})


class SyslogSink:
    """A bounded queue of datagrams in front of a socket that never waits.

    Args:
        server: Where to; a host name was replaced by an address before.
        hostname: This machine's name, for the header.
        now: Unix time.

    Attributes:
        dropped: Lines lost since they were last reported.
        size: Bytes that wait.
    """

    def __init__(self, server: SyslogServer, *, hostname: str, now: Callable[[], float] = time.time) -> None:
        self._server = server
        self._now = now
        name = f" {hostname.lower()}" if server.has_hostname and hostname else ""
        self._header = f"{name} {server.tag}: "
        self._facility = FACILITIES.index(server.facility) * 8
        self._waiting: deque[bytes] = deque()
        self._socket: socket.socket | None = None
        self.size = 0
        self.dropped = 0

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed, all of one level."""
        stamp = time.localtime(self._now())
        head = (
            f"<{self._facility + _SEVERITIES[level]}>{_MONTHS[stamp.tm_mon - 1]} {stamp.tm_mday:2d}"
            f" {stamp.tm_hour:02d}:{stamp.tm_min:02d}:{stamp.tm_sec:02d}{self._header}"
        )
        for line in lines:
            datagram = f"{head}{line[:-1]}".encode("ascii", "backslashreplace")
            if self.size + len(datagram) <= CAPACITY:
                self.size += len(datagram)
                self._waiting.append(datagram)
            else:
                self.dropped += 1

    def flush(self) -> bool:
        """Send what can be sent without waiting; what a server does not take is lost.

        Returns:
            Whether nothing waits any more and nothing was lost on the way.
        """
        lost = 0
        while self._waiting:
            code = self._send(self._waiting[0])
            if code in _FULL:
                break
            lost += code != 0
            self.size -= len(self._waiting.popleft())
        self.dropped += lost
        return not (lost or self._waiting)

    def _send(self, datagram: bytes) -> int:
        """Send one datagram; a socket that fails is replaced once. Returns the error number, or 0."""
        code = 0
        for _ in range(2):
            try:
                if self._socket is None:
                    self._socket = _connected(self._server)
                self._socket.send(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                code = error.errno or errno.EIO
                if code in _FULL:
                    return code
                self._disconnect()
            else:
                return 0
        return code

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reopen(self) -> None:
        """Connect anew with the next line."""
        self._disconnect()

    def failure(self) -> str | None:
        """Why it could not be opened anew: nothing fails before a line is sent."""
        return None

    def close(self, seconds: float = 0.0) -> None:
        """Send what waits, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.flush() and self._waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        self._disconnect()


def _connected(server: SyslogServer) -> socket.socket:
    if server.unix_path is not None:
        family, target = socket.AF_UNIX, server.unix_path
    else:
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        target = (server.address, server.port)  # type: ignore[assignment]  # one of the two, by family
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(target)
    except OSError:
        sock.close()
        raise
    return sock
