# SPDX-License-Identifier: Apache-2.0
"""The SMTP server side before login: its states.  The texts of replies are in the transcripts."""

from __future__ import annotations

from functools import partial

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
from mailproxy.protocols.sansio import Peek, ResolveClient
from mailproxy.protocols.smtp import replies
from mailproxy.protocols.smtp.frontend import SmtpFrontend, SmtpFrontendConfig
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Envelope,
    SessionEnd,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, Protocol, ResolverConfig, StartTls
from support import configs
from support.generator_driver import Driven, drive, limits

GRANTED = AuthAllowed("192.0.2.10", 25, b"u")
DENIED = AuthDenied(b"no", wait=1)
NONE = frozenset({AuthMethod.NONE})
TLS = TlsInfo("TLSv1.3", "c")


def play(*answers: object, client: Client | None = None, **directives: object) -> Driven:
    config = SmtpFrontendConfig(configs.server(Protocol.SMTP, server_name="mx", **directives))
    frontend = SmtpFrontend(config, client or Client("192.0.2.1"))
    return drive(frontend.run(), *answers)


def codes(driven: Driven) -> list[bytes]:
    """The codes of the replies after the greeting."""
    lines = driven.sent.split(b"\r\n")[1:-1]
    return [line[:3] for line in lines if line[3:4] == b" "]


def test_login_result_has_credentials_and_pipelined_bytes() -> None:
    driven = play(b"EHLO cl\r\nAUTH PLAIN AHUAcA\r\nMAIL FROM:<a>\r\nRC", GRANTED)
    assert driven.result == UpstreamLogin(
        GRANTED, Method.PLAIN, b"MAIL FROM:<a>\r\nRC", helo=b"cl", esmtp=True
    )


def test_command_limit_is_smtp_client_buffer() -> None:
    assert limits(play(smtp_client_buffer=100)) == [100]


@pytest.mark.parametrize(
    ("tls", "starttls", "reply"),
    [
        (None, StartTls.DISABLED, replies.capabilities),
        (None, StartTls.ENABLED, partial(replies.capabilities, starttls=StartTls.ENABLED)),
        (None, StartTls.ONLY, partial(replies.capabilities, starttls=StartTls.ONLY)),
        (TLS, StartTls.ONLY, replies.capabilities),
    ],
)
def test_ehlo_reply_depends_on_tls(tls: TlsInfo | None, starttls: StartTls, reply: object) -> None:
    assert callable(reply)
    server = configs.server(Protocol.SMTP, server_name="mx", starttls=starttls)
    driven = play(b"EHLO cl\n", client=Client("192.0.2.1", tls=tls), starttls=starttls)
    assert driven.sent == replies.greeting(server) + reply(server)


def test_host_name_lookup_and_greeting_delay_precede_greeting() -> None:
    client = Client("192.0.2.1")
    resolver = ResolverConfig(system=True)
    driven = play(b"host.example", b"", client=client, resolver=resolver, smtp_greeting_delay=3.0)
    assert client.host == b"host.example"
    assert [type(effect) for effect in driven.effects[:2]] == [ResolveClient, Peek]
    assert driven.sent == b"220 mx ESMTP ready\r\n"
    assert driven.deadlines == [60.0]


def test_early_talker_gets_no_greeting() -> None:
    driven = play(b"H", smtp_greeting_delay=3.0)
    assert driven.result == SessionEnd(CloseReason.PROTOCOL_ERROR)
    assert driven.sent == replies.EARLY_TALKER
    assert driven.notes == [
        LogNote("client was rejected before greeting"),
        ProtocolViolation(ProtocolErrorKind.EARLY_TALKER),
    ]
    assert driven.deadlines == []


