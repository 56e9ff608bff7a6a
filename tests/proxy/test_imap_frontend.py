# SPDX-License-Identifier: Apache-2.0
"""The IMAP server side before login.

Single behaviours are transcripts (``tests/dialogues/imap``), which are played
here too; the generated tests check properties that hold for any input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import CloseReason, Method
from mailproxy.errors import PeerClosed
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import Effect, MakeChallenge, Note, Receive, Send
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Secret,
    SessionEnd,
    UpstreamLogin,
)
from mailproxy_config.model import AuthMethod, ByteCount, Protocol, ServerConfig
from support import transcripts
from support.configs import server
from support.dialogue_player import Player

IMAP = PROTOCOLS[Protocol.IMAP]
SERVER = server(Protocol.IMAP)
EVERY_METHOD = frozenset((AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL))
SMALL = server(Protocol.IMAP, imap_client_buffer=ByteCount(48), max_errors=3, imap_auth=EVERY_METHOD)
TRANSCRIPTS = transcripts.load_all(Protocol.IMAP)


@dataclass
class Session:
    """The result of a session with a client that sends everything and disconnects."""

    sent: bytes = b""
    credentials_received: list[Credentials] = field(default_factory=list)
    notes: list[object] = field(default_factory=list)
    result: UpstreamLogin | SessionEnd | None = None


def play(
    data: bytes,
    config: ServerConfig = SERVER,
    decision: AuthAllowed | AuthDenied | None = None,
    cut: int = 0,
) -> Session:
    """Send these bytes, at most ``cut`` at once, with this decision, then disconnect."""
    session = Session()
    generator = IMAP.frontend_for(config)(Client("192.0.2.1")).run()
    answer: Any = None
    try:
        while True:
            effect = generator.throw(PeerClosed()) if answer == b"" else generator.send(answer)
            if isinstance(effect, Receive):
                taken = cut or effect.limit
                answer, data = data[:taken], data[taken:]
            else:
                answer = _answer(session, effect, decision or AuthDenied(b"no", 1))
    except StopIteration as finished:
        session.result = finished.value
    except PeerClosed:
        pass
    if isinstance(session.result, UpstreamLogin):
        session.result.unread += data
    return session


def _answer(session: Session, effect: Effect, decision: AuthAllowed | AuthDenied) -> Any:
    match effect:
        case Send(sent):
            session.sent += sent
        case AuthRequest() as request:
            session.credentials_received.append(request.credentials)
            return decision
        case MakeChallenge(name):
            return b"<1.2@%b>" % name.encode()
        case Note(event):
            session.notes.append(event)
    return None


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda transcript: transcript.name)
def test_session_follows_transcript(transcript: transcripts.Transcript) -> None:
    Player(transcript, IMAP).play()


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"a1 LOGIN john secret\r\n", Method.PASSWORD),
        (b"a1 AUTHENTICATE PLAIN AGpvaG4Ac2VjcmV0\r\n", Method.PLAIN),
        (b"a1 AUTHENTICATE LOGIN am9obg==\r\nc2VjcmV0\r\n", Method.LOGIN),
    ],
)
def test_login_result_has_pipelined_bytes(data: bytes, method: Method) -> None:
    grant = AuthAllowed("192.0.2.10", 143, b"john", Secret(b"secret"))
    session = play(data + b"a2 SELECT INBOX\r\na3", decision=grant)
    assert session.result == UpstreamLogin(grant, method, b"a2 SELECT INBOX\r\na3", b"a1")


def test_logout_ends_session_without_error() -> None:
    assert play(b"a1 LOGOUT\r\na2 NOOP\r\n").result == SessionEnd(CloseReason.CLIENT_QUIT)


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b"\r\n", b"\n", b" ", b'"', b"\\", b"{", b"{3}\r\n", b"{3+}\r\n", b"{0}\r\n", b"{9999}\r\n",
            b"+}\r\n", b"a1 ", b"LOGIN ", b"AUTHENTICATE ", b"PLAIN", b"LOGIN", b"CRAM-MD5", b"EXTERNAL",
            b"AHUAcA==", b"NOOP", b"CAPABILITY", b"a1 LOGIN u p\r\n", b"STARTTLS\r\n", b"LOGOUT\r\n",
            b"*\r\n",
        ]
    ),
)  # fmt: skip
STREAMS = st.lists(PIECES, max_size=25).map(b"".join)


@given(STREAMS, st.integers(1, 9))
def test_result_does_not_depend_on_chunks(data: bytes, cut: int) -> None:
    assert play(data, SMALL, cut=cut) == play(data, SMALL)


@given(STREAMS)
def test_replies_are_well_formed_for_any_input(data: bytes) -> None:
    sent = play(data, SMALL).sent
    assert sent.endswith(b"\r\n")
    for line in sent.removesuffix(b"\r\n").split(b"\r\n"):
        assert not set(line) & set(b"\r\n\0")
        assert len(line) <= 200
        assert line.startswith((b"* ", b"+ ")) or line.split(b" ")[1] in {b"OK", b"BAD", b"NO"}


@given(STREAMS)
def test_auth_request_never_has_cr_lf_nul(data: bytes) -> None:
    for credentials in play(data, SMALL).credentials_received:
        password = b"" if credentials.password is None else credentials.password.reveal()
        assert not set(credentials.user + password) & set(b"\r\n\0")


@pytest.mark.parametrize(
    "login",
    [
        b"a1 LOGIN john MARK3D\r\n",
        b'a1 LOGIN "john" "MARK3D"\r\n',
        b"a1 LOGIN john {6+}\r\nMARK3D\r\n",
        b"a1 LOGIN john {8+}\r\nMARK3D\r\n\r\n",
        b"a1 LOGIN john MARK3D x\r\n",
        b"a1 LOGIN john MARK3D\0\r\n",
        b"a1 LOGON john MARK3D\r\n",
        b"a1 LOGIN john MARK3D" + b"x" * 5000,
        b"MARK3D",
    ],
)
def test_password_is_not_in_replies_or_notes(login: bytes) -> None:
    session = play(login)
    assert b"MARK3D" not in session.sent
    assert "MARK3D" not in repr(session)
