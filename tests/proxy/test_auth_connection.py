# SPDX-License-Identifier: Apache-2.0
"""Kept connections to the authentication service: reused while they work, one response per request."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mailproxy.auth_http import client, connection
from mailproxy.auth_http.client import AuthHttpClient
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, ServerConfig
from support.checked_worker import checked_worker
from support.configs import server
from support.dead_peers import stop_acknowledging
from support.loopback_worker import LoopbackWorker, http_response, loopback_worker, run

DENIED = http_response("Auth-Status: no\r\n")
REFUSED = b"-ERR no\r\n"
OK = "HTTP/1.1 200 OK\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,))


def pool(w: LoopbackWorker) -> AuthHttpClient:
    (service,) = w.app.authenticators.auth_clients.values()
    return service


async def log_in_and_read_reply(w: LoopbackWorker, user: str = "u") -> bytes:
    client = await w.client()
    await client.read_line()
    await client.send(b"USER %b\r\nPASS p\r\n" % user.encode())
    replies = await client.read_to_eof()
    client.close()
    return replies.removeprefix(b"+OK\r\n")


# Connections that died while they were idle.


def test_request_on_a_dead_connection_is_sent_again() -> None:
    """Nothing is acknowledged any more, as behind a load balancer that dropped the connection."""

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            assert await log_in_and_read_reply(w) == REFUSED
            stop_acknowledging(w.auth.writers[0].get_extra_info("socket"))
            assert (
                await log_in_and_read_reply(w) == REFUSED
            )  # less than the 60 s of auth_http_timeout, because run() has a timeout
            assert w.auth.connections == 2
            assert len(w.auth.requests) == 2

    run(play)


def test_dead_connection_closes_the_other_idle_connections() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            await asyncio.gather(*(log_in_and_read_reply(w) for _ in range(8)))
            assert w.auth.connections > 1
            for writer in w.auth.writers:
                stop_acknowledging(writer.get_extra_info("socket"))
            connections = w.auth.connections
            assert await log_in_and_read_reply(w) == REFUSED
            assert (
                await log_in_and_read_reply(w) == REFUSED
            )  # the first of these waits for the kernel; the second does not
            assert w.auth.connections == connections + 1

    run(play)


def test_kept_connection_has_tcp_keepalive() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            await log_in_and_read_reply(w)
            (kept,) = pool(w).idle
            get = kept.sock.getsockopt
            assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < client.IDLE_SECONDS
            assert 0 < get(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 5000

    run(play)


def test_idle_connections_are_closed_after_idle_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.IDLE_SECONDS < 60
    monkeypatch.setattr(client, "IDLE_SECONDS", 0.05)

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            await asyncio.gather(*(log_in_and_read_reply(w) for _ in range(8)))
            while pool(w).idle:
                await asyncio.sleep(0.01)
            assert not pool(w).connections
            assert await log_in_and_read_reply(w) == REFUSED

    run(play)


def test_request_is_sent_twice_at_most() -> None:
    """Each connection closes at its second request; with one connection at a time there is a queue."""

    async def play() -> None:
        requests: list[bytes] = []

        async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(DENIED)
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async with checked_worker(build, service=service) as w:
            pool(w).resize(1)
            replies = await asyncio.gather(
                *(log_in_and_read_reply(w, f"user{number}") for number in range(12))
            )
            assert replies == [REFUSED] * 12
            users = [request.split(b"Auth-User: ")[1].split(b"\r\n")[0] for request in requests]
            assert max(map(users.count, users)) <= 2
            assert len(users) <= 24

    run(play)


def test_resent_request_precedes_waiting_requests() -> None:
    """It takes the place of the lost connection, and never waits for another one."""
    order: list[bytes] = []

    async def play() -> None:
        gate = asyncio.Event()

        async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                user = request.split(b"Auth-User: ")[1].split(b"\r\n")[0]
                order.append(user)
                if user == b"second" and order.count(b"second") == 1:
                    await gate.wait()
                    writer.close()
                    return
                writer.write(DENIED)

        async with checked_worker(build, service=service) as w:
            pool(w).resize(1)
            assert await log_in_and_read_reply(w, "first") == REFUSED
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(log_in_and_read_reply(w, "second"))]
                while b"second" not in order:
                    await asyncio.sleep(0.01)
                tasks += [group.create_task(log_in_and_read_reply(w, "third"))]
                while not pool(w).waiting.requests:
                    await asyncio.sleep(0.01)
                gate.set()
            assert [task.result() for task in tasks] == [REFUSED] * 2
            assert order == [b"first", b"second", b"second", b"third"]

    run(play)


def test_408_on_a_used_connection_resends_the_request() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED, TIMED_OUT, DENIED) as w:
            assert await log_in_and_read_reply(w) == REFUSED
            assert await log_in_and_read_reply(w) == REFUSED
            assert w.auth.connections == 2
            assert len(w.auth.requests) == 3

    run(play)


def test_408_on_a_new_connection_is_a_response() -> None:
    async def play() -> None:
        async with loopback_worker(build, TIMED_OUT) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert len(w.auth.requests) == 1

    run(play)


def test_second_408_is_a_response() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED, TIMED_OUT) as w:
            assert await log_in_and_read_reply(w) == REFUSED
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert len(w.auth.requests) == 3

    run(play)


# One response must not be taken for part of the next.

NO_CERTAIN_END = {
    "204": b"HTTP/1.1 204 No Content\r\nAuth-Status: no\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nAuth-Status: no\r\n\r\n",
    "204 with a length": b"HTTP/1.1 204 No Content\r\nAuth-Status: no\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\nAuth-Status: no\r\nContent-Length: 0\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 What\r\nAuth-Status: no\r\nContent-Length: 0\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "chunks in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "bytes behind the length": b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 1\r\n\r\nab",
    "bytes behind the chunks": (
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nH"
    ),
    "malformed chunks": (
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("reply", NO_CERTAIN_END.values(), ids=NO_CERTAIN_END)
def test_response_without_a_certain_end_closes_its_connection(reply: bytes) -> None:
    async def play() -> None:
        async with loopback_worker(build, reply) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w) == REFUSED
            assert w.auth.connections == 3

    run(play)


def test_last_chunk_inside_a_body_is_not_the_end() -> None:
    """A chunk's data looks like the last chunk and another response."""
    inside = http_response("Auth-Status: of somebody else\r\n")
    head = f"{OK}Auth-Status: no\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    data = b"\r\n0\r\n\r\n" + inside
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    at = len(head) + chunk.index(b"\r\n0\r\n\r\n") + len(b"\r\n0\r\n\r\n")
    whole = head + chunk

    async def play() -> None:
        async with loopback_worker(build, (whole[:at], whole[at:]), DENIED) as w:
            assert await log_in_and_read_reply(w) == REFUSED
            assert await log_in_and_read_reply(w) == REFUSED
            await asyncio.sleep(0.1)
            assert await log_in_and_read_reply(w) == REFUSED

    run(play)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_bytes_after_a_response_without_body_close_the_connection(status: str) -> None:
    stray = http_response("Auth-Status: of somebody else\r\n")
    head = f"HTTP/1.1 {status}\r\nAuth-Status: no\r\n\r\n".encode()

    async def play() -> None:
        async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(head)
                await asyncio.sleep(0.005)
                writer.write(stray)

        async with checked_worker(build, service=service) as w:

            async def many() -> list[bytes]:
                return [await log_in_and_read_reply(w) for _ in range(20)]

            replies = await asyncio.gather(*(many() for _ in range(16)))
            assert {one for each in replies for one in each} == {REFUSED}

    run(play)


