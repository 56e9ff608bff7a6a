# SPDX-License-Identifier: Apache-2.0
"""What a conversation with a client is in every protocol: greet, take turns, count errors, log in.

A protocol's frontend derives one class from ``Frontend``, says its own
words, and understands its own commands; everything that must not differ
between the three stands here, once.

Nobody catches a timeout or the end of a connection: a client that says
nothing is told nothing, and the goodbye at shutdown is the runtime's.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum, auto
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
from mailproxy.errors import LineTooLong, PeerDisconnected
from mailproxy.protocols.auth_retry import ask_again
from mailproxy.protocols.line_buffer import LineReader
from mailproxy.protocols.redaction import reply_for_log
from mailproxy.protocols.sansio import (
    Authenticate,
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
from mailproxy.protocols.sasl import Framing, SaslFailure, authenticate, find_mechanism
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Decision,
    Envelope,
    SessionEnd,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, ServerConfig, StartTls, VerifyClient

_TLS_HANDSHAKE: Final = b"\x16\x03"
_PROXY_HEADER: Final = re.compile(rb"PROXY (?:TCP4|TCP6|UNKNOWN)(?: |\Z)|\0\Z")
"""A line of a PROXY header: version 1, or the third line of version 2's signature."""
_HTTP_WORDS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI")
)
_CONTROLS: Final = bytes((*range(0x20), 0x7F))


UNEXPECTED_PROXY_HEADER: Final = "client sent a PROXY header to a listener without proxy_protocol"

CommandResult = AuthRequest | SessionEnd | None
"""What a command leads to: a question, the end, or another turn."""
CommandHandling = Send | AuthRequest | ProtocolGenerator[CommandResult]
"""What follows from a line: one reply and another turn, a question, or more words on either side."""


class CertificateFault(Enum):
    """What may be wrong with a client's certificate (``ssl_verify_client``)."""

    INVALID = auto()
    MISSING = auto()


def certificate_fault(server: ServerConfig, tls: TlsInfo) -> CertificateFault | None:
    """Judge a finished handshake by ``ssl_verify_client``, ``None`` when all is well."""
    mode = server.ssl_verify_client
    if mode is VerifyClient.DISABLED:
        return None
    if tls.verify_code and not (mode is VerifyClient.OPTIONAL_NO_CA and tls.verify_is_tolerable):
        return CertificateFault.INVALID
    if mode is VerifyClient.REQUIRED and tls.certificate is None:
        return CertificateFault.MISSING
    return None


def has_control_chars(data: bytes) -> bool:
    """Whether there is an ASCII control byte, TAB and DEL included."""
    return len(data.translate(None, _CONTROLS)) != len(data)


def classify_bad_line(line: bytes) -> ProtocolErrorKind:
    """Tell what a line that is no command looks like: another protocol, noise, or a command unknown to us."""
    if _PROXY_HEADER.match(line):
        return ProtocolErrorKind.PROXY_HEADER
    if line.startswith(_TLS_HANDSHAKE) or (b" " in line and line.partition(b" ")[0] in _HTTP_WORDS):
        return ProtocolErrorKind.FOREIGN_PROTOCOL
    if has_control_chars(line):
        return ProtocolErrorKind.CONTROL_CHAR
    return ProtocolErrorKind.UNKNOWN_COMMAND


class FrontendConfig:
    """What all conversations of one server have in common, prepared once.

    Args:
        server: The server block that the clients connect to.
        limit: The bytes of the longest command, its line end included.
        greeting: What clients are told first.
        greets_alike: Whether every client gets just this, and at once.

    Attributes:
        deadline: Gives a client the directive ``timeout``.
        greets_alike: Also not, where a certificate may be found fault with (``ssl_verify_client``).
        only_in_tls: Whether ``starttls only`` lets nobody log in before.
        receive: Waits for as much as a reader takes that holds nothing.
    """

    __slots__ = ("deadline", "greeting", "greets_alike", "limit", "only_in_tls", "receive", "server")

    def __init__(
        self, server: ServerConfig, limit: int, greeting: Send, *, greets_alike: bool = True
    ) -> None:
        self.server = server
        self.limit = limit
        self.greeting = greeting
        self.greets_alike = greets_alike and server.ssl_verify_client is VerifyClient.DISABLED
        self.deadline = SetDeadline(server.timeout)
        self.only_in_tls = server.starttls is StartTls.ONLY
        self.receive = Receive(limit)


P_co = TypeVar("P_co", bound=FrontendConfig, covariant=True)


