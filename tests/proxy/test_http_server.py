# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: timeouts, limits, and requests of misbehaving clients."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy import http_server as module
from mailproxy.http_server import (
    IDLE_SECONDS,
    MAX_CONNECTIONS,
    MIN_IDLE_SECONDS,
    BadRequest,
    HttpServer,
    Request,
    Response,
    idle_seconds,
    parse,
)

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes = HEALTH) -> bytes:
        """Send a request; returns the head and body of the response, empty where the connection has ended."""
        self.writer.write(request)
        async with asyncio.timeout(20):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head + await self.reader.readexactly(length)

    async def is_closed(self) -> bool:
        """Wait for the end; returns whether it came."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


class Server:
    """A server, and clients of it."""

    def __init__(self, http: HttpServer, port: int) -> None:
        self.http = http
        self.port = port
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client


@asynccontextmanager
async def serving(body: bytes = b"ok\n") -> AsyncIterator[Server]:
    async def answer(request: Request) -> Response:
        if request.path == "/broken":
            raise RuntimeError("a bug")
        return Response(200, body)

    server = HttpServer(answer)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    await server.listen(bound)
    used = Server(server, bound.getsockname()[1])
    try:
        yield used
    finally:
        for client in used.clients:
            client.writer.close()
        await server.close()


async def test_new_connection_replaces_the_longest_idle_one() -> None:
    async with serving() as server:
        quiet = [await server.connect() for _ in range(MAX_CONNECTIONS)]
        assert b" 200 " in await quiet[0].ask()
        assert b" 200 " in await (await server.connect()).ask(LAST)
        assert await quiet[1].is_closed()  # the first one has sent a request since
        assert b" 200 " in await quiet[0].ask()
        assert b" 200 " in await quiet[2].ask()


async def test_probes_are_served_with_many_idle_connections() -> None:
    async with serving() as server:
        for number in range(5 * MAX_CONNECTIONS):
            await server.connect()
            if number % 7 == 0:
                assert b" 200 " in await (await server.connect()).ask(LAST)


async def test_slow_request_counts_as_idle() -> None:
    async with serving() as server:
        slow = [await server.connect() for _ in range(MAX_CONNECTIONS)]
        for byte in b"GET /healthz":
            for client in slow:
                client.writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
        assert b" 200 " in await (await server.connect()).ask(LAST)
        assert await slow[0].is_closed()


@pytest.mark.parametrize(
    ("connections", "seconds"),
    [
        (1, IDLE_SECONDS),
        (MAX_CONNECTIONS // 2, IDLE_SECONDS),
        (MAX_CONNECTIONS * 3 // 4, MIN_IDLE_SECONDS + (IDLE_SECONDS - MIN_IDLE_SECONDS) / 2),
        (MAX_CONNECTIONS, MIN_IDLE_SECONDS),
        (MAX_CONNECTIONS + 1, MIN_IDLE_SECONDS),
    ],
)
def test_idle_timeout_decreases_with_the_number_of_connections(connections: int, seconds: float) -> None:
    assert idle_seconds(connections) == pytest.approx(seconds)


async def test_idle_connections_are_closed_as_the_server_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "idle_seconds", lambda count: 0.0 if count > 3 else 60.0)
    async with serving() as server:
        first = [await server.connect() for _ in range(3)]
        assert b" 200 " in await first[2].ask()
        fourth = await server.connect()
        assert b" 200 " in await fourth.ask()
        assert [await client.is_closed() for client in first] == [True] * 3


async def test_a_connection_that_is_kept_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "idle_seconds", lambda _: 0.05)
    async with serving() as server:
        client = await server.connect()
        assert b" 200 " in await client.ask()
        assert await client.is_closed()


async def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.05)
    async with serving(bytes(50_000_000)) as server:
        client = await server.connect()
        client.writer.write(HEALTH)
        await asyncio.sleep(0.5)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(client.reader.readexactly(50_000_000), 20)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as server:
        client = await server.connect()
        client.writer.write(HEALTH * 3)
        for _ in range(3):
            assert (await client.ask(b"")).endswith(b"ok\n")


@pytest.mark.parametrize(
    ("request_head", "is_kept"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", False),  # a body is not read
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
async def test_a_connection_is_kept_where_another_request_can_follow(
    request_head: bytes, is_kept: bool
) -> None:
    async with serving() as server:
        client = await server.connect()
        response = await client.ask(request_head)
        assert response.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"\r\nConnection: keep-alive\r\n" in response) is is_kept
        if not is_kept:
            assert await client.is_closed()


@pytest.mark.parametrize(
    ("head", "path"),
    [
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", "/metrics"),
        (b"GET http://127.0.0.1:9113/metrics HTTP/1.1\r\nHost: a\r\n\r\n", "/metrics"),
        (b"\r\nGET /metrics HTTP/1.1\r\n\r\n", "/metrics"),
    ],
)
def test_path_is_parsed(head: bytes, path: str) -> None:
    assert parse(head).path == path


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"EHLO example.com\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: a\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\r\n\r\n",
    ],
)
def test_invalid_request_raises(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(head)


@given(st.binary(max_size=200))
def test_any_data_is_a_request_or_an_error(head: bytes) -> None:
    try:
        request = parse(head + b"\r\n\r\n")
    except BadRequest:
        return
    assert request.path is not None


async def test_malformed_requests_are_logged_once_per_interval(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server:
        for _ in range(20):
            response = await (await server.connect()).ask(b"EHLO mail.example.com\r\n\r\n")
            assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        records = [record for record in caplog.records if record.name == "mailproxy.http_server"]
        assert [(record.getMessage(), record.exc_info) for record in records] == [
            ("malformed request from 127.0.0.1: not an HTTP/1 request", None)
        ]
        monotonic = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + module.LOG_SECONDS)
        await (await server.connect()).ask(b"GET / HTTP/1.1\r\nHost\r\n\r\n")
    assert caplog.messages[-1] == (
        "malformed request from 127.0.0.1: a header field is malformed (19 more since the last line)"
    )


async def test_exception_in_handler_is_a_500_and_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving() as server:
            client = await server.connect()
            for _ in range(5):
                response = await client.ask(b"GET /broken HTTP/1.1\r\n\r\n")
                assert response.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
                assert b"a bug" not in response
            assert b" 200 " in await client.ask()
    assert [message.splitlines()[0] for message in caplog.messages] == [
        "cannot answer /broken: RuntimeError('a bug')"
    ]
