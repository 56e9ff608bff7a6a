# SPDX-License-Identifier: Apache-2.0
"""What is played to both: data, and nothing else.

In bytes, ``@ip@`` stands for the client's address, which no other playing
shares, and ``@port@`` for the upstream's port.  It listens at ``[::1]:@port6@``
and ``unix:@socket@`` too, for dialogues that are played alone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from support.dns_server import Reply
from support.parity.record import Record


class Special(Enum):
    """What a peer does instead of saying something."""

    SILENT = "says nothing, and waits"
    CLOSE = "closes"
    RESET = "breaks the connection off"


SILENT, CLOSE, RESET = Special.SILENT, Special.CLOSE, Special.RESET

Part = bytes | float | Special
"""Bytes; a pause in seconds; or an end."""
Speech = bytes | Special | tuple[Part, ...]
"""What a scripted peer says at one time."""


@dataclass(frozen=True)
class Tls:
    """The client starts TLS.

    Attributes:
        certificate: Which of the kit's certificates the client shows.
        alpn: What it offers.
        version: The one version that it speaks, such as ``TLSv1.2``.
        ahead: Bytes in clear that it sends first, where the handshake should begin.
        behind: Bytes in TLS that it sends together with the end of its handshake.
        name: The server's name that it tells (SNI).
        resumes: Where it got the session that it brings along: the name of a server,
            on which it has been before; empty: it brings none.
        later: How many seconds ago that was.
    """

    certificate: str = ""
    alpn: tuple[str, ...] = ()
    version: str = ""
    ahead: bytes = b""
    behind: bytes = b""
    name: str = ""
    resumes: str = ""
    later: float = 0.0


@dataclass(frozen=True)
class Await:
    """The client waits for something to happen, at most so many seconds."""

    seconds: float = 5.0


@dataclass(frozen=True)
class Cut:
    """The client says bytes in pieces, with a short pause after each."""

    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class Leave:
    """The client leaves: ``eof`` shuts its sending side, ``reset`` breaks the connection.

    ``saying`` goes just ahead of that.
    """

    how: str = "eof"
    saying: bytes = b""


Step = bytes | Cut | Tls | Await | Leave


@dataclass(frozen=True, kw_only=True, eq=False)
class Dialogue:
    """One playing.

    Attributes:
        name: What is shown.
        block: The server, by its name in ``blocks``.
        area: Which row of the conformance page it belongs to.
        steps: What the client does, one after the other, each when things have settled.
        auth: What the authorization service answers to each request.
        upstream: What the upstream says: at first, and after each line it hears.
        header: Whether a PROXY header comes before the first line it hears: 0, 1 or 2.
        reachable: Whether there is an upstream at all.
        dns: What the name server knows of the client: by ``PTR``, and by names and types.
        via: ``tcp``, ``ipv6`` or ``unix``.
        differs: The name of the difference that is meant, if one is.
        ours: What must be so of the proxy's record; empty: only what the difference says.
        theirs: What must be so of nginx's.
        rest_differs: Whether a meant difference may show in what ``ours`` and ``theirs`` do not mention.
        is_generated: Whether nobody wrote it down, so that nobody could declare a difference.
        since: The version of nginx from which on both must be the same.
    """

    name: str
    block: str
    area: str
    steps: tuple[Step, ...]
    auth: tuple[Speech, ...] = ()
    upstream: tuple[Speech, ...] = ()
    header: int = 0
    reachable: bool = True
    dns: Callable[[str], dict[tuple[str, str], Reply]] | None = None
    via: str = "tcp"
    alone: bool = False
    differs: str = ""
    ours: dict[str, object] = field(default_factory=dict)
    theirs: dict[str, object] = field(default_factory=dict)
    rest_differs: bool = False
    since: tuple[int, ...] = ()
    is_generated: bool = False
    check: Callable[[Record], str] | None = None
    """Finds fault with a record, where both being the same is not enough."""

    def __str__(self) -> str:
        return f"{self.area}: {self.name}"


def b64(text: bytes | str) -> bytes:
    """Base64, as SASL writes it."""
    return b64encode(text.encode() if isinstance(text, str) else text)


def answer(*lines: str | bytes, status: bytes = b"HTTP/1.0 200 OK\r\n") -> bytes:
    """The head of an answer of the authorization service."""
    data = [line.encode() if isinstance(line, str) else line for line in lines]
    return status + b"".join(line + b"\r\n" for line in data) + b"\r\n"


def grant(*more: str | bytes) -> bytes:
    """An answer that lets the client in."""
    return answer("Auth-Status: OK", *more, "Auth-Server: @ip@", "Auth-Port: @port@")


def deny(text: str = "Invalid login or password", *more: str) -> bytes:
    """An answer that does not."""
    return answer(f"Auth-Status: {text}", *more)


GRANT: Final = grant()
GRANT_PASS: Final = grant("Auth-Pass: backendpass")

IMAP_OK: Final = (b"* OK backend\r\n", b"+ go\r\n", b"+ go\r\n", b"a1 OK in\r\n", b"* relayed\r\n")
POP3_OK: Final = (b"+OK backend\r\n", b"+OK user\r\n", b"+OK in\r\n", b"+OK relayed\r\n")
SMTP_OK: Final = (b"220 backend\r\n", *(b"250 ok\r\n",) * 3)
AUTH_OK: Final = b"235 in\r\n"
