# SPDX-License-Identifier: Apache-2.0
"""``LineReader``: lines and literals from a buffer of limited size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.errors import LineTooLong, PeerClosed
from mailproxy.protocols.sansio import LineReader
from support.generator_driver import drive, limits

ONE_LINE = pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"NOOP\r\n", b"NOOP"),
        (b"NOOP\n", b"NOOP"),
        (b"\r\n", b""),
        (b"\n", b""),
        (b"NO\rOP\r\n", b"NO\rOP"),  # a bare CR is passed to the caller
        (b"NOOP\r\r\n", b"NOOP\r"),
        (b"\0\xff\n", b"\0\xff"),
    ],
)


@ONE_LINE
def test_read_line_strips_line_end(raw: bytes, line: bytes) -> None:
    assert drive(LineReader(64).read_line(), raw).result == line


def test_full_buffer_without_line_end_is_too_long() -> None:
    reader = LineReader(4)
    with pytest.raises(LineTooLong):
        drive(reader.read_line(), b"abcd")


def test_continuation_lines_add_to_consumed() -> None:
    reader = LineReader(64)
    drive(reader.read_line(), b"a {3}\r\n")
    drive(reader.read_exactly(3), b"abc {2}\r\nde\r\n")
    assert reader.consumed == 7 + 3
    drive(reader.read_line(54))
    assert reader.consumed == 7 + 3 + 6
    drive(reader.read_exactly(2))
    drive(reader.read_line(46))
    assert reader.consumed == 7 + 3 + 6 + 2 + 2
    assert reader.buffered == b""
    drive(reader.read_line(), b"b\r\n")
    assert reader.consumed == 3


def test_buffered_lines_are_returned_without_receive() -> None:
    reader = LineReader(64)
    assert drive(reader.read_line(), b"one\r\ntwo\nthr").result == b"one"
    assert drive(reader.read_line()).result == b"two"
    assert drive(reader.read_line(), b"ee\n").result == b"three"
    assert reader.consumed == len(b"three\n")


def test_line_in_pieces_is_joined() -> None:
    driven = drive(LineReader(8).read_line(), b"a", b"b", b"\r", b"\n")
    assert driven.result == b"ab"
    assert limits(driven) == [8, 7, 6, 5]


def test_limit_includes_line_end() -> None:
    assert drive(LineReader(4).read_line(), b"ab\r\n").result == b"ab"
    with pytest.raises(LineTooLong) as caught:
        drive(LineReader(4).read_line(), b"abc\r")
    assert caught.value.seen == b"abc\r"
    assert "4 bytes" in str(caught.value)
    assert "abc" not in str(caught.value)


def test_limit_applies_to_each_line() -> None:
    reader = LineReader(4)
    assert drive(reader.read_line(), b"a\nb\n").result == b"a"
    assert drive(reader.read_line()).result == b"b"
    assert drive(reader.read_line(), b"cd\r\n").result == b"cd"


def test_incomplete_line_moves_to_start_of_buffer() -> None:
    reader = LineReader(4)
    drive(reader.read_line(), b"a\nbc")
    driven = drive(reader.read_line(), b"\r\n")
    assert driven.result == b"bc"
    assert limits(driven) == [2]


@pytest.mark.parametrize(
    ("limit", "raw"),
    [
        (3, b"abc\n"),  # the line end is the fourth byte
        (0, b""),
        (-1, b""),
    ],
)
def test_lower_limit_than_buffer_applies(limit: int, raw: bytes) -> None:
    with pytest.raises(LineTooLong):
        drive(LineReader(64).read_line(limit), *filter(None, [raw]))


def test_higher_limit_than_buffer_is_ignored() -> None:
    with pytest.raises(LineTooLong):
        drive(LineReader(2).read_line(100), b"ab")


def test_short_line_within_lower_limit_leaves_rest() -> None:
    reader = LineReader(64)
    assert drive(reader.read_line(4), b"ab\r\nmuch more than four").result == b"ab"
    assert reader.take_unread() == b"much more than four"


def test_read_exactly_returns_any_bytes() -> None:
    reader = LineReader(16)
    drive(reader.read_line(), b"x\nab")
    driven = drive(reader.read_exactly(5), b"\n", b"\r\0tail\n")
    assert driven.result == b"ab\n\r\0"
    assert limits(driven) == [14, 13]
    assert reader.consumed == len(b"x\nabxxx")
    assert drive(reader.read_line()).result == b"tail"


def test_read_exactly_uses_buffer_first() -> None:
    reader = LineReader(16)
    drive(reader.read_line(), b"x\nabcd")
    assert drive(reader.read_exactly(4)).result == b"abcd"
    assert drive(reader.read_exactly(0)).result == b""
    assert drive(reader.read_line(), b"y\n").result == b"y"


def test_read_exactly_above_limit_receives_nothing() -> None:
    reader = LineReader(16)
    drive(reader.read_line(), b"x\nab")
    with pytest.raises(LineTooLong) as caught:
        drive(reader.read_exactly(17))
    assert caught.value.seen == b"ab"


def test_take_unread_empties_buffer() -> None:
    reader = LineReader(64)
    drive(reader.read_line(), b"one\r\ntwo")
    assert reader.take_unread() == b"two"
    assert reader.take_unread() == b""
    assert drive(reader.read_line(), b"new\n").result == b"new"


def test_buffered_lines_are_read_after_disconnect() -> None:
    reader = LineReader(64)
    drive(reader.read_line(), b"one\ntwo\nthr")
    assert drive(reader.read_line()).result == b"two"
    with pytest.raises(PeerClosed):
        drive(reader.read_line(), PeerClosed())
    assert reader.take_unread() == b"thr"


@given(st.lists(st.binary(max_size=6), max_size=8), st.data())
def test_result_does_not_depend_on_chunks(lines: list[bytes], data: st.DataObject) -> None:
    lines = [line.replace(b"\n", b".").rstrip(b"\r") for line in lines]
    stream = b"".join(line + b"\r\n" for line in lines)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))) | {0, len(stream)})
    pieces = [piece for a, b in pairwise(cuts) if (piece := stream[a:b])]
    reader = LineReader(8)
    read = []
    for _ in lines:
        generator = reader.read_line()
        answer: bytes | None = None
        try:
            while True:
                effect = generator.send(answer)
                room = getattr(effect, "limit", 0)
                assert 0 < room <= 8
                answer, pieces[:1] = pieces[0][:room], filter(None, [pieces[0][room:]])
        except StopIteration as end:
            read.append((end.value, reader.consumed))
    assert read == [(line, len(line) + 2) for line in lines]
