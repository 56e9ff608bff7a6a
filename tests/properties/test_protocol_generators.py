# SPDX-License-Identifier: Apache-2.0
"""What holds for every conversation, in all three protocols, whatever is said in it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.enums import Method, UpstreamStage
from mailproxy.errors import (
    AuthUnreachable,
    PeerClosed,
    SessionError,
    UpstreamError,
    UpstreamGuardError,
    UpstreamRefused,
)
from mailproxy.protocols import sansio
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import ProtocolGenerator
from mailproxy.protocols.tempfail import ResumableLogin
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    Client,
    Decision,
    Envelope,
    Secret,
    SessionEnd,
    TlsInfo,
    UpstreamLogin,
    UpstreamLoginResult,
)
from mailproxy_config.capability_choice import CapabilitiesFrom
from mailproxy_config.model import (
    AuthMethod,
    AuthMode,
    ImapId,
    Protocol,
    ServerConfig,
    StartTls,
    Tempfail,
)
from support import configs

EVERY_METHOD: Final = {
    "imap_auth": frozenset({AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    "pop3_auth": frozenset({AuthMethod.PLAIN, AuthMethod.APOP, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    "smtp_auth": frozenset(AuthMethod) - {AuthMethod.APOP},
}
SMALL: Final = {"imap_client_buffer": 64, "smtp_client_buffer": 64, "max_errors": 3, "proxy_buffer": 64}
MARK: Final = b"HuNtEr2-sEcReT"

each_protocol = pytest.mark.parametrize("protocol", Protocol, ids=str)


def b64(data: bytes) -> bytes:
    return b64encode(data)


# ---- input of clients ----

WORDS: Final = st.sampled_from(
    [
        *b"USER PASS APOP QUIT CAPA AUTH NOOP STLS HELO EHLO MAIL RSET RCPT VRFY".split(),
        *b"HELP STARTTLS DATA LOGIN AUTHENTICATE CAPABILITY LOGOUT SELECT a b1 * +".split(),
        *b"alice secret PLAIN CRAM-MD5 EXTERNAL FROM:<a@x> TO:<b@x> GET / HTTP/1.1".split(),
        *b'{3} {3+} {0} {99999} {x} "q" "open'.split(),
        b64(b"\0alice\0secret"),
        b64(b"alice b913a602c7eda7a495b4e6e7334d3890"),
        b64(b"alice"),
        b64(b"a\r\nb"),
        b"=",
        b"",
        b"\0",
        b"\xff\xfe",
        b"\r",
        b"x" * 40,
    ]
)
ENDS: Final = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\r\n", b"\r", b""])
LINES: Final = st.builds(lambda words, end: b" ".join(words) + end, st.lists(WORDS, max_size=5), ENDS)
CHUNKS: Final = st.lists(st.one_of(LINES, LINES, st.binary(max_size=12)), max_size=12).map(b"".join)
TEXTS: Final = st.sampled_from([b"", b"no", b"Invalid login or password"])
DECISIONS: Final[st.SearchStrategy[Decision]] = st.one_of(
    st.builds(AuthDenied, TEXTS, st.sampled_from([0, 1, 1]), st.sampled_from([None, b"451 4.3.0"])),
    st.just(AuthDeferred(1)),
    st.just(AuthDeferred(2, b"bob", Secret(b"other"))),
    st.just(AuthAllowed("192.0.2.10", 143, b"alice", Secret(b"secret"))),
)
VERDICTS: Final = st.lists(DECISIONS, max_size=6)


@dataclass
class Outcome:
    """Everything a conversation did, sends joined, and how it ended."""

    course: list[Any] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    sends: list[bytes] = field(default_factory=list)
    result: Any = None
    failure: SessionError | None = None
    left: bytes = b""


def run_generator(  # noqa: C901, PLR0912 - one case per action
    dialogue: ProtocolGenerator[Any], pieces: list[bytes], decisions: Iterable[Any]
) -> Outcome:
    """Run a conversation on these bytes, cut like this, and close behind them."""
    outcome, incoming, verdicts = Outcome(), [piece for piece in pieces if piece], iter(decisions)
    answer: Any = None
    try:
        while True:
            gone = isinstance(answer, SessionError)
            action = dialogue.throw(answer) if gone else dialogue.send(answer)
            answer = None
            match action:
                case sansio.Send(data):
                    outcome.sends.append(data)
                    if outcome.course and isinstance(outcome.course[-1], bytes):
                        outcome.course[-1] += data
                    else:
                        outcome.course.append(data)
                case sansio.Receive(limit):
                    assert limit > 0
                    answer = incoming[0][:limit] if incoming else PeerClosed()
                    incoming[:1] = [incoming[0][limit:]] if incoming and len(incoming[0]) > limit else []
                case sansio.ReportAuthFailure():
                    outcome.course.append("no decision")
                case sansio.Note(event):
                    outcome.notes.append(event)
                case AuthRequest() as request:
                    outcome.course.append(repr(request) + repr(request.credentials.password and "known"))
                    answer = next(verdicts, AuthDenied(b"enough"))
                case sansio.MakeChallenge(name):
                    answer = f"<1.2@{name}>".encode()
                case sansio.UpgradeToTls():
                    outcome.course.append("tls")
                    answer = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
                case _:
                    outcome.course.append(repr(action))
    except StopIteration as end:
        outcome.result = end.value
    except SessionError as failure:
        outcome.failure = failure
    outcome.left = b"".join(incoming)
    return outcome


def frontend(server: ServerConfig) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
    return PROTOCOLS[server.protocol].frontend_for(server)(Client("192.0.2.1")).run()


def server(protocol: Protocol, **directives: Any) -> ServerConfig:
    return configs.server(protocol, **{**EVERY_METHOD, **SMALL, **directives})


def split(data: bytes, places: set[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@each_protocol
@given(chunks=CHUNKS, verdicts=VERDICTS, places=st.sets(st.integers(0, 500), max_size=20))
@example(chunks=b"a LOGIN {3}\r\nbob {3+}\r\nabc\r\nb NOOP\r\n", verdicts=[], places=set(range(40)))
def test_replies_are_the_same_for_input_in_pieces_of_any_size(
    protocol: Protocol, chunks: bytes, verdicts: list[Decision], places: set[int]
) -> None:
    config = server(protocol)
    whole = run_generator(frontend(config), [chunks], verdicts)
    pieces = run_generator(frontend(config), split(chunks, places), verdicts)
    assert pieces.course == whole.course
    assert pieces.notes == whole.notes
    assert type(pieces.failure) is type(whole.failure)
    if isinstance(whole.result, UpstreamLogin):
        assert pieces.result.unread + pieces.left == whole.result.unread + whole.left
        pieces.result.unread = whole.result.unread = b""
    assert pieces.result == whole.result


OUTAGES: Final = st.lists(
    st.sampled_from(
        [
            UpstreamError("upstream timed out", stage=UpstreamStage.LOGIN),
            UpstreamGuardError("no", stage=UpstreamStage.HELLO, reply=b""),
            UpstreamRefused(b"421 no\r\n", stage=UpstreamStage.GREETING),
        ]
    ),
    max_size=4,
)
UNSTABLE_VERDICTS: Final = st.lists(st.one_of(DECISIONS, st.builds(AuthUnreachable)), max_size=6)


def run_through_outages(
    config: ServerConfig,
    chunks: bytes,
    verdicts: list[Any],
    outages: list[UpstreamError],
    places: set[int],
) -> tuple[list[Outcome], bytes]:
    """Run a session whose logins fail at the upstream; return its parts, and what the relay begins with."""
    generator: ProtocolGenerator[Any] | None = frontend(config)
    parts, decisions, failures, left = [], iter(verdicts), iter(outages), chunks
    while generator is not None:
        parts.append(outcome := run_generator(generator, split(left, places), decisions))
        left, login = outcome.left, outcome.result
        failure = next(failures, None)
        generator = login.resume(failure) if failure and isinstance(login, ResumableLogin) else None
    return parts, login.unread + left if isinstance(login, ResumableLogin) else b""


LOGIN_LINES: Final = {
    Protocol.IMAP: b"a LOGIN alice secret\r\n",
    Protocol.POP3: b"USER alice\r\nPASS secret\r\n",
    Protocol.SMTP: b"AUTH PLAIN " + b64(b"\0alice\0secret") + b"\r\n",
}


@each_protocol
@given(
    chunks=st.lists(st.one_of(LINES, st.just(b"login")), max_size=12),
    verdicts=UNSTABLE_VERDICTS,
    outages=OUTAGES,
    places=st.sets(st.integers(0, 500), max_size=20),
)
def test_session_with_outages_is_the_same_for_input_in_pieces_of_any_size(
    protocol: Protocol,
    chunks: list[bytes],
    verdicts: list[Any],
    outages: list[UpstreamError],
    places: set[int],
) -> None:
    """So each byte that the client sends ahead is read once, in order, whatever was received with it."""
    data = b"".join(LOGIN_LINES[protocol] if chunk == b"login" else chunk for chunk in chunks)
    config = server(protocol, proxy_tempfail=Tempfail.RFC5530, max_errors=4)
    whole, left = run_through_outages(config, data, verdicts, outages, set())
    pieces, left_of_pieces = run_through_outages(config, data, verdicts, outages, places)
    assert left == left_of_pieces
    assert [part.course for part in pieces] == [part.course for part in whole]
    assert [part.notes for part in pieces] == [part.notes for part in whole]
    assert all(is_well_formed(reply) for part in whole for reply in part.sends)
    tries = sum(isinstance(item, str) and "AuthRequest" in item for part in whole for item in part.course)
    assert sum(part.sends.count(OUTAGE[protocol]) for part in whole) <= min(tries, 4)


DERIVED: Final = [
    pytest.param({"max_commands": 3}, id="max_commands"),
    pytest.param({"proxy_tempfail": Tempfail.RFC5530}, id="proxy_tempfail"),
    pytest.param({"auth_mode": AuthMode.UPSTREAM, "max_commands": 4}, id="auth_mode"),
    pytest.param({"smtp_auth_command": False}, id="smtp_auth_command"),
    pytest.param({"smtp_capabilities_from": CapabilitiesFrom.UPSTREAM}, id="smtp_capabilities_from"),
    pytest.param({"starttls": StartTls.ONLY}, id="starttls"),
    pytest.param({"imap_id_command": ImapId.ANSWER, "imap_capability_after_login": True}, id="imap"),
]
USUAL_LINES: Final = {
    Protocol.IMAP: [b"a LOGIN alice secret\r\n", b"b login al-ice se%cret  \n", b'c ID ("name" "x")\r\n'],
    Protocol.POP3: [
        b"USER alice\r\n",
        b"PASS secret\r\n",
        b"user a b \n",
        b"pass c \n",
        b"XCLIENT PORT=5\r\n",
    ],
    Protocol.SMTP: [
        b"EHLO client.example\r\n",
        LOGIN_LINES[Protocol.SMTP],
        b"auth plain " + b64(b"\0alice\0pass word") + b" \n",
        b"AUTH PLAIN =\r\n",
        b"MAIL FROM:<a@x>\r\n",
        b"RCPT TO:<b@x>\r\n",
        b"DATA\r\n",
        b"BDAT 3 LAST\r\n",
        b"XCLIENT ADDR=192.0.2.7\r\n",
    ],
}


@pytest.mark.parametrize("directives", DERIVED)
@pytest.mark.parametrize("is_trusted", [False, True], ids=["any client", "trusted client"])
@each_protocol
@given(data=st.data(), verdicts=VERDICTS)
def test_commands_are_handled_alike_whether_they_arrive_alone_or_together(
    protocol: Protocol, is_trusted: bool, directives: dict[str, Any], data: st.DataObject, verdicts: list[Any]
) -> None:
    """A usual command that arrives alone is recognised before any other rule sees its line."""
    usual = st.sampled_from(USUAL_LINES[protocol])
    lines = data.draw(st.lists(st.one_of(usual, usual, LINES), max_size=8).map(_without_starttls))
    config = server(protocol, **directives)
    protocol_of = PROTOCOLS[protocol]
    make = (protocol_of.trusted_frontend_for if is_trusted else protocol_of.frontend_for)(config)
    alone = run_generator(make(Client("192.0.2.1")).run(), lines, verdicts)
    together = run_generator(make(Client("192.0.2.1")).run(), [b"".join(lines)], verdicts)
    assert alone.course == together.course
    assert alone.notes == together.notes
    assert getattr(alone.failure, "sent_nothing", None) == getattr(together.failure, "sent_nothing", None)
    if isinstance(together.result, UpstreamLogin):
        assert alone.result.unread + alone.left == together.result.unread + together.left
        assert type(alone.result) is type(together.result)
    else:
        assert alone.result == together.result


def _without_starttls(lines: list[bytes]) -> list[bytes]:
    """Bytes that arrive together with it are discarded."""
    return [line for line in lines if not {b"STARTTLS", b"STLS"} & set(line.split())]


OUTAGE: Final = {
    Protocol.IMAP: b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n",
    Protocol.POP3: b"-ERR [SYS/TEMP] Account is temporarily unavailable.\r\n",
    Protocol.SMTP: b"454 4.7.0 Temporary authentication failure\r\n",
}


@each_protocol
@given(
    chunks=st.one_of(CHUNKS, st.binary(max_size=300)),
    verdicts=VERDICTS,
    starttls=st.sampled_from(StartTls),
)
@example(chunks=b"\x16\x03\x01" + bytes(300), verdicts=[], starttls=StartTls.DISABLED)
def test_any_input_gets_well_formed_replies(
    protocol: Protocol, chunks: bytes, verdicts: list[Decision], starttls: StartTls
) -> None:
    outcome = run_generator(frontend(server(protocol, starttls=starttls)), [chunks], verdicts)
    assert outcome.failure is None or isinstance(outcome.failure, PeerClosed)
    assert (outcome.result is None) == (outcome.failure is not None)
    assert all(is_well_formed(data) for data in outcome.sends)


def is_well_formed(reply: bytes) -> bool:
    """Whether it is whole lines that end in CRLF, without a CR or LF elsewhere."""
    return reply.endswith(b"\r\n") and reply.count(b"\r\n") == reply.count(b"\r") == reply.count(b"\n")


# ---- secrets ----

CREDENTIALS: Final = {
    Protocol.IMAP: [
        b"a LOGIN alice " + MARK,
        b'a LOGIN alice "' + MARK + b'"',
        b"a LOGIN alice {%d+}\r\n" % len(MARK) + MARK,
        b"a LOGIN alice {%d}\r\n" % len(MARK) + MARK,
        b"a LOGIN alice " + MARK + b" more arguments",
        b'a LOGIN alice "' + MARK,
        b"a AUTHENTICATE PLAIN " + b64(b"\0alice\0" + MARK),
        b"a AUTHENTICATE PLAIN\r\n" + b64(b"\0alice\0" + MARK),
        b"a AUTHENTICATE LOGIN\r\nYQ==\r\n" + b64(MARK),
        b"a AUTHENTICATE LOGIN\r\nYQ==\r\n" + b64(MARK + b"\0"),
        b"a AUTHENTICATE LOGIN\r\nYQ==\r\n" + MARK + b"!",
    ],
    Protocol.POP3: [
        b"USER alice\r\nPASS " + MARK,
        b"USER alice\r\nPASS " + MARK + b"\0",
        b"PASS " + MARK,
        b"USER alice\r\nPASS " + MARK + 120 * b"x",
        b"AUTH PLAIN " + b64(b"\0alice\0" + MARK),
        b"AUTH LOGIN\r\nYQ==\r\n" + b64(MARK),
        b"AUTH LOGIN\r\nYQ==\r\n" + MARK + b"!",
        b"AUTH PLAIN " + b64(b"\0alice\0" + MARK + b"\n"),
    ],
    Protocol.SMTP: [
        b"AUTH PLAIN " + b64(b"\0alice\0" + MARK),
        b"AUTH PLAIN\r\n" + b64(b"\0alice\0" + MARK),
        b"AUTH LOGIN\r\nYQ==\r\n" + b64(MARK),
        b"AUTH LOGIN\r\nYQ==\r\n" + MARK + b"!",
        b"AUTH PLAIN " + b64(b"\0alice\0" + MARK + b"\r\n"),
        b"AUTH LOGIN " + b64(b"x") + b"\r\n" + MARK + 80 * b"x",
    ],
}


@pytest.mark.parametrize(
    ("protocol", "login"), [(protocol, login) for protocol, logins in CREDENTIALS.items() for login in logins]
)
@pytest.mark.parametrize("starttls", [StartTls.DISABLED, StartTls.ONLY])
def test_no_secret_in_replies_or_notes(protocol: Protocol, login: bytes, starttls: StartTls) -> None:
    chunks = login + b"\r\n"
    verdicts: list[Decision] = [AuthDeferred(1), AuthDenied(b"no", wait=1), AuthDenied(b"no", wait=1)]
    outcome = run_generator(frontend(server(protocol, starttls=starttls)), [chunks], verdicts)
    shown = repr(
        (
            outcome.course,
            outcome.notes,
            outcome.sends,
            outcome.result,
            str(outcome.failure),
            repr(outcome.failure),
        )
    )
    assert MARK.decode() not in shown
    assert b64(MARK).decode() not in shown
    assert b64(b"\0alice\0" + MARK).decode().rstrip("=") not in shown


# ---- replies of upstreams ----

REPLIES: Final = st.one_of(
    st.sampled_from(
        [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b"* OK hello\r\n",
            b"* CAPABILITY X\r\n",
            b"+ go on\r\n",
            b"a OK done\r\n",
            b"a NO no\r\n",
            b"220 mx\r\n",
            b"250-x\r\n250 y\r\n",
            b"250 ok\n",
            b"235 ok\r\n",
            b"535 no\r\n",
            b"\r\n",
            b"+\n",
        ]
    ),
    st.binary(min_size=1, max_size=80),
)
SECRETS: Final = st.sampled_from([None, Secret(b""), Secret(MARK), Secret(b"a\r\nb"), Secret(b"\0")])


@each_protocol
@given(
    replies=st.lists(REPLIES, max_size=10),
    user=st.sampled_from([b"", b"alice", b"al ice", b"a\r\nDELE 1"]),
    password=SECRETS,
    with_envelope=st.booleans(),
    proxy_smtp_auth=st.booleans(),
)
def test_any_upstream_replies_end_the_login(
    protocol: Protocol,
    replies: list[bytes],
    user: bytes,
    password: Secret | None,
    with_envelope: bool,
    proxy_smtp_auth: bool,
) -> None:
    envelope = Envelope(b"cl", b"MAIL FROM:<a>", b"RCPT TO:<b>") if with_envelope else None
    grant = AuthAllowed("192.0.2.10", 143, user, password)
    identified = UpstreamLogin(grant, Method.PASSWORD, tag=b"a", envelope=envelope, helo=b"cl", esmtp=True)
    config = server(protocol, proxy_smtp_auth=proxy_smtp_auth)
    upstream = PROTOCOLS[protocol].upstream(config)
    outcome = run_generator(upstream.log_in(Client("192.0.2.1"), identified), replies, [])
    assert isinstance(outcome.failure, UpstreamError) or isinstance(outcome.result, UpstreamLoginResult)
    assert MARK.decode() not in repr((outcome.failure, str(outcome.failure), outcome.notes, outcome.result))
    if protocol is not Protocol.IMAP:  # its literals may contain any bytes
        lines = b"".join(outcome.sends).split(b"\r\n")
        assert not any(line.startswith(b"DELE") for line in lines)
