# SPDX-License-Identifier: Apache-2.0
"""The webhook's server with clients that send slowly, or send nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from mailproxy_operator import http_servers
from mailproxy_operator.sidecar import certificate, review_server
from mailproxy_operator.sidecar.review_server import ReviewServer
from support.operator_running import until

REVIEW = json.dumps({"request": {"object": {"metadata": {}}, "namespace": "mail"}}).encode()
HEAD = b"POST /inject HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(autouse=True)
def no_read_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the deadline so high that it does not end a test."""
    monkeypatch.setattr(review_server, "READ_SECONDS", 3600.0)


class Site:
    """A running server, and its clients."""

    def __init__(self, server: ReviewServer, authority: str) -> None:
        self.server = server
        self.decided: list[str] = []
        self.may_decide = asyncio.Event()
        self.may_decide.set()
        self._context = ssl.create_default_context(cadata=authority)
        self._writers: list[asyncio.StreamWriter] = []

    async def reviewed(self, review: Any, **_: Any) -> Any:
        await self.may_decide.wait()
        self.decided.append(review["request"]["object"]["metadata"]["namespace"])
        return {"response": {"allowed": True}}

    async def connect(self, *sent: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.server.port, ssl=self._context, server_hostname="localhost"
        )
        self._writers.append(writer)
        writer.write(b"".join(sent))
        return reader

    async def review(self) -> bytes:
        reader = await self.connect(HEAD % len(REVIEW), REVIEW)
        async with asyncio.timeout(60):
            return await reader.readline()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    identity = certificate.issue(["localhost"], "operator", datetime.now(UTC))
    context = certificate.server_context()
    certificate.use(context, identity.certificate, identity.key)
    made = Site(ReviewServer("127.0.0.1", 0, context), identity.authority)
    async with aclosing(made.server(made.reviewed)) as serving:  # type: ignore[arg-type,type-var]
        await anext(serving)
        yield made
        await made.close()


async def test_slow_bodies_do_not_delay_a_review(site: Site) -> None:
    """Earlier the semaphore was held while a body was read: sixteen such clients delayed all others."""
    slow = [await site.connect(HEAD % 1000, b"{") for _ in range(review_server.MAX_CONCURRENT_READS)]
    await until(lambda: site.server.reading == review_server.MAX_CONCURRENT_READS)
    assert await site.review() == b"HTTP/1.1 200 OK\r\n"
    assert site.decided == ["mail"]
    async with asyncio.timeout(60):
        assert await slow[0].readline() == b"HTTP/1.1 408 Request Timeout\r\n", "the slowest made room"
    assert not any(reader.at_eof() for reader in slow[1:])


async def test_body_has_a_deadline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_server, "READ_SECONDS", 0.05)
    reader = await site.connect(HEAD % 1000, b"{")
    async with asyncio.timeout(60):
        assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        assert b"Connection: close" in await reader.read()


async def test_too_large_body_is_rejected(site: Site) -> None:
    size = review_server.MAX_REVIEW_BYTES + 1
    reader = await site.connect(HEAD % size, b" " * size)
    async with asyncio.timeout(60):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")  # the reason phrase comes from Python


async def test_idle_connections_are_closed_for_new_review(site: Site) -> None:
    site.server.connections.maximum = 8
    site.may_decide.clear()
    async with asyncio.TaskGroup() as tasks:
        deciding = tasks.create_task(site.review())
        await until(lambda: site.server.waiting == 1)
        await open_idle_connections(site)
        site.may_decide.set()
    assert deciding.result() == b"HTTP/1.1 200 OK\r\n", "a review that is being decided is kept"
    assert await site.review() == b"HTTP/1.1 200 OK\r\n"
    assert len(site.server.connections) <= 8


async def open_idle_connections(site: Site) -> None:
    idle = [await site.connect() for _ in range(20)]
    async with asyncio.timeout(60):
        for reader in idle[:12]:
            assert await reader.read() == b"", "the ones that were idle longest are closed"


async def test_unfinished_handshakes_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no transport that could be closed, so new ones are refused for some seconds."""
    site.server.connections.maximum = 2
    monkeypatch.setattr(http_servers, "HANDSHAKE_SECONDS", 3600.0)
    waiting = [await asyncio.open_connection("127.0.0.1", site.server.port) for _ in range(40)]
    async with asyncio.timeout(60):
        for reader, _ in waiting[8:]:
            assert await reader.read() == b""
    assert len(site.server.connections) == 8
    assert not any(reader.at_eof() for reader, _ in waiting[:8])
    monkeypatch.setattr(http_servers, "HANDSHAKE_SECONDS", 0.0)
    assert await site.review() == b"HTTP/1.1 200 OK\r\n", "after their deadline there is room again"
    for _, writer in waiting:
        writer.transport.abort()


async def test_waiting_reviews_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_server, "MAX_WAITING", 2)
    site.may_decide.clear()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(site.review()) for _ in range(2)]
        await until(lambda: site.server.waiting == 2)
        assert await site.review() == b"HTTP/1.1 503 Service Unavailable\r\n"
        site.may_decide.set()
    assert [one.result() for one in waiting] == [b"HTTP/1.1 200 OK\r\n"] * 2
