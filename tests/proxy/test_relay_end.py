# SPDX-License-Identifier: Apache-2.0
"""One end of a relay: what its peer does not accept is held in order, and write errors name their end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from mailproxy.loop.epoll import READ
from mailproxy.net.pipes import Pipe
from mailproxy.session.relay_end import MAX_PENDING, RelayEnd, WriteFailed
from mailproxy.telemetry.metrics import Counter

Pair = tuple[RelayEnd, socket.socket]
BYTES = bytes(range(256)) * 4096


@pytest.fixture
def pair() -> Iterator[Pair]:
    """An end, and its peer."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    yield RelayEnd(near, near.fileno(), READ, Counter()), far
    near.close()
    far.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def received(peer: socket.socket) -> bytes:
    """All that has arrived."""
    found = b""
    with suppress(BlockingIOError):
        while chunk := peer.recv(1 << 20):
            found += chunk
    return found


def fill(pipe: Pipe, data: bytes) -> int:
    pipe.holds = os.write(pipe.write, data)
    return pipe.holds


def test_accepted_bytes_are_not_held(pair: Pair) -> None:
    end, far = pair
    end.write(b"little")
    end.write_from(memoryview(b"more"))
    assert received(far) == b"littlemore"
    assert (end.has_unsent, end.pending) == (False, b"")


def test_unaccepted_bytes_are_held_in_order(pair: Pair) -> None:
    end, far = pair
    end.write(BYTES)
    assert end.has_unsent
    assert 0 < len(end.pending) < len(BYTES)
    assert received(far) + end.pending == BYTES


def test_at_most_max_pending_bytes_of_a_shared_buffer_are_held(pair: Pair) -> None:
    end, far = pair
    taken = end.write_from(memoryview(BYTES))
    assert end.has_unsent
    assert 0 < len(end.pending) <= MAX_PENDING
    assert received(far) + end.pending == BYTES[:taken]


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_bytes_that_were_not_consumed_are_read_again(family: socket.AddressFamily) -> None:
    if family == socket.AF_UNIX:
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
    near.setblocking(False)
    end = RelayEnd(near, near.fileno(), READ, Counter())
    far.sendall(b"abcdef")
    view = memoryview(bytearray(16))
    while end.read_into(view) != (6, False):
        pass
    end.consume(view[:4])
    assert end.read_into(view) == (2, False)
    assert bytes(view[:2]) == b"ef"
    end.consume(view[:2])
    assert end.read_into(view) == (0, False)
    far.close()
    near.close()


def test_held_bytes_of_a_shared_buffer_are_a_copy(pair: Pair) -> None:
    end, _ = pair
    buffer = bytearray(BYTES)
    end.write_from(memoryview(buffer))
    kept = end.pending
    buffer[:] = bytes(len(buffer))
    assert end.pending == kept
    assert kept in BYTES


def test_pipe_is_emptied_as_far_as_the_kernel_accepts(pair: Pair, pipe: Pipe) -> None:
    end, far = pair
    data = BYTES[: fill(pipe, BYTES)]
    assert not end.splice_from(pipe)
    assert 0 < pipe.holds < len(data)
    arrived = received(far)
    for _ in range(1000):
        if end.splice_from(pipe):
            break
        arrived += received(far)
    assert arrived + received(far) == data
    assert pipe.holds == 0


def test_received_bytes_are_moved_into_a_pipe(pair: Pair, pipe: Pipe) -> None:
    end, far = pair
    assert end.splice_into(pipe) == -1
    far.sendall(b"abcdef")
    assert end.splice_into(pipe) == 6
    assert os.read(pipe.read, 100) == b"abcdef"
    far.shutdown(socket.SHUT_WR)
    assert end.splice_into(pipe) == 0


@pytest.mark.parametrize(
    ("sent", "closes", "size", "expected"),
    [
        (b"", False, 8, (b"", False)),
        (b"abcdef", False, 8, (b"abcdef", False)),
        (b"abcdef", False, 4, (b"abcd", False)),
        (b"", True, 8, (b"", True)),
        (b"abcdef", True, 8, (b"abcdef", False)),  # the end is read next time
    ],
)
def test_buffer_is_filled_with_what_was_received(
    pair: Pair, sent: bytes, closes: bool, size: int, expected: tuple[bytes, bool]
) -> None:
    end, far = pair
    far.sendall(sent)
    if closes:
        far.shutdown(socket.SHUT_WR)
    buffer = bytearray(size)
    count, is_eof = end.read_into(memoryview(buffer))
    assert (bytes(buffer[:count]), is_eof) == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda end, pipe: end.write(b"x"),
        lambda end, pipe: end.write_from(memoryview(b"x")),
        lambda end, pipe: end.splice_from(pipe),
    ],
    ids=["bytes", "buffer", "pipe"],
)
def test_write_error_names_the_end_that_was_written(
    pair: Pair, pipe: Pipe, write: Callable[[RelayEnd, Pipe], None]
) -> None:
    end, far = pair
    fill(pipe, b"x")
    far.close()
    with pytest.raises(WriteFailed) as broken:
        write(end, pipe)
    assert broken.value.end is end
    assert str(broken.value) == ""
