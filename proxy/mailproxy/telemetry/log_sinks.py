# SPDX-License-Identifier: Apache-2.0
"""The outputs of the log: a descriptor, a file, a syslog server.  None of them ever blocks.

A slow reader loses lines, which are counted, and nothing else.  An inherited
descriptor is reopened where that is possible, since making it non-blocking
would affect all processes that share it.

Files are written by a thread, so that no disk blocks the event loop.  What a
full or broken disk does not take is lost, counted, and reported as soon as the
file takes lines again.  A syslog server gets one datagram per line, in the
form of RFC 3164 section 4 as nginx writes it.
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

from mailproxy_config.model import FACILITIES, LogLevel, SyslogServer

CHUNK_SIZE: Final = 4096
"""Maximum bytes per write; a pipe takes so many atomically (``PIPE_BUF``, pipe(7))."""
CAPACITY: Final = 256 * 1024
"""Maximum bytes that are queued for a slow reader."""

Writer = Callable[[bytes], int]


def _closed(_: bytes) -> int:
    raise OSError(errno.EBADF, "closed")


def _writer(fd: int) -> tuple[Writer, Callable[[], None]]:
    """Return a function that writes to a descriptor without blocking, and one that closes what it uses."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return (lambda chunk: os.write(fd, chunk)), lambda: None
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(fd))
        return (lambda chunk: peer.send(chunk, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)), peer.close
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY)
    except OSError:  # it belongs to another user (often a container's output), or there is no /proc
        return _shared(fd, mode), lambda: None
    return (lambda chunk: os.write(own, chunk)), lambda: os.close(own)


def _shared(fd: int, mode: int) -> Writer:
    """Return a function that writes to a descriptor which cannot be reopened.

    A pipe to another user's process is shared only with processes of this
    proxy, so it may become non-blocking.  A terminal is shared with a shell,
    which needs it blocking; so poll(2) is called before each write.
    """
    if stat.S_ISFIFO(mode):
        os.set_blocking(fd, False)
        return lambda chunk: os.write(fd, chunk)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)

    def write(chunk: bytes) -> int:
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(fd, chunk)

    return write


class LogSink(Protocol):
    """An output for formatted lines; no method blocks, except ``close``.

    Attributes:
        dropped: Lines lost since they were last reported.
    """

    dropped: int

    @property
    def size(self) -> int:
        """The number of queued bytes."""
        ...

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed, all of one level."""
        ...

    def flush(self) -> bool:
        """Write queued lines without blocking; returns whether all were written."""
        ...

    def reopen(self) -> None:
        """Reopen a file."""
        ...

    def failure(self) -> str | None:
        """Return, once, why a file could not be reopened."""
        ...

    def close(self, seconds: float) -> None:
        """Write queued lines for at most ``seconds``; nothing is written after that."""
        ...


class StreamSink:
    """A bounded queue of lines for a descriptor.

    Attributes:
        size: The number of queued bytes.
        dropped: Lines lost since they were last reported.
    """

    def __init__(self, fd: int, *, owns: bool = False) -> None:
        self._fd = fd
        self._owns = owns
        self._write, self._release = _writer(fd)
        self._lines: list[str] = []
        self._waiting = b""
        self._start = 0  # of the part that is in no chunk yet
        self._chunk = b""
        self.size = 0
        self.dropped = 0

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed; those that do not fit are counted as dropped."""
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
        """Write queued lines without blocking.

        Returns:
            Whether the queue is empty and no line was lost.
        """
        while chunk := self._chunk or self._next_chunk():
            try:
                sent = self._write(chunk)
            except (BlockingIOError, InterruptedError):
                self._chunk = chunk
                return False
            except OSError:  # there is no reader any more, or the disk is full
                self._drop(chunk)
                return False
            self._chunk = chunk[sent:]
            self.size -= sent
        return True

    def close(self, seconds: float) -> None:
        """Write queued lines for at most ``seconds``; nothing is written after that."""
        deadline = time.monotonic() + seconds
        while not self.flush() and self.size and (left := deadline - time.monotonic()) > 0:
            self.wait(min(left, 0.05))
        self._end()

    def wait(self, seconds: float) -> None:
        """Wait until the reader takes more, for at most ``seconds``."""
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        room.poll(seconds * 1000)

    def reopen(self) -> None:
        """Do nothing: an inherited descriptor cannot be reopened."""

    def failure(self) -> str | None:
        """Return ``None``: ``reopen`` does nothing."""
        return None

    def _end(self) -> None:
        self._release()
        if self._owns:
            os.close(self._fd)
        self._write, self._release, self._owns = _closed, lambda: None, False

    def __del__(self) -> None:
        if "_lines" in self.__dict__:  # it was opened
            self._end()

    def _next_chunk(self) -> bytes:
        """Return as many whole lines as one write takes; at least one, if there is any."""
        if self._start == len(self._waiting):
            self._waiting, self._start = "".join(self._lines).encode("ascii"), 0
            self._lines.clear()
        waiting, start = self._waiting, self._start
        end = waiting.rfind(b"\n", start, start + CHUNK_SIZE) + 1 or waiting.find(b"\n", start) + 1
        self._start = end
        return waiting[start:end]

    def _drop(self, chunk: bytes) -> None:
        self.dropped += chunk.count(b"\n") + self._waiting.count(b"\n", self._start) + len(self._lines)
        self._lines.clear()
        self._waiting, self._start = b"", 0
        self._chunk = b""
        self.size = 0


FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""``O_APPEND``, since several processes write to one file, a whole chunk at a time."""
MODE: Final = 0o644
_REOPEN: Final = b""


class _Writer:
    """The state of the thread.  It has no reference to the sink, so that the sink can be collected."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.queue: SimpleQueue[bytes | None] = SimpleQueue()
        self.done = 0
        """Bytes that were written or lost; only the thread sets it."""
        self.lost = 0
        """Lines that were lost; only the thread sets it."""
        self.is_healthy = True
        """Whether the last line was written."""
        self.failure: str | None = None
        """Why the file could not be reopened."""
        self._is_torn = False

    def run(self) -> None:
        """Write until the queue is closed."""
        while (chunk := self.queue.get()) is not None:
            if chunk is _REOPEN:
                self.reopen()
            else:
                self._write(chunk)
                self.done += len(chunk)
        os.close(self.fd)

    def _write(self, chunk: bytes) -> None:
        rest = b"\n" + chunk if self._is_torn else chunk
        while rest:
            try:
                sent = os.write(self.fd, rest)
            except OSError:  # the disk is full, or was removed
                self.lost += rest.count(b"\n", 1 if rest[:1] == b"\n" else 0)
                self.is_healthy = False
                return
            self._is_torn = rest[sent - 1 : sent] != b"\n"
            rest = rest[sent:]
        self.is_healthy = True

    def reopen(self) -> None:
        """Open the file again, and close the old descriptor."""
        try:
            fd = os.open(self.path, FLAGS, MODE)
        except OSError as error:
            self.failure = os.strerror(error.errno or 0)
            return
        os.close(self.fd)
        self.fd = fd
        self._is_torn = False


class FileSink:
    """A bounded queue of lines for a file.

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
        """The number of queued bytes, those of the thread included."""
        return self._put - self._writer.done

    def put(self, lines: Sequence[str], level: LogLevel = LogLevel.INFO) -> None:
        """Queue lines of ASCII, each with its line feed; those that do not fit are counted as dropped."""
        del level
        if self._is_closed:
            return
        size = sum(map(len, lines))
        if self.size + size <= CAPACITY:
            self._put += size
            self._lines += lines
            return
        for line in lines:
            if self.size + len(line) <= CAPACITY:
                self._put += len(line)
                self._lines.append(line)
            else:
                self.dropped += 1

    def flush(self) -> bool:
        """Pass queued lines to the thread; returns whether all were written."""
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
        """Reopen the file, after the queued lines; it may have been renamed (``SIGUSR1``)."""
        self.flush()
        if self._thread is None:
            self._writer.reopen()  # there is no thread yet
        else:
            self._writer.queue.put(_REOPEN)

    def failure(self) -> str | None:
        """Return, once, why the file could not be reopened."""
        failure, self._writer.failure = self._writer.failure, None
        return failure

    def close(self, seconds: float = 0.0) -> None:
        """Write queued lines for at most ``seconds``; nothing is written after that."""
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
    """Open a log file; what is not a regular file (a pipe, a device) is written like standard error.

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
_QUEUE_FULL_ERRNOS: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EINTR})


class SyslogSink:
    """A bounded queue of datagrams for a non-blocking socket.

    Args:
        server: The server, by address.
        hostname: This machine's name, for the header.
        now: Returns the Unix time.

    Attributes:
        dropped: Lines lost since they were last reported.
        size: The number of queued bytes.
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
        """Send queued datagrams without blocking; one that the server rejects is lost.

        Returns:
            Whether the queue is empty and no line was lost.
        """
        lost = 0
        while self._waiting:
            code = self._send(self._waiting[0])
            if code in _QUEUE_FULL_ERRNOS:
                break
            lost += code != 0
            self.size -= len(self._waiting.popleft())
        self.dropped += lost
        return not (lost or self._waiting)

    def _send(self, datagram: bytes) -> int:
        """Send one datagram, once more on a new socket where it fails; returns errno, or 0."""
        code = 0
        for _ in range(2):
            try:
                if self._socket is None:
                    self._socket = _connect(self._server)
                self._socket.send(datagram, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                code = error.errno or errno.EIO
                if code in _QUEUE_FULL_ERRNOS:
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
        """Connect again with the next line."""
        self._disconnect()

    def failure(self) -> str | None:
        """Return ``None``: no error occurs before a line is sent."""
        return None

    def close(self, seconds: float = 0.0) -> None:
        """Send queued datagrams for at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.flush() and self._waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        self._disconnect()


def _connect(server: SyslogServer) -> socket.socket:
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
