# SPDX-License-Identifier: Apache-2.0
"""What an upstream says: taken reply by reply, and kept whole."""

from __future__ import annotations

import re

import pytest

from mailproxy.dialogue.values import Client
from mailproxy.errors import PeerClosed, PeerTimedOut, ShuttingDown, UpstreamError, UpstreamRefused
from mailproxy.events import CloseReason, ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.exchange import Exchange
from mailproxy_config.model import Protocol, SendProxyProtocol
from support import configs
from support.driving import drive, limits

CLIENT = Client("192.0.2.1", 4711, "198.51.100.1", 110)


TWO_LINES = re.compile(rb"[^\n]*\n([^\n]*)\n")


@pytest.mark.parametrize(
    "chunks", [(b"one\r\ntwo\n",), (b"one\r\n", b"two\n"), (b"o", b"ne\r", b"\nt", b"wo", b"\n")]
)
def test_the_line_that_counts_comes_without_its_end_and_what_was_said_stays_whole(
    chunks: tuple[bytes, ...],
) -> None:
    exchange = Exchange(64)
    driven = drive(exchange.reply(TWO_LINES), *chunks)
    assert driven.result == b"two"
    assert exchange.said() == b"one\r\ntwo\n"


def test_a_command_makes_what_was_said_before_forgotten() -> None:
    exchange = Exchange(8)
    drive(exchange.reply(), b"+OK\r\nmor")
    driven = drive(exchange.say(b"USER x\r\n", UpstreamStage.LOGIN))
    assert driven.said == b"USER x\r\n"
    assert exchange.stage is UpstreamStage.LOGIN
    assert exchange.said() == b""
    driven = drive(exchange.reply(), b"+OK yes\n")
    assert driven.result == b"+OK yes"
    assert limits(driven) == [8]


def test_a_reply_is_bounded_as_a_whole() -> None:
    exchange = Exchange(8)
    with pytest.raises(UpstreamError) as caught:
        drive(exchange.reply(TWO_LINES), b"250-x\r\n", b"2")
    assert caught.value.kind is ProtocolErrorKind.REPLY_TOO_LONG
    assert caught.value.stage is UpstreamStage.GREETING


@pytest.mark.parametrize("gone", [PeerClosed(), PeerTimedOut()])
def test_an_upstream_that_is_gone_is_told_with_how_far_it_had_come(gone: Exception) -> None:
    exchange = Exchange(8)
    with pytest.raises(UpstreamError) as caught:
        drive(exchange.reply(), gone)
    assert caught.value.kind is ProtocolErrorKind.NO_GREETING
    assert caught.value.__cause__ is gone
    drive(exchange.say(b"", UpstreamStage.LOGIN))
    with pytest.raises(UpstreamError) as caught:
        drive(exchange.reply(), gone)
    assert caught.value.kind is None
    assert caught.value.stage is UpstreamStage.LOGIN
    assert caught.value.reason is CloseReason.UPSTREAM_ERROR


def test_a_shutdown_passes_through() -> None:
    with pytest.raises(ShuttingDown):
        drive(Exchange(8).reply(), ShuttingDown())


def test_a_refusal_carries_whole_lines_only() -> None:
    exchange = Exchange(64)
    drive(exchange.reply(), b"-ERR no\r\nhalf")
    refused = exchange.refused(ProtocolErrorKind.UNEXPECTED_REPLY)
    assert isinstance(refused, UpstreamRefused)
    assert refused.reply == b"-ERR no\r\n"
    assert refused.kind is ProtocolErrorKind.UNEXPECTED_REPLY
    assert exchange.refused().kind is None


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (SendProxyProtocol.DISABLED, b""),
        (SendProxyProtocol.V1, b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 110\r\n"),
    ],
)
def test_the_client_is_introduced_where_that_is_wanted(version: SendProxyProtocol, said: bytes) -> None:
    server = configs.server(Protocol.POP3, proxy_protocol=version)
    assert drive(Exchange(8).introduce(server, CLIENT)).said == said
