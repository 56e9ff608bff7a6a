# SPDX-License-Identifier: Apache-2.0
"""What an upstream says: heard out, and kept whole."""

from __future__ import annotations

import re

import pytest

from mailproxy.enums import CloseReason, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import PeerClosed, ShuttingDown, UpstreamError
from mailproxy.protocols.upstream_reply import (
    ONE_LINE,
    UpstreamLoginBase,
    read_reply,
    upstream_disconnected,
    upstream_refused,
)
from mailproxy_config.model import ByteCount, Protocol, SendProxyProtocol
from support import configs
from support.driving import drive, limits

TWO_LINES = re.compile(rb"[^\n]*\n[^\n]*\n")
GREETING = UpstreamStage.GREETING


@pytest.mark.parametrize(
    ("chunks", "rooms"),
    [
        ((b"one\r\ntwo\n",), []),
        ((b"one\r\n", b"two\n"), [59]),
        ((b"o", b"ne\r", b"\nt", b"wo", b"\nmore"), [63, 60, 58, 56]),
    ],
)
def test_a_reply_is_heard_out_within_the_room_that_is_left(
    chunks: tuple[bytes, ...], rooms: list[int]
) -> None:
    driven = drive(read_reply(chunks[0], TWO_LINES, 64, GREETING), *chunks[1:])
    assert driven.result == b"".join(chunks)
    assert limits(driven) == rooms


def test_a_reply_is_bounded_as_a_whole() -> None:
    assert drive(read_reply(b"250-x\r\n", TWO_LINES, 8, GREETING), b"\n").finished
    with pytest.raises(UpstreamError) as caught:
        drive(read_reply(b"250-x\r\n", TWO_LINES, 8, UpstreamStage.HELLO), b"2")
    assert caught.value.kind is ProtocolErrorKind.REPLY_TOO_LONG
    assert caught.value.stage is UpstreamStage.HELLO
    with pytest.raises(UpstreamError):
        drive(read_reply(b"12345678", ONE_LINE, 8, GREETING))


@pytest.mark.parametrize("gone", [PeerClosed(), ShuttingDown()])
def test_what_ends_it_is_for_who_knows_how_far_the_login_has_come(gone: Exception) -> None:
    with pytest.raises(type(gone)):
        drive(read_reply(b"+", ONE_LINE, 8, GREETING), gone)


def test_an_upstream_that_is_gone_is_told_with_how_far_it_had_come() -> None:
    assert upstream_disconnected(GREETING).kind is ProtocolErrorKind.NO_GREETING
    later = upstream_disconnected(UpstreamStage.LOGIN)
    assert (later.kind, later.stage) == (None, UpstreamStage.LOGIN)
    assert later.reason is CloseReason.UPSTREAM_ERROR


def test_a_refusal_carries_whole_lines_only() -> None:
    refusal = upstream_refused(b"-ERR no\r\nhalf", UpstreamStage.LOGIN, is_honest=False)
    assert refusal.reply == b"-ERR no\r\n"
    assert refusal.stage is UpstreamStage.LOGIN
    assert refusal.kind is ProtocolErrorKind.UNEXPECTED_REPLY
    assert upstream_refused(b"-ERR no\r\n", UpstreamStage.LOGIN, is_honest=True).kind is None


@pytest.mark.parametrize("version", SendProxyProtocol)
def test_the_client_is_introduced_where_that_is_wanted(version: SendProxyProtocol) -> None:
    logins = UpstreamLoginBase(
        configs.server(Protocol.POP3, proxy_protocol=version, proxy_buffer=ByteCount(8))
    )
    assert logins.introduces is (version is not SendProxyProtocol.DISABLED)
    assert logins.receive.limit == logins.limit == 8
