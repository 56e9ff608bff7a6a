# SPDX-License-Identifier: Apache-2.0
"""The SMTP server side before login or the first recipient (RFC 5321, RFC 4954)."""

from __future__ import annotations

from typing import ClassVar

from mailproxy.enums import CloseReason, LogNote, Method, ProtocolErrorKind, ProtocolViolation
from mailproxy.protocols.client_lines import has_control_chars, line_limit
from mailproxy.protocols.frontend import CommandHandling, CommandResult, Frontend, FrontendConfig
from mailproxy.protocols.sansio import ProtocolGenerator, Send, note, peek, resolve_client, send
from mailproxy.protocols.sasl import Framing, parse_plain
from mailproxy.protocols.smtp import commands, replies
from mailproxy.protocols.smtp.commands import Command
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    CertificateFault,
    Client,
    Credentials,
    Envelope,
    SessionEnd,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, ServerConfig


class SmtpFrontendConfig(FrontendConfig):
    """What all SMTP frontends of one server share."""

    __slots__ = ("capabilities", "capabilities_in_clear", "hello")

    def __init__(self, server: ServerConfig) -> None:
        greeting = Send(replies.greeting(server))
        is_static = server.resolver is None and server.smtp_greeting_delay <= 0
        limit = line_limit(server.smtp_client_buffer, server.smtp_auth)
        super().__init__(server, limit, greeting, is_greeting_static=is_static)
        self.hello = Send(replies.hello(server))
        self.capabilities = Send(replies.capabilities(server))
        self.capabilities_in_clear = Send(replies.capabilities(server, server.starttls))


class SmtpFrontend(Frontend[SmtpFrontendConfig]):
    """The server side of one SMTP client's session.

    Attributes:
        helo: The argument of HELO or EHLO, reset by STARTTLS.
        mail: The MAIL command of a transaction without a login.
        esmtp: Whether EHLO was ever used; never reset, as in nginx.
    """

    framing: ClassVar[Framing] = Framing(b"334 ", words=commands.MAX_ARGUMENTS)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
        CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
    }

    __slots__ = ("esmtp", "helo", "mail")

    def __init__(self, config: SmtpFrontendConfig, client: Client) -> None:
        Frontend.__init__(self, config, client)
        self.helo: bytes | None = None
        self.mail: bytes | None = None
        self.esmtp = False

    def send_greeting(self) -> ProtocolGenerator[SessionEnd | None]:
        """Find the client's host name, wait for ``smtp_greeting_delay``, and send the greeting."""
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
        return (yield from super().send_greeting())

    def invalid_reply(self) -> bytes:
        """Return the reply to an invalid command."""
        return replies.INVALID

    def denied_reply(self, denied: AuthDenied) -> bytes:
        """Return the reply to a denied login, or to a denied RCPT."""
        return replies.denial(denied)

    def handle_received(self, data: bytes) -> CommandHandling | None:
        """Handle EHLO and AUTH PLAIN."""
        usual = commands.USUAL.fullmatch(data)
        if usual is None:
            return None
        helo, response = usual.groups()
        if helo is not None:
            return self._set_helo(helo, extended=True)
        if self.config.requires_tls and self.client.tls is None:
            return None
        credentials = parse_plain(response)
        if isinstance(credentials, Credentials):
            return self.auth_request(credentials)
        return self.reply_sasl_failure(credentials)

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle any command."""
        return SmtpFrontend.handle_received(self, line + b"\r\n") or self._handle_other(line)

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs."""
        method, unread = request.credentials.method, self.reader.take_unread()
        return UpstreamLogin(grant, method, unread, b"", request.envelope, self.helo, self.esmtp)

    def _set_helo(self, helo: bytes, *, extended: bool) -> Send:
        """HELO and EHLO: they reset a transaction (RFC 5321 section 4.1.4)."""
        self.helo = helo
        self.mail = None
        if not extended:
            return self.config.hello
        self.esmtp = True
        return self.config.capabilities_in_clear if self.client.tls is None else self.config.capabilities

    def _handle_other(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        """Handle any command."""
        command = commands.parse_line(line)
        if isinstance(command, ProtocolErrorKind):
            return (yield from self.count_error(command))
        return (yield from self._COMMANDS[command.word](self, command))

    def _hello(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if len(command.arguments) != 1:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
        elif has_control_chars(command.text):
            yield from self.reply_invalid(ProtocolErrorKind.CONTROL_CHAR, replies.INVALID_ARGUMENT)
        else:
            yield self._set_helo(command.arguments[0], extended=command.word == commands.EHLO)
        return None

    def _auth(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if not command.arguments and not self.is_tls_missing:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
            return None
        return (yield from self.authenticate_sasl(command.arguments, self.server.smtp_auth))

    def _mail(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if AuthMethod.NONE not in self.server.smtp_auth:
            yield from note(LogNote("client was rejected", command.text))
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.AUTH_REQUIRED)
        elif self.is_tls_missing:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.TLS_REQUIRED)
        elif self.mail is not None:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.BAD_SEQUENCE)
        elif (yield from self._has_address(command)):
            self.mail = command.text
            yield from send(replies.OK)
        return None

    def _rcpt(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if self.mail is None:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.BAD_SEQUENCE)
        elif (yield from self._has_address(command)):
            envelope = Envelope(self.helo or b"", self.mail, command.text)
            return self.auth_request(Credentials(Method.NONE), envelope)
        return None

    def _has_address(self, command: Command) -> ProtocolGenerator[bool]:
        """Whether the command has an argument that is safe to send to an upstream; it is not parsed."""
        if not command.arguments:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS, replies.INVALID_ARGUMENT)
            return False
        if has_control_chars(command.text):
            yield from self.reply_invalid(ProtocolErrorKind.CONTROL_CHAR, replies.INVALID_ARGUMENT)
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

    def _unsupported(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        """VRFY, EXPN and HELP: known commands without a function."""
        yield from self.reply_invalid(ProtocolErrorKind.UNKNOWN_COMMAND)
        return None

    def _starttls(self, _command: Command) -> ProtocolGenerator[CommandResult]:
        if self.is_tls_offered:
            self.helo = self.mail = None
        return (yield from self.starttls(replies.START_TLS))

    _COMMANDS: ClassVar = {
        commands.HELO: _hello,
        commands.EHLO: _hello,
        commands.AUTH: _auth,
        commands.QUIT: _quit,
        commands.NOOP: _noop,
        commands.MAIL: _mail,
        commands.RSET: _rset,
        commands.RCPT: _rcpt,
        commands.VRFY: _unsupported,
        commands.EXPN: _unsupported,
        commands.HELP: _unsupported,
        commands.STARTTLS: _starttls,
    }
    """The method for each command."""


class SmtpWithoutAuthFrontend(SmtpFrontend):
    """The same without AUTH (``smtp_auth_command off``), for mail from other servers."""

    __slots__ = ()

    def handle_received(self, _data: bytes) -> None:
        """Leave all commands to ``handle_command``."""

    def handle_command(self, line: bytes) -> CommandHandling:
        """Refuse AUTH, whatever its arguments."""
        if line[:5].upper().rstrip(b" ") == commands.AUTH:
            return self._refuse_auth()
        return super().handle_command(line)

    def _refuse_auth(self) -> ProtocolGenerator[CommandResult]:
        yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE, replies.AUTH_DISABLED)
        return None
