# SPDX-License-Identifier: Apache-2.0
"""ID before login: the parser of its arguments, and what of them reaches an upstream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.protocols.client_identity import imap_id
from mailproxy.protocols.imap_id import ID_LINE, MAX_PAIRS, IdParser, InvalidId, Pair, own_pairs, quoted
from mailproxy.protocols.types import Client
from mailproxy_config.model import ImapId, Protocol, SendIdentity
from support.configs import server


def parsed(*pieces: bytes) -> list[Pair]:
    """Parse lines and literals in turn."""
    parser = IdParser()
    for index, piece in enumerate(pieces):
        if index % 2:
            assert parser.literal == len(piece)
            parser.feed_literal(piece)
        else:
            parser.feed(piece)
    assert parser.is_complete
    return parser.pairs()


def fed(line: bytes) -> IdParser:
    """Return a parser that was given one line."""
    parser = IdParser()
    parser.feed(line)
    return parser


@pytest.mark.parametrize(
    ("pieces", "pairs"),
    [
        ((b"NIL",), []),
        ((b"nil ",), []),
        ((b"()",), []),
        ((b'("name" "Mutt")',), [(b"name", b"Mutt")]),
        ((b'("name" NIL "os" "x")',), [(b"name", None), (b"os", b"x")]),
        ((b'( "name"  "a\\"b\\\\c" )',), [(b"name", b'a"b\\c')]),
        ((b"({4}", b"name", b" {5+}", b"a\r\nb\0", b")"), [(b"name", b"a\r\nb\0")]),
        ((b'("name" "")',), [(b"name", b"")]),
    ],
)
def test_id_arguments_are_parsed(pieces: tuple[bytes, ...], pairs: list[Pair]) -> None:
    assert parsed(*pieces) == pairs


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"(",
        b'("name")',
        b'("name" "x"',
        b'("name" "x") x',
        b'("name" "x") NIL',
        b'(("name" "x"))',
        b'"name" "x"',
        b"(name x)",
        b'("name" "x\\y")',
        b'("name" "x\ry")',
        b"NIL NIL",
        b"{4+}",
        b'("" "x")',
        b'("' + b"k" * 31 + b'" "x")',
        b'("name" "' + b"v" * 1025 + b'")',
        b"(" + b'"k" "v" ' * 31 + b")",
        b'(NIL "x")',
        b'("name" {99999999999})',
    ],
)
def test_invalid_id_arguments_are_refused(line: bytes) -> None:
    with pytest.raises(InvalidId):
        fed(line).pairs()


def test_thirty_pairs_with_longest_key_and_value_are_accepted() -> None:
    one = b'"%b" "%b"' % (b"k" * 30, b"v" * 1024)
    assert len(parsed(b"(" + b" ".join([one] * MAX_PAIRS) + b")")) == MAX_PAIRS


@pytest.mark.parametrize(
    ("line", "tag"),
    [
        (b"a1 ID NIL", b"a1"),
        (b"a1  id (", b"a1"),
        (b"a1 ID", b"a1"),
        (b"a1 IDLE", None),
        (b"a1 ID(", None),
        (b"* ID NIL", None),
    ],
)
def test_id_command_is_recognised(line: bytes, tag: bytes | None) -> None:
    found = ID_LINE.match(line)
    assert (found and found[1]) == tag


def test_pairs_that_name_a_client_or_are_no_text_are_not_sent_on() -> None:
    pairs: list[Pair] = [
        (b"name", b"Mutt"),
        (b"x-originating-ip", b"192.0.2.66"),
        (b"X-Session-Id", b"1"),
        (b"os", None),
        (b"vendor", b"a\r\nb"),
        (b"v\xc3\xa4", b"x"),
    ]
    assert own_pairs(pairs) == ((b"name", b"Mutt"),)


def test_own_pairs_come_before_ours_and_are_quoted() -> None:
    client = Client("192.0.2.7", 5, "192.0.2.1", 143, session_id="s1", id_pairs=((b"name", b'a"b\\'),))
    assert imap_id(client, b"x1").startswith(b'x1 ID ("name" "a\\"b\\\\" "x-session-id" "s1" ')


def test_own_pairs_leave_room_for_ours() -> None:
    pairs = tuple((b"k%d" % number, b"v" * 1024) for number in range(MAX_PAIRS))
    client = Client("192.0.2.7", 5, "192.0.2.1", 143, session_id="s1", id_pairs=pairs)
    line = imap_id(client, b"x1")
    assert len(line) <= 8192
    assert b'"x-originating-ip" "192.0.2.7"' in line
    few = tuple((b"k%d" % number, b"v") for number in range(MAX_PAIRS))
    line = imap_id(Client("192.0.2.7", 5, "192.0.2.1", 143, session_id="s1", id_pairs=few), b"x1")
    assert len(parsed(line.removeprefix(b"x1 ID ").removesuffix(b"\r\n"))) == MAX_PAIRS


@given(
    st.lists(
        st.tuples(
            st.text("abc", min_size=1, max_size=30),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
        ),
        max_size=8,
    )
)
def test_quoted_pairs_are_parsed_again(texts: list[tuple[str, str]]) -> None:
    pairs: list[Pair] = [(key.encode(), value.encode()) for key, value in texts]
    line = b" ".join(quoted(key) + b" " + quoted(value or b"") for key, value in pairs)
    assert parsed(b"(" + line + b")") == pairs


def test_default_answers_id_where_proxy_id_needs_it() -> None:
    assert not server(Protocol.IMAP).answers_id
    assert server(Protocol.IMAP, proxy_id=SendIdentity.AUTO).answers_id
    assert not server(Protocol.IMAP, proxy_id=SendIdentity.AUTO, imap_id_command=ImapId.IGNORE).answers_id
    assert server(Protocol.IMAP, imap_id_command=ImapId.ANSWER).answers_id


@given(st.binary(max_size=60))
def test_any_arguments_are_parsed_or_refused(line: bytes) -> None:
    parser = IdParser()
    try:
        parser.feed(line.replace(b"\n", b""))
        parser.pairs()
    except InvalidId:
        return
    assert parser.is_complete or parser.literal is not None
