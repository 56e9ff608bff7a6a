# SPDX-License-Identifier: Apache-2.0
"""Lingering close: the last reply arrives although the peer still sends, and nothing lingers for long."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy.context import WorkerContext
from mailproxy.loop.epoll import READ
from mailproxy.loop.worker_loop import make_loop
from mailproxy.session import lingering_close as lingering_close_module
from mailproxy.session.lingering_close import LINGER_BYTES, LingeringClose, end_writing, lingering_close
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from support import tls_peers
from support.tls_authority import Authority
from support.tls_peers import client_context, server_tls

TlsPair = tuple[socket.socket, socket.socket]


@pytest.fixture
def context() -> Iterator[WorkerContext]:
    loop = make_loop()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    log = Log(nowhere)
    yield WorkerContext(loop, loop.epoll, log=log, metrics=WorkerMetrics())
    log.close()
    os.close(nowhere)
    loop.close()


@pytest.fixture
def pair(context: WorkerContext) -> Iterator[TlsPair]:
    """Pair sockets of a TCP connection; the handler of ours must not be called."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    far.settimeout(5)
    context.epoll.add(near.fileno(), Unused(), READ)
    yield near, far
    near.close()
    far.close()


class Unused:
    def on_event(self, mask: int) -> None:
        raise AssertionError(mask)


def run_until_closed(context: WorkerContext) -> None:
    """Run the loop until nothing lingers; for 5 s at most."""
    for _ in range(500):
        if not context.lingering:
            return
        context.epoll.serve(0.01)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_last_reply_arrives_although_the_peer_still_sends(context: WorkerContext, pair: TlsPair) -> None:
    near, far = pair
    far.sendall(b"x" * 10_000)
    near.send(b"bye")
    lingering_close(context, near, near.fileno())
    far.sendall(b"more")
    context.epoll.serve(0)
    assert far.recv(100) == b"bye"
    assert far.recv(100) == b""
    assert len(context.lingering) == 1
    far.close()
    run_until_closed(context)
    assert not context.lingering
    assert near.fileno() == -1


def test_connection_is_closed_at_once_when_the_peer_has_closed(context: WorkerContext, pair: TlsPair) -> None:
    near, far = pair
    far.shutdown(socket.SHUT_WR)
    lingering_close(context, near, near.fileno())
    assert not context.lingering
    context.epoll.serve(0)
    assert near.fileno() == -1


def sends_on(closing: LingeringClose, far: socket.socket) -> None:
    for _ in range(LINGER_BYTES // 4096):
        far.sendall(b"x" * 4096)
        closing.on_event(READ)


@pytest.mark.parametrize(
    "happens",
    [
        lambda closing, far: far.close(),
        lambda closing, far: reset(far),
        lambda closing, far: closing.abort(),
        lambda closing, far: closing.on_timeout(),
        sends_on,
    ],
    ids=["closes", "resets", "abort", "timeout", "limit"],
)
def test_lingering_close_ends(
    context: WorkerContext, pair: TlsPair, happens: Callable[[LingeringClose, socket.socket], None]
) -> None:
    near, far = pair
    lingering_close(context, near, near.fileno())
    (closing,) = context.lingering
    assert isinstance(closing, LingeringClose)
    assert context.timers.waiting() == [closing]
    happens(closing, far)
    run_until_closed(context)
    context.epoll.serve(0)
    assert near.fileno() == -1
    assert not context.lingering
    assert context.timers.waiting() == []
    closing.abort()  # a second time changes nothing
    assert closing.fd == -1


def test_drain_does_not_end_a_lingering_close(context: WorkerContext, pair: TlsPair) -> None:
    near, _ = pair
    lingering_close(context, near, near.fileno())
    (closing,) = context.lingering
    closing.drain()
    assert context.lingering == {closing}
    closing.abort()


def test_number_of_lingering_connections_is_limited(
    context: WorkerContext, pair: TlsPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering_close_module, "MAX_LINGERING", 0)
    near, far = pair
    near.send(b"bye")
    lingering_close(context, near, near.fileno())
    assert not context.lingering
    context.epoll.serve(0)
    assert near.fileno() == -1
    assert far.recv(100) == b"bye"


def test_end_writing_leaves_reading_possible(pair: TlsPair) -> None:
    near, far = pair
    end_writing(near)
    assert far.recv(1) == b""
    far.send(b"more")
    assert near.recv(10) == b"more"


def test_end_writing_on_a_broken_connection_raises_nothing(pair: TlsPair) -> None:
    near, far = pair
    reset(far)
    end_writing(near)
    end_writing(near)
    near.close()
    end_writing(near)
    assert near.fileno() == -1


def test_end_writing_with_tls_sends_close_notify_and_fin(tmp_path: Path) -> None:
    """The close_notify cannot be forged on the way; the FIN is the same as without TLS."""
    peers = tls_peers.TlsPair(server_tls(Authority(tmp_path).issue()), client_context())
    peers.handshake()
    assert peers.send_to_client(b"bye") == b"bye"
    end_writing(peers.server)
    plain = peers.client.unwrap()  # raises where there is no close_notify
    assert plain.recv(1) == b""
    plain.close()
    peers.close()
