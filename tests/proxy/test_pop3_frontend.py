# SPDX-License-Identifier: Apache-2.0
"""The POP3 server side before login: its states.  The texts of replies are in the transcripts."""

from __future__ import annotations

from binascii import b2a_base64
from functools import partial

import pytest

from mailproxy.enums import (
    CloseReason,
    LoginRefused,
    LoginResult,
    Method,
    ProtocolErrorKind,
    ProtocolViolation,
)
from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.pop3.frontend import Pop3Frontend, Pop3FrontendConfig
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Secret,
    SessionEnd,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, Protocol, StartTls
from support import configs
from support.generator_driver import Driven, drive, limits

GRANTED = AuthAllowed("192.0.2.10", 110, b"alice")
CHALLENGE = b"<1.2@mail.example.com>"
DENIED = AuthDenied(b"no", wait=1)
APOP = frozenset({AuthMethod.APOP})


def b64encode(data: bytes) -> bytes:
    return b2a_base64(data, newline=False)


def play(*answers: object, tls: bool = False, **directives: object) -> Driven:
    config = Pop3FrontendConfig(configs.server(Protocol.POP3, **directives))
    client = Client("192.0.2.1", tls=TlsInfo("TLSv1.3", "c") if tls else None)
    return drive(Pop3Frontend(config, client).run(), *answers)


def replies_in(driven: Driven) -> list[bytes]:
    """The replies after the greeting."""
    return driven.sent.split(b"\r\n")[1:-1]


def test_login_result_has_credentials_and_pipelined_bytes() -> None:
    driven = play(b"USER alice\r\nPASS secret\r\nSTAT\r\nLI", GRANTED)
    assert driven.result == UpstreamLogin(GRANTED, Method.PASSWORD, b"STAT\r\nLI")
    (_, auth_requests) = driven.effects
    assert isinstance(auth_requests, AuthRequest)
    assert auth_requests.credentials == Credentials(Method.PASSWORD, b"alice", Secret(b"secret"))


def test_command_limit_is_512_bytes() -> None:
    assert limits(play()) == [512]


def test_command_limit_is_client_buffer_directive() -> None:
    assert limits(play(pop3_client_buffer=128)) == [128]


def test_long_password_logs_in_with_every_method() -> None:
    password = b"p" * 90
    plain = b64encode(b"\0alice@mail.example.com\0" + password)
    for lines in (
        b"USER alice@mail.example.com\r\nPASS " + password + b"\r\n",
        b"AUTH PLAIN " + plain + b"\r\n",
        b"AUTH PLAIN\r\n" + plain + b"\r\n",
    ):
        driven = play(*lines.splitlines(keepends=True), GRANTED)
        assert driven.result == UpstreamLogin(GRANTED, driven.result.method)


def test_sasl_response_may_be_longer_than_command_limit() -> None:
    password = b"p" * 2000
    plain = b64encode(b"\0alice\0" + password)
    driven = play(b"AUTH PLAIN\r\n", plain + b"\r\n", DENIED, None, b"NOOP\r\n", b"NOOP" + b" " * 600)
    auth_requests = [effect for effect in driven.effects if isinstance(effect, AuthRequest)]
    assert [one.credentials.password for one in auth_requests] == [Secret(password)]
    assert replies_in(driven)[-2:] == [b"+OK", b"-ERR invalid command"]
    assert driven.result == SessionEnd(CloseReason.PROTOCOL_ERROR)  # commands have their own limit again


def test_sasl_response_above_its_limit_ends_session() -> None:
    driven = play(b"AUTH PLAIN\r\n", b"A" * 4096)
    assert driven.result == SessionEnd(CloseReason.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("line", "tls", "starttls", "reply"),
    [
        (b"CAPA\n", False, StartTls.DISABLED, replies.capabilities),
        (b"CAPA\n", False, StartTls.ENABLED, partial(replies.capabilities, starttls=StartTls.ENABLED)),
        (b"CAPA\n", False, StartTls.ONLY, partial(replies.capabilities, starttls=StartTls.ONLY)),
        (b"CAPA\n", True, StartTls.ONLY, replies.capabilities),
        (b"AUTH\n", True, StartTls.ONLY, replies.mechanisms),
    ],
)
def test_capa_reply_depends_on_tls(line: bytes, tls: bool, starttls: StartTls, reply: object) -> None:
    assert callable(reply)
    server = configs.server(Protocol.POP3, starttls=starttls)
    assert play(line, tls=tls, starttls=starttls).sent == replies.GREETING + reply(server)


