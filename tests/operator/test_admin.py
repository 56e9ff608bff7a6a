# SPDX-License-Identifier: Apache-2.0
"""The operator's admin endpoint with clients that send nothing, or read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from mailproxy_operator import admin
from mailproxy_operator.admin import AdminEndpoint
from mailproxy_operator.metrics import Metrics
from support.operator_running import until

PROBE = b"GET /healthz HTTP/1.1\r\nHost: operator\r\n\r\n"
SECONDS = 60


class Site:
    """A running endpoint, and its clients."""

    def __init__(self, endpoint: AdminEndpoint) -> None:
        self.endpoint = endpoint
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, *sent: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.endpoint.port)
        self.writers.append(writer)
        writer.write(b"".join(sent))
        return reader

    async def probe(self) -> bytes:
        reader = await self.connect(PROBE)
        return await self.line(reader)

    async def line(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await reader.readline()

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self.writers), return_exceptions=True)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    metrics = Metrics()
    async with AdminEndpoint(
        "127.0.0.1", 0, metrics=metrics, liveness_error=lambda: "", readiness_error=lambda: ""
    ) as endpoint:
        made = Site(endpoint)
        yield made
        await made.close()


@pytest.mark.parametrize("host", ["", "::"])
async def test_wildcard_address_accepts_ipv4_and_ipv6(host: str) -> None:
    async with AdminEndpoint(
        host, 0, metrics=Metrics(), liveness_error=lambda: "", readiness_error=lambda: ""
    ) as endpoint:
        for address in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(address, endpoint.port)
            writer.close()
            await writer.wait_closed()


async def read_to_end(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(SECONDS):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass


async def test_connection_above_limit_closes_longest_idle_one(site: Site) -> None:
    """A new probe is served: the connection that has been idle longest is closed."""
    idle = [await site.connect() for _ in range(admin.MAX_CONNECTIONS + 8)]
    for reader in idle[:8]:
        await read_to_end(reader)
    assert await site.probe() == b"HTTP/1.1 200 OK\r\n"
    assert len(site.endpoint.connections) <= admin.MAX_CONNECTIONS
    assert not any(reader.at_eof() for reader in idle[9:])


async def test_recently_used_connection_is_kept(site: Site) -> None:
    """Prometheus keeps its connection from one scrape to the next."""
    kept = await site.connect(PROBE)
    assert await site.line(kept) == b"HTTP/1.1 200 OK\r\n"
    idle = [await site.connect() for _ in range(admin.MAX_CONNECTIONS - 1)]
    site.writers[0].write(PROBE)
    while await site.line(kept) != b"HTTP/1.1 200 OK\r\n":
        pass
    idle += [await site.connect() for _ in range(8)]
    for reader in idle[:8]:
        await read_to_end(reader)
    assert not kept.at_eof()


async def test_unread_response_is_discarded_when_connection_is_closed(site: Site) -> None:
    """A normal close waits until the client reads, so sockets and their buffers would accumulate."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", site.endpoint.port))
        transport = await only_transport(site)
        transport.write(b"x" * 16_000_000)  # more than the kernel's buffers hold
        assert transport.get_write_buffer_size() > 0
        for _ in range(admin.MAX_CONNECTIONS):
            await site.connect()
        await until(lambda: transport.get_write_buffer_size() == 0)


async def only_transport(site: Site) -> asyncio.WriteTransport:
    await until(lambda: any(one.transport is not None for one in site.endpoint.connections))
    [transport] = [one.transport for one in site.endpoint.connections]
    assert isinstance(transport, asyncio.WriteTransport)
    return transport
