# SPDX-License-Identifier: Apache-2.0
"""Transcripts of logins at upstreams with ``proxy_auth``, a master user, and access tokens."""

from __future__ import annotations

from base64 import b64decode
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import (
    TokenUnavailable,
    UpstreamError,
    UpstreamGuardError,
    UpstreamRefused,
    UpstreamTokenRefused,
)
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.types import Envelope
from mailproxy.protocols.upstream_sasl import oauthbearer, plain, xoauth2
from mailproxy_config.model import Protocol, ProxySsl, SendIdentity, XclientMode
from mailproxy_config.upstream_login import ProxyAuth, ProxyAuthToken, ProxyMasterUser
from support import configs
from support.upstream_logins import PASSWORD, TOKEN, USER, Played, b64, play

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
BRIDGE: Final = ProxyAuthToken(
    token_url="https://login.example/token", client_id="app", client_secret_file="/s"
)
MASTER: Final = ProxyMasterUser(user="proxy", password_file="/m")
MASTER_SECRET: Final = b"master secret 7"

PLAIN_MESSAGE: Final = b64(b"\0" + USER + b"\0" + PASSWORD)
XOAUTH2_MESSAGE: Final = b64(b"user=" + USER + b"\x01auth=Bearer " + TOKEN + b"\x01\x01")
OAUTHBEARER_MESSAGE: Final = b64(b"n,a=" + USER + b",\x01auth=Bearer " + TOKEN + b"\x01\x01")
EXTERNAL_MESSAGE: Final = b64(USER)

RESPONSES: Final = {
    ProxyAuth.PLAIN: (PLAIN_MESSAGE,),
    ProxyAuth.LOGIN: (b64(USER), b64(PASSWORD)),
    ProxyAuth.XOAUTH2: (XOAUTH2_MESSAGE,),
    ProxyAuth.OAUTHBEARER: (OAUTHBEARER_MESSAGE,),
    ProxyAuth.EXTERNAL: (EXTERNAL_MESSAGE,),
}
MECHANISMS: Final = tuple(RESPONSES)
TOKENS: Final = (ProxyAuth.XOAUTH2, ProxyAuth.OAUTHBEARER)


def directives(kind: ProxyAuth) -> dict[str, Any]:
    return {"proxy_auth": (kind,)} | ({"proxy_auth_token": BRIDGE} if kind in TOKENS else {})


def imap_greeting(*words: str) -> bytes:
    return f"* OK [CAPABILITY IMAP4rev1 {' '.join(words)}] hi\r\n".encode()


def capa(*words: str) -> bytes:
    return b"+OK\r\n" + "".join(f"{word}\r\n" for word in words).encode() + b".\r\n"


def ehlo(*words: str) -> bytes:
    return b"250-mx\r\n" + f"250-AUTH {' '.join(words)}\r\n".encode() + b"250 SIZE\r\n"


# --- each mechanism --------------------------------------------------------------


@pytest.mark.parametrize("kind", [each for each in MECHANISMS if each is not ProxyAuth.LOGIN])
def test_imap_mechanism_with_an_initial_response(kind: ProxyAuth) -> None:
    greeting = imap_greeting("SASL-IR", f"AUTH={kind.upper()}", "AUTH=OTHER")
    played = play(IMAP, greeting, b"a OK [CAPABILITY IMAP4rev1] in\r\n", **directives(kind))
    command = b"a AUTHENTICATE " + kind.upper().encode() + b" " + RESPONSES[kind][0] + b"\r\n"
    assert played.sent == [b"", command, b""]
    assert played.reply == b"a OK [CAPABILITY IMAP4rev1] in\r\n"


@pytest.mark.parametrize("kind", MECHANISMS)
@pytest.mark.parametrize("prompt", [b"+ \r\n", b"+\r\n", b"* note\r\n+ VXNlciBOYW1lAA==\r\n"])
def test_imap_mechanism_without_an_initial_response(kind: ProxyAuth, prompt: bytes) -> None:
    responses = RESPONSES[kind]
    greeting = imap_greeting(f"AUTH={kind.lower()}")
    played = play(IMAP, greeting, *[prompt] * len(responses), b"a OK in\r\n", **directives(kind))
    command = b"a AUTHENTICATE " + kind.upper().encode() + b"\r\n"
    assert played.sent == [b"", command, *(response + b"\r\n" for response in responses), b""]
    assert played.reply == b"a OK in\r\n"