@pytest.mark.parametrize("method", [AuthMethod.APOP, AuthMethod.CRAM_MD5])
def test_greeting_has_challenge_if_a_method_needs_it(method: AuthMethod) -> None:
    assert play(CHALLENGE, pop3_auth=frozenset({method})).sent == replies.greeting(CHALLENGE)


@pytest.mark.parametrize(
    ("line", "erred"),
    [
        (b"STAT", ProtocolErrorKind.UNKNOWN_COMMAND),
        (b"USER bob", ProtocolErrorKind.BAD_SEQUENCE),
        (b"AUTH", ProtocolErrorKind.BAD_SEQUENCE),
        (b"STLS", ProtocolErrorKind.BAD_SEQUENCE),
        (b"PASS", ProtocolErrorKind.BAD_ARGUMENTS),
    ],
)
def test_error_after_user_resets_user_name(line: bytes, erred: ProtocolErrorKind) -> None:
    driven = play(b"USER alice\n" + line + b"\nPASS secret\n")
    assert replies_in(driven) == [b"+OK", b"-ERR invalid command", b"-ERR invalid command"]
    assert driven.notes == [ProtocolViolation(erred), ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)]


def test_capa_and_noop_after_user_keep_user_name() -> None:
    driven = play(b"USER alice\nCAPA\nNOOP\nPASS secret\n", GRANTED, starttls=StartTls.ENABLED)
    assert driven.finished
    assert b"STLS" not in driven.sent


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        (b"USER", [ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)]),
        (b"USER a\0", [ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR)]),
        (b"PASS x", [ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)]),
        (b"STLS", [ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)]),
        (b"APOP a", [ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)]),
        (
            b"APOP a b\0",
            [
                LoginRefused(Method.APOP, LoginResult.BAD_CREDENTIALS_SYNTAX),
                ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR),
            ],
        ),
        (b"AUTH NTLM", [ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)]),
    ],
)
def test_wrong_use_gets_error_reply_and_is_not_counted(line: bytes, notes: list[object]) -> None:
    driven = play(CHALLENGE, line + b"\nNOOP\n", pop3_auth=APOP, max_errors=1)
    assert replies_in(driven) == [b"-ERR invalid command", b"+OK"]
    assert driven.notes == notes


@pytest.mark.parametrize(
    ("line", "method"),
    [(b"USER a", Method.PASSWORD), (b"APOP a b", Method.APOP), (b"AUTH LOGIN", Method.LOGIN)],
)
def test_starttls_only_refuses_login_without_tls(line: bytes, method: Method) -> None:
    driven = play(CHALLENGE, line + b"\nAUTH\n", pop3_auth=APOP, starttls=StartTls.ONLY)
    assert replies_in(driven) == [b"-ERR invalid command"] * 2
    assert driven.notes[0] == LoginRefused(method, LoginResult.TLS_REQUIRED)


def test_apop_responds_to_challenge_of_greeting() -> None:
    driven = play(
        CHALLENGE, b"APOP alice digest\n", DENIED, None, b"APOP alice digest\n", GRANTED, pop3_auth=APOP
    )
    assert driven.result == UpstreamLogin(GRANTED, Method.APOP)
    requests = [effect for effect in driven.effects if isinstance(effect, AuthRequest)]
    assert [request.attempt for request in requests] == [1, 2]
    assert all(request.credentials.challenge == CHALLENGE for request in requests)


def test_apop_is_refused_if_not_configured() -> None:
    assert play(b"APOP alice digest\n").notes == [LoginRefused(Method.APOP, LoginResult.METHOD_DISABLED)]


def test_denied_login_resets_user_name() -> None:
    driven = play(b"USER alice\nPASS x\nPASS y\nQUIT\n", DENIED, None)
    assert replies_in(driven) == [b"+OK", b"-ERR no", b"-ERR invalid command", b"+OK"]
    assert driven.result == SessionEnd(CloseReason.CLIENT_QUIT)


def test_stls_starts_tls() -> None:
    driven = play(b"STLS\n", TlsInfo("TLSv1.3", "c"), b"QUIT\n", starttls=StartTls.ENABLED)
    assert replies_in(driven) == [b"+OK", b"+OK"]


def test_sasl_login_is_sent_to_authentication_service() -> None:
    assert play(b"AUTH PLAIN AHUAcA\nrest", GRANTED).result == UpstreamLogin(GRANTED, Method.PLAIN, b"rest")
