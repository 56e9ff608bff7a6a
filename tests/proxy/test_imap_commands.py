# SPDX-License-Identifier: Apache-2.0
"""The parser of IMAP command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.imap.commands import (
    PLAIN_LOGIN,
    WORDS,
    Command,
    Rejected,
    Unfinished,
    parse_continuation,
    parse_line,
    tag_of,
)

UNKNOWN, BAD, LITERAL, CONTROL = (
    ProtocolErrorKind.UNKNOWN_COMMAND,
    ProtocolErrorKind.BAD_ARGUMENTS,
    ProtocolErrorKind.LITERAL_INVALID,
    ProtocolErrorKind.CONTROL_CHAR,
)


@pytest.mark.parametrize(
    ("line", "tag", "word", "arguments"),
    [
        (b"a1 NOOP", b"a1", b"NOOP", []),
        (b"a1   nOOp  ", b"a1", b"NOOP", []),
        (b"A.-_9 CAPABILITY x", b"A.-_9", b"CAPABILITY", [b"x"]),
        (b"t LOGIN a b c", b"t", b"LOGIN", [b"a", b"b", b"c"]),
        (b"t LOGIN  a   b  ", b"t", b"LOGIN", [b"a", b"b"]),
        (b't LOGIN "a b" c', b"t", b"LOGIN", [b"a b", b"c"]),
        (b't LOGIN "a""b"c', b"t", b"LOGIN", [b"a", b"b", b"c"]),
        (b't LOGIN "" ""', b"t", b"LOGIN", [b"", b""]),
        (b't LOGIN "\\"\\\\\\x" "{3}"', b"t", b"LOGIN", [b'"\\x', b"{3}"]),
        (b't LOGIN a"b c{3}', b"t", b"LOGIN", [b'a"b', b"c{3}"]),
        (b"t LOGIN a\\ (b)", b"t", b"LOGIN", [b"a\\", b"(b)"]),
        (b"t LOGIN \0\xff\t x", b"t", b"LOGIN", [b"\0\xff\t", b"x"]),
        (b"t" * 32 + b" LOGOUT", b"t" * 32, b"LOGOUT", []),
    ],
)
def test_parse_complete_command(line: bytes, tag: bytes, word: bytes, arguments: list[bytes]) -> None:
    assert parse_line(line) == Command(tag, word, arguments)


@pytest.mark.parametrize(
    ("line", "arguments", "size", "synchronizing"),
    [
        (b"t LOGIN {5}", [], 5, True),
        (b"t LOGIN {5+}", [], 5, False),
        (b"t LOGIN {}", [], 0, True),
        (b"t LOGIN {+}", [], 0, False),
        (b"t LOGIN {0}", [], 0, True),
        (b"t LOGIN {007}", [], 7, True),
        (b"t LOGIN {999999999999999999}", [], 999_999_999_999_999_999, True),
        (b"t LOGIN a {5}", [b"a"], 5, True),
        (b't LOGIN "a"{5}', [b"a"], 5, True),
        (b"t LOGIN {5}\r\r", [], 5, True),
        (b"t NOOP a b {5+}", [b"a", b"b"], 5, False),
    ],
)
def test_parse_stops_at_literal(line: bytes, arguments: list[bytes], size: int, synchronizing: bool) -> None:
    word = line.split(b" ")[1]
    assert parse_line(line) == Unfinished(Command(b"t", word, arguments), size, synchronizing)


@pytest.mark.parametrize(
    ("line", "tag", "kind", "closes"),
    [
        (b"", b"*", UNKNOWN, False),
        (b"a1", b"*", UNKNOWN, False),
        (b" NOOP", b"*", UNKNOWN, False),
        (b"t" * 33 + b" NOOP", b"*", UNKNOWN, False),
        (b"a+b NOOP", b"*", UNKNOWN, False),
        (b"a1 ", b"a1", UNKNOWN, False),
        (b"a1 NOOPS", b"a1", UNKNOWN, False),
        (b"a1 NOOP1 x", b"a1", UNKNOWN, False),
        (b"a1 ID {3+}", b"a1", UNKNOWN, True),
        (b"{3+}", b"*", UNKNOWN, True),
        (b"a1 NOOP a b c d", b"a1", BAD, False),
        (b"a1 NOOP a b c {3+}", b"a1", BAD, True),
        (b'a1 LOGIN "a', b"a1", BAD, False),
        (b'a1 LOGIN "a\\"', b"a1", BAD, False),
        (b'a1 LOGIN "a {3+}', b"a1", BAD, True),
        (b"a1 LOGIN {", b"a1", LITERAL, False),
        (b"a1 LOGIN {5", b"a1", LITERAL, False),
        (b"a1 LOGIN {5}x", b"a1", LITERAL, False),
        (b"a1 LOGIN {5} ", b"a1", LITERAL, False),
        (b"a1 LOGIN {5++}", b"a1", LITERAL, True),
        (b"a1 LOGIN {x+}", b"a1", LITERAL, True),
        (b"a1 LOGIN {\xb2}", b"a1", LITERAL, False),
        (b"a1 LOGIN {1234567890123456789}", b"a1", LITERAL, False),
        (b"a1 LOGIN {1234567890123456789+}", b"a1", LITERAL, True),
        (b"a1 LOGIN a\rb c", b"a1", CONTROL, False),
        (b"a1 LOGIN {5}x\r", b"a1", CONTROL, False),
        (b"a1 LOGIN a\r {5}\r", b"a1", CONTROL, False),
        (b"a1 LOGIN a}\r", b"a1", CONTROL, False),
    ],
)
def test_invalid_line_is_rejected(line: bytes, tag: bytes, kind: ProtocolErrorKind, closes: bool) -> None:
    assert parse_line(line) == Rejected(tag, kind, closes)


def announced() -> Unfinished:
    unfinished = parse_line(b"a1 LOGIN {5}")
    assert isinstance(unfinished, Unfinished)
    return unfinished


@pytest.mark.parametrize(
    ("line", "then"),
    [
        (b"", Command(b"a1", b"LOGIN", [b"\r\n\0 {"])),
        (b"  ", Command(b"a1", b"LOGIN", [b"\r\n\0 {"])),
        (b" x", Command(b"a1", b"LOGIN", [b"\r\n\0 {", b"x"])),
        (b' "x y"', Command(b"a1", b"LOGIN", [b"\r\n\0 {", b"x y"])),
        (b" {7+}", Unfinished(Command(b"a1", b"LOGIN", [b"\r\n\0 {"]), 7, synchronizing=False)),
        (b"x", Rejected(b"a1", LITERAL, closes=False)),
        (b'"x"', Rejected(b"a1", LITERAL, closes=False)),
        (b"{7+}", Rejected(b"a1", LITERAL, closes=True)),
        (b" a b c", Rejected(b"a1", BAD, closes=False)),
        (b" \r", Rejected(b"a1", CONTROL, closes=False)),
    ],
)
def test_parse_continues_after_literal(line: bytes, then: Command | Unfinished | Rejected) -> None:
    assert parse_continuation(announced(), b"\r\n\0 {", line) == then


@pytest.mark.parametrize(
    ("line", "tag"),
    [(b"a1 x", b"a1"), (b"a1 ", b"a1"), (b"a1", b"*"), (b" ", b"*"), (b"t" * 33 + b" ", b"*")],
)
def test_tag_of_line(line: bytes, tag: bytes) -> None:
    assert tag_of(line) == tag


@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"a1 LOGIN ", b"a1 noop ", b'a1 LOGIN "', b"a1 LOGIN a {3}"]),
)
def test_any_line_is_parsed_or_rejected(data: bytes, start: bytes) -> None:
    command = parse_line(start + data)
    if isinstance(command, Rejected):
        assert b"\r" not in command.tag
        return
    if isinstance(command, Unfinished):
        command = command.command
    assert command.word in WORDS
    assert len(command.arguments) <= 3


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_plain_login_pattern_agrees_with_parser(user: bytes, password: bytes) -> None:
    line = b"a1 LOGIN %b %b" % (user, password)
    found = PLAIN_LOGIN.fullmatch(line + b"\r\n")
    if found is not None:
        assert parse_line(line) == Command(found[1], b"LOGIN", [found[2], found[3]])


@pytest.mark.parametrize("line", [b"a1 login john s3cr{}et", b'A.B-_  LOGIN   john   \xe4"  '])
def test_plain_login_pattern_matches(line: bytes) -> None:
    assert PLAIN_LOGIN.fullmatch(line + b"\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b'a1 LOGIN "j" s',
        b"a1 LOGIN j {3}",
        b"a1 LOGIN j s x",
        b"a1 LOGIN j",
        b"a1 LOGIN j s\0",
        b"a1 LOGIN j s\r",
    ],
)
def test_plain_login_pattern_does_not_match_other_lines(line: bytes) -> None:
    assert not PLAIN_LOGIN.fullmatch(line + b"\r\n")


def quoted(text: bytes) -> bytes:
    return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


@given(st.lists(st.binary(max_size=20).filter(lambda text: b"\r" not in text), max_size=3))
def test_quoted_arguments_round_trip(arguments: list[bytes]) -> None:
    line = b"a1 NOOP " + b" ".join(map(quoted, arguments))
    assert parse_line(line) == Command(b"a1", b"NOOP", arguments)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=3))
def test_literal_arguments_round_trip(arguments: list[bytes]) -> None:
    command = parse_line(b"a1 NOOP {%d}" % len(arguments[0]))
    for data, following in zip(arguments, [*arguments[1:], None], strict=True):
        assert isinstance(command, Unfinished)
        assert command.size == len(data)
        command = parse_continuation(command, data, b"" if following is None else b" {%d+}" % len(following))
    assert command == Command(b"a1", b"NOOP", arguments)


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\r\n", b"\r\nx\r\n"])
def test_plain_login_pattern_does_not_match_other_than_one_line(end: bytes) -> None:
    assert not PLAIN_LOGIN.fullmatch(b"a LOGIN j s" + end)
    assert PLAIN_LOGIN.fullmatch(b"a LOGIN j s\n")
