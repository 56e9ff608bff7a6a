# SPDX-License-Identifier: Apache-2.0
"""Everything a conversation can ask for, and the helpers that ask.

A conversation is a generator.  It yields an action and is resumed with the
answer; failures (``errors.PeerGone``, ``ShuttingDown``, ``AuthUnavailable``)
are thrown in at the ``yield``.  The helpers below know which answer belongs to
which action, so whatever calls them with ``yield from`` is fully typed.  A
bare ``yield`` stands only on the way of a usual login, where a helper costs
more than what it does; its answer is given a type there.

The rules an interpreter keeps:

* ``Send`` may be held back and joined with what follows, but is on its way
  before any other action waits.  One flight, one write.
* Nothing is read from the peer unless ``Receive`` or ``Peek`` asks for it.
* ``Receive`` is limited by the deadline that ``SetDeadline`` set last; ``Wait``,
  ``Authenticate`` and ``Resolve`` keep their own time.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mailproxy.enums import Note as NoteValue
from mailproxy.protocols.types import AuthRequest, TlsInfo

T = TypeVar("T")


@dataclass(slots=True)
class Send:
    """Say these bytes to the peer."""

    data: bytes


@dataclass(slots=True)
class Receive:
    """Wait for bytes: at least one, at most ``limit``."""

    limit: int


@dataclass(slots=True)
class Peek:
    """Wait ``seconds`` for bytes that should not come; the answer is what came, empty for nothing."""

    seconds: float
    limit: int


@dataclass(slots=True)
class SetDeadline:
    """From now on, all ``Receive`` together may take this many seconds."""

    seconds: float


@dataclass(slots=True)
class UpgradeToTls:
    """Make the connection a TLS connection.  What the peer sent in clear before is not to survive it."""


@dataclass(slots=True)
class Authenticate:
    """Ask the authorization service about this attempt; the answer is a ``Decision``.

    ``AuthUnavailable`` is thrown where it gave none that can be used.  Let it
    pass: the session apologizes.
    """

    request: AuthRequest


@dataclass(slots=True)
class ResolveClient:
    """Find the client's confirmed host name, or the placeholder for the lack of it (SMTP)."""


@dataclass(slots=True)
class MakeChallenge:
    """Make the ``<R.T@NAME>`` challenge of APOP and CRAM-MD5: random number, current time, server name."""

    server_name: str


@dataclass(slots=True)
class Wait:
    """Let time pass.  Nothing is read meanwhile."""

    seconds: float


@dataclass(slots=True)
class Note:
    """Something worth counting or logging happened."""

    event: NoteValue


Effect = (
    Send
    | Receive
    | Peek
    | SetDeadline
    | UpgradeToTls
    | Authenticate
    | ResolveClient
    | MakeChallenge
    | Wait
    | Note
)

ProtocolGenerator = Generator[Effect, Any, T]
"""A conversation that returns a ``T``; which answer an action gets is known to the helpers alone."""

OneEffect = tuple[Effect]
"""An action without an answer, for ``yield from``; a tuple costs a fraction of a generator."""


def send(data: bytes) -> OneEffect:
    """Say these bytes to the peer."""
    return (Send(data),)


def receive(limit: int) -> ProtocolGenerator[bytes]:
    """Wait for at least one byte, at most ``limit``.

    Raises:
        PeerGone: The peer closed, broke off, or the deadline passed.
        ShuttingDown: The proxy drains.
    """
    return cast("bytes", (yield Receive(limit)))


def peek(seconds: float, limit: int) -> ProtocolGenerator[bytes]:
    """Wait ``seconds`` for bytes that should not come, and return what came.

    Raises:
        PeerGone: The peer closed or broke off meanwhile.
    """
    return cast("bytes", (yield Peek(seconds, limit)))


def upgrade_to_tls() -> ProtocolGenerator[TlsInfo]:
    """Make the connection a TLS connection.

    Raises:
        TlsFailed: The handshake did not complete; there is nobody to talk to any more.
    """
    return cast("TlsInfo", (yield UpgradeToTls()))


def resolve_client() -> ProtocolGenerator[bytes]:
    """Find the client's confirmed host name, or a placeholder."""
    return cast("bytes", (yield ResolveClient()))


def make_challenge(server_name: str) -> ProtocolGenerator[bytes]:
    """Make a ``<R.T@NAME>`` challenge, angle brackets included."""
    return cast("bytes", (yield MakeChallenge(server_name)))


def wait(seconds: float) -> OneEffect:
    """Let time pass."""
    return (Wait(seconds),)


def note(event: NoteValue) -> OneEffect:
    """Tell that something worth counting or logging happened."""
    return (Note(event),)
