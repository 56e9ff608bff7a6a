# SPDX-License-Identifier: Apache-2.0
"""The server side of a protocol before login, as far as SMTP, IMAP and POP3 share it.

``Frontend.run`` is one client from its greeting to its login: it sends the
greeting, handles commands, counts errors and asks the authentication service.
Each protocol derives one class with its replies and its commands.

Timeouts and disconnections are not caught here: the client gets no reply to
them, and at shutdown the session sends the reply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final, Generic, TypeVar

from mailproxy.enums import (
    CloseReason,
    LoginDenied,
    LoginRefused,
    LoginResult,
    LogNote,
    Method,
    ProtocolErrorKind,
    ProtocolViolation,
)
from mailproxy.errors import AuthUnavailable, LineTooLong, PeerDisconnected
from mailproxy.protocols.client_lines import TLS_HANDSHAKE
from mailproxy.protocols.sansio import (
    LineReader,
    ProtocolGenerator,
    Receive,
    Send,
    SetDeadline,
    make_challenge,
    note,
    send,
    upgrade_to_tls,
    wait,
)
from mailproxy.protocols.sasl import (
    Framing,
    SaslFailure,
    TokenDiscovery,
    TokenRules,
    authenticate,
    find_mechanism,
)
from mailproxy.protocols.sasl_tokens import (
    TOKEN_METHODS,
    StrictRules,
    error_challenge,
    is_error_response,
)
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    CertificateFault,
    Client,
    Credentials,
    Decision,
    Envelope,
    SessionEnd,
    UpstreamLogin,
    certificate_fault,
)
from mailproxy.protocols.upstream_reply import reply_for_log
from mailproxy_config.model import AuthMethod, AuthMode, ServerConfig, StartTls, VerifyClient
from mailproxy_config.upstream_login import TOKEN_MECHANISMS

UNEXPECTED_PROXY_HEADER: Final = "client sent a PROXY header to a listener without proxy_protocol"
MAX_DEFERRAL: Final = 86400
"""Seconds for which the authentication service may defer one login, all pauses together."""

_NO_TOKEN: Final = AuthDenied(b"No token")

CommandResult = AuthRequest | SessionEnd | None
"""A command leads to a login to authenticate, the end of the session, or (``None``) the next command."""
CommandHandling = Send | AuthRequest | ProtocolGenerator[CommandResult]
"""How a command is answered: by one reply, by a login to authenticate, or by a generator."""


def passes_token_errors(server: ServerConfig) -> bool:
    """Whether clients may get the upstream's error for their access tokens (``token_errors``)."""
    sends_tokens = bool(TOKEN_MECHANISMS.intersection(server.proxy_auth)) or server.auth_http_overrides
    return server.proxy_pass_error_message and server.proxy_auth_token is None and sends_tokens


class FrontendConfig:
    """What all frontends of one server share, prepared once.

    Args:
        server: The server block that the clients connect to.
        limit: The longest command in bytes, its line end included.
        greeting: The greeting.
        is_greeting_static: Whether every client gets this greeting, at once.

    Attributes:
        deadline: Sets the deadline of the directive ``timeout``.
        is_greeting_static: False also with ``ssl_verify_client``, as the greeting may be a certificate
            error.
        requires_tls: Whether logins need TLS (``starttls only``).
        receive: Receives as much as an empty ``LineReader`` holds.
    """

    __slots__ = ("deadline", "greeting", "is_greeting_static", "limit", "receive", "requires_tls", "server")

    def __init__(
        self, server: ServerConfig, limit: int, greeting: Send, *, is_greeting_static: bool = True
    ) -> None:
        self.server = server
        self.limit = limit
        self.greeting = greeting
        self.is_greeting_static = is_greeting_static and server.ssl_verify_client is VerifyClient.DISABLED
        self.deadline = SetDeadline(server.timeout)
        self.requires_tls = server.starttls is StartTls.ONLY
        self.receive = Receive(limit)


ConfigT = TypeVar("ConfigT", bound=FrontendConfig)