@pytest.mark.parametrize("kind", [each for each in MECHANISMS if each is not ProxyAuth.LOGIN])
def test_pop3_mechanism_with_an_initial_response(kind: ProxyAuth) -> None:
    reply = capa("USER", f"SASL OTHER {kind.upper()}")
    played = play(POP3, b"+OK hi\r\n", reply, b"+OK in\r\n", **directives(kind))
    command = b"AUTH " + kind.upper().encode() + b" " + RESPONSES[kind][0] + b"\r\n"
    assert len(command) <= 255
    assert played.sent == [b"", b"CAPA\r\n", command, b""]
    assert played.reply == b"+OK in\r\n"


@pytest.mark.parametrize("kind", MECHANISMS)
def test_pop3_mechanism_without_an_initial_response(kind: ProxyAuth) -> None:
    """The response is longer than a line may be, or the mechanism is LOGIN."""
    user = b"u" * 200
    length = 2 if kind is ProxyAuth.LOGIN else 1
    reply = capa(f"sasl {kind.lower()}")
    replies = (b"+OK hi\r\n", reply, *[b"+ \r\n"] * length, b"+OK in\r\n")
    played = play(POP3, *replies, user=user, **directives(kind))
    assert played.sent[2] == b"AUTH " + kind.upper().encode() + b"\r\n"
    assert user in b64decode(played.sent[3])
    assert played.reply == b"+OK in\r\n"


@pytest.mark.parametrize("kind", [each for each in MECHANISMS if each is not ProxyAuth.LOGIN])
@pytest.mark.parametrize("form", [b"250-AUTH ", b"250 AUTH=", b"250-auth "])
def test_smtp_mechanism_with_an_initial_response(kind: ProxyAuth, form: bytes) -> None:
    reply = b"250-mx\r\n" + form + b"OTHER " + kind.upper().encode() + b"\r\n250 SIZE\r\n"
    if form.startswith(b"250 "):
        reply = reply.removesuffix(b"250 SIZE\r\n")
    played = play(SMTP, b"220 mx\r\n", reply, b"235 in\r\n", **directives(kind))
    command = b"AUTH " + kind.upper().encode() + b" " + RESPONSES[kind][0] + b"\r\n"
    assert played.sent == [b"", b"EHLO mail.example.com\r\n", command, b""]
    assert played.reply == b"235 2.0.0 OK\r\n"


@pytest.mark.parametrize("kind", MECHANISMS)
def test_smtp_mechanism_without_an_initial_response(kind: ProxyAuth) -> None:
    """The command would be longer than 512 bytes, or the mechanism is LOGIN."""
    user = b"u" * 400
    length = 2 if kind is ProxyAuth.LOGIN else 1
    replies = (b"220 mx\r\n", ehlo(kind.upper()), *[b"334 \r\n"] * length, b"235 in\r\n")
    played = play(SMTP, *replies, user=user, **directives(kind))
    assert played.sent[2] == b"AUTH " + kind.upper().encode() + b"\r\n"
    assert user in b64decode(played.sent[3])
    assert played.reply == b"235 2.0.0 OK\r\n"


def test_prompts_of_login_are_not_compared() -> None:
    replies = (b"220 mx\r\n", ehlo("LOGIN"), b"334 eA==\r\n", b"334 \r\n", b"235 in\r\n")
    assert play(SMTP, *replies, proxy_auth=(ProxyAuth.LOGIN,)).sent[3:5] == [
        b64(USER) + b"\r\n",
        b64(PASSWORD) + b"\r\n",
    ]


@pytest.mark.parametrize(("length", "is_initial"), [(357, True), (358, True), (362, False), (363, False)])
def test_smtp_command_with_an_initial_response_has_at_most_512_bytes(length: int, is_initial: bool) -> None:
    """The line without its end has at most 510 bytes."""
    user = b"u" * (length - len(PASSWORD))
    replies = (b"220 mx\r\n", ehlo("PLAIN"), *([] if is_initial else [b"334 \r\n"]), b"235 in\r\n")
    played = play(SMTP, *replies, user=user, proxy_auth=(ProxyAuth.PLAIN,))
    assert len(played.sent[2]) <= 512


# --- the choice ------------------------------------------------------------------


def test_first_mechanism_that_the_upstream_lists_is_used() -> None:
    order = (ProxyAuth.LOGIN, ProxyAuth.PLAIN, ProxyAuth.NATIVE)
    greeting = imap_greeting("AUTH=PLAIN", "SASL-IR")
    assert b"AUTHENTICATE PLAIN" in play(IMAP, greeting, b"a OK\r\n", proxy_auth=order).all_sent
    assert (
        b"AUTH PLAIN"
        in play(POP3, b"+OK\r\n", capa("USER", "SASL PLAIN"), b"+OK\r\n", proxy_auth=order).all_sent
    )
    assert (
        b"AUTH LOGIN"
        in play(
            SMTP, b"220 mx\r\n", ehlo("PLAIN", "LOGIN"), b"334\r\n", b"334\r\n", b"235\r\n", proxy_auth=order
        ).all_sent
    )


