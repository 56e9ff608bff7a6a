# SPDX-License-Identifier: Apache-2.0
"""The conversation with an IMAP client, from the greeting to its login.

Only what nginx understands before login is understood here: CAPABILITY, NOOP,
LOGOUT, STARTTLS, LOGIN and AUTHENTICATE.  Everything else is the upstream's.
"""

from __future__ import annotations

from typing import ClassVar, Final

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.errors import LineTooLong
from mailproxy.protocols.frontend import (
    CertificateFault,
    CommandHandling,
    CommandResult,
    Frontend,
    FrontendConfig,
    classify_bad_line,
)
from mailproxy.protocols.imap import replies
from mailproxy.protocols.imap.commands import (
    MAX_ARGUMENTS,
    PLAIN_LOGIN,
    Command,
    Rejected,
    Unfinished,
    begin,
    go_on,
    tag_of,
)
from mailproxy.protocols.sansio import ProtocolGenerator, Send, send
from mailproxy.protocols.sasl import Framing, is_unsafe
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Secret,
    SessionEnd,
    UpstreamLogin,
)
from mailproxy_config.model import ServerConfig, StartTls

_FRAMING: Final = Framing(replies.CHALLENGE_PREFIX, words=MAX_ARGUMENTS)
_GREET: Final = Send(replies.GREETING)
_PASSWORD: Final = Method.PASSWORD
_CERTIFICATE_REPLIES: Final = {
    CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
    CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
}


class ImapFrontendConfig(FrontendConfig):
    """One server's side of the conversations with IMAP clients."""

    __slots__ = ("capabilities",)

    def __init__(self, server: ServerConfig) -> None:
        super().__init__(server, server.imap_client_buffer, _GREET)
        self.capabilities = replies.capabilities(server)

    def converse(self, client: Client) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Talk to a client until it is identified, or gone."""
        return ImapFrontend(self, client).converse()


class ImapFrontend(Frontend[ImapFrontendConfig]):
    """One IMAP client's conversation; ``_tag`` is the latest command's, which every reply begins with."""

    framing: ClassVar[Framing] = _FRAMING
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = _CERTIFICATE_REPLIES

    __slots__ = ("_tag",)
    _tag: bytes

    def invalid(self) -> bytes:
        """Give the reply to an invalid command, with its tag if it has one."""
        return replies.invalid(self._tag)

    def denial(self, denied: AuthDenied) -> bytes:
        """Give the reply to a login that the authorization service denied."""
        return replies.denied(self._tag, denied.text)

    def turn(self, line: bytes) -> CommandHandling:
        """Read a command: LOGIN with two atoms at a glance, any other at length."""
        login = PLAIN_LOGIN.fullmatch(line)
        if login is None or (self.prepared.only_in_tls and self.client.tls is None):
            return self._at_length(line)
        self._tag, user, password = login.groups()
        return self.attempt(Credentials(_PASSWORD, user, Secret(password)))

    def identified(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what is known of a client that may log in."""
        return UpstreamLogin(grant, request.credentials.method, self.reader.rest(), self._tag)

    # ---- reading a command ----

    def line(self) -> ProtocolGenerator[bytes]:
        """Read a command's first line; one that is too long is answered with its tag."""
        try:
            return (yield from self.reader.line())
        except LineTooLong as too_long:
            self._tag = tag_of(too_long.seen)
            raise

    def _at_length(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        """Read a command with its literals, and answer it."""
        command = yield from self._whole(begin(line))
        self._tag = command.tag
        if isinstance(command, Rejected):
            return (yield from self._reject(command, line))
        return (yield from self._dispatch(command))

    def _room(self) -> int:
        """How many bytes the command may still take: all its lines and literals share one limit."""
        return self.reader.limit - self.reader.consumed

    def _whole(self, command: Command | Unfinished | Rejected) -> ProtocolGenerator[Command | Rejected]:
        """Read on until the command is complete.

        Raises:
            LineTooLong: Before a literal is read, or asked for, that would not fit.
        """
        while isinstance(command, Unfinished):
            self._tag = command.command.tag
            if command.size >= self._room():
                raise LineTooLong(b"", self.reader.limit)
            if command.synchronizing:
                yield from send(replies.CONTINUE)
            data = yield from self.reader.data(command.size)
            line = yield from self.reader.line(self._room())
            command = go_on(command, data, line)
        return command

    def _reject(self, rejected: Rejected, line: bytes) -> ProtocolGenerator[SessionEnd | None]:
        kind = (
            classify_bad_line(line) if rejected.kind is ProtocolErrorKind.UNKNOWN_COMMAND else rejected.kind
        )
        ended = yield from self.count(kind)
        if ended is None and rejected.closes:
            return SessionEnd(CloseReason.PROTOCOL_ERROR)
        return ended

    # ---- commands ----

    def _dispatch(self, command: Command) -> ProtocolGenerator[CommandResult]:
        match command.word:
            case b"LOGIN":
                return (yield from self._login(command.arguments))
            case b"AUTHENTICATE":
                return (yield from self._authenticate(command.arguments))
            case b"STARTTLS":
                return (yield from self.upgrade(replies.completed(self._tag)))
            case b"CAPABILITY":
                yield from send(self._capability() + replies.completed(self._tag))
            case b"LOGOUT":
                yield from send(replies.BYE + replies.completed(self._tag))
                return SessionEnd(CloseReason.CLIENT_QUIT)
            case _:
                yield from send(replies.completed(self._tag))
        return None

    def _capability(self) -> bytes:
        if not self.tls_is_offered:
            return self.prepared.capabilities.plain
        if self.server.starttls is StartTls.ONLY:
            return self.prepared.capabilities.only
        return self.prepared.capabilities.starttls

    def _login(self, arguments: list[bytes]) -> ProtocolGenerator[CommandResult]:
        """LOGIN (RFC 9051 section 6.2.3): a user name, which is not empty, and a password, which may be."""
        if self.tls_is_missing:
            yield from self.refuse(Method.PASSWORD, LoginResult.TLS_REQUIRED)
            return None
        if len(arguments) != 2 or not arguments[0]:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS)
            return None
        user, password = arguments
        if is_unsafe(user) or is_unsafe(password):
            kind = ProtocolErrorKind.CONTROL_CHAR
            yield from self.refuse(Method.PASSWORD, LoginResult.BAD_CREDENTIALS_SYNTAX, kind)
            return None
        return self.attempt(Credentials(_PASSWORD, user, Secret(password)))

    def _authenticate(self, arguments: list[bytes]) -> ProtocolGenerator[CommandResult]:
        """AUTHENTICATE (RFC 9051 section 6.2.2); its response lines share the command's limit."""
        outcome = yield from self.exchange(arguments, self.server.imap_auth, self._room())
        if isinstance(outcome, Credentials):
            return self.attempt(outcome)
        return outcome
