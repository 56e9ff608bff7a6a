# SPDX-License-Identifier: Apache-2.0
"""Finding the end of a response's body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.response_body import (
    LAST_CHUNK,
    MAX_BODY,
    MAX_CHUNK_LINE,
    MAX_TRAILER,
    BadBody,
    BodyFraming,
    ChunkedBody,
    SizedBody,
    body_of,
)

WHOLE = [
    LAST_CHUNK,
    b"000\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"a\r\n0123456789\r\n0\r\n\r\n",
    b"A;name=value\r\n0123456789\r\n0;last\r\n\r\n",
    b'1 ; quoted="x y"\r\n\n\r\n0\r\n\r\n',
    b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",  # data that looks like the last chunk
    b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
    b"1\r\na\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
]


@pytest.mark.parametrize("body", WHOLE)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_end_of_body_is_found_in_pieces_of_any_size(body: bytes, size: int) -> None:
    chunks = ChunkedBody()
    for at in range(0, len(body), size):
        assert not chunks.is_complete
        piece = body[at : at + size]
        assert chunks.feed(piece) == len(piece)
    assert chunks.is_complete


@pytest.mark.parametrize("body", WHOLE)
def test_bytes_after_the_end_do_not_belong_to_the_body(body: bytes) -> None:
    for cut in range(len(body)):
        chunks = ChunkedBody()
        assert chunks.feed(body[:cut]) == cut
        assert chunks.feed(body[cut:] + b"HTTP/1.1 200 OK\r\n") == len(body) - cut
        assert chunks.is_complete


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1\n",
        b"1\r\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\rb",
        b"1\r\naa",
        b"0\r\n\n",
        b"0\r\n\x00: x\r\n\r\n",
        b"1\rx\r\n",
        b"1;\x01\r\n",
        b"1 x\r\n",
        b"123456789\r\n",
        b"ffffffff\r\n",
        b"%x\r\n" % (MAX_BODY + 1),
        b"1;" + b"x" * MAX_CHUNK_LINE,
        b"1;" + b"x" * MAX_CHUNK_LINE + b"\r\n",
        b"0\r\n" + b"x" * (MAX_TRAILER + 1),
        b"0\r\n" + b"x: y\r\n" * (MAX_TRAILER // 6 + 1),
        b"1\r\na\r\n" * (MAX_BODY // 6 + 1),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_body_without_a_certain_end_is_refused(body: bytes, size: int) -> None:
    chunks = ChunkedBody()
    with pytest.raises(BadBody):
        _feed(chunks, body, size)
    assert not chunks.is_complete


def _feed(chunks: ChunkedBody, body: bytes, size: int) -> None:
    for at in range(0, len(body), size):
        chunks.feed(body[at : at + size])


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.lists(st.integers(1, 30)), st.binary())
def test_chunked_body_with_any_data_in_any_pieces(parts: list[bytes], cuts: list[int], behind: bytes) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + LAST_CHUNK
    stream, chunks, taken = body + behind, ChunkedBody(), 0
    while not chunks.is_complete:
        size = cuts.pop() if cuts else len(stream)
        taken += chunks.feed(stream[taken : taken + size])
    assert taken == len(body)


@pytest.mark.parametrize("length", [0, 1, 10])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_body_of_known_length(length: int, size: int) -> None:
    body, stream, taken = SizedBody(length), b"x" * length + b"HTTP/1.1", 0
    while not body.is_complete:
        taken += body.feed(stream[taken : taken + size])
    assert taken == length


@pytest.mark.parametrize(
    ("framing", "kind"),
    [
        (BodyFraming(length=5), SizedBody),
        (BodyFraming(chunked=True), ChunkedBody),
        (BodyFraming(length=MAX_BODY + 1), type(None)),
        (BodyFraming(until_close=True), type(None)),
    ],
)
def test_body_that_is_too_long_or_ends_with_its_connection_is_not_skipped(
    framing: BodyFraming, kind: type
) -> None:
    assert type(body_of(framing)) is kind
