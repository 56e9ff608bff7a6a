# SPDX-License-Identifier: Apache-2.0
"""What the frontends of the three protocols share, tested with a minimal one."""

from __future__ import annotations

from typing import ClassVar

import pytest

from mailproxy.enums import (
    CloseReason,
    LoginRefused,
    LoginResult,
    LogNote,
    Method,
    ProtocolErrorKind,
    ProtocolViolation,
)
from mailproxy.errors import AuthUnavailable, AuthUnreachable, LineTooLong
from mailproxy.protocols.client_lines import classify_bad_line, has_control_chars
from mailproxy.protocols.frontend import (
    CommandHandling,
    CommandResult,
    Frontend,
    FrontendConfig,
    repeat_deferred,
)
from mailproxy.protocols.sansio import (
    MakeChallenge,
    ProtocolGenerator,
    Send,
    UpgradeToTls,
    Wait,
)
from mailproxy.protocols.sasl import Framing
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    CertificateFault,
    Client,
    ClientCertificate,
    Credentials,
    Envelope,
    Secret,
    SessionEnd,
    TlsInfo,
    UpstreamLogin,
    certificate_fault,
)
from mailproxy_config.model import AuthMethod, Protocol, ServerConfig, VerifyClient
from mailproxy_config.model import StartTls as Policy
from support import configs
from support.generator_driver import Driven, drive

CERTIFICATE = ClientCertificate(b"CN=c", b"CN=ca", b"0A", b"0" * 40, b"PEM", b"c")
GRANTED = AuthAllowed("192.0.2.10", 110, b"u")
OK = Send(b"ok\r\n")


class MinimalFrontend(Frontend[FrontendConfig]):
    """Has the commands NOOP, AUTH, ASK, OLD, STARTTLS and BYE; everything else is a syntax error."""

    framing: ClassVar[Framing] = Framing(b"+ ", words=3)
    certificate_replies: ClassVar[dict[CertificateFault, bytes]] = {
        CertificateFault.INVALID: b"invalid certificate\r\n",
        CertificateFault.MISSING: b"no certificate\r\n",
    }

    __slots__ = ()

    def invalid_reply(self) -> bytes:
        return b"what?\r\n"

    def denied_reply(self, denied: AuthDenied) -> bytes:
        return b"no: " + denied.text + b"\r\n"

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        return UpstreamLogin(grant, request.credentials.method, self.reader.take_unread())

    def handle_command(self, line: bytes) -> CommandHandling:
        if line == b"NOOP":
            return OK
        if line == b"ASK":
            return self.auth_request(Credentials(Method.NONE))
        return self.handle_other(line)

    def handle_other(self, line: bytes) -> ProtocolGenerator[CommandResult]:
        word, *arguments = line.split(b" ")
        if word == b"BYE":
            return SessionEnd(CloseReason.CLIENT_QUIT)
        if word == b"STARTTLS":
            return (yield from self.starttls(b"go ahead\r\n"))
        if word == b"OLD":
            yield from self.refuse_login(
                Method.APOP, LoginResult.BAD_CREDENTIALS_SYNTAX, *map(classify_bad_line, arguments)
            )
            return None
        if word == b"AUTH":
            return (yield from self.authenticate_sasl(arguments, frozenset({AuthMethod.CRAM_MD5})))
        return (yield from self.count_error(classify_bad_line(word)))


def frontend_for(config: ServerConfig, client: Client) -> MinimalFrontend:
    return MinimalFrontend(FrontendConfig(config, 64, Send(b"hello\r\n")), client)


def server(**directives: object) -> ServerConfig:
    return configs.server(Protocol.POP3, **directives)


def play(config: ServerConfig, *answers: object, tls: TlsInfo | None = None) -> Driven:
    return drive(frontend_for(config, Client("192.0.2.1", tls=tls)).run(), *answers)


