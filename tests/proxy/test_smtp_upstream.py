# SPDX-License-Identifier: Apache-2.0
"""The login at SMTP upstreams.  All combinations of directives are in the transcripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.protocols.client_identity import xtext
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy.protocols.types import (
    AuthAllowed,
    Client,
    Envelope,
    Secret,
    UpstreamLogin,
)
from mailproxy_config.model import Protocol, SendProxyProtocol
from support import configs
from support.generator_driver import Driven, drive

ENVELOPE = Envelope(b"cl", b"MAIL FROM:<a>", b"RCPT TO:<b>")


def log_in(
    *replies: bytes,
    user: bytes = b"u",
    password: bytes | None = b"p",
    address: str = "192.0.2.1",
    envelope: Envelope | None = None,
    helo: bytes | None = None,
    esmtp: bool = False,
    **directives: object,
) -> Driven:
    grant = AuthAllowed("192.0.2.10", 25, user, None if password is None else Secret(password))
    identified = UpstreamLogin(grant, Method.PLAIN, envelope=envelope, helo=helo, esmtp=esmtp)
    upstream = SmtpUpstream(configs.server(Protocol.SMTP, server_name="mx", **directives))
    client = Client(address, 4711, "198.51.100.1", 25, host=b"host.example")
    return drive(upstream.log_in(client, identified), *replies)


def test_xclient_is_sent_before_clients_ehlo() -> None:
    driven = log_in(b"220 a\r\n", b"250-b\r\n250 c\r\n", b"220 d\r\n", b"250 e\n", helo=b"cl", esmtp=True)
    assert driven.sent == b"EHLO mx\r\nXCLIENT ADDR=192.0.2.1 LOGIN=u NAME=host.example\r\nEHLO cl\r\n"
    assert driven.result == b"235 2.0.0 OK\r\n"


@pytest.mark.parametrize(
    ("address", "attribute"),
    [
        ("192.0.2.1", b"ADDR=192.0.2.1 "),
        ("2001:db8::1", b"ADDR=IPV6:2001:db8::1 "),
        ("::ffff:192.0.2.1", b"ADDR=IPV6:::ffff:192.0.2.1 "),
        ("unix:", b"ADDR=unix: "),
    ],
)
def test_xclient_address_has_postfix_form(address: str, attribute: bytes) -> None:
    assert attribute in log_in(b"220 a\n", b"250 b\n", address=address).sent


def test_xclient_leaves_out_unknown_attributes() -> None:
    driven = log_in(b"220 a\n", b"250 b\n", b"250 c\n", user=b"")
    assert driven.sent == b"EHLO mx\r\nXCLIENT ADDR=192.0.2.1 NAME=host.example\r\n"
    assert driven.finished


def test_without_xclient_ehlo_has_server_name() -> None:
    driven = log_in(b"220 a\n", b"250 b\n", xclient=False, helo=b"cl")
    assert driven.sent == b"HELO mx\r\n"
    assert driven.finished


def test_proxy_smtp_auth_sends_auth_plain() -> None:
    driven = log_in(b"220 a\n", b"250 b\n", b"235 c\n", xclient=False, proxy_smtp_auth=True)
    assert driven.sent == b"HELO mx\r\nAUTH PLAIN AHUAcA==\r\n"
    assert driven.result == b"235 2.0.0 OK\r\n"


def test_mail_and_rcpt_are_repeated_and_any_reply_is_passed() -> None:
    driven = log_in(
        b"220 a\n",
        b"250 b\n",
        b"250 c\n",
        b"550-d\r\n550 e\r\nmore",
        xclient=False,
        proxy_smtp_auth=True,
        envelope=ENVELOPE,
    )
    assert driven.sent == b"HELO mx\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n"
    assert driven.result == b"550-d\r\n550 e\r\nmore"


def test_multi_line_reply_in_pieces_counts_by_first_line() -> None:
    driven = log_in(b"22", b"0-a\r\n5", b"54 b\n", b"250-c\r\n", b"25", b"0 d\r\n", b"220 e\n", helo=None)
    assert driven.result == b"235 2.0.0 OK\r\n"
    assert driven.sent.count(b"\r\n") == 2


@pytest.mark.parametrize(
    ("replies", "stage", "kind", "reply"),
    [
        ((b"554-no\r\n554 no\r\n",), UpstreamStage.GREETING, None, b"554-no\r\n554 no\r\n"),
        ((b"250 no\r\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"250 no\r\n"),
        ((b"abc-def\r\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"abc-def\r\n"),
        ((b"\r\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"\r\n"),
        ((b"421\r\n",), UpstreamStage.GREETING, None, b"421\r\n"),
        ((b"4\r\n",), UpstreamStage.GREETING, None, b"4\r\n"),
        ((b"55\nx",), UpstreamStage.GREETING, None, b"55\n"),
        ((b"4x1 a\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"4x1 a\n"),
        ((b"22\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"22\n"),
        ((b"220 a\n", b"421 b\n"), UpstreamStage.HELLO, None, b"421 b\n"),
        ((b"220 a\n", b"250 b\n", b"550 c\n"), UpstreamStage.XCLIENT, None, b"550 c\n"),
        ((b"220 a\n", b"250 b\n", b"220 c\n", b"502 d\n"), UpstreamStage.HELLO, None, b"502 d\n"),
    ],
)
def test_refused_login_raises_upstream_refused(
    replies: tuple[bytes, ...], stage: UpstreamStage, kind: ProtocolErrorKind | None, reply: bytes
) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        log_in(*replies, helo=b"cl")
    assert (caught.value.stage, caught.value.kind, caught.value.reply) == (stage, kind, reply)


def test_refused_mail_raises_upstream_refused() -> None:
    with pytest.raises(UpstreamRefused) as caught:
        log_in(b"220 a\n", b"250 b\n", b"450 c\n", xclient=False, envelope=ENVELOPE)
    assert caught.value.stage is UpstreamStage.ENVELOPE


@pytest.mark.parametrize(("user", "password"), [(b"u", None), (b"u\0", b"p"), (b"u", b"p\n"), (b"\r", b"")])
def test_unsafe_credentials_are_not_sent(user: bytes, password: bytes | None) -> None:
    with pytest.raises(UpstreamError) as caught:
        log_in(b"220 a\n", b"250 b\n", user=user, password=password, xclient=False, proxy_smtp_auth=True)
    assert caught.value.stage is UpstreamStage.LOGIN


def test_proxy_header_is_sent_first() -> None:
    driven = log_in(proxy_protocol=SendProxyProtocol.V1)
    assert driven.sent == b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"john", b"john"),
        (b"john+work@x.example", b"john+2Bwork@x.example"),
        (b"a=b c", b"a+3Db+20c"),
        (b"\0\r\n\x7f\x80\xff", b"+00+0D+0A+7F+80+FF"),
        (b"!~*,<>-", b"!~*,<>-"),
        (b"", b""),
    ],
)
def test_xtext_encoding(data: bytes, text: bytes) -> None:
    assert xtext(data) == text


@given(st.binary(max_size=60))
def test_xtext_round_trips_as_one_printable_word(data: bytes) -> None:
    text = xtext(data)
    assert all(0x21 <= byte < 0x7F for byte in text)
    head, *escapes = text.split(b"+")
    assert head + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in escapes) == data
