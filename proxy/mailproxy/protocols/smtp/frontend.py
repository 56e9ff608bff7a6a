# SPDX-License-Identifier: Apache-2.0
"""The conversation with an SMTP client, from the greeting until it is identified (RFC 5321, RFC 4954)."""

from __future__ import annotations

from typing import ClassVar

from mailproxy.enums import CloseReason, LogNote, Method, ProtocolErrorKind, ProtocolViolation
from mailproxy.protocols.frontend import (
    CertificateFault,
    CommandHandling,
    CommandResult,
    Frontend,
    FrontendConfig,
    has_control_chars,
)
from mailproxy.protocols.sansio import ProtocolGenerator, Send, note, peek, resolve_client, send
from mailproxy.protocols.sasl import Framing, parse_plain
from mailproxy.protocols.smtp import commands, replies
from mailproxy.protocols.smtp.commands import Command
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Envelope,
    SessionEnd,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls


class SmtpFrontendConfig(FrontendConfig):
    """One server's side of the conversation with SMTP clients, its replies prepared once."""

    __slots__ = ("capabilities", "capabilities_in_clear", "hello")

    def __init__(self, server: ServerConfig) -> None:
        greeting = Send(replies.greeting(server))
        at_once = server.resolver is None and server.smtp_greeting_delay <= 0
        super().__init__(server, server.smtp_client_buffer, greeting, greets_alike=at_once)
        self.hello = Send(replies.hello(server))
        self.capabilities = Send(replies.capabilities(server))
        in_clear = {
            StartTls.DISABLED: replies.capabilities,
            StartTls.ENABLED: replies.capabilities_with_starttls,
            StartTls.ONLY: replies.capabilities_before_tls,
        }
        self.capabilities_in_clear = Send(in_clear[server.starttls](server))

    def converse(self, client: Client) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Talk to a client from before the greeting until it is identified, or gone."""
        return SmtpFrontend(self, client).converse()


class SmtpFrontend(Frontend[SmtpFrontendConfig]):
    """One client's conversation.

    Attributes:
        helo: What HELO or EHLO said, since the last start of TLS.
        mail: The MAIL command of a transaction without a login.
        esmtp: Whether EHLO was ever used; nothing takes that back, as in nginx.
    """

    framing: ClassVar[Framing] = Framing(b"334 ", words=commands.MAX_ARGUMENTS)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
        CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
    }

    __slots__ = ("esmtp", "helo", "mail")

    def __init__(self, prepared: SmtpFrontendConfig, client: Client) -> None:
        super().__init__(prepared, client)
        self.helo: bytes | None = None
        self.mail: bytes | None = None
        self.esmtp = False

    def greet(self) -> ProtocolGenerator[SessionEnd | None]:
        """Find out the client's name, wait for ``smtp_greeting_delay``, and greet."""
        server = self.server
        if server.resolver is not None:
            self.client.host = yield from resolve_client()
        if server.smtp_greeting_delay > 0:
            early = yield from peek(server.smtp_greeting_delay, server.smtp_client_buffer)
            if early:
                yield from note(LogNote("client was rejected before greeting"))
                yield from note(ProtocolViolation(ProtocolErrorKind.EARLY_TALKER))
                yield from send(replies.EARLY_TALKER)
                return SessionEnd(CloseReason.PROTOCOL_ERROR)
        return (yield from super().greet())

    def invalid(self) -> bytes:
        """Give the reply to an invalid command."""
        return replies.INVALID

    def denial(self, denied: AuthDenied) -> bytes:
        """Give the reply to a denied login, or to a denied RCPT."""
        return replies.denial(denied)

    def turn(self, line: bytes) -> CommandHandling:
        """Read a command: EHLO and AUTH PLAIN at a glance, any other at length."""
        usual = commands.USUAL.fullmatch(line)
        if usual is None:
            return self._at_length(line)
        helo, response = usual.groups()
        if helo is not None:
            return self._greeted(helo, extended=True)
        if self.prepared.only_in_tls and self.client.tls is None:
            return self._at_length(line)
        credentials = parse_plain(response)
        if isinstance(credentials, Credentials):
            return self.attempt(credentials)
        return self.answer(credentials)

    def identified(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what is known of a client that may log in."""
        method, unread = request.credentials.method, self.reader.rest()
        return UpstreamLogin(grant, method, unread, b"", request.envelope, self.helo, self.esmtp)

    def _greeted(self, helo: bytes, *, extended: bool) -> Send:
        """HELO and EHLO: a transaction that was begun is forgotten (RFC 5321 section 4.1.4)."""
        self.helo = helo
        self.mail = None
        if not extended:
            return self.prepared.hello
        self.esmtp = True
        return self.prepared.capabilities_in_clear if self.client.tls is None else self.prepared.capabilities

    def _at_length(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        """Take any command, and answer it."""
        command = commands.parse(line)
        if isinstance(command, ProtocolErrorKind):
            return (yield from self.count(command))
        return (yield from self._COMMANDS[command.word](self, command))

    def _hello(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if len(command.arguments) != 1:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
        elif has_control_chars(command.text):
            yield from self.reject(ProtocolErrorKind.CONTROL_CHAR, replies.INVALID_ARGUMENT)
        else:
            yield self._greeted(command.arguments[0], extended=command.word == commands.EHLO)
        return None

    def _auth(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if not command.arguments and not self.tls_is_missing:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
            return None
        credentials = yield from self.exchange(command.arguments, self.server.smtp_auth)
        if isinstance(credentials, Credentials):
            return self.attempt(credentials)
        return credentials

    def _mail(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if AuthMethod.NONE not in self.server.smtp_auth:
            yield from note(LogNote("client was rejected", command.text))
            yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE, replies.AUTH_REQUIRED)
        elif self.tls_is_missing:
            yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE, replies.TLS_REQUIRED)
        elif self.mail is not None:
            yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE, replies.BAD_SEQUENCE)
        elif (yield from self._has_address(command)):
            self.mail = command.text
            yield from send(replies.OK)
        return None

    def _rcpt(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if self.mail is None:
            yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE, replies.BAD_SEQUENCE)
        elif (yield from self._has_address(command)):
            envelope = Envelope(self.helo or b"", self.mail, command.text)
            return self.attempt(Credentials(Method.NONE), envelope)
        return None

    def _has_address(self, command: Command) -> ProtocolGenerator[bool]:
        """Whether there is anything to repeat to the upstream; what it says is not our business."""
        if not command.arguments:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
            return False
        if has_control_chars(command.text):
            yield from self.reject(ProtocolErrorKind.CONTROL_CHAR, replies.INVALID_ARGUMENT)
            return False
        return True

    def _rset(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        self.mail = None
        yield from send(replies.OK)
        return None

    def _noop(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.OK)
        return None

    def _quit(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.BYE)
        return SessionEnd(CloseReason.CLIENT_QUIT)

    def _unserved(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        """VRFY, EXPN and HELP are known, and nobody answers them."""
        yield from self.reject(ProtocolErrorKind.UNKNOWN_COMMAND)
        return None

    def _starttls(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        if self.tls_is_offered:
            self.helo = self.mail = None
        return (yield from self.upgrade(replies.START_TLS))

    _COMMANDS: ClassVar = {
        commands.HELO: _hello,
        commands.EHLO: _hello,
        commands.AUTH: _auth,
        commands.QUIT: _quit,
        commands.NOOP: _noop,
        commands.MAIL: _mail,
        commands.RSET: _rset,
        commands.RCPT: _rcpt,
        commands.VRFY: _unserved,
        commands.EXPN: _unserved,
        commands.HELP: _unserved,
        commands.STARTTLS: _starttls,
    }
    """Which method answers which command."""