@pytest.mark.parametrize(
    ("mode", "tls", "fault"),
    [
        (VerifyClient.DISABLED, TlsInfo("TLSv1.3", "c", verify_code=18), None),
        (VerifyClient.REQUIRED, TlsInfo("TLSv1.3", "c", certificate=CERTIFICATE), None),
        (VerifyClient.REQUIRED, TlsInfo("TLSv1.3", "c"), CertificateFault.MISSING),
        (VerifyClient.REQUIRED, TlsInfo("TLSv1.3", "c", verify_code=18), CertificateFault.INVALID),
        (VerifyClient.OPTIONAL, TlsInfo("TLSv1.3", "c"), None),
        (
            VerifyClient.OPTIONAL,
            TlsInfo("TLSv1.3", "c", verify_code=18, verify_is_tolerable=True),
            CertificateFault.INVALID,
        ),
        (
            VerifyClient.OPTIONAL_NO_CA,
            TlsInfo("TLSv1.3", "c", verify_code=18, verify_is_tolerable=True),
            None,
        ),
        (VerifyClient.OPTIONAL_NO_CA, TlsInfo("TLSv1.3", "c", verify_code=10), CertificateFault.INVALID),
    ],
)
def test_certificate_fault_by_ssl_verify_client(
    mode: VerifyClient, tls: TlsInfo, fault: CertificateFault | None
) -> None:
    assert certificate_fault(mode, tls) is fault


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"STAT", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"GET", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"GET / HTTP/1.1", ProtocolErrorKind.FOREIGN_PROTOCOL),
        (b"PRI * HTTP/2.0", ProtocolErrorKind.FOREIGN_PROTOCOL),
        (b"\x16\x03\x01\x02", ProtocolErrorKind.FOREIGN_PROTOCOL),
        (b"ST\0AT", ProtocolErrorKind.CONTROL_CHAR),
        (b"STAT \x7f", ProtocolErrorKind.CONTROL_CHAR),
        (b"\xc3\xa9", ProtocolErrorKind.UNKNOWN_COMMAND),
    ],
)
def test_bad_line_is_classified(line: bytes, kind: ProtocolErrorKind) -> None:
    assert classify_bad_line(line) is kind


def test_control_chars_are_those_of_ascii() -> None:
    assert [byte for byte in range(256) if has_control_chars(bytes((byte,)))] == [*range(32), 127]


def test_timeout_starts_at_greeting() -> None:
    driven = play(server(timeout=7.0))
    assert driven.sent == b"hello\r\n"
    assert driven.deadlines == [7.0]


def test_max_errors_replies_to_last_error_and_ends_session() -> None:
    driven = play(server(max_errors=2), b"one\ntwo\nthree\n")
    assert driven.result == SessionEnd(CloseReason.MAX_ERRORS)
    assert driven.sent == b"hello\r\nwhat?\r\nwhat?\r\n"
    erred = ProtocolViolation(ProtocolErrorKind.UNKNOWN_COMMAND)
    assert driven.notes == [erred, erred, LogNote("client sent too many invalid commands")]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"x" * 64, ProtocolErrorKind.LINE_TOO_LONG),
        (b"\x16\x03\x01" + b"x" * 61, ProtocolErrorKind.FOREIGN_PROTOCOL),
    ],
)
def test_too_long_line_ends_session(data: bytes, kind: ProtocolErrorKind) -> None:
    driven = play(server(max_errors=1), data)
    assert driven.result == SessionEnd(CloseReason.PROTOCOL_ERROR)
    assert driven.sent == b"hello\r\nwhat?\r\n"
    assert driven.notes == [LogNote("client sent too long command"), ProtocolViolation(kind)]


def test_too_long_sasl_response_ends_session() -> None:
    driven = play(server(), b"AUTH PLAIN\n", b"A" * 64)
    assert driven.result == SessionEnd(CloseReason.PROTOCOL_ERROR)


def test_starttls_discards_buffer_and_sends_no_greeting() -> None:
    tls = TlsInfo("TLSv1.3", "c")
    client = Client("192.0.2.1")
    generator = frontend_for(server(starttls=Policy.ENABLED), client).run()
    driven = drive(generator, b"STARTTLS\nBYE\n", tls, b"BYE\n")
    assert driven.result == SessionEnd(CloseReason.CLIENT_QUIT)
    assert driven.sent == b"hello\r\ngo ahead\r\n"
    assert driven.notes == [ProtocolViolation(ProtocolErrorKind.PLAINTEXT_BEFORE_TLS)]
    assert client.tls is tls
    assert driven.deadlines == [60.0]


