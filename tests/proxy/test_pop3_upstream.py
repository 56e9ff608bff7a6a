# SPDX-License-Identifier: Apache-2.0
"""The login at POP3 upstreams."""

from __future__ import annotations

import pytest

from mailproxy.enums import Method, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.protocols.pop3.upstream import Pop3Upstream
from mailproxy.protocols.types import AuthAllowed, Client, Secret, UpstreamLogin
from mailproxy_config.model import Protocol, SendProxyProtocol
from support import configs
from support.generator_driver import Driven, drive

CLIENT = Client("192.0.2.1", 4711, "198.51.100.1", 110)


def log_in(
    *replies: bytes, user: bytes = b"u", password: bytes | None = b"p", **directives: object
) -> Driven:
    grant = AuthAllowed("192.0.2.10", 110, user, None if password is None else Secret(password))
    upstream = Pop3Upstream(configs.server(Protocol.POP3, **directives))
    return drive(upstream.log_in(CLIENT, UpstreamLogin(grant, Method.APOP)), *replies)


def test_upstream_login_sends_user_and_pass() -> None:
    driven = log_in(b"+OK hello\r\n", b"+OK\n", b"+OK yes\r\nand more")
    assert driven.sent == b"USER u\r\nPASS p\r\n"
    assert driven.result == b"+OK yes\r\nand more"


def test_proxy_header_is_sent_first() -> None:
    driven = log_in(proxy_protocol=SendProxyProtocol.V1)
    assert driven.sent == b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 110\r\n"


@pytest.mark.parametrize(
    ("replies", "stage", "kind", "reply"),
    [
        ((b"-ERR full\r\n",), UpstreamStage.GREETING, None, b"-ERR full\r\n"),
        ((b"* OK IMAP\r\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"* OK IMAP\r\n"),
        ((b"+ok\r\n",), UpstreamStage.GREETING, ProtocolErrorKind.UNEXPECTED_REPLY, b"+ok\r\n"),
        ((b"+OK\n", b"-ERR who\n"), UpstreamStage.LOGIN, None, b"-ERR who\n"),
        ((b"+OK\n", b"+OK\n", b"-ERR a\r\n-ERR b\r\nx"), UpstreamStage.LOGIN, None, b"-ERR a\r\n-ERR b\r\n"),
    ],
)
def test_refused_login_raises_upstream_refused(
    replies: tuple[bytes, ...], stage: UpstreamStage, kind: ProtocolErrorKind | None, reply: bytes
) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        log_in(*replies)
    assert (caught.value.stage, caught.value.kind, caught.value.reply) == (stage, kind, reply)


@pytest.mark.parametrize(
    ("user", "password"), [(b"u", None), (b"u", b"a\nb"), (b"u\r", b"p"), (b"\0", b"p"), (b"u", b"\0")]
)
def test_unsafe_credentials_are_not_sent(user: bytes, password: bytes | None) -> None:
    with pytest.raises(UpstreamError) as caught:
        log_in(b"+OK\r\n", user=user, password=password)
    assert caught.value.stage is UpstreamStage.LOGIN
    assert not isinstance(caught.value, UpstreamRefused)


def test_reply_above_proxy_buffer_is_an_error() -> None:
    with pytest.raises(UpstreamError) as caught:
        log_in(b"+OK " + 12 * b"x", proxy_buffer=16)
    assert caught.value.kind is ProtocolErrorKind.REPLY_TOO_LONG
