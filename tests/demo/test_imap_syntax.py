# SPDX-License-Identifier: Apache-2.0
"""The grammar of IMAP, as much of it as the demo's server knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_demo.imap_syntax import (
    BadSyntax,
    Word,
    announced_literal,
    chosen_numbers,
    literal,
    placeholder,
    string,
    words,
)


@pytest.mark.parametrize(
    ("text", "literals", "found"),
    [
        ("a1 NOOP", [], ["a1", "NOOP"]),
        ('a1 LOGIN "al\\"ice" x', [], ["a1", "LOGIN", 'al"ice', "x"]),
        ("a1 LOGIN \0000\000 \0001\000", ["alice", "two words"], ["a1", "LOGIN", "alice", "two words"]),
        ("f 1 (FLAGS (A B))", [], ["f", "1", ["FLAGS", ["A", "B"]]]),
        (
            "f 1 BODY.PEEK[HEADER.FIELDS (TO CC)]<0.5>",
            [],
            ["f", "1", "BODY.PEEK[HEADER.FIELDS (TO CC)]<0.5>"],
        ),
        ("s 1 +FLAGS \\Seen ", [], ["s", "1", "+FLAGS", "\\Seen"]),
        ("", [], []),
    ],
)
def test_words(text: str, literals: list[str], found: list[Word]) -> None:
    assert words(text, literals) == found


@pytest.mark.parametrize("text", ["(", ")", 'a "open', "a [x", "a \0007\000", "(" * 20 + ")" * 20])
def test_what_does_not_parse(text: str) -> None:
    with pytest.raises(BadSyntax):
        words(text, [])


@given(st.text(max_size=60), st.lists(st.text(max_size=5), max_size=2))
def test_no_text_breaks_it(text: str, literals: list[str]) -> None:
    try:
        words(text, literals)
    except BadSyntax:
        return


@pytest.mark.parametrize(
    ("line", "announced"),
    [
        (b"a1 LOGIN {5}", (5, True)),
        (b"a1 LOGIN {5+}", (5, False)),
        (b"a1 LOGIN {x}", None),
        (b"a1 LOGIN {5} ", None),
        (b"a1 LOGIN {9999999999}", None),
    ],
)
def test_literals_are_announced(line: bytes, announced: tuple[int, bool] | None) -> None:
    assert announced_literal(line) == announced


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2", {2}),
        ("1,3:5", {1, 3, 4, 5}),
        ("4:*", {4, 5}),
        ("*:4", {4, 5}),
        ("*", {5}),
        ("9:*", {5}),  # the last one there is, whatever number was asked for
        ("1:4294967295", {1, 2, 3, 4, 5}),
        ("4294967290:4294967295", {4294967290}),  # nobody can make it count for ever
    ],
)
def test_sequence_sets(text: str, numbers: set[int]) -> None:
    assert chosen_numbers(text, 5) == numbers


@pytest.mark.parametrize("text", ["", "0", "a", "1:2:3", "1,,2", "-1"])
def test_what_is_no_sequence_set(text: str) -> None:
    with pytest.raises(BadSyntax):
        chosen_numbers(text, 5)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (None, b"NIL"),
        ("plain", b'"plain"'),
        ('a "quote" and \\', b'"a \\"quote\\" and \\\\"'),
        ("line\r\nend", b"{9}\r\nline\r\nend"),
        ("ünicode", b"{8}\r\n\xc3\xbcnicode"),
    ],
)
def test_strings(text: str | None, written: bytes) -> None:
    assert string(text) == written


def test_literals_and_their_placeholders() -> None:
    assert literal(b"abc") == b"{3}\r\nabc"
    assert placeholder(3) == b"\x003\x00"
