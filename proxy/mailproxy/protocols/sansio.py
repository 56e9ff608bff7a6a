# SPDX-License-Identifier: Apache-2.0
"""The effects that a protocol generator yields, and the reader of its peer's lines.

A protocol generator yields an effect and is resumed with the effect's result.
Errors (``errors.PeerDisconnected``, ``ShuttingDown``, ``AuthUnavailable``) are
raised at the ``yield``.  The functions below know the type of each result;
call them with ``yield from`` to have it checked.  A bare ``yield`` is used only
in the code of a usual login, where the call of a function would cost more than
what it does; there the result is annotated.

What a driver guarantees (``session/driver.py``):

* ``Send`` may be delayed and joined with later ones, but its bytes are sent
  before any other effect waits.
* Nothing is read from the peer except for ``Receive`` and ``Peek``.
* ``Receive`` is limited by the deadline of the last ``SetDeadline``; ``Wait``,
  ``AuthRequest`` and ``ResolveClient`` have time limits of their own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mailproxy.enums import Note as NoteValue
from mailproxy.errors import AuthUnavailable, LineTooLong
from mailproxy.protocols.types import AuthRequest, TlsInfo

T = TypeVar("T")

_CR = 13


@dataclass(slots=True)
class Send:
    """Send bytes to the peer."""

    data: bytes


@dataclass(slots=True)
class Receive:
    """Wait for bytes: at least one, at most ``limit``."""

    limit: int


@dataclass(slots=True)
class Peek:
    """Wait ``seconds`` for bytes that the peer must not send yet; the result is empty if there are none."""

    seconds: float
    limit: int


@dataclass(slots=True)
class SetDeadline:
    """Limit the time of all later ``Receive`` effects together, in seconds from now."""

    seconds: float


@dataclass(slots=True)
class UpgradeToTls:
    """Start TLS on the connection.  Bytes that the peer sent before it in clear text must be discarded."""


@dataclass(slots=True)
class ResolveClient:
    """Find the client's confirmed host name, or a placeholder (SMTP)."""


@dataclass(slots=True)
class MakeChallenge:
    """Make the ``<R.T@NAME>`` challenge of APOP and CRAM-MD5: random number, current time, server name."""

    server_name: str


@dataclass(slots=True)
class GetToken:
    """Get an access token (``proxy_auth_token``); the result is a ``Secret``.

    ``UpstreamError`` is raised if the token service provides none.
    """


@dataclass(slots=True)
class Wait:
    """Pause.  Nothing is read meanwhile."""

    seconds: float


@dataclass(slots=True)
class WaitToRefuse:
    """Pause until the reply to a refused login is due (``auth_mode upstream``).

    Args:
        is_upstream: Whether the upstream has refused the login.  Otherwise none was asked, which the
            time must not show.
    """

    is_upstream: bool


@dataclass(slots=True)
class Note:
    """Report an event to be counted or logged."""

    event: NoteValue


@dataclass(slots=True)
class ReportAuthFailure:
    """Count and log a login that failed without a decision, after which the client may log in again."""

    error: AuthUnavailable


Effect = (
    Send
    | Receive
    | Peek
    | SetDeadline
    | UpgradeToTls
    | AuthRequest
    | ResolveClient
    | MakeChallenge
    | GetToken
    | Wait
    | WaitToRefuse
    | Note
    | ReportAuthFailure
)

ProtocolGenerator = Generator[Effect, Any, T]
"""A protocol generator that returns a ``T``."""

OneEffect = tuple[Effect]
"""One effect without a result, for ``yield from``; a tuple costs less than a generator."""


def send(data: bytes) -> OneEffect:
    """Send bytes to the peer."""
    return (Send(data),)


def peek(seconds: float, limit: int) -> ProtocolGenerator[bytes]:
    """Wait for bytes that the peer must not send yet.

    Returns:
        The bytes, at most ``limit``; empty if none arrived within ``seconds``.

    Raises:
        PeerDisconnected: The connection was closed meanwhile.
    """
    return cast("bytes", (yield Peek(seconds, limit)))


