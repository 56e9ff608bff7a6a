# SPDX-License-Identifier: Apache-2.0
"""The conversation with a POP3 client, from the greeting until it is identified (RFC 1939)."""

from __future__ import annotations

from typing import ClassVar, Final

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.frontend import (
    CertificateFault,
    CommandHandling,
    CommandResult,
    Frontend,
    FrontendConfig,
)
from mailproxy.protocols.pop3 import commands, replies
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
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls

_GREET: Final = Send(replies.GREETING)
_SAY_OK: Final = Send(replies.OK)
_PASSWORD: Final = Method.PASSWORD
_CHALLENGED: Final = frozenset((AuthMethod.APOP, AuthMethod.CRAM_MD5))


class Pop3FrontendConfig(FrontendConfig):
    """One server's side of the conversation with POP3 clients, its lists prepared once."""

    __slots__ = ("capabilities", "capabilities_in_clear", "mechanisms")

    def __init__(self, server: ServerConfig) -> None:
        greets_alike = server.pop3_auth.isdisjoint(_CHALLENGED)
        super().__init__(server, server.pop3_client_buffer, _GREET, greets_alike=greets_alike)
        self.mechanisms = replies.mechanisms(server)
        self.capabilities = replies.capabilities(server)
        in_clear = {
            StartTls.DISABLED: replies.capabilities,
            StartTls.ENABLED: replies.capabilities_with_stls,
            StartTls.ONLY: replies.capabilities_before_tls,
        }
        self.capabilities_in_clear = in_clear[server.starttls](server)

    def converse(self, client: Client) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Talk to a client from the greeting until it is identified, or gone."""
        return Pop3Frontend(self, client).converse()


class Pop3Frontend(Frontend[Pop3FrontendConfig]):
    """One client's conversation; ``user`` is what USER named, while PASS is awaited."""

    framing: ClassVar[Framing] = Framing(b"+ ", words=commands.MAX_ARGUMENTS)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
        CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
    }

    __slots__ = ("user",)

    def __init__(self, prepared: Pop3FrontendConfig, client: Client) -> None:
        super().__init__(prepared, client)
        self.user: bytes | None = None

    def greet(self) -> ProtocolGenerator[SessionEnd | None]:
        """Say the greeting, with the challenge in it where a method needs one."""
        if self.server.pop3_auth.isdisjoint(_CHALLENGED):
            return (yield from super().greet())
        yield from send(replies.greeting((yield from self.challenge())))
        return None

    def invalid(self) -> bytes:
        """Give the reply to an invalid command."""
        return replies.INVALID

    def denial(self, denied: AuthDenied) -> bytes:
        """Give the reply to a denied login."""
        return replies.denial(denied)

    def turn(self, line: bytes) -> CommandHandling:
        """Read a command: USER and then PASS at a glance, any other at length."""
        user, self.user = self.user, None
        if user is not None:
            password = commands.PASS_LINE.fullmatch(line)
            if password is not None:
                return self.attempt(Credentials(_PASSWORD, user, Secret(password[1])))
        elif not self.prepared.only_in_tls or self.client.tls is not None:
            named = commands.USER_LINE.fullmatch(line)
            if named is not None:
                self.user = named[1]
                return _SAY_OK
        return self._at_length(line, user)

    def identified(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what is known of a client that may log in."""
        return UpstreamLogin(grant, request.credentials.method, self.reader.rest())

    def _at_length(self, line: bytes, user: bytes | None) -> ProtocolGenerator[CommandResult]:
        """Take any command; after USER nearly all of them make it forgotten."""
        command = commands.parse(line)
        if isinstance(command, ProtocolErrorKind):
            return (yield from self.count(command))
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
        """State "user": a PASS that could not be taken at a glance, and what does not disturb it."""
        if word == commands.PASS and arguments:
            yield from self._refuse_unsafe(_PASSWORD)
            return None
        if word in {commands.CAPA, commands.NOOP}:
            self.user = user
            yield from send(self.prepared.capabilities if word == commands.CAPA else replies.OK)
        else:
            is_pass = word == commands.PASS
            yield from self.reject(
                ProtocolErrorKind.BAD_ARGUMENTS if is_pass else ProtocolErrorKind.BAD_SEQUENCE
            )
        return None

    def _user(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        """USER without a name that could be taken, or before TLS."""
        if self.tls_is_missing:
            yield from self.refuse(Method.PASSWORD, LoginResult.TLS_REQUIRED)
        else:
            yield from self.reject(
                ProtocolErrorKind.CONTROL_CHAR if arguments else ProtocolErrorKind.BAD_ARGUMENTS
            )
        return None

    def _pass(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE)
        return None

    def _capa(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        frontend = self.prepared
        in_clear = self.client.tls is None
        yield from send(frontend.capabilities_in_clear if in_clear else frontend.capabilities)
        return None

    def _noop(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        yield from send(replies.OK)
        return None

    def _stls(self, _arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        return (yield from self.upgrade(replies.OK))

    def _apop(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        if self.tls_is_missing:
            yield from self.refuse(Method.APOP, LoginResult.TLS_REQUIRED)
        elif AuthMethod.APOP not in self.server.pop3_auth:
            yield from self.refuse(Method.APOP, LoginResult.METHOD_DISABLED)
        elif len(arguments) != 2:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS)
        else:
            salt = yield from self.challenge()
            user, digest = arguments
            if not is_unsafe(user + digest):
                return self.attempt(Credentials(Method.APOP, user, Secret(digest), salt))
            yield from self._refuse_unsafe(Method.APOP)
        return None

    def _auth(self, arguments: tuple[bytes, ...]) -> ProtocolGenerator[CommandResult]:
        if not arguments and not self.tls_is_missing:
            yield from send(self.prepared.mechanisms)
            return None
        reader, limit = self.reader, self.prepared.limit
        reader.limit = max(limit, commands.SASL_LINE)
        credentials = yield from self.exchange(arguments, self.server.pop3_auth)
        reader.limit = limit
        if isinstance(credentials, Credentials):
            return self.attempt(credentials)
        return credentials

    def _refuse_unsafe(self, method: Method) -> ProtocolGenerator[None]:
        """Answer credentials that could end a line, or a field, elsewhere."""
        return self.refuse(method, LoginResult.BAD_CREDENTIALS_SYNTAX, ProtocolErrorKind.CONTROL_CHAR)

    _START: ClassVar = {
        commands.USER: _user,
        commands.PASS: _pass,
        commands.CAPA: _capa,
        commands.NOOP: _noop,
        commands.STLS: _stls,
        commands.APOP: _apop,
        commands.AUTH: _auth,
    }
    """State "start": which method answers which command."""
