# SPDX-License-Identifier: Apache-2.0
"""Plays a transcript against the protocol generators, without sockets, clock or event loop.

The steps marked ``=``:

``authorize USER PASSWORD [by METHOD] [attempt N] [salt S] [helo H mail M rcpt R] -> ANSWER``
    the request to the authentication service and its response.  Words have the
    escapes of bytes; ``-`` is no password; ``by password`` and ``attempt 1`` are
    the defaults.  Responses: ``granted HOST:PORT[, user U][, password P]``,
    ``denied[, code C][, sasl B64][, wait 3s]: TEXT``, ``wait 3s[, user U][, password P]``,
    ``unavailable``.
``tls``, ``tls failed``        the handshake after STARTTLS
``resolve -> HOST``            the client's host name is looked up
``overhear 5s``                the greeting delay; the bytes that follow arrive within it
``wait 3s``                    a pause
``closes``, ``falls silent``   the peer closes the connection, or sends nothing until the deadline
``shutdown``                   the proxy drains
``closed REASON``              the client's connection is closed
``relay``                      the login is complete; ``P`` after it are bytes that the client sent ahead
``note …``, ``deadline 60s``, ``challenge``, ``trouble STAGE [KIND]``
    compared only in transcripts with at least one of the kind, and only with
    others of the kind: events that are counted, the start of the client's
    timeout, the creation of a challenge, the stage of the login at the upstream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from mailproxy.enums import ClientNamed, LoginDenied, LoginRefused, LogNote, Method, ProtocolViolation
from mailproxy.errors import (
    AuthUnreachable,
    PeerClosed,
    PeerTimedOut,
    SessionError,
    ShuttingDown,
    TlsFailed,
    UpstreamError,
    UpstreamRefused,
)
from mailproxy.protocols import sansio
from mailproxy.protocols.registry import MailProtocol
from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.tempfail import ResumableLogin
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    Client,
    Secret,
    SessionEnd,
    UpstreamLogin,
    UpstreamLoginResult,
)
from support.transcripts import Step, Transcript, escaped, unescaped

_OPTIONAL_EVENTS: Final = ("note", "deadline", "challenge", "trouble")
_PEER_ERRORS: Final[dict[str, type[SessionError]]] = {
    "closes": PeerClosed,
    "falls silent": PeerTimedOut,
    "shutdown": ShuttingDown,
}


class TranscriptMismatch(AssertionError):
    """The session differs from the transcript."""


class _TranscriptEnded(Exception):
    """The transcript ends while a peer is expected to send: the test has passed."""


@dataclass
class Player:
    """One run of one transcript.

    Args:
        transcript: The expected session.
        protocol: The protocol to test.
        cut: Whether all bytes are received one by one.
    """

    transcript: Transcript
    protocol: MailProtocol
    cut: bool = False
    _events: dict[str, list[str]] = field(default_factory=dict)
    _sent: bytes = b""
    _incoming: bytes = b""
    _position: int = 0

    def __post_init__(self) -> None:
        self._events = {name: [] for name in _OPTIONAL_EVENTS}
        self._steps = [step for step in self.transcript.steps if not _is_optional_event(step)]

    def play(self) -> None:
        """Play it from the first line to the last.

        Raises:
            Differs: The session differs from the transcript.
        """
        client = self.transcript.client()
        try:
            self._session(client)
        except _TranscriptEnded:
            pass
        else:
            self._compare_sent(self._sender)
        if (step := self._peek_step()) is not None:
            self._fail(step, "the end")
        self._compare_optional_events()

    # ---- the session, as in `mailproxy.session` ----

    def _session(self, client: Client) -> None:
        server, protocol = self.transcript.server, self.protocol
        self._sender, self._peer = "S", "C"
        try:
            factory = protocol.trusted_frontend_for if self.transcript.is_trusted else protocol.frontend_for
            result = self._perform(factory(server)(client).run())
            while isinstance(result, UpstreamLogin) and self._peek_step() is not None:
                next_steps = self._upstream(client, result)
                if next_steps is None:
                    return
                result = self._perform(next_steps)
        except ShuttingDown as failure:
            self._close(protocol.shutdown, failure)
            return
        except SessionError as failure:
            has_reply = failure.reason.value in {"auth_unavailable"}
            self._close(protocol.internal_error if has_reply else b"", failure)
            return
        if isinstance(result, SessionEnd):
            self._expect_event(f"closed {result.reason}")

    def _upstream(
        self, client: Client, login: UpstreamLogin
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd] | None:
        """Log in at the upstream; return what goes on after an outage (``proxy_tempfail``)."""
        server = self.transcript.server
        from_client, self._incoming = self._incoming, b""
        self._compare_sent("S")
        self._sender, self._peer = "P", "U"
        try:
            reply: UpstreamLoginResult = self._perform(self.protocol.upstream(server).log_in(client, login))
        except UpstreamError as failure:
            self._compare_sent("P")
            self._sender = "S"
            self._events["trouble"].append(
                f"trouble {failure.stage}" + (f" {failure.kind}" if failure.kind else "")
            )
            next_steps = login.resume(failure) if isinstance(login, ResumableLogin) else None
            if next_steps is not None:
                self._peer, self._incoming = "C", from_client
                return next_steps
            is_shown = isinstance(failure, UpstreamRefused) and server.proxy_pass_error_message
            self._close(failure.reply if is_shown else self.protocol.internal_error, failure)
            return None
        self._compare_sent("P")
        self._sent = reply
        self._compare_sent("S")
        self._expect_event("relay")
        self._sent = login.unread + from_client
        self._sender = "P"
        return None

    def _close(self, reply: bytes, failure: SessionError) -> None:
        self._sent += reply
        self._compare_sent(self._sender)
        self._expect_event(f"closed {failure.reason}")

    # ---- performing effects ----

    def _perform(self, generator: ProtocolGenerator[Any]) -> Any:
        response: Any = None
        failure: SessionError | None = None
        while True:
            try:
                effect = generator.send(response) if failure is None else generator.throw(failure)
            except StopIteration as finished:
                return finished.value
            response, failure = None, None
            try:
                response = self._result_of(effect)
            except SessionError as thrown:
                failure = thrown

    def _result_of(self, effect: sansio.Effect) -> Any:  # noqa: C901, PLR0911 - one case per effect
        match effect:
            case sansio.Send(data):
                self._sent += data
            case sansio.Note(event):
                self._events["note"] += [] if isinstance(event, LoginDenied) else [_note_text(event)]
            case sansio.ReportAuthFailure():
                pass
            case sansio.SetDeadline(seconds):
                self._events["deadline"].append(f"deadline {seconds:g}s")
            case sansio.MakeChallenge(name):
                self._events["challenge"].append("challenge")
                return f"<1304717.1795355079@{name}>".encode()
            case sansio.Receive(limit):
                return self._receive(limit)
            case AuthRequest() as request:
                return self._authenticate(request)
            case sansio.Peek(seconds, limit):
                return self._receive_early(seconds, limit)
            case sansio.Wait(seconds):
                self._expect_event(f"wait {seconds:g}s")
            case sansio.ResolveClient():
                return unescaped(self._expect_request("resolve"))
            case sansio.UpgradeToTls():
                return self._start_tls()
        return None

    def _receive(self, limit: int) -> bytes:
        assert limit > 0, "a Receive of no bytes"
        if not self._incoming:
            self._compare_sent(self._sender)
            step = self._next_step()
            if step is None:
                raise _TranscriptEnded
            if step.text in _PEER_ERRORS and step.side == "=":
                raise _PEER_ERRORS[step.text]
            if step.side != self._peer:
                self._fail(step, f"waiting for {self._peer}")
            self._incoming = step.data
            while step.is_joined and (step := self._next_step()):
                self._incoming += step.data
        taken = 1 if self.cut else limit
        data, self._incoming = self._incoming[:taken], self._incoming[taken:]
        return data

    def _receive_early(self, seconds: float, limit: int) -> bytes:
        self._expect_event(f"overhear {seconds:g}s")
        step = self._peek_step()
        if step is None or step.side == "S":
            return b""
        data = self._receive(limit)
        self._incoming = b""
        return data

    def _start_tls(self) -> Any:
        self._compare_sent(self._sender)
        step = self._next_step()
        if step is not None and step.text == "tls failed":
            raise TlsFailed
        if step is None or step.text != "tls" or self._incoming:
            self._fail(step, "tls")
        return self.transcript.tls()

    def _authenticate(self, request: AuthRequest) -> Any:
        response = self._expect_request(f"authorize {_request_text(request)}")
        if response == "unavailable":
            raise AuthUnreachable
        head, _, text = response.partition(":" if response.endswith(":") else ": ")
        parts = iter(head.split(", "))
        return _decision(next(parts), dict(part.split(" ", 1) for part in parts), unescaped(text), request)

    # ---- comparing with the transcript ----

    def _peek_step(self) -> Step | None:
        return self._steps[self._position] if self._position < len(self._steps) else None

    def _next_step(self) -> Step | None:
        step = self._peek_step()
        self._position += 1
        return step

    def _expect_event(self, text: str) -> None:
        """Expect this event as the next step."""
        self._compare_sent(self._sender)
        step = self._next_step()
        if step is None or step.side != "=" or step.text != text:
            self._fail(step, f"=  {text}")

    def _expect_request(self, request: str) -> str:
        """Expect this request as the next step, and return its response."""
        self._compare_sent(self._sender)
        step = self._next_step()
        expected_request, _, response = ("", "", "") if step is None else step.text.partition(" -> ")
        if expected_request != request:
            self._fail(step, f"=  {request}")
        return response

    def _compare_sent(self, side: str) -> None:
        """Compare all bytes that were sent with the next steps of this side."""
        expected = b""
        first = self._peek_step()
        while (step := self._peek_step()) is not None and step.side == side:
            expected += step.data
            self._position += 1
        sent, self._sent = self._sent, b""
        if sent != expected:
            self._fail(first, f"{side}  {sent!r} instead of {expected!r}")

    def _compare_optional_events(self) -> None:
        for name in _OPTIONAL_EVENTS:
            expected = [step.text for step in self.transcript.steps if _is_optional_event(step, name)]
            if expected and expected != self._events[name]:
                message = f"{self.transcript.name}: {self._events[name]} instead of {expected}"
                raise TranscriptMismatch(message)

    def _fail(self, step: Step | None, actual: str) -> NoReturn:
        here = step.line if step else len(self.transcript.steps) + 999
        lines = [*map(str, (step for step in self.transcript.steps if step.line <= here)), f"  ->  {actual}"]
        raise TranscriptMismatch("\n".join([self.transcript.name, *lines]))


def _is_optional_event(step: Step, *names: str) -> bool:
    return step.side == "=" and step.text.split()[0] in (names or _OPTIONAL_EVENTS)


def _note_text(event: ProtocolViolation | LoginRefused | LogNote | ClientNamed) -> str:
    match event:
        case ProtocolViolation(kind):
            return f"note client_erred {kind}"
        case LoginRefused(method, result):
            return f"note login_refused {method} {result}"
        case ClientNamed():
            return "note client_named"
        case LogNote(sentence, text):
            return f"note remark {sentence}" + (f": {escaped(text)}" if text else "")


def _request_text(request: AuthRequest) -> str:
    credentials, envelope = request.credentials, request.envelope
    password = credentials.password
    words = [escaped(credentials.user), "-" if password is None else escaped(password.reveal())]
    if credentials.method is not Method.PASSWORD:
        words += ["by", credentials.method.value]
    if request.attempt != 1:
        words += ["attempt", str(request.attempt)]
    if credentials.challenge is not None:
        words += ["salt", escaped(credentials.challenge)]
    if envelope is not None:
        words += [
            "helo",
            escaped(envelope.helo),
            "mail",
            escaped(envelope.mail),
            "rcpt",
            escaped(envelope.rcpt),
        ]
    return " ".join(words)


def _parse_word(text: str | None) -> bytes | None:
    """Parse a word written by ``escaped``."""
    if text is None:
        return None
    return b"" if text == '""' else unescaped(text)


def _decision(
    verb: str, parts: dict[str, str], text: bytes, request: AuthRequest
) -> AuthAllowed | AuthDenied | AuthDeferred:
    user = _parse_word(parts.get("user"))
    password = None if (data := _parse_word(parts.get("password"))) is None else Secret(data)
    kind, _, rest = verb.partition(" ")
    if kind == "wait":
        return AuthDeferred(int(rest.removesuffix("s")), user, password)
    if kind == "denied":
        code = parts["code"].encode() if "code" in parts else None
        sasl_error = parts["sasl"].encode() if "sasl" in parts else None
        return AuthDenied(text, int(parts.get("wait", "0s").removesuffix("s")), code, user, sasl_error)
    assert kind == "granted", f"no response of the service: {verb}"
    address, _, port = rest.rpartition(":")
    credentials = request.credentials
    hashed = credentials.method in {Method.APOP, Method.CRAM_MD5}
    own = None if hashed else credentials.password
    return AuthAllowed(address, int(port), credentials.user if user is None else user, password or own)