def test_native_is_the_last_resort() -> None:
    order = (ProxyAuth.PLAIN, ProxyAuth.NATIVE)
    played = play(IMAP, imap_greeting("LITERAL+"), b"a OK\r\n", proxy_auth=order)
    assert played.sent[1] == b"a LOGIN {17+}\r\nalice@example.org {10+}\r\nwonderland\r\n"
    played = play(IMAP, imap_greeting("X"), b"+ ok\r\n", b"+ ok\r\n", b"a OK\r\n", proxy_auth=order)
    assert played.sent[1:4] == [b"a LOGIN {17}\r\n", b"alice@example.org {10}\r\n", b"wonderland\r\n"]
    played = play(POP3, b"+OK\r\n", b"-ERR what\r\n", b"+OK\r\n", b"+OK in\r\n", proxy_auth=order)
    assert played.sent[2:4] == [b"USER alice@example.org\r\n", b"PASS wonderland\r\n"]
    played = play(SMTP, b"220 mx\r\n", b"250 mx\r\n", b"235\r\n", proxy_auth=order)
    assert played.sent[2] == b"AUTH PLAIN " + PLAIN_MESSAGE + b"\r\n"


@pytest.mark.parametrize("kind", MECHANISMS)
def test_nothing_is_sent_if_the_upstream_lists_no_mechanism(kind: ProxyAuth) -> None:
    for protocol, replies in (
        (IMAP, (imap_greeting("SASL-IR", "AUTH=OTHER"),)),
        (POP3, (b"+OK\r\n", capa("USER", "SASL OTHER"))),
        (SMTP, (b"220 mx\r\n", ehlo("OTHER"))),
    ):
        played = play(protocol, *replies, **directives(kind))
        assert played.error is not None
        assert played.error.is_misconfigured
        assert not isinstance(played.error, UpstreamRefused)
        assert str(kind) in str(played.error)
        assert played.all_sent in {b"", b"CAPA\r\n", b"EHLO mail.example.com\r\n"}


@pytest.mark.parametrize(
    "replies",
    [(imap_greeting("LOGINDISABLED"),), (imap_greeting("logindisabled", "AUTH=OTHER"),)],
)
def test_native_does_not_fit_with_logindisabled(replies: tuple[bytes, ...]) -> None:
    played = play(IMAP, *replies, proxy_auth=(ProxyAuth.PLAIN, ProxyAuth.NATIVE))
    assert played.error is not None
    assert played.error.is_misconfigured
    assert played.all_sent == b""


def test_native_does_not_fit_if_capa_lists_no_user() -> None:
    played = play(POP3, b"+OK\r\n", capa("SASL OTHER"), proxy_auth=(ProxyAuth.PLAIN, ProxyAuth.NATIVE))
    assert played.error is not None
    assert played.error.is_misconfigured


def test_capabilities_are_asked_for_if_the_greeting_has_none() -> None:
    listed = b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nx2 OK\r\n"
    played = play(IMAP, b"* OK hi\r\n", listed, b"a OK\r\n", proxy_auth=(ProxyAuth.PLAIN,))
    assert played.sent == [b"", b"x2 CAPABILITY\r\n", b"a AUTHENTICATE PLAIN " + PLAIN_MESSAGE + b"\r\n", b""]


def test_capabilities_are_not_asked_for_a_master_user_alone() -> None:
    options = {"proxy_master_user": MASTER, "master": MASTER_SECRET}
    assert b"CAPABILITY" not in play(IMAP, b"* OK\r\n", b"+\r\n", b"+\r\n", b"a OK\r\n", **options).all_sent
    assert b"CAPA" not in play(POP3, b"+OK\r\n", b"+OK\r\n", b"+OK\r\n", **options).all_sent


def test_external_without_a_user_is_refused() -> None:
    played = play(SMTP, user=b"", proxy_auth=(ProxyAuth.EXTERNAL,))
    assert played.error is not None
    assert played.all_sent == b""


def test_client_without_a_password_uses_a_mechanism_without_one() -> None:
    """A client that has logged in with its certificate has no password."""
    greeting = imap_greeting("SASL-IR", "AUTH=PLAIN", "AUTH=EXTERNAL")
    order = (ProxyAuth.PLAIN, ProxyAuth.EXTERNAL)
    played = play(IMAP, greeting, b"a OK\r\n", password=None, proxy_auth=order)
    assert played.sent[1] == b"a AUTHENTICATE EXTERNAL " + EXTERNAL_MESSAGE + b"\r\n"
    for protocol in Protocol:
        played = play(protocol, password=None, proxy_auth=(ProxyAuth.PLAIN,))
        assert str(played.error) == "no password available"


