# SPDX-License-Identifier: Apache-2.0
"""The relay: every byte in both directions, whatever the sizes, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket

import pytest

from mailproxy.session.relay import Relay
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, Seconds, ServerConfig
from support.checked_worker import open_relay
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run

GRANTED = http_response(GRANT)


def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,), proxy_timeout=Seconds(30.0))


def impatient(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,), proxy_timeout=Seconds(0.3))


@pytest.mark.parametrize("size", [1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 300_000, 20_000_000])
def test_relay_copies_every_byte_in_both_directions(size: int) -> None:
    data = random.Random(size).randbytes(size)

    async def send(peer: Peer) -> None:
        await peer.send(data)

    async def receive(peer: Peer) -> bytes:
        return hashlib.sha256(await peer.read_bytes(size)).digest()

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            async with asyncio.TaskGroup() as group:
                group.create_task(send(client))
                group.create_task(send(upstream))
                down = group.create_task(receive(client))
                up = group.create_task(receive(upstream))
            assert down.result() == up.result() == hashlib.sha256(data).digest()
            assert w.value("mailproxy_relayed_bytes_total", "pop3", "to_client") == size
            assert w.value("mailproxy_relayed_bytes_total", "pop3", "to_upstream") == size
            client.close()
            upstream.close()

    run(play)


def bound_the_kernel(w: LoopbackWorker, client: Peer, upstream: Peer) -> None:
    """Limit the socket buffers on the way; by default kernels buffer tens of megabytes."""
    (relay,) = w.app.context.live
    assert isinstance(relay, Relay)
    ends = [relay.client.sock, relay.upstream.sock]
    for sock in (*ends, *(peer.writer.get_extra_info("socket") for peer in (client, upstream))):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)


def test_relay_stops_reading_while_the_other_side_does_not_read() -> None:
    data = random.Random(7).randbytes(10_000_000)

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            bound_the_kernel(w, client, upstream)
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(upstream.send(data))
                await asyncio.sleep(0.3)
                assert not sending.done()
                assert await client.read_bytes(len(data)) == data
            client.close()
            upstream.close()

    run(play)


def test_last_bytes_of_upstream_arrive_before_close() -> None:
    data = random.Random(9).randbytes(5_000_000)

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            upstream.writer.write(data)
            upstream.writer.write_eof()
            await asyncio.sleep(0.2)
            assert await client.read_to_eof() == data
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_connections_closed_total", "pop3", "pop3", "upstream_closed") == 1
            upstream.close()

    run(play)


def test_half_closed_client_gets_the_response() -> None:
    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            client.writer.write(b"QUIT\r\n")
            client.writer.write_eof()
            assert await upstream.read_to_eof() == b"QUIT\r\n"
            await upstream.send(b"+OK bye\r\n")
            upstream.close()
            assert await client.read_to_eof() == b"+OK bye\r\n"
            client.close()
            await w.wait_for_sessions()
            assert w.value("mailproxy_connections_closed_total", "pop3", "pop3", "client_closed") == 1

    run(play)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_reset_closes_both_sides(side: str) -> None:
    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            inject_fault, other = (client, upstream) if side == "client" else (upstream, client)
            inject_fault.reset()
            assert await other.read_to_eof() == b""
            await w.wait_for_sessions()
            other.close()

    run(play)


def test_idle_relay_is_closed_after_proxy_timeout() -> None:
    async def play() -> None:
        async with loopback_worker(impatient, GRANTED) as w:
            client, upstream = await open_relay(w)
            assert await client.read_to_eof() == b""
            assert await upstream.read_to_eof() == b""
            assert w.value("mailproxy_connections_closed_total", "pop3", "pop3", "idle_timeout") == 1
            client.close()
            upstream.close()

    run(play)


def test_bytes_of_one_side_keep_the_relay_open() -> None:
    async def play() -> None:
        async with loopback_worker(impatient, GRANTED) as w:
            client, upstream = await open_relay(w)
            for _ in range(20):
                await upstream.send(b".")
                assert await client.read_bytes(1) == b"."
                await asyncio.sleep(0.05)
            client.close()
            upstream.close()

    run(play)


def test_slow_client_and_closed_upstream_do_not_busy_loop() -> None:
    data = bytes(8_000_000)

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            upstream.writer.write(data)
            await asyncio.sleep(0.1)
            client.writer.write_eof()
            upstream.writer.write_eof()
            await asyncio.sleep(0.1)
            before = w.app.context.epoll.iterations
            await asyncio.sleep(0.3)
            assert w.app.context.epoll.iterations - before < 60
            assert await client.read_to_eof() == data
            client.close()
            upstream.close()

    run(play)