def upgrade_to_tls() -> ProtocolGenerator[TlsInfo]:
    """Start TLS on the connection.

    Raises:
        TlsFailed: The handshake failed; nothing can be sent any more.
    """
    return cast("TlsInfo", (yield UpgradeToTls()))


def resolve_client() -> ProtocolGenerator[bytes]:
    """Find the client's confirmed host name, or a placeholder."""
    return cast("bytes", (yield ResolveClient()))


def make_challenge(server_name: str) -> ProtocolGenerator[bytes]:
    """Make a ``<R.T@NAME>`` challenge, angle brackets included."""
    return cast("bytes", (yield MakeChallenge(server_name)))


def wait(seconds: float) -> OneEffect:
    """Pause."""
    return (Wait(seconds),)


def note(event: NoteValue) -> OneEffect:
    """Report an event to be counted or logged."""
    return (Note(event),)


class LineReader:
    """Reads lines and literals from a peer through one buffer of limited size.

    The limit applies to a line or literal, not to what the peer sends at once:
    lines that arrive together are returned one by one.  While the buffer
    holds a complete line nothing is received, so a command that arrived
    before the peer closed the connection is still executed.

    Attributes:
        limit: The size of the buffer in bytes, and the longest line with its line end.
        buffered: Received bytes; empty when all of them are read.
        consumed: The bytes of the current command so far, line ends included:
            its first line, and the lines and literals that continue it.
    """

    __slots__ = ("_start", "buffered", "consumed", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.consumed = 0
        self.buffered = b""
        self._start = 0

    def read_line(self, limit: int | None = None) -> ProtocolGenerator[bytes]:
        """Read the next line.

        Args:
            limit: For a line that continues a command: the rest of the limit
                that all of its lines and literals share (IMAP).  ``None`` for
                the first line of a command.

        Returns:
            The line without its LF or CRLF.  A CR elsewhere stays; protocols
            treat it as a syntax error.

        Raises:
            LineTooLong: There is no line end within ``limit`` bytes.
            PeerDisconnected: The connection was closed, or the deadline
                passed, before the line was complete.
            ShuttingDown: The proxy drains.
        """
        most = self.limit if limit is None or limit > self.limit else limit
        buffer, start = self.buffered, self._start
        end = buffer.find(b"\n", start, start + most) if buffer else -1
        while end < 0:
            length = len(buffer) - start
            if length >= most:
                raise LineTooLong(buffer[start:], most)
            chunk: bytes = yield Receive(self.limit - length)
            self.buffered = buffer = buffer[start:] + chunk
            start = self._start = 0
            end = buffer.find(b"\n", length, most)
        length = end + 1 - start
        self.consumed = length if limit is None else self.consumed + length
        if end + 1 == len(buffer):
            self.buffered, self._start = b"", 0
        else:
            self._start = end + 1
        if end > start and buffer[end - 1] == _CR:
            end -= 1
        return buffer[start:end]

    def read_exactly(self, count: int) -> ProtocolGenerator[bytes]:
        """Read ``count`` bytes of any value (an IMAP literal).

        Raises:
            LineTooLong: ``count`` is more than the buffer holds; nothing was received.
            PeerDisconnected: The connection was closed, or the deadline passed, before they arrived.
            ShuttingDown: The proxy drains.
        """
        if count > self.limit:
            raise LineTooLong(self.buffered[self._start :], self.limit)
        buffer, start = self.buffered, self._start
        while (available := len(buffer) - start) < count:
            chunk: bytes = yield Receive(self.limit - available)
            buffer = buffer[start:] + chunk
            self.buffered, start, self._start = buffer, 0, 0
        self.consumed += count
        end = start + count
        if end == len(buffer):
            self.buffered, self._start = b"", 0
        else:
            self._start = end
        return buffer[start:end]

    def take_unread(self) -> bytes:
        """Remove all unread bytes from the buffer and return them."""
        buffered = self.buffered
        if not buffered:
            return buffered
        unread = buffered[self._start :]
        self.buffered, self._start = b"", 0
        return unread

    def put_back(self, unread: bytes) -> None:
        """Return bytes of ``take_unread`` to the buffer: they are read next."""
        self.buffered, self._start = unread + self.buffered[self._start :], 0
