# SPDX-License-Identifier: Apache-2.0
"""One side of a relay: what it does not take is kept, in its order, and whose fault a break is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from mailproxy.loop.epoll import READ
from mailproxy.net.pipes import Pipe
from mailproxy.session.relay_socket import HELD, RelaySocket, SinkBroken
from mailproxy.telemetry.metrics import Counter

Both = tuple[RelaySocket, socket.socket]
BYTES = bytes(range(256)) * 4096


@pytest.fixture
def both() -> Iterator[Both]:
    """A side, and the peer that it is connected to."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    yield RelaySocket(near, near.fileno(), READ, Counter()), far
    near.close()
    far.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def heard(peer: socket.socket) -> bytes:
    """All that has arrived."""
    found = b""
    with suppress(BlockingIOError):
        while chunk := peer.recv(1 << 20):
            found += chunk
    return found


def fill(pipe: Pipe, data: bytes) -> int:
    pipe.holds = os.write(pipe.write, data)
    return pipe.holds


def test_what_fits_is_written_and_nothing_kept(both: Both) -> None:
    side, far = both
    side.write(b"little")
    side.write_from(memoryview(b"more"))
    assert heard(far) == b"littlemore"
    assert (side.is_behind, side.pending) == (False, b"")


def test_what_does_not_fit_waits_in_its_order(both: Both) -> None:
    side, far = both
    side.write(BYTES)
    assert side.is_behind
    assert 0 < len(side.pending) < len(BYTES)
    assert heard(far) + side.pending == BYTES


def test_of_what_does_not_fit_from_a_shared_buffer_no_more_waits_than_may_be_held(both: Both) -> None:
    side, far = both
    taken = side.write_from(memoryview(BYTES))
    assert side.is_behind
    assert 0 < len(side.pending) <= HELD
    assert heard(far) + side.pending == BYTES[:taken]


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_what_was_not_taken_is_read_again(family: socket.AddressFamily) -> None:
    if family == socket.AF_UNIX:
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
    near.setblocking(False)
    side = RelaySocket(near, near.fileno(), READ, Counter())
    assert side.most(1 << 20) == (HELD if family == socket.AF_UNIX else 1 << 20)
    far.sendall(b"bytes")
    view = memoryview(bytearray(16))
    while side.fill(view) != (6, False):
        pass
    side.took(view[:4])
    assert side.fill(view) == (2, False)
    assert bytes(view[:2]) == b"ts"
    side.took(view[:2])
    assert side.fill(view) == (0, False)
    far.close()
    near.close()


def test_what_waits_of_a_shared_buffer_is_a_copy(both: Both) -> None:
    side, _ = both
    buffer = bytearray(BYTES)
    side.write_from(memoryview(buffer))
    kept = side.pending
    buffer[:] = bytes(len(buffer))
    assert side.pending == kept
    assert kept in BYTES


def test_a_pipe_is_emptied_as_far_as_there_is_room(both: Both, pipe: Pipe) -> None:
    side, far = both
    data = BYTES[: fill(pipe, BYTES)]
    assert not side.out_of(pipe)
    assert 0 < pipe.holds < len(data)
    arrived = heard(far)
    for _ in range(1000):
        if side.out_of(pipe):
            break
        arrived += heard(far)
    assert arrived + heard(far) == data
    assert pipe.holds == 0


def test_bytes_go_into_a_pipe(both: Both, pipe: Pipe) -> None:
    side, far = both
    assert side.into(pipe) == -1
    far.sendall(b"bytes")
    assert side.into(pipe) == 6
    assert os.read(pipe.read, 100) == b"bytes"
    far.shutdown(socket.SHUT_WR)
    assert side.into(pipe) == 0


@pytest.mark.parametrize(
    ("said", "ends", "size", "filled"),
    [
        (b"", False, 8, (b"", False)),
        (b"bytes", False, 8, (b"bytes", False)),
        (b"bytes", False, 4, (b"octe", False)),
        (b"", True, 8, (b"", True)),
        (b"bytes", True, 8, (b"bytes", False)),  # the end is read next time
    ],
)
def test_a_buffer_is_filled_with_what_there_is(
    both: Both, said: bytes, ends: bool, size: int, filled: tuple[bytes, bool]
) -> None:
    side, far = both
    far.sendall(said)
    if ends:
        far.shutdown(socket.SHUT_WR)
    buffer = bytearray(size)
    count, has_ended = side.fill(memoryview(buffer))
    assert (bytes(buffer[:count]), has_ended) == filled


@pytest.mark.parametrize(
    "write",
    [
        lambda side, pipe: side.write(b"x"),
        lambda side, pipe: side.write_from(memoryview(b"x")),
        lambda side, pipe: side.out_of(pipe),
    ],
    ids=["bytes", "buffer", "pipe"],
)
def test_a_break_while_writing_is_the_sinks(
    both: Both, pipe: Pipe, write: Callable[[RelaySocket, Pipe], None]
) -> None:
    side, far = both
    fill(pipe, b"x")
    far.close()
    with pytest.raises(SinkBroken) as broken:
        write(side, pipe)
    assert broken.value.side is side
    assert str(broken.value) == ""
