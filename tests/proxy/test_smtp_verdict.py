# SPDX-License-Identifier: Apache-2.0
"""Logins at SMTP upstreams that decide about them (``auth_mode upstream``), without sockets."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy.enums import Method, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.protocols.types import Envelope
from mailproxy_config.model import AuthMode, Protocol, ProxySsl, SmtpHelo, XclientMode
from mailproxy_config.upstream_login import ProxyAuth, ProxyMasterUser
from support import upstream_logins
from support.upstream_logins import PASSWORD, USER, Played, b64

GREETING: Final = b"220 mx ESMTP\r\n"
HELLO: Final = b"250-mx\r\n250-AUTH LOGIN PLAIN XOAUTH2\r\n250 SIZE\r\n"
GO_ON: Final = b"334 \r\n"
ACCEPTED: Final = b"235 2.7.0 in\r\n"
PLAIN: Final = b64(b"\0" + USER + b"\0" + PASSWORD) + b"\r\n"


def play(*replies: bytes, **directives: Any) -> Played:
    values: dict[str, Any] = {"auth_mode": AuthMode.UPSTREAM, "xclient": True, **directives}
    return upstream_logins.play(Protocol.SMTP, *replies, **values)


def test_auth_is_sent_without_an_initial_response() -> None:
    played = play(GREETING, HELLO, GO_ON, ACCEPTED)
    assert played.sent == [b"", b"EHLO mail.example.com\r\n", b"AUTH PLAIN\r\n", PLAIN, b""]
    assert played.reply == b"235 2.0.0 OK\r\n"


def test_login_is_used_where_plain_is_not_listed() -> None:
    hello = b"250-mx\r\n250 AUTH NTLM LOGIN\r\n"
    played = play(GREETING, hello, b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n", ACCEPTED)
    assert played.sent[2:] == [b"AUTH LOGIN\r\n", b64(USER) + b"\r\n", b64(PASSWORD) + b"\r\n", b""]
    assert played.reply == b"235 2.0.0 OK\r\n"


def test_token_is_sent_as_a_token() -> None:
    played = play(
        GREETING,
        HELLO,
        GO_ON,
        ACCEPTED,
        method=Method.XOAUTH2,
        proxy_auth=(ProxyAuth.XOAUTH2, ProxyAuth.PLAIN),
    )
    message = b"user=" + USER + b"\x01auth=Bearer " + PASSWORD + b"\x01\x01"
    assert played.sent[2:] == [b"AUTH XOAUTH2\r\n", b64(message) + b"\r\n", b""]


@pytest.mark.parametrize("mode", XclientMode)
@pytest.mark.parametrize("attributes", [b"NAME ADDR PROTO HELO PORT LOGIN", b"ADDR LOGIN"])
@pytest.mark.parametrize("helo", [SmtpHelo.SERVER, SmtpHelo.CLIENT])
def test_xclient_never_has_login(mode: XclientMode, attributes: bytes, helo: SmtpHelo) -> None:
    offer = b"250-mx\r\n250-XCLIENT " + attributes + b"\r\n250 AUTH PLAIN\r\n"
    played = play(
        *(GREETING, offer, GREETING, HELLO, GO_ON, ACCEPTED), xclient_mode=mode, proxy_smtp_helo=helo
    )
    assert b"XCLIENT " in played.all_sent
    assert b"ADDR=192.0.2.1" in played.all_sent
    assert b"LOGIN=" not in played.all_sent
    assert played.sent[-2] == PLAIN


def test_xclient_is_not_sent_where_it_is_not_listed() -> None:
    played = play(GREETING, HELLO, GO_ON, ACCEPTED, xclient_mode=XclientMode.ALWAYS)
    assert b"XCLIENT" not in played.all_sent
    assert played.reply is not None


@pytest.mark.parametrize("helo", [None, b"client.example"])
def test_ehlo_is_sent_for_a_client_that_sent_helo_or_nothing(helo: bytes | None) -> None:
    """Only the reply to EHLO lists mechanisms."""
    played = play(GREETING, HELLO, GO_ON, ACCEPTED, helo=helo)
    assert played.sent[1].startswith(b"EHLO ")


def test_mechanisms_are_those_inside_of_tls() -> None:
    in_clear = b"250-mx\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n"
    played = play(GREETING, in_clear, b"220 go\r\n", b"250 mx\r\n", proxy_ssl=ProxySsl.STARTTLS)
    assert played.error is not None
    assert played.error.is_misconfigured
    assert b"AUTH" not in played.all_sent


@pytest.mark.parametrize("hello", [b"250 mx\r\n", b"250 AUTH GSSAPI CRAM-MD5\r\n", b"250 XAUTH PLAIN\r\n"])
def test_upstream_without_a_usable_mechanism_is_misconfigured(hello: bytes) -> None:
    played = play(GREETING, hello)
    assert played.error is not None
    assert played.error.is_misconfigured
    assert PLAIN not in played.all_sent


@pytest.mark.parametrize("reply", [b"500 5.5.1 what\r\n", b"502 no\r\n", b"421 4.3.0 no\r\n"])
def test_refused_ehlo_is_an_outage(reply: bytes) -> None:
    played = play(GREETING, reply)
    assert isinstance(played.error, UpstreamRefused)
    assert not played.error.is_denial


@pytest.mark.parametrize(
    "reply",
    [
        b"235 2.7.0 everybody may\r\n",
        b"250 ok\r\n",
        b"454 4.7.0 later\r\n",
        b"501 5.5.4 no\r\n",
        b"503 5.5.1 no\r\n",
        b"504 5.5.4 no\r\n",
        b"530 5.7.0 STARTTLS first\r\n",
        b"535 5.7.8 no\r\n",
        b"538 5.7.11 no\r\n",
        b"* OK hello\r\n",
    ],
)
def test_other_reply_than_334_to_auth_is_a_configuration_error(reply: bytes) -> None:
    """No credential was sent: neither the refusal nor the success is about the client's."""
    played = play(GREETING, HELLO, reply)
    assert played.reply is None
    assert played.error is not None
    assert played.error.is_misconfigured
    assert played.error.stage is UpstreamStage.LOGIN
    assert played.sent[-1] == b""


