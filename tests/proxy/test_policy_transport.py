# SPDX-License-Identifier: Apache-2.0
"""The transport of connections to a policy server without TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mailproxy.loop.epoll import Epoll
from mailproxy.policy.policy_connection import PolicyConnection
from mailproxy.policy.policy_transport import EpollTransport


class Recorder(asyncio.Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


class World:
    """A transport, and the socket of its peer."""

    def __init__(self) -> None:
        self.epoll = Epoll()
        self.peer, sock = socket.socketpair()
        sock.setblocking(False)
        self.protocol = Recorder()
        self.transport = EpollTransport(self.epoll, sock, self.protocol)

    def iterate(self) -> None:
        self.epoll.serve(0)


@pytest.fixture
def world() -> Iterator[World]:
    found = World()
    yield found
    found.transport.abort()
    found.epoll.close()
    found.peer.close()


def test_bytes_are_sent_and_received(world: World) -> None:
    world.transport.write(b"request")
    assert world.peer.recv(100) == b"request"
    world.peer.sendall(b"response")
    world.iterate()
    assert (world.protocol.received, world.protocol.ends) == (b"response", [])


def test_what_the_kernel_does_not_accept_is_sent_later(world: World) -> None:
    data = bytes(range(256)) * 8192
    world.transport.write(data)
    world.transport.write(b"and more")
    world.peer.setblocking(False)
    received = b""
    while len(received) < len(data) + 8:
        try:
            received += world.peer.recv(1 << 20)
        except BlockingIOError:
            world.iterate()
    assert received == data + b"and more"
    world.peer.sendall(b"x")
    world.iterate()
    assert world.protocol.received == b"x"


def test_end_of_the_stream_ends_the_connection_once(world: World) -> None:
    world.peer.close()
    world.iterate()
    world.transport.abort()
    world.epoll.run_deferred()
    assert world.protocol.ends == [None]
    world.transport.write(b"ignored")


def test_reset_ends_the_connection_with_an_error(world: World) -> None:
    world.peer.close()
    world.transport.write(b"x")
    world.epoll.run_deferred()
    [error] = world.protocol.ends
    assert isinstance(error, OSError)


def test_abort_ends_the_connection_at_the_end_of_the_iteration(world: World) -> None:
    world.transport.abort()
    assert world.protocol.ends == []
    world.epoll.run_deferred()
    assert world.protocol.ends == [None]
    world.transport.abort()
    world.epoll.run_deferred()
    assert world.protocol.ends == [None]


def test_internal_error_ends_the_connection(world: World) -> None:
    world.transport.on_internal_error()
    [error] = world.protocol.ends
    assert isinstance(error, ConnectionAbortedError)
    world.transport.force_close()
    world.epoll.run_deferred()
    assert world.peer.recv(1) == b""


def test_connection_stays_usable_when_epoll_does_not_take_it() -> None:
    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            loop = asyncio.get_running_loop()
            address = listener.getsockname()
            epoll = Epoll()
            closed: list[PolicyConnection] = []
            client = SimpleNamespace(on_closed=closed.append)
            connection = PolicyConnection(client)  # type: ignore[arg-type]
            transport, _ = await loop.create_connection(lambda: connection, *address)
            epoll.kernel.close()  # registering fails
            with pytest.raises(ValueError, match="closed epoll"):
                connection.leave_asyncio(epoll)
            assert not transport.is_closing()
            assert not any(epoll.handlers)
            connection.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert closed == [connection]

    asyncio.run(play())
