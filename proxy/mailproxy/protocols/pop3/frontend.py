# SPDX-License-Identifier: Apache-2.0
"""The POP3 server side before login (RFC 1939)."""

from __future__ import annotations

from typing import ClassVar, Final

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.client_lines import line_limit
from mailproxy.protocols.frontend import CommandHandling, CommandResult, Frontend, FrontendConfig
from mailproxy.protocols.pop3 import commands, replies
from mailproxy.protocols.sansio import ProtocolGenerator, Send, send
from mailproxy.protocols.sasl import Framing, is_unsafe
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    CertificateFault,
    Client,
    Credentials,
    Secret,
    SessionEnd,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, ServerConfig

_GREETING: Final = Send(replies.GREETING)
_OK: Final = Send(replies.OK)
_PASSWORD: Final = Method.PASSWORD  # saves 0.25 µs per login on Python 3.11, 0.08 µs on 3.13
_CHALLENGED: Final = frozenset((AuthMethod.APOP, AuthMethod.CRAM_MD5))


class Pop3FrontendConfig(FrontendConfig):
    """What all POP3 frontends of one server share."""

    __slots__ = ("capabilities", "capabilities_in_clear", "mechanisms")

    def __init__(self, server: ServerConfig, greeting: Send = _GREETING) -> None:
        is_greeting_static = server.pop3_auth.isdisjoint(_CHALLENGED)
        limit = line_limit(server.pop3_client_buffer, server.pop3_auth)
        super().__init__(server, limit, greeting, is_greeting_static=is_greeting_static)
        self.mechanisms = replies.mechanisms(server)
        self.capabilities = replies.capabilities(server)
        self.capabilities_in_clear = replies.capabilities(server, server.starttls)


class Pop3Frontend(Frontend[Pop3FrontendConfig]):
    """The server side of one POP3 client's session; ``user`` is the user name between USER and PASS."""

    framing: ClassVar[Framing] = Framing(b"+ ", words=commands.MAX_ARGUMENTS)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
        CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
    }

    __slots__ = ("user",)

    def __init__(self, config: Pop3FrontendConfig, client: Client) -> None:
        Frontend.__init__(self, config, client)
        self.user: bytes | None = None

    def send_greeting(self) -> ProtocolGenerator[SessionEnd | None]:
        """Send the greeting, with a challenge if a method needs one."""
        if self.server.pop3_auth.isdisjoint(_CHALLENGED):
            return (yield from super().send_greeting())
        yield from send(replies.greeting((yield from self.challenge()), self.config.greeting.data))
        return None

    def invalid_reply(self) -> bytes:
        """Return the reply to an invalid command."""
        return replies.INVALID

    def denied_reply(self, denied: AuthDenied) -> bytes:
        """Return the reply to a denied login."""
        return replies.denial(denied)

    def handle_received(self, data: bytes) -> Send | AuthRequest | None:
        """Handle USER, and then PASS."""
        user = self.user
        if user is not None:
            password = commands.PASS_LINE.fullmatch(data)
            if password is not None:
                self.user = None
                return self.auth_request(Credentials(_PASSWORD, user, Secret(password[1])))
        elif not self.config.requires_tls or self.client.tls is not None:
            named = commands.USER_LINE.fullmatch(data)
            if named is not None:
                self.user = named[1]
                return _OK
        return None

    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle any command."""
        return Pop3Frontend.handle_received(self, line + b"\r\n") or self._handle_other(line)

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs."""
        return UpstreamLogin(grant, request.credentials.method, self.reader.take_unread())

    def _handle_other(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        """Handle any command; after USER nearly all of them reset the user name."""
        user, self.user = self.user, None
        command = commands.parse_line(line)
        if isinstance(command, ProtocolErrorKind):
            return (yield from self.count_error(command))
        word, arguments = command
        if word == commands.QUIT:
            yield from send(replies.OK)
            return SessionEnd(CloseReason.CLIENT_QUIT)
        if user is not None:
            return (yield from self._after_user(user, word, arguments))
        return (yield from self._START[word](self, arguments))

    def _after_user(
        self, user: bytes, word: bytes, arguments: tuple[bytes, ...]
    ) -> ProtocolGenerator[CommandResult]:
        """State "user": an unsafe PASS, and the commands that keep the user name."""
        if word == commands.PASS and arguments:
            yield from self._refuse_unsafe(_PASSWORD)
            return None
        if word in {commands.CAPA, commands.NOOP}:
            self.user = user
            yield from send(self.config.capabilities if word == commands.CAPA else replies.OK)
        else:
            is_pass = word == commands.PASS
            yield from self.reply_invalid(
                ProtocolErrorKind.BAD_ARGUMENTS if is_pass else ProtocolErrorKind.BAD_SEQUENCE
            )
        return None

    def _user(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        """USER without a safe name, or before TLS."""
        if self.is_tls_missing:
            yield from self.refuse_login(Method.PASSWORD, LoginResult.TLS_REQUIRED)
        else:
            yield from self.reply_invalid(
                ProtocolErrorKind.CONTROL_CHAR if arguments else ProtocolErrorKind.BAD_ARGUMENTS
            )
        return None

    def _pass(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE)
        return None

    def _capa(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        config = self.config
        yield from send(config.capabilities_in_clear if self.client.tls is None else config.capabilities)
        return None

    def _noop(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.OK)
        return None

    def _stls(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        return (yield from self.starttls(replies.OK))

    def _apop(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        if self.is_tls_missing:
            yield from self.refuse_login(Method.APOP, LoginResult.TLS_REQUIRED)
        elif AuthMethod.APOP not in self.server.pop3_auth:
            yield from self.refuse_login(Method.APOP, LoginResult.METHOD_DISABLED)
        elif len(arguments) != 2:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS)
        else:
            challenge = yield from self.challenge()
            user, digest = arguments
            if not is_unsafe(user + digest):
                return self.auth_request(Credentials(Method.APOP, user, Secret(digest), challenge))
            yield from self._refuse_unsafe(Method.APOP)
        return None

    def _auth(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        if not arguments and not self.is_tls_missing:
            yield from send(self.config.mechanisms)
            return None
        reader, limit = self.reader, self.config.limit
        reader.limit = max(limit, commands.SASL_LINE)
        result = yield from self.authenticate_sasl(arguments, self.server.pop3_auth)
        reader.limit = limit
        return result

    def _refuse_unsafe(self, method: Method) -> ProtocolGenerator[None]:
        """Refuse credentials that would end a line or header field elsewhere."""
        return self.refuse_login(method, LoginResult.BAD_CREDENTIALS_SYNTAX, ProtocolErrorKind.CONTROL_CHAR)

    _START: ClassVar = {
        commands.USER: _user,
        commands.PASS: _pass,
        commands.CAPA: _capa,
        commands.NOOP: _noop,
        commands.STLS: _stls,
        commands.APOP: _apop,
        commands.AUTH: _auth,
    }
    """State "start": the method for each command."""
