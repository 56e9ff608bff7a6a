# SPDX-License-Identifier: Apache-2.0
"""Output of the log to descriptors: slow and closed readers lose lines, and no write blocks."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.telemetry.log_sinks import CAPACITY, CHUNK_SIZE, StreamSink

LINE = "x" * 99 + "\n"
FULL = CAPACITY // len(LINE)


class Reader:
    """The reading end of a pipe, and the descriptor of its writing end."""

    def __init__(self, fd: int, read: Callable[[], bytes], close: Callable[[], None]) -> None:
        self.fd = fd
        self.read = read
        self.close = close


def drained(fd: int) -> bytes:
    """Return what can be read now."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(fd, 1 << 20):
            data += more
    return data


@pytest.fixture(params=["pipe", "foreign pipe", "socket"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with ours, theirs:
            yield Reader(ours.fileno(), lambda: drained(theirs.fileno()), theirs.close)
        return
    out, into = os.pipe()
    os.set_blocking(out, False)
    with os.fdopen(out, "rb") as reads, os.fdopen(into, "wb") as writes, monkeypatch.context() as patch:
        if request.param == "foreign pipe":
            patch.setattr(os, "open", refused)
        yield Reader(writes.fileno(), lambda: drained(reads.fileno()), reads.close)


def refused(*_: object) -> int:
    raise PermissionError


@pytest.fixture
def sink(reader: Reader) -> Iterator[StreamSink]:
    sink = StreamSink(reader.fd)
    yield sink
    sink.close(0)


def test_lines_are_queued_until_flush(reader: Reader, sink: StreamSink) -> None:
    sink.put(["one\n"])
    sink.put([])
    sink.put(["two\n"])
    assert (reader.read(), sink.size) == (b"", 8)
    assert sink.flush()
    assert (reader.read(), sink.size) == (b"one\ntwo\n", 0)
    assert sink.flush()
    assert reader.read() == b""


def test_slow_reader_loses_lines_without_blocking(reader: Reader, sink: StreamSink) -> None:
    total = 3 * FULL
    assert fill(sink, total) > 0
    assert sink.dropped > 0
    assert sink.size <= CAPACITY
    assert not sink.flush()

    received = b""
    while not sink.flush():
        received += reader.read()
    received += reader.read()
    assert received.decode().splitlines(keepends=True) == [LINE] * (total - sink.dropped)
    assert sink.size == 0


def fill(sink: StreamSink, lines: int) -> int:
    """Queue lines and flush at times; returns the number of incomplete flushes."""
    stuck = 0
    for number in range(lines):
        sink.put([LINE])
        if number % 50 == 0:
            stuck += not sink.flush()
    return stuck


def test_closed_reader_loses_lines_without_error(reader: Reader, sink: StreamSink) -> None:
    reader.close()
    sink.put([LINE])
    sink.put([LINE])
    assert not sink.flush()
    assert (sink.dropped, sink.size) == (2, 0)
    sink.put([LINE])
    assert not sink.flush()
    assert sink.dropped == 3


@pytest.mark.parametrize("may_open", [True, False])
def test_terminal_stays_blocking(may_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, terminal = pty.openpty()
    with os.fdopen(screen, "rb", buffering=0) as sees, os.fdopen(terminal, "wb", buffering=0) as shell:
        tty.setraw(shell.fileno())
        if not may_open:
            monkeypatch.setattr(os, "open", refused)
        sink = StreamSink(shell.fileno())
        sink.put([LINE])
        assert sink.flush()
        assert sees.read(len(LINE)) == LINE.encode()
        fill(sink, 2 * FULL)
        assert sink.dropped > 0
        assert os.get_blocking(shell.fileno())
        sink.close(0)


def test_inherited_pipe_stays_blocking() -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering=0) as reads, os.fdopen(into, "wb", buffering=0) as writes:
        sink = StreamSink(writes.fileno())
        sink.put([LINE])
        sink.close(1)
        assert os.get_blocking(writes.fileno())
        assert reads.read(len(LINE)) == LINE.encode()


def test_close_has_a_timeout(reader: Reader, sink: StreamSink) -> None:
    fill(sink, 2 * FULL)
    sink.close(0.01)
    assert sink.size > 0


def test_close_writes_queued_lines(reader: Reader, sink: StreamSink) -> None:
    sink.put([LINE])
    sink.close(1)
    assert reader.read() == LINE.encode()


def test_nothing_is_written_after_closing(reader: Reader, sink: StreamSink) -> None:
    sink.close(0)
    sink.put([LINE])
    assert not sink.flush()
    assert (reader.read(), sink.dropped) == (b"", 1)


def test_full_queue_counts_dropped_lines(reader: Reader, sink: StreamSink) -> None:
    for _ in range(FULL + 5):
        sink.put([LINE])
    assert (sink.dropped, sink.size) == (5, FULL * len(LINE))


def test_put_takes_as_many_lines_as_fit(reader: Reader, sink: StreamSink) -> None:
    del reader
    sink.put([LINE] * (FULL - 1))
    room = CAPACITY - sink.size
    longer, shorter = "x" * room + "\n", "x" * 9 + "\n"
    sink.put([longer, shorter, longer, shorter])
    assert (sink.dropped, sink.size) == (2, (FULL - 1) * len(LINE) + 2 * len(shorter))


def test_queued_lines_of_closed_reader_are_counted(reader: Reader, sink: StreamSink) -> None:
    batches = 5 * [FULL // 10 * [LINE]]
    for lines in batches:
        sink.put(lines)
        sink.flush()
    sink.put([LINE])
    total = sum(map(len, batches)) + 1
    written = total * len(LINE) - sink.size
    assert 0 < written < len(LINE) * FULL // 2
    reader.close()
    assert not sink.flush()
    assert (sink.dropped, sink.size) == (total - written // len(LINE), 0)


@given(st.lists(st.lists(st.integers(0, CHUNK_SIZE - 1), max_size=60), max_size=9))
def test_every_line_arrives_in_order_or_is_counted(batches: list[list[int]]) -> None:
    out, into = os.pipe()
    os.set_blocking(out, False)
    with os.fdopen(out, "rb", buffering=0) as reads, os.fdopen(into, "wb", buffering=0) as writes:
        sink = StreamSink(writes.fileno())
        put: list[str] = []
        received = b""
        for number, sizes in enumerate(batches):
            lines = [f"{len(put) + at}".rjust(size, "x") + "\n" for at, size in enumerate(sizes)]
            put += lines
            sink.put(lines)
            sink.flush()
            received += drained(reads.fileno()) if number % 3 == 2 else b""
        while not sink.flush():
            received += drained(reads.fileno())
        received += drained(reads.fileno())
        sink.close(0)
    arrived = received.decode().splitlines(keepends=True)
    rest = iter(put)
    assert all(line in rest for line in arrived)  # each is searched after the previous one
    assert (len(put) - len(arrived), sink.size) == (sink.dropped, 0)


def test_chunks_are_whole_lines_up_to_pipe_buf() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # one message per write
    with ours, theirs:
        sink = StreamSink(ours.fileno())
        for size in (100, 4000, 90, 7, CHUNK_SIZE, CHUNK_SIZE + 1, 5):
            sink.put(["x" * (size - 1) + "\n"])
        sink.close(1)
        assert [len(theirs.recv(1 << 16)) for _ in range(6)] == [100, 4090, 7, CHUNK_SIZE, CHUNK_SIZE + 1, 5]


def test_a_file_is_written_like_any_other(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        sink = StreamSink(file.fileno())
        for _ in range(FULL):
            sink.put([LINE])
        assert sink.flush()
        sink.close(0)
    assert (tmp_path / "log").read_text() == LINE * FULL