# --- TLS, ID, XCLIENT, guards ----------------------------------------------------


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", [*MECHANISMS, ProxyAuth.NATIVE])
def test_secret_is_not_sent_without_tls_if_it_is_required(protocol: Protocol, kind: ProxyAuth) -> None:
    if kind is ProxyAuth.EXTERNAL:
        return
    played = play(protocol, proxy_auth_require_tls=True, proxy_smtp_auth=True, **directives(kind))
    assert played.error is not None
    assert played.error.is_misconfigured
    assert "proxySsl" in str(played.error)
    assert (played.all_sent, played.tokens) == (b"", 0)


def test_external_may_be_sent_without_tls() -> None:
    greeting = imap_greeting("SASL-IR", "AUTH=EXTERNAL")
    options = {"proxy_auth": (ProxyAuth.EXTERNAL,), "proxy_auth_require_tls": True}
    assert play(IMAP, greeting, b"a OK\r\n", **options).error is None


def test_xclient_without_auth_needs_no_tls() -> None:
    assert play(SMTP, b"220 mx\r\n", b"250 mx\r\n", proxy_auth_require_tls=True).error is None


def test_list_after_starttls_counts() -> None:
    options = {"proxy_auth": (ProxyAuth.PLAIN,), "proxy_ssl": ProxySsl.STARTTLS}
    imap = play(
        IMAP,
        imap_greeting("STARTTLS", "LOGINDISABLED"),
        b"x1 OK go\r\n",
        b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nx2 OK\r\n",
        b"a OK\r\n",
        **options,
    )
    assert imap.all_sent == (
        b"x1 STARTTLS\r\n<TLS>x2 CAPABILITY\r\na AUTHENTICATE PLAIN " + PLAIN_MESSAGE + b"\r\n"
    )
    pop3 = play(POP3, b"+OK\r\n", b"+OK\r\n", capa("SASL PLAIN"), b"+OK\r\n", **options)
    assert pop3.all_sent == b"STLS\r\n<TLS>CAPA\r\nAUTH PLAIN " + PLAIN_MESSAGE + b"\r\n"
    smtp = play(
        SMTP,
        b"220 mx\r\n",
        b"250-STARTTLS\r\n250 AUTH OTHER\r\n",
        b"220 go\r\n",
        ehlo("PLAIN"),
        b"235\r\n",
        **options,
    )
    hello = b"EHLO mail.example.com\r\n"
    assert smtp.all_sent == (hello + b"STARTTLS\r\n<TLS>" + hello + b"AUTH PLAIN " + PLAIN_MESSAGE + b"\r\n")


def test_capabilities_are_asked_for_once_with_id_after_starttls() -> None:
    played = play(
        IMAP,
        imap_greeting("STARTTLS"),
        b"x1 OK\r\n",
        b"* CAPABILITY ID AUTH=PLAIN SASL-IR\r\nx2 OK\r\n",
        b"* ID NIL\r\nx3 OK\r\n",
        b"a OK\r\n",
        proxy_auth=(ProxyAuth.PLAIN,),
        proxy_ssl=ProxySsl.STARTTLS,
        proxy_id=SendIdentity.AUTO,
    )
    assert played.all_sent.count(b"CAPABILITY") == 1
    assert played.all_sent.endswith(b"a AUTHENTICATE PLAIN " + PLAIN_MESSAGE + b"\r\n")


@pytest.mark.parametrize("helo", [b"client", None])
def test_list_after_xclient_counts(helo: bytes | None) -> None:
    """XCLIENT has no LOGIN, as AUTH follows."""
    replies = (b"220 mx\r\n", ehlo("OTHER"), b"220 mx\r\n", ehlo("PLAIN"), b"235\r\n")
    played = play(SMTP, *replies, proxy_auth=(ProxyAuth.PLAIN,), xclient=True, helo=helo)
    assert played.sent[2] == b"XCLIENT ADDR=192.0.2.1 NAME=[UNAVAILABLE]\r\n"
    assert played.sent[3] == b"EHLO " + (helo or b"mail.example.com") + b"\r\n"
    assert played.sent[4] == b"AUTH PLAIN " + PLAIN_MESSAGE + b"\r\n"


