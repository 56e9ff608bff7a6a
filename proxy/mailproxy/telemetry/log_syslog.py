# SPDX-License-Identifier: Apache-2.0
"""A syslog server: one datagram per line, in the form of RFC 3164 section 4 as nginx writes it."""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mailproxy.telemetry.log_writer import CAPACITY
from mailproxy_config.model import FACILITIES, LogLevel, SyslogServer

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
