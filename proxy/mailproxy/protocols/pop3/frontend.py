# SPDX-License-Identifier: Apache-2.0
"""The conversation with a POP3 client, from the greeting until it is identified (RFC 1939)."""

from __future__ import annotations

from typing import ClassVar, Final

from mailproxy.dialogue.actions import Dialogue, send
from mailproxy.dialogue.values import Client, Credentials, Denied, Ended, Granted, Identified, Secret
from mailproxy.events import CloseReason, LoginResult, Method, ProtocolErrorKind
from mailproxy.protocols.conversation import CertificateFault, Conversation
from mailproxy.protocols.pop3 import commands, replies
from mailproxy.protocols.sasl import Framing, is_unsafe
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls

_GREET: Final = send(replies.GREETING)
_SAY_OK: Final = send(replies.OK)
_PASSWORD: Final = Method.PASSWORD
_CHALLENGED: Final = frozenset((AuthMethod.APOP, AuthMethod.CRAM_MD5))

Outcome = Identified | Ended | None
"""What a turn leads to; ``None`` for another one."""


class Pop3Frontend:
    """One server's side of the conversation with POP3 clients, its lists prepared once."""

    __slots__ = ("capabilities", "capabilities_in_clear", "mechanisms", "server")

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.mechanisms = replies.mechanisms(server)
        self.capabilities = replies.capabilities(server)
        in_clear = {
            StartTls.DISABLED: replies.capabilities,
            StartTls.ENABLED: replies.capabilities_with_stls,
            StartTls.ONLY: replies.capabilities_before_tls,
        }
        self.capabilities_in_clear = in_clear[server.starttls](server)

    def converse(self, client: Client) -> Dialogue[Identified | Ended]:
        """Talk to a client from the greeting until it is identified, or gone."""
        return Pop3Conversation(self, client).converse()


class Pop3Conversation(Conversation):
    """One client's conversation; ``user`` is what USER named, while PASS is awaited."""

    framing: ClassVar[Framing] = Framing(b"+ ", words=commands.MAX_ARGUMENTS)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: replies.CERTIFICATE_INVALID,
        CertificateFault.MISSING: replies.CERTIFICATE_MISSING,
    }

    __slots__ = ("_frontend", "user")

    def __init__(self, frontend: Pop3Frontend, client: Client) -> None:
        super().__init__(frontend.server, client, commands.BUFFER)
        self._frontend = frontend
        self.user: bytes | None = None

    def greet(self) -> Dialogue[Ended | None]:
        """Say the greeting, with the challenge in it where a method needs one."""
        if self.server.pop3_auth.isdisjoint(_CHALLENGED):
            yield from _GREET
        else:
            yield from send(replies.greeting((yield from self.challenge())))
        return None

    def invalid(self) -> bytes:
        """Give the reply to an invalid command."""
        return replies.INVALID

    def denial(self, denied: Denied) -> bytes:
        """Give the reply to a denied login."""
        return replies.denial(denied)

    def turn(self) -> Dialogue[Outcome]:
        """Take one command; after USER nearly all of them make it forgotten."""
        line = yield from self.reader.line()
        command = commands.parse(line)
        user, self.user = self.user, None
        if isinstance(command, ProtocolErrorKind):
            return (yield from self.count(command))
        word, arguments = command
        if word == commands.QUIT:
            yield from send(replies.OK)
            return Ended(CloseReason.CLIENT_QUIT)
        if user is not None:
            return (yield from self._after_user(user, word, arguments))
        return (yield from self._START[word](self, arguments))

    def _after_user(self, user: bytes, word: bytes, arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        """State "user": PASS, and what does not disturb it."""
        if word == commands.PASS and arguments:
            return (yield from self._password(_PASSWORD, user, arguments[0]))
        if word in {commands.CAPA, commands.NOOP}:
            self.user = user
            yield from send(self._frontend.capabilities if word == commands.CAPA else replies.OK)
        else:
            is_pass = word == commands.PASS
            yield from self.reject(
                ProtocolErrorKind.BAD_ARGUMENTS if is_pass else ProtocolErrorKind.BAD_SEQUENCE
            )
        return None

    def _user(self, arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        if self.tls_is_missing:
            yield from self.refuse(Method.PASSWORD, LoginResult.TLS_REQUIRED)
        elif not arguments:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS)
        elif is_unsafe(arguments[0]):
            yield from self.reject(ProtocolErrorKind.CONTROL_CHAR)
        else:
            self.user = arguments[0]
            yield from _SAY_OK
        return None

    def _pass(self, _arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE)
        return None

    def _capa(self, _arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        frontend = self._frontend
        in_clear = self.client.tls is None
        yield from send(frontend.capabilities_in_clear if in_clear else frontend.capabilities)
        return None

    def _noop(self, _arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        yield from send(replies.OK)
        return None

    def _stls(self, _arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        return (yield from self.upgrade(replies.OK))

    def _apop(self, arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        if self.tls_is_missing:
            yield from self.refuse(Method.APOP, LoginResult.TLS_REQUIRED)
        elif AuthMethod.APOP not in self.server.pop3_auth:
            yield from self.refuse(Method.APOP, LoginResult.METHOD_DISABLED)
        elif len(arguments) != 2:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS)
        else:
            salt = yield from self.challenge()
            return (yield from self._password(Method.APOP, *arguments, salt))
        return None

    def _auth(self, arguments: tuple[bytes, ...]) -> Dialogue[Outcome]:
        if not arguments and not self.tls_is_missing:
            yield from send(self._frontend.mechanisms)
            return None
        credentials = yield from self.exchange(arguments, self.server.pop3_auth)
        if isinstance(credentials, Credentials):
            return (yield from self._log_in(credentials))
        return credentials

    def _password(
        self, method: Method, user: bytes, password: bytes, salt: bytes | None = None
    ) -> Dialogue[Outcome]:
        if is_unsafe(user + password):
            yield from self.refuse(method, LoginResult.BAD_CREDENTIALS_SYNTAX, ProtocolErrorKind.CONTROL_CHAR)
            return None
        return (yield from self._log_in(Credentials(method, user, Secret(password), salt)))

    def _log_in(self, credentials: Credentials) -> Dialogue[Outcome]:
        grant = yield from self.admit(credentials)
        if isinstance(grant, Granted):
            return Identified(grant, credentials.method, self.reader.rest())
        return grant

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
