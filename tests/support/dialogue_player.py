# SPDX-License-Identifier: Apache-2.0
"""Plays a transcript against the conversations themselves: no sockets, no clock, no event loop.

The steps marked ``=``:

``authorize USER PASSWORD [by METHOD] [attempt N] [salt S] [helo H mail M rcpt R] -> ANSWER``
    the question and the answer of the authorization service.  Words are escaped
    as bytes are; ``-`` is no password; ``by password`` and ``attempt 1`` go
    without saying.  Answers: ``granted HOST:PORT[, user U][, password P]``,
    ``denied[, code C][, wait 3s]: TEXT``, ``wait 3s[, user U][, password P]``,
    ``unavailable``.
``tls``, ``tls failed``        the handshake after STARTTLS
``resolve -> HOST``            the client's name is looked up
``overhear 5s``                the greeting delay; what follows comes within it, or nothing does
``wait 3s``                    time passes
``closes``, ``falls silent``   whoever is expected to speak is gone, or says nothing until the deadline
``shutdown``                   the proxy drains
``closed REASON``              the client's connection is closed
``relay``                      the login is complete; ``P`` after it is what the client sent ahead
``note …``, ``deadline 60s``, ``challenge``, ``trouble STAGE [KIND]``
    compared only in transcripts that have at least one of the sort, and in
    their own order: what is counted, when the client's time begins anew, when
    a challenge is made, how far the upstream had come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from mailproxy.enums import LoginDenied, LoginRefused, LogNote, Method, ProtocolViolation
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

_ASIDES: Final = ("note", "deadline", "challenge", "trouble")
_GONE: Final[dict[str, type[SessionError]]] = {
    "closes": PeerClosed,
    "falls silent": PeerTimedOut,
    "shutdown": ShuttingDown,
}


class Differs(AssertionError):
    """What was said is not what the transcript says."""


class _OutOfSteps(Exception):
    """The transcript ends while somebody is expected to speak: all is well."""


@dataclass
class Player:
    """One playing of one transcript.

    Args:
        transcript: What is to be said.
        protocol: Whose conversations are to say it.
        cut: Whether everything is received byte by byte.
    """

    transcript: Transcript
    protocol: MailProtocol
    cut: bool = False
    _asides: dict[str, list[str]] = field(default_factory=dict)
    _said: bytes = b""
    _incoming: bytes = b""
    _position: int = 0

    def __post_init__(self) -> None:
        self._asides = {name: [] for name in _ASIDES}
        self._steps = [step for step in self.transcript.steps if not _is_aside(step)]

    def play(self) -> None:
        """Play it from the first line to the last.

        Raises:
            Differs: Something else was said, or done.
        """
        client = self.transcript.client()
        try:
            self._session(client)
        except _OutOfSteps:
            pass
        else:
            self._settle(self._speaker)
        if (step := self._peek()) is not None:
            self._differ(step, "the end")
        self._compare_asides()

    # ---- the life of a session, as the runtime lives it ----

    def _session(self, client: Client) -> None:
        server, protocol = self.transcript.server, self.protocol
        self._speaker, self._listener = "S", "C"
        try:
            result = self._perform(protocol.frontend_for(server)(client).run())
        except ShuttingDown as failure:
            self._close(protocol.shutdown, failure)
            return
        except SessionError as failure:
            speaks = failure.reason.value in {"auth_unavailable"}
            self._close(protocol.internal_error if speaks else b"", failure)
            return
        if isinstance(result, SessionEnd):
            self._do(f"closed {result.reason}")
        elif self._peek() is not None:
            self._upstream(client, result)

    def _upstream(self, client: Client, identified: UpstreamLogin) -> None:
        server = self.transcript.server
        unread, self._incoming = identified.unread + self._incoming, b""
        self._settle("S")
        self._speaker, self._listener = "P", "U"
        try:
            logged_in: UpstreamLoginResult = self._perform(
                self.protocol.upstream(server).log_in(client, identified)
            )
        except UpstreamError as failure:
            self._settle("P")
            self._speaker = "S"
            self._asides["trouble"].append(
                f"trouble {failure.stage}" + (f" {failure.kind}" if failure.kind else "")
            )
            is_shown = isinstance(failure, UpstreamRefused) and server.proxy_pass_error_message
            self._close(failure.reply if is_shown else self.protocol.internal_error, failure)
            return
        self._settle("P")
        self._said = logged_in.reply
        self._settle("S")
        self._do("relay")
        self._said = unread
        self._speaker = "P"

    def _close(self, last_words: bytes, failure: SessionError) -> None:
        self._said += last_words
        self._settle(self._speaker)
        self._do(f"closed {failure.reason}")

    # ---- performing actions ----

    def _perform(self, dialogue: ProtocolGenerator[Any]) -> Any:
        answer: Any = None
        failure: SessionError | None = None
        while True:
            try:
                action = dialogue.send(answer) if failure is None else dialogue.throw(failure)
            except StopIteration as finished:
                return finished.value
            answer, failure = None, None
            try:
                answer = self._answer(action)
            except SessionError as thrown:
                failure = thrown

    def _answer(self, action: sansio.Effect) -> Any:  # noqa: C901, PLR0911 - one case per action
        match action:
            case sansio.Send(data):
                self._said += data
            case sansio.Note(event):
                self._asides["note"] += [] if isinstance(event, LoginDenied) else [_note_text(event)]
            case sansio.SetDeadline(seconds):
                self._asides["deadline"].append(f"deadline {seconds:g}s")
            case sansio.MakeChallenge(name):
                self._asides["challenge"].append("challenge")
                return f"<1304717.1795355079@{name}>".encode()
            case sansio.Receive(limit):
                return self._hear(limit)
            case sansio.Authenticate(request):
                return self._authorize(request)
            case sansio.Peek(seconds, limit):
                return self._overhear(seconds, limit)
            case sansio.Wait(seconds):
                self._do(f"wait {seconds:g}s")
            case sansio.ResolveClient():
                return unescaped(self._ask("resolve"))
            case sansio.UpgradeToTls():
                return self._start_tls()
        return None

    def _hear(self, limit: int) -> bytes:
        assert limit > 0, "asked to receive nothing"
        if not self._incoming:
            self._settle(self._speaker)
            step = self._next()
            if step is None:
                raise _OutOfSteps
            if step.text in _GONE and step.side == "=":
                raise _GONE[step.text]
            if step.side != self._listener:
                self._differ(step, f"waiting for {self._listener}")
            self._incoming = step.data
            while step.is_joined and (step := self._next()):
                self._incoming += step.data
        taken = 1 if self.cut else limit
        heard, self._incoming = self._incoming[:taken], self._incoming[taken:]
        return heard

    def _overhear(self, seconds: float, limit: int) -> bytes:
        self._do(f"overhear {seconds:g}s")
        step = self._peek()
        if step is None or step.side == "S":
            return b""
        heard = self._hear(limit)
        self._incoming = b""
        return heard

    def _start_tls(self) -> Any:
        self._settle(self._speaker)
        step = self._next()
        if step is not None and step.text == "tls failed":
            raise TlsFailed
        if step is None or step.text != "tls" or self._incoming:
            self._differ(step, "tls")
        return self.transcript.tls()

    def _authorize(self, request: AuthRequest) -> Any:
        answer = self._ask(f"authorize {_request_text(request)}")
        if answer == "unavailable":
            raise AuthUnreachable
        head, _, text = answer.partition(":" if answer.endswith(":") else ": ")
        parts = iter(head.split(", "))
        return _decision(next(parts), dict(part.split(" ", 1) for part in parts), unescaped(text), request)

    # ---- walking the transcript ----

    def _peek(self) -> Step | None:
        return self._steps[self._position] if self._position < len(self._steps) else None

    def _next(self) -> Step | None:
        step = self._peek()
        self._position += 1
        return step

    def _do(self, text: str) -> None:
        """Expect this to be done next."""
        self._settle(self._speaker)
        step = self._next()
        if step is None or step.side != "=" or step.text != text:
            self._differ(step, f"=  {text}")

    def _ask(self, question: str) -> str:
        """Expect this to be asked next, and give the transcript's answer."""
        self._settle(self._speaker)
        step = self._next()
        asked, _, answer = ("", "", "") if step is None else step.text.partition(" -> ")
        if asked != question:
            self._differ(step, f"=  {question}")
        return answer

    def _settle(self, side: str) -> None:
        """Compare everything that was said, since somebody else has the word now."""
        wanted = b""
        first = self._peek()
        while (step := self._peek()) is not None and step.side == side:
            wanted += step.data
            self._position += 1
        said, self._said = self._said, b""
        if said != wanted:
            self._differ(first, f"{side}  {said!r} instead of {wanted!r}")

    def _compare_asides(self) -> None:
        for name in _ASIDES:
            wanted = [step.text for step in self.transcript.steps if _is_aside(step, name)]
            if wanted and wanted != self._asides[name]:
                message = f"{self.transcript.name}: {self._asides[name]} instead of {wanted}"
                raise Differs(message)

    def _differ(self, step: Step | None, happened: str) -> NoReturn:
        here = step.line if step else len(self.transcript.steps) + 999
        lines = [*map(str, (one for one in self.transcript.steps if one.line <= here)), f"  ->  {happened}"]
        raise Differs("\n".join([self.transcript.name, *lines]))


