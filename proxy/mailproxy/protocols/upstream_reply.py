# SPDX-License-Identifier: Apache-2.0
"""Replies of upstreams during the login, in every protocol: reading them, and shortening them for the log.

Everything that the upstream sent since our last command is kept, up to
``proxy_buffer``, because the client may get it.  A line may end in LF alone.

Usually the whole expected reply arrives at once.  A login checks for that
itself, and calls ``read_reply`` for everything else.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Set
from typing import Final

from mailproxy.enums import ProtocolErrorKind, UpstreamStage
from mailproxy.errors import PeerDisconnected, PeerTimedOut, UpstreamError, UpstreamRefused
from mailproxy.protocols.client_identity import forwarded_facts
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.sansio import ProtocolGenerator, Receive, Send, UpgradeToTls
from mailproxy.protocols.types import Client, Secret, UpstreamLogin, UpstreamLoginResult
from mailproxy_config.model import Protocol, ProxySsl, SendProxyProtocol, ServerConfig

LF: Final = 10
"""An integer: ``10 in data`` is faster than ``b"\\n" in data``."""
ONE_LINE: Final = re.compile(rb"[^\n]*\n")
"""A reply of one line."""
MAX_LOGGED: Final = 190
"""Bytes of a reply that are logged."""
WITHHELD: Final = b"***"
"""Logged instead of a reply that contains a password, or a part of one."""

_CREDENTIALS: Final = frozenset({UpstreamStage.LOGIN, UpstreamStage.ENVELOPE})
"""The stages at which a refusal is about this client."""
_PART: Final = 8
"""Length of a part of a password, in bytes, that must not be logged."""
_SEARCHED: Final = MAX_LOGGED + 64
"""Bytes of a reply that are searched: those that are logged, and the rest of a password that begins there."""
_WORD: Final = 4
"""A shorter password is searched only as a word: every reply contains an ``a``."""


class UpstreamLoginBase(ABC):
    """The login at one server's upstreams, prepared once per server.

    Attributes:
        facts: The facts of ``proxy_forward``.
        limit: The longest reply in bytes (directive ``proxy_buffer``).
        receive: Receives a reply from its first byte.
        has_preamble: Whether something comes before the greeting; see ``preamble``.
        server: The server block that the clients connect to.
        has_prologue: Whether something comes between the greeting and the login: STARTTLS, ID, XCLIENT.
        prologue_stage: The stage of that.
        starts_tls: Whether STARTTLS comes after the greeting (``proxy_ssl starttls``).
    """

    __slots__ = (
        "facts",
        "has_preamble",
        "has_prologue",
        "limit",
        "prologue_stage",
        "receive",
        "server",
        "starts_tls",
    )

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.facts = forwarded_facts(server)
        self.limit = server.proxy_buffer
        self.receive = Receive(self.limit)
        self.starts_tls = server.proxy_ssl is ProxySsl.STARTTLS
        self.has_prologue = self.starts_tls or server.sends_identity
        of_identity = UpstreamStage.ID if server.protocol is Protocol.IMAP else UpstreamStage.XCLIENT
        self.prologue_stage = UpstreamStage.TLS if self.starts_tls else of_identity
        self.has_preamble = (
            server.proxy_protocol is not SendProxyProtocol.DISABLED or server.proxy_ssl is ProxySsl.ENABLED
        )

    def preamble(self, client: Client) -> ProtocolGenerator[None]:
        """Perform what comes before the greeting: the PROXY header, in clear, and implicit TLS."""
        if self.server.proxy_protocol is not SendProxyProtocol.DISABLED:
            yield Send(outbound_header(self.server, client))
        if self.server.proxy_ssl is ProxySsl.ENABLED:
            yield UpgradeToTls()

    @abstractmethod
    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in on the client's behalf, from the PROXY header to the last reply.

        Raises:
            UpstreamRefused: The upstream refused, or sent a reply that its protocol does not have.
            UpstreamError: It closed the connection, its reply does not fit
                ``proxy_buffer``, or the login cannot be sent.
        """