@pytest.mark.parametrize(
    ("policy", "tls"),
    [
        (Policy.DISABLED, None),
        (Policy.ENABLED, TlsInfo("TLSv1.3", "c")),
        (Policy.ONLY, TlsInfo("TLSv1.3", "c")),
    ],
)
def test_starttls_is_refused_if_not_offered(policy: Policy, tls: TlsInfo | None) -> None:
    driven = play(server(starttls=policy, max_errors=1), b"STARTTLS\n", b"BYE\n", tls=tls)
    assert driven.sent == b"hello\r\nwhat?\r\n"
    assert driven.notes == [ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)]
    assert not any(isinstance(effect, UpgradeToTls) for effect in driven.effects)


@pytest.mark.parametrize(
    ("tls", "reply", "note"),
    [
        (TlsInfo("TLSv1.3", "c"), b"no certificate\r\n", LogNote("client sent no required SSL certificate")),
        (
            TlsInfo("TLSv1.3", "c", verify_code=10, verify_error=b"expired"),
            b"invalid certificate\r\n",
            LogNote("client SSL certificate verify error", b"expired"),
        ),
    ],
)
def test_bad_certificate_gets_reply_and_ends_session(tls: TlsInfo, reply: bytes, note: LogNote) -> None:
    driven = play(server(ssl_verify_client=VerifyClient.REQUIRED), tls=tls)
    assert driven.result == SessionEnd(CloseReason.TLS_FAILED)
    assert driven.sent == reply
    assert driven.notes == [note]
    later = play(server(ssl_verify_client=VerifyClient.REQUIRED, starttls=Policy.ENABLED), b"STARTTLS\n", tls)
    assert later.result == SessionEnd(CloseReason.TLS_FAILED)
    assert later.sent == b"hello\r\ngo ahead\r\n" + reply


def test_starttls_only_refuses_sasl_without_tls() -> None:
    driven = play(server(starttls=Policy.ONLY), b"AUTH PLAIN AHUAcA\nAUTH NTLM\n", b"BYE\n")
    assert driven.sent == b"hello\r\nwhat?\r\nwhat?\r\n"
    assert driven.notes == [
        LoginRefused(Method.PLAIN, LoginResult.TLS_REQUIRED),
        ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS),
    ]


def test_refused_login_gets_reply_and_note() -> None:
    driven = play(server(max_errors=1), b"OLD\nOLD \x07\nBYE\n")
    refused = LoginRefused(Method.APOP, LoginResult.BAD_CREDENTIALS_SYNTAX)
    assert driven.sent == b"hello\r\nwhat?\r\nwhat?\r\n"
    assert driven.notes == [refused, refused, ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR)]


def test_challenge_is_the_same_for_whole_session() -> None:
    driven = play(server(), b"AUTH CRAM-MD5\n", b"<1.2@x>", b"*\nAUTH CRAM-MD5\n*\nBYE\n")
    assert driven.sent == b"hello\r\n" + 2 * b"+ PDEuMkB4Pg==\r\nwhat?\r\n"
    assert sum(isinstance(effect, MakeChallenge) for effect in driven.effects) == 1
    assert driven.notes == 2 * [LoginRefused(Method.CRAM_MD5, LoginResult.ABORTED)]


def test_failed_sasl_exchange_is_counted_only_if_line_is_malformed() -> None:
    driven = play(server(max_errors=1), b"AUTH EXTERNAL\nAUTH NTLM\nAUTH PLAIN !\nAUTH PLAIN\na\rb\n")
    assert driven.result == SessionEnd(CloseReason.MAX_ERRORS)
    assert driven.notes == [
        LoginRefused(Method.EXTERNAL, LoginResult.METHOD_DISABLED),
        ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS),
        LoginRefused(Method.PLAIN, LoginResult.BAD_CREDENTIALS_SYNTAX),
        ProtocolViolation(ProtocolErrorKind.BASE64_INVALID),
        LoginRefused(Method.PLAIN, LoginResult.BAD_CREDENTIALS_SYNTAX),
        ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR),
        LogNote("client sent too many invalid commands"),
    ]


def test_allowed_login_ends_frontend() -> None:
    assert play(server(), b"AUTH PLAIN AHUAcA\n", GRANTED).result == UpstreamLogin(GRANTED, Method.PLAIN)


