# SPDX-License-Identifier: Apache-2.0
"""The data of dialogues, which are played to both programs.

In bytes, ``@ip@`` is replaced by the client's address, which no other dialogue
uses, and ``@port@`` by the upstream's port.  The upstream also listens at
``[::1]:@port6@`` and ``unix:@socket@``, for dialogues that are played alone.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from support.dns_server import DnsReply
from support.parity.record import Record


class PeerAction(Enum):
    """An action of a peer that is not sending bytes."""

    SILENT = "sends nothing, and keeps the connection open"
    CLOSE = "closes"
    RESET = "resets the connection"


SILENT, CLOSE, RESET = PeerAction.SILENT, PeerAction.CLOSE, PeerAction.RESET

OutputPart = bytes | float | PeerAction
"""Bytes; a pause in seconds; or a special action."""
PeerOutput = bytes | PeerAction | tuple[OutputPart, ...]
"""What a scripted peer sends at one time."""


@dataclass(frozen=True)
class Tls:
    """The client starts TLS.

    Attributes:
        certificate: The name of the kit's certificate that the client presents.
        alpn: The protocols that it offers.
        version: The only TLS version that it offers, such as ``TLSv1.2``.
        ahead: Bytes in clear text that it sends before the handshake.
        behind: Bytes in TLS that it sends together with the end of its handshake.
        name: The server name that it sends (SNI).
        resumes: The name of the server block of an earlier connection, whose session
            the client resumes; empty for a new session.
        seconds_ago: How many seconds ago the earlier connection was.
    """

    certificate: str = ""
    alpn: tuple[str, ...] = ()
    version: str = ""
    ahead: bytes = b""
    behind: bytes = b""
    name: str = ""
    resumes: str = ""
    seconds_ago: float = 0.0


@dataclass(frozen=True)
class WaitForReply:
    """The client waits for a reaction, for up to ``seconds``."""

    seconds: float = 5.0


@dataclass(frozen=True)
class SendPieces:
    """The client sends bytes in pieces, with a short pause after each."""

    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class Disconnect:
    """The client disconnects: ``eof`` shuts down its sending direction, ``reset`` resets the connection.

    ``last_bytes`` is sent immediately before that.
    """

    how: str = "eof"
    last_bytes: bytes = b""


Step = bytes | SendPieces | Tls | WaitForReply | Disconnect


@dataclass(frozen=True, kw_only=True, eq=False)
class Dialogue:
    """One dialogue, played once to each program.

    Attributes:
        name: What the dialogue shows.
        block: The server block, by its name in ``blocks``.
        area: Its row of the conformance page.
        steps: What the client does; each step starts when the previous one is complete.
        auth: The response of the authentication service to each request.
        upstream: What the upstream sends: its greeting, and after each line it receives.
        header: The version of the PROXY header before the first line the upstream receives; 0 for none.
        reachable: Whether an upstream is running.
        dns: The name server's records for the client, by name and type (``PTR`` among them).
        via: The kind of address: ``tcp``, ``ipv6`` or ``unix``.
        declared_difference: The name of the declared difference, if there is one.
        proxy_record: The expected fields of the proxy's record; empty: only what the difference requires.
        nginx_record: The expected fields of nginx's record.
        allows_other_differences: Whether the declared difference may affect fields not in ``proxy_record`` and ``nginx_record``.
        is_generated: Whether it was generated, so that it has no declared difference.
        since: The first version of nginx with which both must be the same.
    """

    name: str
    block: str
    area: str
    steps: tuple[Step, ...]
    auth: tuple[PeerOutput, ...] = ()
    upstream: tuple[PeerOutput, ...] = ()
    header: int = 0
    reachable: bool = True
    dns: Callable[[str], dict[tuple[str, str], DnsReply]] | None = None
    via: str = "tcp"
    is_exclusive: bool = False
    declared_difference: str = ""
    proxy_record: dict[str, object] = field(default_factory=dict)
    nginx_record: dict[str, object] = field(default_factory=dict)
    allows_other_differences: bool = False
    since: tuple[int, ...] = ()
    is_generated: bool = False
    check: Callable[[Record], str] | None = None
    """Returns an error about the proxy's record, for requirements beyond equality; empty if it is correct."""

    def __str__(self) -> str:
        return f"{self.area}: {self.name}"


def b64(text: bytes | str) -> bytes:
    """Return base64 as used by SASL."""
    return b64encode(text.encode() if isinstance(text, str) else text)


def auth_response(*lines: str | bytes, status: bytes = b"HTTP/1.0 200 OK\r\n") -> bytes:
    """Return the head of a response of the authentication service."""
    data = [line.encode() if isinstance(line, str) else line for line in lines]
    return status + b"".join(line + b"\r\n" for line in data) + b"\r\n"


def grant(*more: str | bytes) -> bytes:
    """Return a response that allows the login."""
    return auth_response("Auth-Status: OK", *more, "Auth-Server: @ip@", "Auth-Port: @port@")


def deny(text: str = "Invalid login or password", *more: str) -> bytes:
    """Return a response that denies the login."""
    return auth_response(f"Auth-Status: {text}", *more)


GRANT: Final = grant()
GRANT_PASS: Final = grant("Auth-Pass: backendpass")

IMAP_OK: Final = (b"* OK backend\r\n", b"+ go\r\n", b"+ go\r\n", b"a1 OK in\r\n", b"* relayed\r\n")
POP3_OK: Final = (b"+OK backend\r\n", b"+OK user\r\n", b"+OK in\r\n", b"+OK relayed\r\n")
SMTP_OK: Final = (b"220 backend\r\n", *(b"250 ok\r\n",) * 3)
AUTH_OK: Final = b"235 in\r\n"
