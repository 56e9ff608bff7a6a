# SPDX-License-Identifier: Apache-2.0
"""The login at IMAP upstreams.

Single behaviours are transcripts (``tests/dialogues/imap``), which are played
here too; the generated tests check properties that hold for any input.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method
from mailproxy.errors import PeerClosed, UpstreamError, UpstreamRefused
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import Receive, Send
from mailproxy.protocols.types import AuthAllowed, Client, Secret, UpstreamLogin, UpstreamLoginResult
from mailproxy_config.model import ByteCount, Protocol
from support import transcripts
from support.configs import server
from support.dialogue_player import Player

IMAP = PROTOCOLS[Protocol.IMAP]
SERVER = server(Protocol.IMAP, proxy_buffer=ByteCount(64))
TRANSCRIPTS = transcripts.load_all(Protocol.IMAP)
PASSWORD = b"MARK3D"


def log_in(
    data: bytes, user: bytes = b"john", cut: int = 0
) -> tuple[bytes, UpstreamLoginResult | UpstreamError]:
    """Send these bytes to an upstream login, then close; return the bytes that it sent, and its result."""
    grant = AuthAllowed("192.0.2.10", 143, user, Secret(PASSWORD))
    generator = IMAP.upstream(SERVER).log_in(
        Client("192.0.2.1"), UpstreamLogin(grant, Method.PASSWORD, b"", b"a1")
    )
    received = b""
    answer: Any = None
    try:
        while True:
            effect = generator.throw(PeerClosed()) if answer == b"" else generator.send(answer)
            answer = None
            match effect:
                case Send(said):
                    received += said
                case Receive(limit):
                    answer, data = data[: cut or limit], data[cut or limit :]
    except StopIteration as finished:
        logged_in: UpstreamLoginResult = finished.value
        return received, logged_in
    except UpstreamError as failure:
        return received, failure


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda transcript: transcript.name)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_session_follows_transcript(transcript: transcripts.Transcript, *, cut: bool) -> None:
    Player(transcript, IMAP, cut and transcript.may_be_cut).play()


@given(st.binary(max_size=30).filter(lambda user: b"\0" not in user))
def test_user_name_literal_has_its_length(user: bytes) -> None:
    received, result = log_in(b"* OK\r\n+\r\n+\r\na1 OK\r\n", user, cut=6)
    assert received.startswith(b"a1 LOGIN {%d}\r\n%b {6}\r\n" % (len(user), user))
    assert isinstance(result, (UpstreamLoginResult, UpstreamError))


LINES = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [b"* OK\r\n", b"* OK [CAPABILITY LITERAL+]\r\n", b"+\r\n", b"+ ok\n", b"* x\r\n", b"* BYE\r\n",
             b"a1 OK\r\n", b"a1 NO\r\n", b"a1 ", b"\r\n", b"* PREAUTH\r\n"]
        ),
    ),
    max_size=12,
)  # fmt: skip


@given(LINES)
def test_any_upstream_bytes_end_in_login_or_error(lines: list[bytes]) -> None:
    received, result = log_in(b"* OK\r\n" + b"".join(lines))
    assert received.startswith(b"a1 LOGIN {4}\r\n")
    shown = result.reply if isinstance(result, UpstreamRefused) else result
    assert isinstance(shown, UpstreamError) or len(shown) <= 64
    if isinstance(result, UpstreamError):
        assert "MARK3D" not in repr(result)
        assert "MARK3D" not in str(result)


def test_login_is_not_sent_before_greeting() -> None:
    assert log_in(b"")[0] == log_in(b"* BYE\r\n")[0] == log_in(b"* OK")[0] == b""


def after_login(*received: bytes, limit: int = 64) -> UpstreamLoginResult:
    """Log in with ``imap_capability_after_login``; return the result."""
    config = server(Protocol.IMAP, proxy_buffer=ByteCount(limit), imap_capability_after_login=True)
    grant = AuthAllowed("192.0.2.10", 143, b"john", Secret(PASSWORD))
    login = UpstreamLogin(grant, Method.PASSWORD, b"", b"a1")
    generator = IMAP.upstream(config).log_in(Client("192.0.2.1"), login)
    answers = [b"* OK [CAPABILITY LITERAL+]\r\n", *received]
    effect: Any = generator.send(None)
    try:
        while True:
            if isinstance(effect, Receive):
                assert len(answers[0]) <= effect.limit
                effect = generator.send(answers.pop(0)) if answers[0] else generator.throw(PeerClosed())
            else:
                effect = generator.send(None)
    except StopIteration as finished:
        logged_in: UpstreamLoginResult = finished.value
        return logged_in


def test_list_after_login_is_limited_by_proxy_buffer() -> None:
    with pytest.raises(UpstreamError, match="too long"):
        after_login(b"a1 OK\r\n", b"* CAPABILITY " + b"A" * 51)


def test_upstream_that_leaves_after_login_is_an_error() -> None:
    with pytest.raises(UpstreamError, match="closed the connection"):
        after_login(b"a1 OK\r\n", b"")
    with pytest.raises(UpstreamRefused):
        after_login(b"a1 OK\r\n", b"* BYE no\r\n")


def test_incomplete_line_behind_the_login_is_continued() -> None:
    result = after_login(b"a1 OK in\r\n* OK [AL", b"ERT] x\r\n* CAPABILITY B\r\nx9 OK\r\n* 1")
    assert result == b"* OK [ALERT] x\r\na1 OK [CAPABILITY B] in\r\n* 1"