@pytest.mark.parametrize(
    "cut", [(b"NOOP\nNOOP\nASK\nSTAT\n",), (b"NOOP\n", b"NO", b"OP\r\nASK\nST", b"AT\n")]
)
def test_pipelined_commands_are_handled_in_order(cut: tuple[bytes, ...]) -> None:
    driven = play(server(), *cut[:3], GRANTED)
    assert driven.sent == b"hello\r\nok\r\nok\r\n"
    assert driven.result == UpstreamLogin(GRANTED, Method.NONE, cut[2][-2:] if len(cut) > 1 else b"STAT\n")


def test_deferred_request_may_be_allowed_denied_or_fail() -> None:
    later = AuthDeferred(2, b"bob")
    assert play(server(), b"ASK\n", later, None, GRANTED).result == UpstreamLogin(GRANTED, Method.NONE)
    denied = play(server(), b"ASK\n", later, None, AuthDenied(b"no"))
    assert (denied.sent, denied.result) == (b"hello\r\nno: no\r\n", SessionEnd(CloseReason.AUTH_REJECTED))
    with pytest.raises(AuthUnavailable):
        play(server(), b"ASK\n", AuthDeferred(86401))


def test_deferred_request_keeps_login_attempt_number() -> None:
    denied = AuthDenied(b"no", wait=1)
    driven = play(server(), b"ASK\nASK\n", denied, None, AuthDeferred(1), None, denied, None)
    questions = [effect for effect in driven.effects if isinstance(effect, AuthRequest)]
    assert [question.attempt for question in questions] == [1, 2, 2]


def test_denied_login_with_auth_wait_keeps_connection() -> None:
    driven = play(server(), b"ASK\nASK\n", AuthDenied(b"later", wait=3), None, AuthDenied(b"never"))
    assert driven.result == SessionEnd(CloseReason.AUTH_REJECTED)
    assert driven.sent == b"hello\r\nno: later\r\nno: never\r\n"
    assert [effect.seconds for effect in driven.effects if isinstance(effect, Wait)] == [3]
    assert driven.deadlines == [60.0, 60.0]


def test_session_errors_are_not_caught() -> None:
    with pytest.raises(AuthUnreachable):
        play(server(), b"ASK\n", AuthUnreachable())


def test_line_too_long_text_has_no_client_bytes() -> None:
    assert "secret" not in str(LineTooLong(b"PASS secret", 4))


CLIENT = Client("192.0.2.1")
APOP = Credentials(Method.APOP, b"alice", Secret(b"digest"), b"<1.2@x>")


def test_repeated_request_returns_decision() -> None:
    request = AuthRequest(APOP, 2, CLIENT, Envelope(b"", b"MAIL x", b"RCPT y"))
    denied = AuthDenied(b"no", wait=3)
    driven = drive(repeat_deferred(request, AuthDeferred(1)), None, denied)
    assert driven.result is denied
    (_, authenticate) = driven.effects
    assert authenticate is request


def test_deferred_request_is_repeated_with_new_credentials() -> None:
    request = AuthRequest(APOP, 1, CLIENT)
    granted = AuthAllowed("192.0.2.10", 110, b"alice")
    requests = []
    generator = repeat_deferred(request, AuthDeferred(7))
    answers = iter([None, AuthDeferred(1, b"bob", Secret(b"other")), None, granted])
    effect = generator.send(None)
    waits = []
    result: object = None
    try:
        while True:
            if isinstance(effect, AuthRequest):
                requests.append((effect.attempt, effect.credentials))
            elif isinstance(effect, Wait):
                waits.append(effect.seconds)
            effect = generator.send(next(answers))
    except StopIteration as end:
        result = end.value
    assert result is granted
    assert waits == [7, 1]
    changed = Credentials(Method.APOP, b"bob", Secret(b"other"), b"<1.2@x>")
    assert requests == [(1, APOP), (1, changed)]
    assert APOP.user == b"alice"


def test_deferral_above_one_day_is_unavailable() -> None:
    pauses = AuthDeferred(43200), None, AuthDeferred(43200), None
    request = AuthRequest(APOP, 1, CLIENT)
    granted = AuthAllowed("192.0.2.10", 110, b"alice")
    assert drive(repeat_deferred(request, pauses[0]), *pauses[1:], granted).result is granted
    with pytest.raises(AuthUnavailable):
        drive(repeat_deferred(request, pauses[0]), *pauses[1:], AuthDeferred(1))
