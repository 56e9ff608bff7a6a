# SPDX-License-Identifier: Apache-2.0
"""Reading the head of a response: where it ends, and the heads that are kept without their passwords."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.auth_http import response_head
from mailproxy.auth_http.response import decide
from mailproxy.auth_http.response_body import BodyFraming
from mailproxy.auth_http.response_head import ResponseHead, ResponseHeads, head_end, parse_head
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, Credentials, Decision, Secret
from mailproxy_config.model import Protocol
from support.auth_response import parse

OK = b"HTTP/1.1 200 OK\r\n"
WHERE = b"Auth-Server: 192.0.2.10\r\nAuth-Port: 143\r\n"
LINE = b"Auth-Pass: secret\r\n"
SECRET = Secret(b"secret")


# ---- where the head ends ----


@pytest.mark.parametrize(
    ("buffer", "end"),
    [
        (b"", -1),
        (b"HTTP/1.0 200 OK\r\n", -1),
        (b"HTTP/1.0 200 OK\r\n\r", -1),
        (b"HTTP/1.0 200 OK\r\n\r\nbody", 19),
        (b"HTTP/1.0 200 OK\n\nbody", 17),
        (b"A: 1\r\n\nbody", 7),
        (b"A: 1\n\r\nbody", 7),
        (b"\r\nbody", 2),
        (b"\nbody", 1),
    ],
)
def test_head_ends_at_the_blank_line(buffer: bytes, end: int) -> None:
    assert head_end(buffer) == end
    assert head_end(bytearray(buffer)) == end


@pytest.mark.parametrize("whole", [b"HTTP/1.0 200 OK\r\nA: 1\r\n\r\n", b"A: 1\n\n", b"\r\n", b"A: 1\n\r\n"])
def test_end_of_head_is_found_in_pieces_of_any_size(whole: bytes) -> None:
    for cut in range(len(whole)):
        assert head_end(whole[:cut]) == -1
        assert head_end(whole, cut) == len(whole)


@given(st.binary(), st.integers(0, 3))
def test_head_ends_after_the_first_blank_line(data: bytes, start: int) -> None:
    buffer = data.translate(bytes(b"\n\r\nx"[byte % 4] for byte in range(256)))
    whole = re.search(rb"\A\r?\n|\n\r?\n", buffer)
    end = -1 if whole is None else whole.end()
    if end < 0 or start < end:
        assert head_end(buffer, start) == end


# ---- heads that are kept ----


def contains(heads: ResponseHeads, data: bytes) -> bool:
    """Return whether data is in anything that is kept: heads, headers, addresses."""
    values = [(each.headers, each.address) for each in heads.known.values()]
    return repr(data)[2:-1] in repr((*heads.known, *values))


@pytest.mark.parametrize("line", [b"Auth-Pass: %b\r\n", b"AUTH-PASS:%b \n", b"auth-pass: pass%bword\r\n"])
def test_head_is_kept_without_its_password(line: bytes) -> None:
    heads = ResponseHeads()
    for password in (b"secret-1", b"secret-2"):
        sent = line[10:].strip() % password
        for headers in (line % password + WHERE, WHERE + line % password):
            head, found = heads.read(OK + headers + b"\r\n")
            assert (head.address, found) == (("192.0.2.10", 143), sent)
    assert len(heads.known) == 1
    assert contains(heads, b"192.0.2.10")
    assert not contains(heads, b"secret")


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Password: secret\r\n",
        b"X-Password: secret\r\nAuth-Pass: x\r\n",
        b"Auth-Pass: secret\r\nAuth-Pass: secret\r\n",
        b"Auth-Pass: secret\r\nX: pass\r\n",
        b"Auth-Pass : secret\r\n",
        b"Auth-Pass: a\tsecret\r\n",
        b"Auth-Pass: a\rsecret\r\n",
        b"Auth-Pass: a\r\n secret\r\n",
        b"X: " + b"x" * 1024 + b"\r\nAuth-Pass: secret\r\n",
    ],
)
def test_head_with_a_password_elsewhere_is_not_kept(headers: bytes) -> None:
    heads = ResponseHeads()
    for _ in range(2):
        with suppress(InvalidAuthResponse):
            heads.read(OK + headers + WHERE + b"\r\n")
    assert not heads.known


@pytest.mark.parametrize("filler", [b"", b"X: " + b"x" * 1024 + b"\r\n"])
def test_repr_of_a_head_has_no_password(filler: bytes) -> None:
    heads = ResponseHeads()
    head, sent = heads.read(OK + WHERE + LINE + filler + b"\r\n")
    assert sent == b"secret"
    assert "secret" not in repr(head)


def test_head_that_begins_with_a_password_is_not_kept() -> None:
    heads = ResponseHeads()
    head, sent = heads.read(LINE + WHERE + b"\r\n")
    assert (head.headers[b"auth-server"], sent) == (b"192.0.2.10", b"secret")
    assert not heads.known


def test_decision_from_a_known_head_depends_on_user_and_password() -> None:
    heads = ResponseHeads()
    head = OK + WHERE + b"\r\n"
    for user in (b"alice", b"bob"):
        decision = parse(head, user=user, password=Secret(user), heads=heads).decision
        assert decision == AuthAllowed("192.0.2.10", 143, user, Secret(user))
    assert list(heads.known) == [head]


def test_number_of_known_heads_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_head, "_MAX_KNOWN", 2)
    heads = ResponseHeads()
    sent = [OK + WHERE + b"X: %d\r\n\r\n" % number for number in range(4)]
    for head in sent:
        heads.read(head)
    assert list(heads.known) == sent[2:]


def test_nothing_is_kept_for_a_while_after_many_heads_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_head, "_MAX_UNKNOWN", 3)
    monkeypatch.setattr(response_head, "_RETRY_AFTER", 10)
    heads = ResponseHeads()
    sent = [OK + WHERE + b"X: %d\r\n\r\n" % number for number in range(11)]
    for head in sent:
        known, password = heads.read(head)
        assert (known.address, password) == (("192.0.2.10", 143), None)
    assert list(heads.known) == [*sent[:3], *sent[9:]]


def test_one_known_head_among_others_is_enough_to_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_head, "_MAX_UNKNOWN", 3)
    heads = ResponseHeads()
    for number in range(9):
        if number % 2 == 0 and heads.find(OK + WHERE + b"\r\n") is None:
            heads.read(OK + WHERE + b"\r\n")
        heads.read(OK + WHERE + b"X: %d\r\n\r\n" % number)
    assert len(heads.known) == 10


# ---- finding a known head in what was received ----


@pytest.mark.parametrize("name", [b"Auth-Pass: ", b"auth-pass: ", b"AUTH-PASS:"])
@pytest.mark.parametrize("password", [b"x", b"s3cr.et word", b"\xff\x80", b"", b"pass"])
def test_known_head_is_found_with_any_password(name: bytes, password: bytes) -> None:
    heads = ResponseHeads()
    heads.read(OK + name + b"first\r\n" + WHERE + b"\r\n")
    for before, after in ((b"", WHERE), (WHERE, b"Content-Length: 0\r\n")):
        data = OK + before + name + password + b"\r\n" + after + b"\r\n"
        known, _ = heads.read(data)
        assert heads.find(data) == (known, password)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OK + WHERE,
        OK + WHERE + b"\r",
        OK + WHERE + b"\r\nbody",
        OK + WHERE + b"\r\n" + LINE,
        OK + WHERE + b"\r\n" + LINE + b"\r\n",
        OK + WHERE + LINE,
        OK + WHERE + LINE + b"\r",
        OK + WHERE + LINE + LINE + b"\r\n",
        OK + WHERE + b"Auth-Pass: a\nX: b\r\n\r\n",
        OK + WHERE + b"Auth-Pass: a\rb\r\n\r\n",
        OK + WHERE + b"Auth-Pass: a\tb\r\n\r\n",
        OK + WHERE + b"Auth-Pass: a\0b\r\n\r\n",
        OK + WHERE + b"Auth-Pass: " + b"a" * 1024 + b"\r\n\r\n",
        OK + b"\r\n" + WHERE + LINE + b"\r\n",
        OK + b"Auth-Pass: x\r\n\r\n" + WHERE + b"\r\n",
        b"\r\n" + LINE,
        b"\n" + LINE + b"\n",
    ],
)
def test_other_bytes_are_no_known_head(data: bytes) -> None:
    heads = ResponseHeads()
    for head in (OK + WHERE + LINE + b"\r\n", OK + WHERE + b"\r\n", b"\r\n", b"\n"):
        heads.read(head)
    assert heads.find(data) is None


NAMES = st.sampled_from([b"Auth-Pass", b"auth-pass", b"Auth-User"]) | st.sampled_from(
    [b"Auth-Pass", b"auth-pass", b"AUTH-PASS", b"aUTH-pASS", b"Auth-Pass ", b" Auth-Pass", b"X-Pass",
     b"Auth-Passw", b"Auth-Status", b"Auth-Server", b"Auth-Port", b"Auth-User", b"Auth-Wait",
     b"Auth-Error-Code", b"Connection", b"Content-Length", b"Transfer-Encoding", b"Server", b"X_Y",
     b"HTTP/1.1 200 OK", b""]
)  # fmt: skip
VALUES = st.sampled_from(
    [b"OK", b"WAIT", b"no", b"192.0.2.1", b"::1", b"unix:/s", b"143", b"0", b"", b" ", b"a:b", b"pass",
     b"a b ", b"Auth-Pass: x", b"x\ry", b"x\r", b"x\ty", b"x\0", b"\xff", b"close", b"chunked", b"x" * 1024]
)  # fmt: skip
FORMED = st.builds(
    lambda *parts: b"".join(parts),
    NAMES,
    st.sampled_from([b": ", b":", b" : ", b"", b":   "]),
    VALUES,
    st.sampled_from([b"\r\n", b"\n"]) | st.sampled_from([b"\r\r\n", b"\r\n ", b"\r"]),
)
USUAL = st.builds(
    lambda status, lines: b"".join((status, *lines)),
    st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\n", b""]),
    st.permutations(
        [b"Auth-Status: OK\r\n", b"Auth-Server: 192.0.2.1\r\n", b"Auth-Port: 143\r\n", b"Auth-Pass: s\r\n",
         b"Content-Length: 0\r\n"]
    ).flatmap(lambda lines: st.integers(0, 5).map(lambda count: lines[:count])),
)  # fmt: skip
WAYS = st.builds(
    lambda usual, odd, end: usual + b"".join(odd) + end,
    USUAL,
    st.lists(FORMED, max_size=3),
    st.sampled_from([b"\n", b"\r\n"]),
)


Outcome = tuple[Decision, BodyFraming, bool, int | None] | tuple[str, AuthErrorReason]


def outcome(read: Callable[[], tuple[ResponseHead, bytes | None]], protocol: Protocol) -> Outcome:
    """Return the decision and what the connection goes on with, or the error."""
    try:
        head, sent = read()
        decision = decide(head, sent, protocol, Credentials(Method.PASSWORD, b"john", SECRET))
    except InvalidAuthResponse as malformed:
        return str(malformed), malformed.failure
    return decision, head.framing, head.keep_alive, head.status


def read_whole(head: bytes) -> tuple[ResponseHead, bytes | None]:
    """Read a head that was not sent before."""
    parsed = parse_head(head)
    return parsed, parsed.headers.get(b"auth-pass")


@given(WAYS, st.sampled_from(Protocol))
def test_known_head_gives_the_same_decision(text: bytes, protocol: Protocol) -> None:
    end = head_end(text)
    head = text if end < 0 else text[:end]
    heads, whole = ResponseHeads(), outcome(lambda: read_whole(head), protocol)
    for _ in range(2):  # the second time it is known
        assert outcome(lambda: heads.read(head), protocol) == whole


@given(st.lists(WAYS, max_size=3), WAYS, st.sampled_from([b"", b"body", LINE, LINE + b"\r\n"]))
@example([OK + WHERE + b"\r\n"], OK + WHERE + b"\r\n", LINE)
def test_head_is_found_only_if_it_is_whole(earlier: list[bytes], text: bytes, body: bytes) -> None:
    heads = ResponseHeads()
    for each in (*earlier, text):
        with suppress(InvalidAuthResponse):
            heads.read(each if head_end(each) < 0 else each[: head_end(each)])
    data = text + body
    found = heads.find(data)
    if found is not None:
        assert head_end(data) == len(data)
        whole = outcome(lambda: read_whole(data), Protocol.IMAP)
        assert outcome(lambda: found, Protocol.IMAP) == whole