class Frontend(ABC, Generic[P_co]):
    """One client's conversation; a protocol says how to greet and what a turn is.

    A turn is one command and its reply.  What most clients say is answered at
    a glance, without a generator; any other command is a dialogue of its own.

    Attributes:
        prepared: What is the same for all clients of its server.
        client: Who it is; ``client.tls`` is set after STARTTLS.
        reader: The client's bytes.
        attempts: How often it tried to log in (``Auth-Login-Attempt``); never reset.
        errors: How many syntax errors count towards ``max_errors``; never reset.
    """

    framing: ClassVar[Framing]
    """How the protocol frames SASL challenges."""
    certificate_replies: ClassVar[dict[CertificateFault, bytes]]
    """What is said instead of the greeting, or after STARTTLS, about a certificate."""

    __slots__ = ("_challenge", "attempts", "client", "errors", "prepared", "reader")

    def __init__(self, prepared: P_co, client: Client) -> None:
        self.prepared = prepared
        self.client = client
        self.reader = LineReader(prepared.limit)
        self.attempts = 0
        self.errors = 0
        self._challenge: bytes | None = None

    @property
    def server(self) -> ServerConfig:
        """The server block that the client connected to."""
        return self.prepared.server

    # ---- what a protocol provides ----

    def greet(self) -> ProtocolGenerator[SessionEnd | None]:
        """Say the greeting; ``SessionEnd`` for a client that does not get one."""
        yield self.prepared.greeting
        return None

    @abstractmethod
    def turn(self, line: bytes) -> CommandHandling:
        """Take a command's first line, and say what follows from it."""

    @abstractmethod
    def identified(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what is known of a client that may log in."""

    @abstractmethod
    def invalid(self) -> bytes:
        """Give the reply to an invalid command, as it reads now (IMAP: with its tag)."""

    @abstractmethod
    def denial(self, denied: AuthDenied) -> bytes:
        """Give the reply to a login that the authorization service denied."""

    def line(self) -> ProtocolGenerator[bytes]:
        """Read a command's first line, where it does not come alone and whole."""
        return self.reader.line()

    # ---- the course of it ----

    def converse(self) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:  # noqa: C901 - each generator between a login and the interpreter costs at every step
        """Talk to the client from before the greeting until it is identified, or gone."""
        prepared = self.prepared
        reader, receive = self.reader, prepared.receive
        try:
            if prepared.greets_alike:
                yield prepared.greeting
            elif (ended := (yield from self._open())) is not None:
                return ended
            yield prepared.deadline
            while True:
                line = None if reader.held else reader.just_line((yield receive))
                if line is None:
                    line = yield from self.line()
                step = self.turn(line)
                if isinstance(step, Send):
                    yield step
                    continue
                outcome: CommandResult | UpstreamLogin = (
                    step if isinstance(step, AuthRequest) else (yield from step)
                )
                if isinstance(outcome, AuthRequest):
                    decision: Decision = yield Authenticate(outcome)
                    if isinstance(decision, AuthAllowed):
                        return self.identified(outcome, decision)
                    outcome = yield from self._not_at_once(outcome, decision)
                if outcome is not None:
                    return outcome
        except LineTooLong as too_long:
            return (yield from self._overlong(too_long))
        except PeerDisconnected as gone:
            gone.sent_nothing = not (reader.consumed or reader.held)
            raise

    def _open(self) -> ProtocolGenerator[SessionEnd | None]:
        """Greet the client, unless its certificate is a bad one."""
        ended = yield from self._check_certificate()
        if ended is not None:
            return ended
        return (yield from self.greet())

    def _overlong(self, line: LineTooLong) -> ProtocolGenerator[SessionEnd]:
        """A command that does not fit the buffer: reply, and close.  Does not count as an error."""
        is_tls = line.seen.startswith(_TLS_HANDSHAKE)
        kind = ProtocolErrorKind.FOREIGN_PROTOCOL if is_tls else ProtocolErrorKind.LINE_TOO_LONG
        yield from note(LogNote("client sent too long command"))
        yield from self.reject(kind)
        return SessionEnd(CloseReason.PROTOCOL_ERROR)

    # ---- errors ----

    def reject(self, kind: ProtocolErrorKind, reply: bytes | None = None) -> ProtocolGenerator[None]:
        """Answer a violation that does not count towards ``max_errors``.

        Args:
            kind: What to count it as.
            reply: What to say, if not the invalid-command reply.
        """
        yield from note(ProtocolViolation(kind))
        if kind is ProtocolErrorKind.PROXY_HEADER:
            yield from note(LogNote(UNEXPECTED_PROXY_HEADER, is_ours=True))
        yield from send(self.invalid() if reply is None else reply)

    def count(self, kind: ProtocolErrorKind) -> ProtocolGenerator[SessionEnd | None]:
        """Answer a syntax error; the ``max_errors``-th is the last thing that is answered."""
        yield from self.reject(kind)
        self.errors += 1
        if self.errors < self.server.max_errors:
            return None
        yield from note(LogNote("client sent too many invalid commands"))
        return SessionEnd(CloseReason.MAX_ERRORS)

    def refuse(
        self, method: Method, result: LoginResult, kind: ProtocolErrorKind | None = None
    ) -> ProtocolGenerator[None]:
        """Answer an attempt to log in that never reaches the authorization service."""
        yield from note(LoginRefused(method, result))
        if kind is not None:
            yield from note(ProtocolViolation(kind))
        yield from send(self.invalid())

    # ---- TLS ----

    @property
    def tls_is_missing(self) -> bool:
        """Whether ``starttls only`` holds the client back from logging in."""
        return self.client.tls is None and self.prepared.only_in_tls

    @property
    def tls_is_offered(self) -> bool:
        """Whether STARTTLS would be accepted now."""
        return self.client.tls is None and self.server.starttls is not StartTls.DISABLED

    def upgrade(self, go_ahead: bytes) -> ProtocolGenerator[SessionEnd | None]:
        """Start TLS, or say that there is none to start.  There is no second greeting.

        What came with or after the command is dropped unread; the counters,
        the challenge and the running deadline survive.

        Args:
            go_ahead: The positive reply, said in clear.

        Raises:
            TlsFailed: The handshake did not complete.
        """
        if not self.tls_is_offered:
            yield from self.reject(ProtocolErrorKind.BAD_SEQUENCE)
            return None
        if self.reader.clear():
            yield from note(ProtocolViolation(ProtocolErrorKind.PLAINTEXT_BEFORE_TLS))
        yield from send(go_ahead)
        self.client.tls = yield from upgrade_to_tls()
        return (yield from self._check_certificate())

    def _check_certificate(self) -> ProtocolGenerator[SessionEnd | None]:
        """Speak the verdict on the client's certificate, inside TLS, where it is a bad one."""
        tls = self.client.tls
        fault = None if tls is None else certificate_fault(self.server, tls)
        if tls is None or fault is None:
            return None
        if fault is CertificateFault.INVALID:
            yield from note(LogNote("client SSL certificate verify error", tls.verify_error))
        else:
            yield from note(LogNote("client sent no required SSL certificate"))
        yield from send(self.certificate_replies[fault])
        return SessionEnd(CloseReason.TLS_FAILED)

    # ---- logging in ----

    def challenge(self) -> ProtocolGenerator[bytes]:
        """Give the session's ``<R.T@NAME>``: made once, and the same for every attempt."""
        if self._challenge is None:
            self._challenge = yield from make_challenge(self.server.server_name)
        return self._challenge

    def exchange(
        self, arguments: Sequence[bytes], enabled: frozenset[AuthMethod], budget: int | None = None
    ) -> ProtocolGenerator[Credentials | SessionEnd | None]:
        """Carry on a SASL exchange, and answer a failed one.

        Args:
            arguments: The words after AUTH or AUTHENTICATE: a mechanism, perhaps a response.
            enabled: The methods that are configured.
            budget: See ``sasl.authenticate``.

        Returns:
            Credentials; or ``None`` when the client was told that there are
            none; or ``SessionEnd`` when that was its last error.
        """
        if self.tls_is_missing:
            yield from self._refuse_in_clear(find_mechanism(arguments))
            return None
        result = yield from authenticate(
            arguments,
            framing=self.framing,
            reader=self.reader,
            enabled=enabled,
            challenge=self.challenge,
            budget=budget,
        )
        if isinstance(result, SaslFailure):
            return (yield from self.answer(result))
        return result

    def _refuse_in_clear(self, method: Method | None) -> ProtocolGenerator[None]:
        if method is None:
            yield from self.reject(ProtocolErrorKind.BAD_ARGUMENTS)
        else:
            yield from self.refuse(method, LoginResult.TLS_REQUIRED)

    def answer(self, refusal: SaslFailure) -> ProtocolGenerator[SessionEnd | None]:
        """Answer a SASL exchange that gave no credentials."""
        if refusal.method is not None and refusal.result is not None:
            yield from note(LoginRefused(refusal.method, refusal.result))
        if refusal.kind is None:
            yield from send(self.invalid())
            return None
        if refusal.counts:
            return (yield from self.count(refusal.kind))
        yield from self.reject(refusal.kind)
        return None

    def attempt(self, credentials: Credentials, envelope: Envelope | None = None) -> AuthRequest:
        """Make the question about another attempt to log in."""
        self.attempts += 1
        return AuthRequest(credentials, self.attempts, self.client, envelope)

    def _not_at_once(
        self, request: AuthRequest, decision: AuthDenied | AuthDeferred
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd | None]:
        """Ask again what was postponed, and tell the client about a denial.

        Returns:
            Whom to let in after all; ``SessionEnd`` after a denial; or ``None``
            after a denial with ``Auth-Wait``: the pause is over, the client was
            told, and it has a new ``timeout`` to try again.

        Raises:
            AuthUnavailable: There was no usable answer.
        """
        if isinstance(decision, AuthDeferred):
            final = yield from ask_again(request, decision)
            if isinstance(final, AuthAllowed):
                return self.identified(request, final)
            decision = final
        credentials = request.credentials
        text = reply_for_log(decision.text, credentials.user, credentials.password)
        yield from note(LoginDenied(text, decision.code))
        if decision.wait:
            yield from wait(decision.wait)
        yield from send(self.denial(decision))
        if not decision.wait:
            return SessionEnd(CloseReason.AUTH_REJECTED)
        yield self.prepared.deadline
        return None