def test_end_of_the_connection_announced_after_auth_is_an_outage() -> None:
    played = play(GREETING, HELLO, b"421 4.3.2 shutting down\r\n")
    assert isinstance(played.error, UpstreamRefused)
    assert not played.error.is_denial
    assert not played.error.is_misconfigured


@pytest.mark.parametrize("code", [b"250", b"220", b"200", b"354", b"999", b"abc", b"23"])
def test_only_235_is_a_success(code: bytes) -> None:
    played = play(GREETING, HELLO, GO_ON, code + b" ok\r\n")
    assert played.reply is None
    assert isinstance(played.error, UpstreamError)
    assert not getattr(played.error, "is_denial", False)


def test_second_challenge_is_cancelled() -> None:
    played = play(GREETING, HELLO, GO_ON, GO_ON, b"501 5.7.0 cancelled\r\n")
    assert played.sent[-2] == b"*\r\n"
    assert played.reply is None


def test_password_that_is_too_long_for_a_response_is_refused() -> None:
    """As any other wrong password: an upstream would refuse it, too."""
    played = play(GREETING, HELLO, password=b"x" * 12000)
    assert isinstance(played.error, UpstreamRefused)
    assert played.error.is_denial
    assert b"xxx" not in played.all_sent


def test_client_without_credentials_is_not_passed_on() -> None:
    envelope = Envelope(b"client", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>")
    played = play(envelope=envelope, method=Method.NONE, user=b"", password=None)
    assert played.error is not None
    assert played.error.is_misconfigured
    assert played.all_sent == b""


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    "directives",
    [
        {"proxy_master_user": ProxyMasterUser(user="proxy", password_file="/x"), "master": b"secret"},
        {"proxy_auth": (ProxyAuth.EXTERNAL,)},
        {"proxy_auth": (ProxyAuth.PLAIN, ProxyAuth.EXTERNAL)},
    ],
    ids=["master user", "certificate", "certificate as well"],
)
def test_own_credentials_of_the_proxy_are_not_sent(protocol: Protocol, directives: dict[str, Any]) -> None:
    """They would let in everybody."""
    played = upstream_logins.play(protocol, auth_mode=AuthMode.UPSTREAM, **directives)
    assert played.error is not None
    assert played.error.is_misconfigured
    assert played.all_sent == b""
