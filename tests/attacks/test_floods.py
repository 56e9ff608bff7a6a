# SPDX-License-Identifier: Apache-2.0
"""More input than the buffers hold: lines, literals, pipelines; memory and time are limited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc

import pytest

from mailproxy_config.model import Protocol, Seconds, StartTls
from support.checked_worker import (
    DENIED,
    GREETINGS,
    checked_worker,
    read_until_closed,
    server_builder,
    start_tls,
)
from support.loopback_worker import run
from support.tls_identities import Identities

INVALID = {
    Protocol.IMAP: b"* BAD invalid command\r\n",
    Protocol.POP3: b"-ERR invalid command\r\n",
    Protocol.SMTP: b"500 5.5.1 Invalid command\r\n",
}
NOOPS = {
    Protocol.IMAP: (b"a NOOP\r\n", b"a OK completed\r\n"),
    Protocol.POP3: (b"NOOP\r\n", b"+OK\r\n"),
    Protocol.SMTP: (b"NOOP\r\n", b"250 2.0.0 OK\r\n"),
}
ASKS = {Protocol.IMAP: b"a CAPABILITY\r\n", Protocol.POP3: b"CAPA\r\n", Protocol.SMTP: b"EHLO x\r\n"}
MANY = tuple(f"X{'Y' * 200}{n}" for n in range(32))
each = pytest.mark.parametrize("protocol", Protocol, ids=str)


@each
@pytest.mark.parametrize("line", [b"A" * 100_000, b"A" * 100_000 + b"\r\n", bytes(50_000), b" " * 50_000])
def test_endless_line_is_refused_at_the_limit(protocol: Protocol, line: bytes) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol)) as w:
            client = await w.client()
            client.writer.write(line)
            assert await read_until_closed(client) == GREETINGS[protocol] + INVALID[protocol]
            assert w.value("mailproxy_protocol_errors_total", protocol.value, "line_too_long") == 1
            assert w.auth.requests == []

    run(play)


@each
def test_endless_sasl_response_is_refused_at_the_limit(protocol: Protocol) -> None:
    verb = b"a AUTHENTICATE" if protocol is Protocol.IMAP else b"AUTH"

    async def play() -> None:
        async with checked_worker(server_builder(protocol)) as w:
            client = await w.client()
            client.writer.write(verb + b" LOGIN\r\n" + b"QUFB" * 50_000)
            received = await read_until_closed(client)
            assert received.endswith(INVALID[protocol].replace(b"*", b"a"))
            assert w.auth.requests == []

    run(play)


@pytest.mark.parametrize(
    "literal", [b"{4096}", b"{4096+}", b"{99999999}", b"{99999999+}", b"{999999999999999999}"]
)
def test_literal_that_is_too_large_is_refused_before_it_is_read(literal: bytes) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(Protocol.IMAP)) as w:
            client = await w.client()
            await client.read_line()
            client.writer.write(b"a LOGIN " + literal + b"\r\n" + b"b LOGOUT\r\n" * 1000)
            assert await read_until_closed(client) == b"a BAD invalid command\r\n"
            assert w.auth.requests == []

    run(play)


@each
@pytest.mark.parametrize("tls", [False, True])
def test_every_pipelined_command_gets_one_reply(
    protocol: Protocol, tls: bool, identities: Identities
) -> None:
    noop, ok = NOOPS[protocol]
    count = 20_000

    async def play() -> None:
        async with checked_worker(server_builder(protocol, identities, listen_ssl=tls)) as w:
            client = await w.client()
            if tls:
                await start_tls(client, identities)
            await client.read_line()
            client.writer.write(noop * count + b"x LOGOUT\r\nQUIT\r\n")
            received = await client.read_bytes(len(ok) * count)
            assert received == ok * count
            assert await read_until_closed(client)
            assert (
                w.value("mailproxy_connections_closed_total", protocol.value, protocol.value, "client_quit")
                == 1
            )

    run(play)


def test_pipelined_commands_over_tls_do_not_delay_other_clients(identities: Identities) -> None:
    count = 100_000

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3, identities, starttls=StartTls.ENABLED)) as w:
            flooder, other = await w.client(), await w.client()
            await flooder.read_line()
            await other.read_line()
            assert await flooder.exchange(b"STLS\r\n") == b"+OK\r\n"
            await start_tls(flooder, identities)
            flooder.writer.write(b"NOOP\r\n" * count)
            await flooder.read_line()
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(flooder.read_bytes(5 * (count - 1)))
                assert await other.exchange(b"NOOP\r\n") == b"+OK\r\n"
                assert not reading.done()

    run(play)


@each
def test_memory_for_unsent_replies_is_limited(protocol: Protocol) -> None:
    capabilities = {f"{protocol.value}_capabilities": MANY}

    async def play() -> None:
        async with checked_worker(server_builder(protocol, None, **capabilities), DENIED) as w:
            clients = [await w.client() for _ in range(20)]
            for client in clients:
                await client.read_line()
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            written = ASKS[protocol] * 20_000
            for client in clients:
                client.writer.write(written)
            tracemalloc.start()
            try:
                await asyncio.sleep(0.5)
                ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/mailproxy/*")])
                taken = sum(statistic.size for statistic in ours.statistics("filename"))
            finally:
                tracemalloc.stop()
            assert taken < 20 * 64 * 1024

    run(play)


@each
def test_reading_replies_slowly_does_not_extend_the_timeout(protocol: Protocol) -> None:
    """Progress in sending replies must not extend ``timeout``."""

    async def play() -> None:
        build = server_builder(
            protocol, None, **{f"{protocol.value}_capabilities": MANY}, timeout=Seconds(0.5)
        )
        async with checked_worker(build) as w:
            (listener,) = w.app.listeners
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            loop = asyncio.get_running_loop()
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", w.port))
                await loop.sock_sendall(sock, ASKS[protocol] * 200)
                taken = 0
                with contextlib.suppress(ConnectionError):
                    while data := await loop.sock_recv(sock, 1024):
                        taken += len(data)
                        await asyncio.sleep(0.02)
            assert 4096 < taken < 200_000

    run(play)