def read_reply(
    received: bytes, complete: re.Pattern[bytes], limit: int, stage: UpstreamStage
) -> ProtocolGenerator[bytes]:
    """Read the rest of a reply and return everything that the upstream sent since our last command.

    Args:
        received: What it sent so far; at least one byte.
        complete: Matches a complete reply from its first byte on.  It ends with LF.
        limit: The longest reply in bytes.
        stage: The stage of the login.

    Raises:
        UpstreamError: The reply is longer.
        PeerDisconnected: The upstream closed the connection.
    """
    fresh = received
    while LF not in fresh or complete.match(received) is None:
        if len(received) >= limit:
            kind = ProtocolErrorKind.REPLY_TOO_LONG
            raise UpstreamError("upstream sent too long reply", stage=stage, kind=kind, reply=received)
        fresh = yield Receive(limit - len(received))
        received += fresh
    return received


def upstream_disconnected(gone: PeerDisconnected, stage: UpstreamStage) -> UpstreamError:
    """Make the error for an upstream that closed the connection, or was silent until the timeout.

    Args:
        gone: The end of the connection.
        stage: The stage of the login; without a greeting, both are a violation of the protocol.
    """
    kind = ProtocolErrorKind.NO_GREETING if stage is UpstreamStage.GREETING else None
    return UpstreamError(reason_of(gone), stage=stage, kind=kind)


def reason_of(gone: PeerDisconnected) -> str:
    """Return the words for the log, as in nginx."""
    is_timeout = isinstance(gone, PeerTimedOut)
    return "upstream timed out" if is_timeout else "upstream closed the connection"


def upstream_refused(
    received: bytes, stage: UpstreamStage, *, is_valid_reply: bool, is_bye: bool = False
) -> UpstreamRefused:
    """Make the error for a complete reply that is not the expected one.

    Args:
        received: Everything that the upstream sent since our last command.
        stage: The stage of the login.
        is_valid_reply: Whether the protocol has this reply.
        is_bye: Whether the upstream closes the session with it (``421``,
            ``* BYE``): then it is no reply to the login.
    """
    kind = None if is_valid_reply else ProtocolErrorKind.UNEXPECTED_REPLY
    is_denial = stage in _CREDENTIALS and not is_bye
    reply = received[: received.rfind(b"\n") + 1]
    error = UpstreamRefused(reply, stage=stage, kind=kind, is_denial=is_denial)
    error.is_misconfigured = stage is UpstreamStage.XCLIENT and is_valid_reply and not is_bye
    return error


def reply_for_log(reply: bytes, user: bytes, password: Secret | None) -> bytes:
    """Return the first bytes of a reply, without its last line end; ``***`` if it contains the password.

    A server may repeat the command that it refuses.  The whole reply is
    withheld, because a gap in a well-known sentence would show the password.

    Args:
        reply: The reply, of an upstream or of the authentication service.
        user: The user name of the login.
        password: Must not be logged, neither in clear text nor in the base64 of ``AUTH PLAIN``.
    """
    text = reply.strip(b"\r\n")
    if password is not None and _contains_password(text[:_SEARCHED].lower(), user, password.reveal()):
        return WITHHELD
    return text[:MAX_LOGGED] + (b"..." if len(text) > MAX_LOGGED else b"")


def contains_secret(reply: bytes, secrets: Iterable[bytes]) -> bool:
    """Whether the part of a reply that is logged contains one of these secrets, or a part of one."""
    text = reply[:_SEARCHED].lower()
    words = set(text.split())
    return any(_contains(text, words, secret.lower()) for secret in secrets if secret)


def _contains_password(text: bytes, user: bytes, password: bytes) -> bool:
    plain = text.split()
    words = {*plain, *(word.strip(b"\"'`<>()[]{}.,:;!?") for word in plain)}
    return any(_contains(text, words, secret.lower()) for secret in _encodings(user, password))


def _encodings(user: bytes, password: bytes) -> Iterator[bytes]:
    """Return the forms of a password that a reply may contain.

    A server may take each word of it for a command.
    """
    if not password:
        return
    yield password
    yield from {*password.split()} - {password}
    for message in (password, b"\0" + user + b"\0" + password):
        yield b2a_base64(message, newline=False).rstrip(b"=")


def _contains(text: bytes, words: Set[bytes], secret: bytes) -> bool:
    if len(secret) < _WORD:
        return secret in words
    part = min(_PART, len(secret))
    # Iterate over the shorter one: the client chooses the length of the password.
    short, long = (secret, text) if len(secret) < len(text) else (text, secret)
    return any(short[start : start + part] in long for start in range(len(short) - part + 1))