@pytest.mark.parametrize("mode", [XclientMode.AUTO, XclientMode.REQUIRED])
def test_list_after_negotiated_xclient_counts(mode: XclientMode) -> None:
    first = b"250-mx\r\n250-AUTH OTHER\r\n250 XCLIENT NAME LOGIN\r\n"
    replies = (b"220 mx\r\n", first, b"220 mx\r\n", ehlo("PLAIN"), b"235\r\n")
    played = play(SMTP, *replies, proxy_auth=(ProxyAuth.PLAIN,), xclient=True, xclient_mode=mode)
    assert b"LOGIN" not in played.all_sent
    assert played.all_sent.endswith(b"EHLO client\r\nAUTH PLAIN " + PLAIN_MESSAGE + b"\r\n")


def test_list_without_xclient_counts() -> None:
    replies = (b"220 mx\r\n", ehlo("PLAIN"), b"235\r\n")
    options = {"proxy_auth": (ProxyAuth.PLAIN,), "xclient": True, "xclient_mode": XclientMode.AUTO}
    assert play(SMTP, *replies, **options).all_sent.count(b"EHLO") == 1


def test_smtp_guard_looks_at_the_last_ehlo() -> None:
    lists_xclient = b"250-mx\r\n250-AUTH PLAIN\r\n250 XCLIENT ADDR LOGIN\r\n"
    played = play(SMTP, b"220 mx\r\n", lists_xclient, proxy_auth=(ProxyAuth.PLAIN,))
    assert isinstance(played.error, UpstreamGuardError)
    assert b"AUTH" not in played.all_sent


@pytest.mark.parametrize(
    "replies",
    [
        (imap_greeting("SASL-IR", "AUTH=PLAIN", "UNAUTHENTICATE"),),
        (b"* OK hi\r\n", b"* CAPABILITY IMAP4rev1 AUTH=PLAIN UNAUTHENTICATE\r\nx2 OK\r\n"),
        (imap_greeting("SASL-IR", "AUTH=PLAIN"), b"a OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE] in\r\n"),
    ],
)
def test_imap_guard_looks_at_every_list(replies: tuple[bytes, ...]) -> None:
    played = play(IMAP, *replies, proxy_auth=(ProxyAuth.PLAIN,), proxy_imap_guard=True)
    assert isinstance(played.error, UpstreamGuardError)


def test_smtp_client_without_a_login_is_passed_on() -> None:
    envelope = Envelope(b"client", b"MAIL FROM:<a@x>", b"RCPT TO:<b@x>")
    replies = (b"220 mx\r\n", b"250 mx\r\n", b"250 ok\r\n", b"250 ok\r\n")
    played = play(SMTP, *replies, envelope=envelope, user=b"", **directives(ProxyAuth.XOAUTH2))
    assert (played.tokens, b"AUTH" in played.all_sent) == (0, False)


# --- refusals --------------------------------------------------------------------