def test_connection_with_unread_bytes_is_not_used() -> None:
    """They arrive after the poll in which the connection was chosen, so there was no event for them."""

    async def play() -> None:
        async with loopback_worker(build, DENIED) as w:
            assert await log_in_and_read_reply(w) == REFUSED
            (kept,) = pool(w).idle
            real = connection.AuthConnection.send_request

            def send_request(self: connection.AuthConnection) -> None:
                if self is kept:
                    w.auth.writers[0].write(http_response("Auth-Status: of somebody else\r\n"))
                real(self)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(connection.AuthConnection, "send_request", send_request)
                assert await log_in_and_read_reply(w) == REFUSED
            assert w.auth.connections == 2
            assert len(w.auth.requests) == 2
            assert kept not in pool(w).connections

    run(play)


# Interim responses.


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nAuth-Status: of nobody\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 5,
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_interim_response_is_skipped(interim: bytes, cut: bool) -> None:
    async def play() -> None:
        reply = (interim, DENIED) if cut else interim + DENIED
        async with loopback_worker(build, reply) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w) == REFUSED
            assert w.auth.connections == 1

    run(play)


def test_endless_interim_responses_fail() -> None:
    async def play() -> None:
        async with loopback_worker(build, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + DENIED) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert w.value("mailproxy_auth_errors_total", "invalid_response") == 1

    run(play)


def test_status_101_is_invalid() -> None:
    async def play() -> None:
        async with loopback_worker(
            build, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + DENIED
        ) as w:
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"

    run(play)


def test_request_is_not_resent_after_an_interim_response() -> None:
    """An interim response shows that the service has the request."""

    async def play() -> None:
        async with loopback_worker(build, DENIED, b"HTTP/1.1 100 Continue\r\n\r\n") as w:
            assert await log_in_and_read_reply(w) == REFUSED
            w.auth.closes = True
            assert await log_in_and_read_reply(w) == b"-ERR internal server error\r\n"
            assert len(w.auth.requests) == 2

    run(play)
