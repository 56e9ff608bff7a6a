# SPDX-License-Identifier: Apache-2.0
"""Replies of upstreams: read up to a limit, and shortened for the log."""

from __future__ import annotations

import re
import sys
from binascii import b2a_base64

import pytest

from mailproxy.enums import CloseReason, ProtocolErrorKind, UpstreamStage
from mailproxy.errors import PeerClosed, PeerReset, PeerTimedOut, ShuttingDown, UpstreamError
from mailproxy.protocols.pop3.upstream import Pop3Upstream
from mailproxy.protocols.types import Client, Secret
from mailproxy.protocols.upstream_reply import (
    MAX_LOGGED,
    ONE_LINE,
    WITHHELD,
    read_reply,
    reply_for_log,
    upstream_disconnected,
    upstream_refused,
)
from mailproxy_config.model import ByteCount, Protocol, SendProxyProtocol
from support import configs
from support.generator_driver import drive, limits

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
def test_read_reply_receives_at_most_the_rest_of_the_limit(
    chunks: tuple[bytes, ...], rooms: list[int]
) -> None:
    driven = drive(read_reply(chunks[0], TWO_LINES, 64, GREETING), *chunks[1:])
    assert driven.result == b"".join(chunks)
    assert limits(driven) == rooms


def test_reply_above_limit_is_an_error() -> None:
    assert drive(read_reply(b"250-x\r\n", TWO_LINES, 8, GREETING), b"\n").finished
    with pytest.raises(UpstreamError) as caught:
        drive(read_reply(b"250-x\r\n", TWO_LINES, 8, UpstreamStage.HELLO), b"2")
    assert caught.value.kind is ProtocolErrorKind.REPLY_TOO_LONG
    assert caught.value.stage is UpstreamStage.HELLO
    with pytest.raises(UpstreamError):
        drive(read_reply(b"12345678", ONE_LINE, 8, GREETING))


@pytest.mark.parametrize("gone", [PeerClosed(), ShuttingDown()])
def test_read_reply_does_not_catch_disconnects(gone: Exception) -> None:
    with pytest.raises(type(gone)):
        drive(read_reply(b"+", ONE_LINE, 8, GREETING), gone)


def test_disconnect_before_greeting_is_a_violation() -> None:
    assert upstream_disconnected(PeerClosed(), GREETING).kind is ProtocolErrorKind.NO_GREETING
    later = upstream_disconnected(PeerClosed(), UpstreamStage.LOGIN)
    assert (later.kind, later.stage) == (None, UpstreamStage.LOGIN)
    assert later.reason is CloseReason.UPSTREAM_ERROR


def test_timeout_is_as_a_disconnect_with_another_reason() -> None:
    for stage in UpstreamStage:
        closed, silent = (upstream_disconnected(gone, stage) for gone in (PeerReset(), PeerTimedOut()))
        assert (closed.stage, closed.kind) == (silent.stage, silent.kind)
        assert (str(closed), str(silent)) == ("upstream closed the connection", "upstream timed out")


def test_refused_reply_has_complete_lines_only() -> None:
    refusal = upstream_refused(b"-ERR no\r\nhalf", UpstreamStage.LOGIN, is_valid_reply=False)
    assert refusal.reply == b"-ERR no\r\n"
    assert refusal.stage is UpstreamStage.LOGIN
    assert refusal.kind is ProtocolErrorKind.UNEXPECTED_REPLY
    assert upstream_refused(b"-ERR no\r\n", UpstreamStage.LOGIN, is_valid_reply=True).kind is None


@pytest.mark.parametrize("version", SendProxyProtocol)
def test_proxy_header_is_sent_if_configured(version: SendProxyProtocol) -> None:
    login = Pop3Upstream(configs.server(Protocol.POP3, proxy_protocol=version, proxy_buffer=ByteCount(8)))
    driven = drive(login.preamble(Client("192.0.2.1", 4711, "198.51.100.1", 110)))
    assert bool(driven.sent) is (version is not SendProxyProtocol.DISABLED)
    assert login.receive.limit == login.limit == 8


def steps(reply: bytes, password: bytes) -> int:
    """How many calls of Python code it takes to search a reply, those of generators included."""
    count = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        assert reply_for_log(reply, b"user", Secret(password)) == reply
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "password",
    [bytes(range(33, 127)) * 40, b" ".join(b"%04d" % number for number in range(800)), b"1 2 3 " * 600],
)
def test_reply_for_log_is_fast_with_long_password(password: bytes) -> None:
    """Whoever may try to log in chooses how long a password is."""
    reply = b"NO login failed"
    words = len(set(password.split()))
    assert steps(reply, password) < 200 + 8 * words


@pytest.mark.parametrize("long", [b"x" * 40, b"x" * 4000])
def test_reply_for_log_finds_parts_of_password(long: bytes) -> None:
    password = long + b"secret42" + long
    for repeated in (b"secret42", password[:60], password[-60:]):
        assert reply_for_log(b"NO bad command " + repeated, b"user", Secret(password)) == WITHHELD
    assert reply_for_log(b"NO bad command secret4", b"user", Secret(password)) != WITHHELD
    encoded = b2a_base64(b"\0user\0" + password, newline=False)
    assert reply_for_log(b"NO bad command " + encoded[-40:], b"user", Secret(password)) == WITHHELD


def test_reply_for_log_searches_only_logged_bytes() -> None:
    begins_there = b"-ERR ".ljust(MAX_LOGGED - 4, b".") + b"hunter2hunter2"
    far_behind = b"-ERR ".ljust(MAX_LOGGED * 2, b".") + b"hunter2hunter2"
    password = Secret(b"hunter2hunter2")
    assert reply_for_log(begins_there, b"user", password) == WITHHELD
    assert reply_for_log(far_behind, b"user", password) == far_behind[:MAX_LOGGED] + b"..."