def _is_aside(step: Step, *names: str) -> bool:
    return step.side == "=" and step.text.split()[0] in (names or _ASIDES)


def _note_text(event: ProtocolViolation | LoginRefused | LogNote) -> str:
    match event:
        case ProtocolViolation(kind):
            return f"note client_erred {kind}"
        case LoginRefused(method, result):
            return f"note login_refused {method} {result}"
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


def _word(text: str | None) -> bytes | None:
    """Read a word as ``escaped`` writes it."""
    if text is None:
        return None
    return b"" if text == '""' else unescaped(text)


def _decision(
    verb: str, parts: dict[str, str], text: bytes, request: AuthRequest
) -> AuthAllowed | AuthDenied | AuthDeferred:
    user = _word(parts.get("user"))
    password = None if (data := _word(parts.get("password"))) is None else Secret(data)
    kind, _, rest = verb.partition(" ")
    if kind == "wait":
        return AuthDeferred(int(rest.removesuffix("s")), user, password)
    if kind == "denied":
        code = parts["code"].encode() if "code" in parts else None
        return AuthDenied(text, int(parts.get("wait", "0s").removesuffix("s")), code, user)
    assert kind == "granted", f"no answer of the service: {verb}"
    address, _, port = rest.rpartition(":")
    asked = request.credentials
    hashed = asked.method in {Method.APOP, Method.CRAM_MD5}
    own = None if hashed else asked.password
    return AuthAllowed(address, int(port), asked.user if user is None else user, password or own)
