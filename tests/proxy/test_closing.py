# SPDX-License-Identifier: Apache-2.0
"""Leaving: the last word arrives, and who still talks is heard out for a bounded while."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy import closing
from mailproxy.app import make_loop
from mailproxy.closing import LINGER_BYTES, LingeringClose, close_now, end_writing, lingering_close
from mailproxy.context import WorkerContext
from mailproxy.loop.epoll import READ
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from support.tls_authority import Authority
from support.tls_peers import Pair, client_of, tls_of

Both = tuple[socket.socket, socket.socket]


@pytest.fixture
def engine() -> Iterator[WorkerContext]:
    loop = make_loop()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    log = Log(nowhere)
    yield WorkerContext(loop, loop.reactor, log=log, metrics=WorkerMetrics())
    log.close()
    os.close(nowhere)
    loop.close()


@pytest.fixture
def both(engine: WorkerContext) -> Iterator[Both]:
    """Our side of a TCP connection, served by a handler that is asked for nothing, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    far.settimeout(5)
    engine.reactor.add(near.fileno(), Unasked(), READ)
    yield near, far
    near.close()
    far.close()


class Unasked:
    def on_event(self, mask: int) -> None:
        raise AssertionError(mask)


def settle(engine: WorkerContext) -> None:
    """Serve until nobody lingers; not for ever."""
    for _ in range(500):
        if not engine.lingering:
            return
        engine.reactor.select(0.01)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_closing_at_once_leaves_nothing(engine: WorkerContext, both: Both) -> None:
    near, far = both
    fd = near.fileno()
    close_now(engine, near, fd)
    assert near.fileno() == fd  # nobody gets this number before the turn has ended
    engine.reactor.select(0)
    assert far.recv(1) == b""
    assert near.fileno() == -1
    assert fd not in engine.reactor._handlers
    assert not engine.lingering


def test_the_last_word_arrives_although_the_peer_still_talks(engine: WorkerContext, both: Both) -> None:
    near, far = both
    far.sendall(b"x" * 10_000)
    near.send(b"bye")
    lingering_close(engine, near, near.fileno())
    far.sendall(b"more")
    engine.reactor.select(0)
    assert far.recv(100) == b"bye"
    assert far.recv(100) == b""
    assert len(engine.lingering) == 1
    far.close()
    settle(engine)
    assert not engine.lingering
    assert near.fileno() == -1


def test_a_peer_that_has_ended_is_not_waited_for(engine: WorkerContext, both: Both) -> None:
    near, far = both
    far.shutdown(socket.SHUT_WR)
    lingering_close(engine, near, near.fileno())
    assert not engine.lingering
    engine.reactor.select(0)
    assert near.fileno() == -1


def talks_on(lingerer: LingeringClose, far: socket.socket) -> None:
    for _ in range(LINGER_BYTES // 4096):
        far.sendall(b"x" * 4096)
        lingerer.on_event(READ)


@pytest.mark.parametrize(
    "happens",
    [
        lambda lingerer, far: far.close(),
        lambda lingerer, far: reset(far),
        lambda lingerer, far: lingerer.cut(),
        lambda lingerer, far: lingerer.on_timeout(),
        talks_on,
    ],
    ids=["closes", "resets", "cut", "too late", "too much"],
)
def test_lingering_ends(
    engine: WorkerContext, both: Both, happens: Callable[[LingeringClose, socket.socket], None]
) -> None:
    near, far = both
    lingering_close(engine, near, near.fileno())
    (lingerer,) = engine.lingering
    assert isinstance(lingerer, LingeringClose)
    assert engine.timers.waiting() == [lingerer]
    happens(lingerer, far)
    settle(engine)
    engine.reactor.select(0)
    assert near.fileno() == -1
    assert not engine.lingering
    assert engine.timers.waiting() == []
    assert engine.reactor._handlers == {}
    lingerer.cut()  # a second time changes nothing
    assert lingerer.fd == -1


def test_a_goodbye_is_no_reason_to_stop_lingering(engine: WorkerContext, both: Both) -> None:
    near, _ = both
    lingering_close(engine, near, near.fileno())
    (lingerer,) = engine.lingering
    lingerer.say_goodbye()
    assert engine.lingering == {lingerer}
    lingerer.cut()


def test_only_so_many_linger(engine: WorkerContext, both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGERING_AT_MOST", 0)
    near, far = both
    near.send(b"bye")
    lingering_close(engine, near, near.fileno())
    assert not engine.lingering
    engine.reactor.select(0)
    assert near.fileno() == -1
    assert far.recv(100) == b"bye"


def test_who_has_ended_writing_can_still_read(both: Both) -> None:
    near, far = both
    end_writing(near)
    assert far.recv(1) == b""
    far.send(b"heard")
    assert near.recv(10) == b"heard"


def test_ending_a_connection_that_is_gone_says_nothing(both: Both) -> None:
    near, far = both
    reset(far)
    end_writing(near)
    end_writing(near)
    near.close()
    end_writing(near)
    assert near.fileno() == -1


def test_under_tls_the_end_is_told_twice(tmp_path: Path) -> None:
    """By close_notify, which nobody on the way can say in our name, and then as without TLS."""
    pair = Pair(tls_of(Authority(tmp_path).issue()), client_of())
    pair.shake()
    assert pair.tell(b"bye") == b"bye"
    end_writing(pair.ours)
    plain = pair.client.unwrap()  # raises where there is no close_notify
    assert plain.recv(1) == b""
    plain.close()
    pair.close()