REFUSALS: Final = {
    IMAP: (b"a NO [AUTHENTICATIONFAILED] no\r\n", b"a NO [UNAVAILABLE] later\r\n", b"* BYE gone\r\n"),
    POP3: (b"-ERR [AUTH] no\r\n", b"-ERR [SYS/TEMP] later\r\n", None),
    SMTP: (b"535 5.7.8 no\r\n", b"454 4.7.0 later\r\n", b"421 4.3.2 gone\r\n"),
}
OPENINGS: Final = {
    IMAP: lambda name: (imap_greeting("SASL-IR", f"AUTH={name}"),),
    POP3: lambda name: (b"+OK\r\n", capa(f"SASL {name}")),
    SMTP: lambda name: (b"220 mx\r\n", ehlo(name)),
}
CHALLENGES: Final = {IMAP: b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n", POP3: b"+ eyJz\r\n", SMTP: b"334 eyJz\r\n"}


@pytest.mark.parametrize("protocol", list(Protocol))
def test_refused_password_is_a_denial(protocol: Protocol) -> None:
    refused = REFUSALS[protocol][0]
    played = play(protocol, *OPENINGS[protocol]("PLAIN"), refused, proxy_auth=(ProxyAuth.PLAIN,))
    assert isinstance(played.error, UpstreamRefused)
    assert (played.error.is_denial, played.error.reply) == (True, refused)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_goodbye_is_no_denial(protocol: Protocol) -> None:
    goodbye = REFUSALS[protocol][2]
    if goodbye is not None:
        played = play(protocol, *OPENINGS[protocol]("PLAIN"), goodbye, proxy_auth=(ProxyAuth.PLAIN,))
        assert isinstance(played.error, UpstreamRefused)
        assert not played.error.is_denial


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", TOKENS)
def test_challenge_with_an_error_is_answered(protocol: Protocol, kind: ProxyAuth) -> None:
    challenge, refused = CHALLENGES[protocol], REFUSALS[protocol][0]
    played = play(protocol, *OPENINGS[protocol](kind.upper()), challenge, refused, **directives(kind))
    assert played.sent[-2] == (b"\r\n" if kind is ProxyAuth.XOAUTH2 else b"AQ==\r\n")
    assert isinstance(played.error, UpstreamTokenRefused)
    assert played.error.reply == challenge + refused
    assert TOKEN not in repr(vars(played.error)).encode()


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", TOKENS)
def test_refused_token_is_no_denial(protocol: Protocol, kind: ProxyAuth) -> None:
    played = play(protocol, *OPENINGS[protocol](kind.upper()), REFUSALS[protocol][0], **directives(kind))
    assert isinstance(played.error, UpstreamTokenRefused)
    assert not played.error.is_misconfigured


@pytest.mark.parametrize("protocol", list(Protocol))
def test_temporary_refusal_does_not_concern_the_token(protocol: Protocol) -> None:
    replies = (*OPENINGS[protocol]("XOAUTH2"), REFUSALS[protocol][1])
    played = play(protocol, *replies, **directives(ProxyAuth.XOAUTH2))
    assert type(played.error) is UpstreamError


@pytest.mark.parametrize("protocol", list(Protocol))
def test_further_challenge_is_cancelled(protocol: Protocol) -> None:
    replies = (*OPENINGS[protocol]("PLAIN"), CHALLENGES[protocol], REFUSALS[protocol][0])
    played = play(protocol, *replies, proxy_auth=(ProxyAuth.PLAIN,))
    assert played.sent[-2] == b"*\r\n"
    assert played.error is not None
    assert played.error.kind is ProtocolErrorKind.UNEXPECTED_REPLY


def test_success_before_the_response_is_unexpected() -> None:
    played = play(IMAP, imap_greeting("AUTH=PLAIN"), b"a OK in\r\n", proxy_auth=(ProxyAuth.PLAIN,))
    assert played.error is not None
    assert played.error.kind is ProtocolErrorKind.UNEXPECTED_REPLY


@pytest.mark.parametrize("protocol", list(Protocol))
def test_reply_of_another_protocol_is_unexpected(protocol: Protocol) -> None:
    replies = (*OPENINGS[protocol]("PLAIN"), b"HTTP/1.0 400 Bad Request\r\n")
    played = play(protocol, *replies, proxy_auth=(ProxyAuth.PLAIN,))
    assert played.error is not None
    assert played.error.kind is ProtocolErrorKind.UNEXPECTED_REPLY


@pytest.mark.parametrize("protocol", list(Protocol))
def test_no_upstream_is_asked_without_a_token(protocol: Protocol) -> None:
    played = play(protocol, token=TokenUnavailable("the token service is down"), **directives(TOKENS[0]))
    assert isinstance(played.error, TokenUnavailable)
    assert (played.error.stage, played.all_sent) == (UpstreamStage.TOKEN, b"")


@pytest.mark.parametrize("echo", [TOKEN, XOAUTH2_MESSAGE, b64(TOKEN)[:24]])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_reply_that_repeats_the_token_is_withheld(protocol: Protocol, echo: bytes) -> None:
    refused = REFUSALS[protocol][0].rstrip() + b" " + echo + b"\r\n"
    played = play(protocol, *OPENINGS[protocol]("XOAUTH2"), refused, **directives(ProxyAuth.XOAUTH2))
    assert played.error is not None
    assert played.error.reply == b"***"


# --- a master user ---------------------------------------------------------------


def master(protocol: Protocol, *replies: bytes, **options: Any) -> Played:
    return play(protocol, *replies, proxy_master_user=MASTER, master=MASTER_SECRET, **options)


def test_plain_has_the_mailbox_as_authorization_identity() -> None:
    message = b64(USER + b"\0proxy\0" + MASTER_SECRET)
    for protocol in Protocol:
        success = {IMAP: b"a OK\r\n", POP3: b"+OK\r\n", SMTP: b"235\r\n"}[protocol]
        played = master(protocol, *OPENINGS[protocol]("PLAIN"), success, proxy_auth=(ProxyAuth.PLAIN,))
        assert played.sent[-2].endswith(b"PLAIN " + message + b"\r\n")
        assert PASSWORD not in played.all_sent


def test_native_login_has_the_name_of_the_master_user_behind_the_separator() -> None:
    played = master(IMAP, imap_greeting("LITERAL+"), b"a OK\r\n")
    assert played.sent[1] == b"a LOGIN {23+}\r\nalice@example.org*proxy {15+}\r\nmaster secret 7\r\n"
    played = master(POP3, b"+OK\r\n", b"+OK\r\n", b"+OK\r\n")
    assert played.sent[1:3] == [b"USER alice@example.org*proxy\r\n", b"PASS master secret 7\r\n"]
    played = master(SMTP, b"220 mx\r\n", b"250 mx\r\n", b"235\r\n")
    assert b64decode(played.sent[2].split()[2]) == b"\0alice@example.org*proxy\0master secret 7"


def test_login_mechanism_has_the_name_of_the_master_user_behind_the_separator() -> None:
    other = ProxyMasterUser(user="proxy", password_file="/m", separator="%")
    replies = (b"220 mx\r\n", ehlo("LOGIN"), b"334\r\n", b"334\r\n", b"235\r\n")
    played = play(SMTP, *replies, proxy_auth=(ProxyAuth.LOGIN,), proxy_master_user=other, master=b"m")
    assert played.sent[3:5] == [b64(b"alice@example.org%proxy") + b"\r\n", b64(b"m") + b"\r\n"]


@pytest.mark.parametrize("protocol", list(Protocol))
def test_refused_master_user_is_no_denial_of_the_client(protocol: Protocol) -> None:
    refused = REFUSALS[protocol][0]
    played = master(protocol, *OPENINGS[protocol]("PLAIN"), refused, proxy_auth=(ProxyAuth.PLAIN,))
    assert type(played.error) is UpstreamError
    assert played.error.reply == refused
    echo = refused.rstrip() + b" " + MASTER_SECRET + b"\r\n"
    played = master(protocol, *OPENINGS[protocol]("PLAIN"), echo, proxy_auth=(ProxyAuth.PLAIN,))
    assert played.error is not None
    assert played.error.reply == b"***"


# --- messages --------------------------------------------------------------------

NAMES: Final = st.lists(st.sampled_from([*range(32, 127), *range(128, 256)]), min_size=1).map(bytes)
SECRETS: Final = st.lists(st.integers(1, 255), min_size=1).map(bytes)


@given(NAMES, SECRETS)
def test_messages_can_be_taken_apart(user: bytes, secret: bytes) -> None:
    assert plain(user, secret).split(b"\0") == [b"", user, secret]
    assert plain(user, secret, b"proxy").split(b"\0") == [user, b"proxy", secret]
    token = b"abc.DEF-_~+/=="
    first, second, *rest = xoauth2(user, token).split(b"\x01")
    assert (first, second, rest) == (b"user=" + user, b"auth=Bearer " + token, [b"", b""])
    header, bearer, *rest = oauthbearer(user, token).split(b"\x01")
    assert (bearer, rest) == (b"auth=Bearer " + token, [b"", b""])
    flag, name, empty = header.split(b",")
    assert (flag, empty) == (b"n", b"")
    assert name.removeprefix(b"a=").replace(b"=2C", b",").replace(b"=3D", b"=") == user


@given(st.binary(min_size=1, max_size=30), st.binary(max_size=30), st.sampled_from(MECHANISMS))
def test_no_line_has_a_control_character_of_user_or_password(
    user: bytes, password: bytes, kind: ProxyAuth
) -> None:
    """Credentials with NUL, CR or LF are refused, and names with any control character for tokens."""
    length = 2 if kind is ProxyAuth.LOGIN else 1
    replies = (imap_greeting(f"AUTH={kind.upper()}"), *[b"+\r\n"] * length, b"a OK\r\n")
    options = directives(kind)
    bad = set(user + (password if kind not in {*TOKENS, ProxyAuth.EXTERNAL} else b""))
    is_bad = bool(bad & ({0, 10, 13} if kind in {ProxyAuth.PLAIN, ProxyAuth.LOGIN} else {*range(32), 127}))
    if is_bad:
        played = play(IMAP, user=user, password=password, **options)
        assert (type(played.error), played.all_sent) == (UpstreamError, b"")
        return
    played = play(IMAP, *replies, user=user, password=password, **options)
    assert played.reply == b"a OK\r\n"
    assert played.all_sent.count(b"\r\n") == played.all_sent.count(b"\n") == length + 1


# --- long tokens -----------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENS)
def test_token_of_9000_bytes_is_a_response_of_its_own_in_smtp_and_pop3(kind: ProxyAuth) -> None:
    token = b"t" * 9000
    replies = (b"220 mx\r\n", ehlo(kind.upper()), b"334 \r\n", b"235\r\n")
    played = play(SMTP, *replies, token=token, **directives(kind))
    assert (len(played.sent[3]) <= 12288, token in b64decode(played.sent[3])) == (True, True)
    replies = (b"+OK\r\n", capa(f"SASL {kind.upper()}"), b"+ \r\n", b"+OK\r\n")
    assert token in b64decode(play(POP3, *replies, token=token, **directives(kind)).sent[3])


def test_smtp_response_above_the_limit_is_not_sent() -> None:
    replies = (b"220 mx\r\n", ehlo("XOAUTH2"))
    played = play(SMTP, *replies, token=b"t" * 9200, **directives(ProxyAuth.XOAUTH2))
    assert played.error is not None
    assert played.error.is_misconfigured
    assert "12288" in str(played.error)


# --- what is off costs nothing ---------------------------------------------------


def test_class_of_nginx_is_used_without_the_directives() -> None:
    for protocol in Protocol:
        upstream = PROTOCOLS[protocol].upstream(configs.server(protocol))
        assert type(upstream).__name__ in {"ImapUpstream", "Pop3Upstream", "SmtpUpstream"}
        for values in (
            {"proxy_auth": (ProxyAuth.PLAIN,)},
            {"proxy_master_user": MASTER},
            {"proxy_auth_token": BRIDGE},
        ):
            upstream = PROTOCOLS[protocol].upstream(configs.server(protocol, **values))
            assert "AuthUpstream" in type(upstream).__name__


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize(("method", "kind"), [(Method.XOAUTH2, TOKENS[0]), (Method.OAUTHBEARER, TOKENS[1])])
def test_token_of_the_client_is_sent_with_its_mechanism(
    protocol: Protocol, method: Method, kind: ProxyAuth
) -> None:
    success = {IMAP: b"a OK\r\n", POP3: b"+OK\r\n", SMTP: b"235\r\n"}[protocol]
    opening = OPENINGS[protocol]("PLAIN")
    lists = [reply.replace(b"PLAIN", b"PLAIN XOAUTH2 OAUTHBEARER") for reply in opening]
    if protocol is IMAP:
        lists = [imap_greeting("SASL-IR", "AUTH=PLAIN", "AUTH=XOAUTH2", "AUTH=OAUTHBEARER")]
    order = (ProxyAuth.PLAIN, *TOKENS)
    played = play(protocol, *lists, success, proxy_auth=order, method=method, password=TOKEN)
    assert (played.tokens, played.error) == (0, None)
    assert played.sent[-2].endswith(kind.upper().encode() + b" " + RESPONSES[kind][0] + b"\r\n")


@pytest.mark.parametrize("protocol", list(Protocol))
def test_refused_token_of_the_client_is_a_denial(protocol: Protocol) -> None:
    """The client gets the last reply without the challenge."""
    refused = REFUSALS[protocol][0]
    replies = (*OPENINGS[protocol]("XOAUTH2"), CHALLENGES[protocol], refused)
    options = {"proxy_auth": TOKENS, "method": Method.XOAUTH2, "password": TOKEN}
    played = play(protocol, *replies, **options)
    assert isinstance(played.error, UpstreamRefused)
    assert (played.error.is_denial, played.error.reply) == (True, refused)


def test_token_of_the_client_is_a_password_where_no_mechanism_has_tokens() -> None:
    greeting = imap_greeting("SASL-IR", "AUTH=PLAIN")
    options = {"proxy_auth": (ProxyAuth.XOAUTH2, ProxyAuth.PLAIN), "method": Method.XOAUTH2}
    played = play(IMAP, greeting, b"a OK\r\n", password=TOKEN, **options)
    assert b64decode(played.sent[1].split()[3]) == b"\0" + USER + b"\0" + TOKEN


def test_password_without_a_mechanism_for_passwords() -> None:
    played = play(IMAP, proxy_auth=TOKENS)
    assert played.error is not None
    assert (played.error.is_misconfigured, played.all_sent) == (True, b"")


def test_mechanism_with_tokens_needs_a_token() -> None:
    greeting = imap_greeting("SASL-IR", "AUTH=XOAUTH2", "AUTH=PLAIN")
    played = play(IMAP, greeting, b"a OK\r\n", proxy_auth=(ProxyAuth.XOAUTH2, ProxyAuth.PLAIN))
    assert (played.tokens, b"AUTHENTICATE PLAIN" in played.all_sent) == (0, True)


def test_token_is_used_without_naming_a_mechanism() -> None:
    greeting = imap_greeting("SASL-IR", "AUTH=OAUTHBEARER")
    played = play(IMAP, greeting, b"a OK\r\n", proxy_auth_token=BRIDGE)
    assert played.sent[1] == b"a AUTHENTICATE OAUTHBEARER " + OAUTHBEARER_MESSAGE + b"\r\n"