class Frontend(ABC, Generic[ConfigT]):
    """The server side of one client's session before login.

    The usual commands are handled without a generator (``handle_received``);
    each other command has a generator of its own.

    Attributes:
        config: What is the same for all clients of the server.
        client: The client; ``client.tls`` is set by STARTTLS, ``client.host`` by the name lookup.
        reader: Reads the client's lines.
        login_attempts: Logins sent to the authentication service (``Auth-Login-Attempt``); never reset.
        commands_left: Commands that the client may still send; set only with ``max_commands``.
        error_count: Syntax errors that count towards ``max_errors``; never reset.
    """

    framing: ClassVar[Framing]
    """How the protocol frames SASL challenges."""
    certificate_replies: ClassVar[dict[CertificateFault, bytes]]
    """The replies to a bad certificate: instead of the greeting, or after STARTTLS."""

    __slots__ = ("_challenge", "client", "commands_left", "config", "error_count", "login_attempts", "reader")
    commands_left: int

    def __init__(self, config: ConfigT, client: Client) -> None:
        self.config = config
        self.client = client
        self.reader = LineReader(config.limit)
        self.login_attempts = 0
        self.error_count = 0
        self._challenge: bytes | None = None

    @property
    def server(self) -> ServerConfig:
        """The server block that the client connected to."""
        return self.config.server

    # ---- what a protocol provides ----

    def send_greeting(self) -> ProtocolGenerator[SessionEnd | None]:
        """Send the greeting; returns ``SessionEnd`` if the client is rejected instead."""
        yield self.config.greeting
        return None

    def handle_received(self, _data: bytes) -> CommandHandling | None:
        """Handle what was received, if it is the whole line of one usual command.

        Returns:
            ``None`` if it is anything else; then ``handle_command`` gets its line.
        """
        return None

    @abstractmethod
    def handle_command(self, line: bytes) -> CommandHandling:
        """Handle a command, given its first line without the line end."""

    @abstractmethod
    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs."""

    @abstractmethod
    def invalid_reply(self) -> bytes:
        """Return the reply to an invalid command (IMAP: with the command's tag)."""

    @abstractmethod
    def denied_reply(self, denied: AuthDenied) -> bytes:
        """Return the reply to a login that the authentication service denied."""

    def prepare_reply(self, line: bytes) -> None:
        """Remember what the reply to an unhandled line needs (IMAP: its tag)."""

    def read_command(self) -> ProtocolGenerator[bytes]:
        """Read a command's first line."""
        return self.reader.read_line()

    # ---- the session before login ----

    def run(self) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:  # noqa: C901 - each generator between a login and the driver costs time at every step
        """Serve the client from before the greeting to its login, or to the end of the session.

        Raises:
            AuthUnavailable: There was no usable response from the authentication service.
            PeerDisconnected: The client closed the connection, or a deadline passed.
            ShuttingDown: The proxy drains.
            TlsFailed: The handshake after STARTTLS failed.
        """
        config = self.config
        reader, receive = self.reader, config.receive
        try:  # ``run`` may be called again after a login that failed
            if config.is_greeting_static and not self.login_attempts:
                yield config.greeting
            else:
                ended = yield from self._check_certificate()
                if ended is None:
                    ended = yield from self.send_greeting()
                if ended is not None:
                    return ended
            yield config.deadline
            while True:
                data: bytes = b"" if reader.buffered else (yield receive)
                reader.consumed = len(data)
                handling = self.handle_received(data) or (yield from self._handle_line(data))
                if isinstance(handling, Send):
                    yield handling
                    continue
                result: CommandResult | UpstreamLogin = (
                    handling if isinstance(handling, AuthRequest) else (yield from handling)
                )
                if isinstance(result, AuthRequest):
                    decision: Decision = yield result
                    if isinstance(decision, AuthAllowed):
                        return self.upstream_login(result, decision)
                    result = yield from self._deny_or_retry(result, decision)
                if result is not None:
                    return result
        except LineTooLong as too_long:
            is_tls = too_long.seen.startswith(TLS_HANDSHAKE)
            yield from note(LogNote("client sent too long command"))
            yield from self.reply_invalid(
                ProtocolErrorKind.FOREIGN_PROTOCOL if is_tls else ProtocolErrorKind.LINE_TOO_LONG
            )
            return SessionEnd(CloseReason.PROTOCOL_ERROR)
        except PeerDisconnected as error:
            error.sent_nothing = not (reader.consumed or reader.buffered)
            raise

    def _handle_line(self, data: bytes) -> ProtocolGenerator[CommandHandling]:
        """Read and handle a command that is not a usual one, or did not arrive in one piece and alone.

        Args:
            data: What was received of it, and perhaps of later ones, if nothing was buffered.
        """
        if data:
            self.reader.buffered = data
        return self.handle_command((yield from self.read_command()))

    # ---- errors ----

    def reply_invalid(self, kind: ProtocolErrorKind, reply: bytes | None = None) -> ProtocolGenerator[None]:
        """Reply to a protocol violation that does not count towards ``max_errors``.

        Args:
            kind: The violation, for metrics and the log.
            reply: The reply; the one to invalid commands if none is given.
        """
        yield from note(ProtocolViolation(kind))
        if kind is ProtocolErrorKind.PROXY_HEADER:
            yield from note(LogNote(UNEXPECTED_PROXY_HEADER, is_ours=True))
        yield from send(self.invalid_reply() if reply is None else reply)

    def count_error(self, kind: ProtocolErrorKind) -> ProtocolGenerator[SessionEnd | None]:
        """Reply to a syntax error and count it; with error number ``max_errors`` the session ends."""
        yield from self.reply_invalid(kind)
        return (yield from self.count_failure())

    def count_failure(
        self, text: str = "client sent too many invalid commands"
    ) -> ProtocolGenerator[SessionEnd | None]:
        """Count an error to which the client got its reply; with number ``max_errors`` the session ends.

        Args:
            text: For the log, at the end of the session.
        """
        self.error_count += 1
        if self.error_count < self.server.max_errors:
            return None
        yield from note(LogNote(text))
        return SessionEnd(CloseReason.MAX_ERRORS)

    def refuse_login(
        self, method: Method, result: LoginResult, kind: ProtocolErrorKind | None = None
    ) -> ProtocolGenerator[None]:
        """Refuse a login without a request to the authentication service."""
        yield from note(LoginRefused(method, result))
        if kind is not None:
            yield from note(ProtocolViolation(kind))
        yield from send(self.invalid_reply())

    # ---- TLS ----

    @property
    def is_tls_missing(self) -> bool:
        """Whether the client must use STARTTLS before a login (``starttls only``)."""
        return self.client.tls is None and self.config.requires_tls

    @property
    def is_tls_offered(self) -> bool:
        """Whether STARTTLS is allowed now."""
        return self.client.tls is None and self.server.starttls is not StartTls.DISABLED

    def starttls(self, go_ahead: bytes) -> ProtocolGenerator[SessionEnd | None]:
        """Start TLS, or reply that it is not allowed.  There is no second greeting.

        Bytes that arrived with or after the command are discarded (RFC 3207
        section 4.2); counters, challenge and deadline stay.

        Args:
            go_ahead: The positive reply, sent in clear text.

        Raises:
            TlsFailed: The handshake failed.
        """
        if not self.is_tls_offered:
            yield from self.reply_invalid(ProtocolErrorKind.BAD_SEQUENCE)
            return None
        if self.reader.take_unread():
            yield from note(ProtocolViolation(ProtocolErrorKind.PLAINTEXT_BEFORE_TLS))
        yield from send(go_ahead)
        self.client.tls = yield from upgrade_to_tls()
        return (yield from self._check_certificate())

    def _check_certificate(self) -> ProtocolGenerator[SessionEnd | None]:
        """Send the protocol's error reply, inside TLS, if the client's certificate is not accepted."""
        tls = self.client.tls
        fault = None if tls is None else certificate_fault(self.server.ssl_verify_client, tls)
        if tls is None or fault is None:
            return None
        if fault is CertificateFault.INVALID:
            yield from note(LogNote("client SSL certificate verify error", tls.verify_error))
        else:
            yield from note(LogNote("client sent no required SSL certificate"))
        yield from send(self.certificate_replies[fault])
        return SessionEnd(CloseReason.TLS_FAILED)

    # ---- logins ----

    def challenge(self) -> ProtocolGenerator[bytes]:
        """Return the session's ``<R.T@NAME>``: made once, and the same for all logins of the session."""
        if self._challenge is None:
            self._challenge = yield from make_challenge(self.server.server_name)
        return self._challenge

    def authenticate_sasl(
        self, arguments: Sequence[bytes], enabled: frozenset[AuthMethod], budget: int | None = None
    ) -> ProtocolGenerator[CommandResult]:
        """Handle a SASL exchange.

        Args:
            arguments: The arguments of AUTH or AUTHENTICATE: a mechanism, perhaps an initial response.
            enabled: The configured methods.
            budget: See ``sasl.authenticate``.

        Returns:
            A login to authenticate; or ``None`` or ``SessionEnd`` after an error reply.
        """
        if self.is_tls_missing:
            method = find_mechanism(arguments)
            if method is None:
                yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS)
            else:
                yield from self.refuse_login(method, LoginResult.TLS_REQUIRED)
            return None
        result = yield from authenticate(
            arguments,
            framing=self.framing,
            reader=self.reader,
            enabled=enabled,
            get_challenge=self.challenge,
            budget=budget,
            tokens=self._token_rules(),
        )
        if isinstance(result, SaslFailure):
            return (yield from self.reply_sasl_failure(result))
        if isinstance(result, TokenDiscovery):
            return (yield from self._answer_discovery(result.method))
        return self.auth_request(result)

    def _token_rules(self) -> TokenRules:
        """Return how messages with tokens are read; ``oauth_strict`` compares them with SNI."""
        server, tls = self.server, self.client.tls
        strict = StrictRules(None if tls is None else tls.server_name) if server.oauth_strict else None
        return TokenRules(strict, server.auth_mode is AuthMode.JWT)

    def _answer_discovery(self, method: Method) -> ProtocolGenerator[CommandResult]:
        """Send a client without a token where it gets one; this is no login (RFC 7628 section 4.3).

        The deadline does not start anew: a client cannot keep its connection with this.
        """
        yield from note(LogNote("client asked where to get a token"))
        challenge = error_challenge(self.server.oauth_issuer[0])
        if (yield from self._exchange_token_error(method, challenge)):
            yield from send(self.denied_reply(_NO_TOKEN))
        return None

    def reply_sasl_failure(self, failure: SaslFailure) -> ProtocolGenerator[SessionEnd | None]:
        """Reply to a SASL exchange that failed."""
        if failure.method is not None and failure.result is not None:
            yield from note(LoginRefused(failure.method, failure.result))
        if failure.kind is None:
            yield from send(self.invalid_reply())
            return None
        if failure.counts:
            return (yield from self.count_error(failure.kind))
        yield from self.reply_invalid(failure.kind)
        return None

    def auth_request(self, credentials: Credentials, envelope: Envelope | None = None) -> AuthRequest:
        """Make the request to the authentication service for one more login."""
        self.login_attempts += 1
        return AuthRequest(credentials, self.login_attempts, self.client, envelope)

    def _deny_or_retry(
        self, request: AuthRequest, decision: AuthDenied | AuthDeferred
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd | None]:
        """Repeat a deferred request; send the reply to a denied login.

        Returns:
            The login at the upstream if it was allowed in the end; ``SessionEnd``
            after a denial; or ``None`` after a denial with ``Auth-Wait``: the
            pause is over, the reply was sent, and the ``timeout`` starts anew
            for the next login.

        Raises:
            AuthUnavailable: There was no usable response.
        """
        if isinstance(decision, AuthDeferred):
            final = yield from repeat_deferred(request, decision)
            if isinstance(final, AuthAllowed):
                return self.upstream_login(request, final)
            decision = final
        if decision.limit is not None:
            yield from send(self.denied_reply(decision))
            return SessionEnd(CloseReason.LIMIT)
        credentials = request.credentials
        text = reply_for_log(decision.text, credentials.user, credentials.password)
        yield from note(LoginDenied(text, decision.code))
        if decision.wait:
            yield from wait(decision.wait)
        if decision.sasl_error is not None and credentials.method in TOKEN_METHODS:
            is_finished = yield from self._send_token_error(credentials.method, decision.sasl_error)
            if not is_finished:
                return (yield from self.count_failure())
        yield from send(self.denied_reply(decision))
        if not decision.wait:
            return SessionEnd(CloseReason.AUTH_REJECTED)
        yield self.config.deadline
        return None

    def _send_token_error(self, method: Method, challenge: bytes) -> ProtocolGenerator[bool]:
        """Send the challenge with the error of a token, and read the client's response to it.

        Returns:
            Whether the response is the one of RFC 7628 section 3.2.3.  Any other one is an invalid
            command, and the session goes on.
        """
        yield self.config.deadline
        return (yield from self._exchange_token_error(method, challenge))

    def _exchange_token_error(self, method: Method, challenge: bytes) -> ProtocolGenerator[bool]:
        yield from send(self.framing.prefix + challenge + b"\r\n")
        line = yield from self.reader.read_line()
        if is_error_response(method, line):
            return True
        yield from self.reply_invalid(ProtocolErrorKind.BAD_ARGUMENTS)
        return False


def repeat_deferred(
    request: AuthRequest, deferred: AuthDeferred
) -> ProtocolGenerator[AuthAllowed | AuthDenied]:
    """Repeat a request that was deferred (``Auth-Status: WAIT``) until there is a decision.

    ``Auth-Login-Attempt`` and the client's challenge stay the same; user name
    and password are those that the service sent meanwhile.

    Raises:
        AuthUnavailable: There was no usable response, or the login was deferred for more than a day.
    """
    left = MAX_DEFERRAL
    decision: Decision = deferred
    while isinstance(decision, AuthDeferred):
        left -= decision.wait
        if left < 0:
            raise AuthUnavailable("deferred for more than a day")
        yield from wait(decision.wait)
        if decision.user is not None:
            request.credentials = replace(request.credentials, user=decision.user)
        if decision.password is not None:
            request.credentials = replace(request.credentials, password=decision.password)
        decision = yield request
    return decision