@pytest.mark.parametrize(
    ("line", "code", "note"),
    [
        (b"HELO", b"501", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"EHLO a b", b"501", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"EHLO a\0", b"501", ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR)),
        (b"AUTH", b"501", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"AUTH NTLM", b"500", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"AUTH EXTERNAL", b"500", LoginRefused(Method.EXTERNAL, LoginResult.METHOD_DISABLED)),
        (b"MAIL", b"501", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"MAIL \x7f", b"501", ProtocolViolation(ProtocolErrorKind.CONTROL_CHAR)),
        (b"MAIL a\nRCPT", b"501", ProtocolViolation(ProtocolErrorKind.BAD_ARGUMENTS)),
        (b"RCPT x", b"503", ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)),
        (b"VRFY", b"500", ProtocolViolation(ProtocolErrorKind.UNKNOWN_COMMAND)),
        (b"EXPN", b"500", ProtocolViolation(ProtocolErrorKind.UNKNOWN_COMMAND)),
        (b"HELP", b"500", ProtocolViolation(ProtocolErrorKind.UNKNOWN_COMMAND)),
        (b"STARTTLS", b"500", ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE)),
    ],
)
def test_wrong_use_gets_error_reply_and_is_not_counted(line: bytes, code: bytes, note: object) -> None:
    driven = play(line + b"\nNOOP\n", smtp_auth=NONE, max_errors=1)
    assert codes(driven)[-2:] == [code, b"250"]
    assert driven.notes == [note]


def test_syntax_error_is_counted() -> None:
    driven = play(b"DATA\n", max_errors=1)
    assert driven.result == SessionEnd(CloseReason.MAX_ERRORS)


def test_rcpt_sends_auth_request_with_envelope() -> None:
    driven = play(b"HELO cl\nMAIL FROM:<a>  X \nRCPT TO:<b>\nDATA\n", GRANTED, smtp_auth=NONE)
    envelope = Envelope(b"cl", b"MAIL FROM:<a>  X", b"RCPT TO:<b>")
    assert driven.result == UpstreamLogin(GRANTED, Method.NONE, b"DATA\n", envelope=envelope, helo=b"cl")
    effect = driven.effects[-1]
    assert isinstance(effect, AuthRequest)
    assert effect.credentials == Credentials(Method.NONE)
    assert effect.envelope == envelope


def test_mail_is_kept_until_reset() -> None:
    driven = play(
        b"MAIL a\nRCPT b\nMAIL c\nRSET\nRCPT d\nMAIL e\nHELO f\nMAIL g\nQUIT\n", DENIED, None, smtp_auth=NONE
    )
    assert codes(driven) == [b"250", b"535", b"503", b"250", b"503", b"250", b"250", b"250", b"221"]
    assert driven.result == SessionEnd(CloseReason.CLIENT_QUIT)


def test_mail_without_smtp_auth_none_needs_login() -> None:
    driven = play(b"MAIL FROM:<a>\n")
    assert codes(driven) == [b"530"]
    assert driven.notes == [
        LogNote("client was rejected", b"MAIL FROM:<a>"),
        ProtocolViolation(ProtocolErrorKind.BAD_SEQUENCE),
    ]


def test_starttls_only_refuses_login_and_mail_without_tls() -> None:
    driven = play(b"MAIL a\nAUTH LOGIN\nAUTH\n", smtp_auth=NONE, starttls=StartTls.ONLY)
    assert driven.sent.startswith(b"220 mx ESMTP ready\r\n" + replies.TLS_REQUIRED)
    assert codes(driven) == [b"530", b"500", b"500"]
    assert driven.notes[1] == LoginRefused(Method.LOGIN, LoginResult.TLS_REQUIRED)


def test_starttls_resets_helo_and_mail_but_not_esmtp() -> None:
    driven = play(
        b"EHLO cl\nMAIL a\nSTARTTLS\n",
        TLS,
        b"RCPT b\nAUTH PLAIN AHUAcA\n",
        GRANTED,
        smtp_auth=NONE,
        starttls=StartTls.ENABLED,
    )
    assert codes(driven) == [b"250", b"250", b"220", b"503"]
    assert driven.result == UpstreamLogin(GRANTED, Method.PLAIN, esmtp=True)


def test_denied_login_with_auth_wait_may_be_repeated() -> None:
    driven = play(b"AUTH PLAIN AHUAcA\nAUTH PLAIN\n", DENIED, None, b"*\n")
    assert codes(driven) == [b"535", b"334", b"500"]
