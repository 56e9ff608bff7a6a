# SPDX-License-Identifier: Apache-2.0
"""Responses of a hostile authentication service: invalid, slow, endless, or broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mailproxy_config.model import AuthHttpHeader, Protocol, Seconds
from support.checked_worker import (
    DENIED,
    INTERNAL_ERRORS,
    LOGINS,
    checked_worker,
    log_in,
    read_until_closed,
    server_builder,
)
from support.loopback_worker import GRANT, LoopbackWorker, Peer, Response, http_response, run

each = pytest.mark.parametrize("protocol", Protocol, ids=str)
OK = "HTTP/1.1 200 OK\r\n"


async def log_in_and_read_reply(w: LoopbackWorker, protocol: Protocol) -> bytes:
    """Log in, and return everything that the client receives."""
    client = await w.client()
    await client.read_line()
    await client.send(LOGINS[protocol])
    replies = await read_until_closed(client)
    client.close()
    return replies


# Control characters, in every header whose value is sent on.  LF and CRLF begin a new header.

CONTROLS = [*(bytes([byte]) for byte in range(0x20) if byte not in b"\t\n\r"), b"\t", b"\r", b"\r\0\n"]


@each
@pytest.mark.parametrize("data", CONTROLS, ids=repr)
@pytest.mark.parametrize("header", ["Auth-User", "Auth-Pass"])
def test_control_characters_of_an_allowed_login_do_not_reach_the_upstream(
    protocol: Protocol, header: str, data: bytes
) -> None:
    grant = http_response(GRANT).replace(
        b"Content-Length", header.encode() + b": a" + data + b"b\r\nContent-Length"
    )

    async def play() -> None:
        async with checked_worker(server_builder(protocol, proxy_smtp_auth=True), grant) as w:
            assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]
            assert w.upstream.accepted.empty()
            assert w.value("mailproxy_auth_errors_total", "invalid_response") == 1

    run(play)


@each
@pytest.mark.parametrize("data", CONTROLS, ids=repr)
@pytest.mark.parametrize("header", ["Auth-Status", "Auth-Error-Code"])
def test_control_characters_of_a_denial_do_not_reach_the_client(
    protocol: Protocol, header: str, data: bytes
) -> None:
    head = b"Auth-Status: no\r\n" if header == "Auth-Error-Code" else b""
    denial = (
        b"HTTP/1.1 200 OK\r\n" + head + header.encode() + b": 5" + data + b"5\r\nContent-Length: 0\r\n\r\n"
    )

    async def play() -> None:
        async with checked_worker(server_builder(protocol), denial) as w:
            replies = await log_in_and_read_reply(w, protocol)
            ignored = header == "Auth-Error-Code" and protocol is not Protocol.SMTP and b"\r" not in data
            assert replies == (b"no" if ignored else INTERNAL_ERRORS[protocol]) or (
                ignored and replies.endswith(b" no\r\n")
            )

    run(play)


@each
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_injected_into_a_header_is_only_a_header(protocol: Protocol, end: str) -> None:
    smuggled = http_response(f"Auth-Status: no{end}DELE 1{end}")

    async def play() -> None:
        async with checked_worker(server_builder(protocol), smuggled) as w:
            assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]

    run(play)


# Responses without an end, or with an invalid one.

ENDLESS = {
    "headers": (OK.encode(), b"X-Endless: yes\r\n" * 1000),
    "one header": (OK.encode() + b"X-Endless: ", b"x" * 10_000),
    "status line": (b"HTTP/1.1 200 ", b"x" * 10_000),
    "nothing but line ends": (b"", b"\r" * 10_000),
    "bytes": (b"", bytes(10_000)),
}


async def _pour(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)


@each
@pytest.mark.parametrize(("first", "more"), ENDLESS.values(), ids=ENDLESS)
def test_endless_response_header_fails_at_once(protocol: Protocol, first: bytes, more: bytes) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        await _pour(writer, more)

    async def play() -> None:
        async with checked_worker(server_builder(protocol), service=endless) as w:
            assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]
            assert (
                w.value("mailproxy_logins_total", protocol.value, "plain", "invalid_response")
                + w.value("mailproxy_logins_total", protocol.value, "password", "invalid_response")
                == 1
            )

    run(play)


@pytest.mark.parametrize("cut", [1, 16_000, 16_384, 16_400, 17_000])
def test_response_header_above_the_limit_is_refused_in_pieces_of_any_size(cut: int) -> None:
    whole = f"{OK}Auth-Status: no\r\nContent-Length: 0\r\nX: {'x' * 16_384}\r\n\r\n".encode()

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole[:cut])
        await asyncio.sleep(0.05)
        writer.write(whole[cut:])

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.IMAP), service=cutting) as w:
            assert await log_in_and_read_reply(w, Protocol.IMAP) == INTERNAL_ERRORS[Protocol.IMAP]

    run(play)


FRAMINGS = {
    "endless body": "Content-Length: 99999999999\r\n",
    "endless chunks": "Transfer-Encoding: chunked\r\n",
    "until close": "Connection: close\r\n",
    "no length": "",
    "too short a length": "Content-Length: 5\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 50000\r\n",
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "negative length": "Content-Length: -1\r\n",
    "huge length": f"Content-Length: {'9' * 400}\r\n",
    "unknown coding": "Transfer-Encoding: gzip, chunked\r\n",
}


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_endless_body_closes_only_its_connection(framing: str) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{OK}Auth-Status: no\r\n{framing}\r\n".encode())
        await _pour(writer, b"Auth-Status: OK\r\n" * 500)

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3), service=endless) as w:
            for _ in range(5):
                assert await log_in_and_read_reply(w, Protocol.POP3) == b"-ERR no\r\n"
            (service,) = w.app.authenticators.auth_clients.values()
            assert len(service.connections) <= 1

    run(play)


def test_slow_body_times_out_and_is_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy.auth_http.client.BODY_SECONDS", 0.3)

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{OK}Auth-Status: no\r\nContent-Length: 1000\r\n\r\n".encode())
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3), service=dripping) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w, Protocol.POP3) == b"-ERR no\r\n"
            (service,) = w.app.authenticators.auth_clients.values()
            assert len(service.connections) == 3
            while service.connections:
                await asyncio.sleep(0.02)

    run(play)


@each
def test_slow_response_times_out(protocol: Protocol) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in OK.encode() + b"X-Drip: " * 1000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    async def play() -> None:
        async with checked_worker(
            server_builder(protocol, auth_http_timeout=Seconds(0.3)), service=dripping
        ) as w:
            assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]
            assert w.value("mailproxy_auth_errors_total", "timeout") == 1

    run(play)


def test_service_that_never_reads_times_out() -> None:
    header = AuthHttpHeader(name="X-Large", value="x" * 8_000_000)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async def play() -> None:
        build = server_builder(Protocol.POP3, auth_http_timeout=Seconds(0.3), auth_http_header=(header,))
        async with checked_worker(build, service=deaf) as w:
            assert await log_in_and_read_reply(w, Protocol.POP3) == INTERNAL_ERRORS[Protocol.POP3]

    run(play)


def test_response_before_the_end_of_its_request_closes_the_connection() -> None:
    """The rest of one client's request must not be sent within another's."""
    header = AuthHttpHeader(name="X-Large", value="x" * 8_000_000)
    requests: list[bytes] = []

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readline()
        writer.write(DENIED)
        while data := await reader.read(1 << 20):
            request += data
        requests.append(request)

    async def play() -> None:
        async with checked_worker(
            server_builder(Protocol.POP3, auth_http_header=(header,)), service=hasty
        ) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w, Protocol.POP3) == b"-ERR no\r\n"
            while len(requests) < 3:
                await asyncio.sleep(0.01)
        assert len(requests) == 3
        assert all(request.count(b"GET ") == 1 for request in requests)

    run(play)


# Responses at the wrong time, and broken connections.


def test_unrequested_response_is_not_used_for_the_next_request() -> None:
    async def unasked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(DENIED)
        await asyncio.sleep(0.05)
        writer.write(http_response(GRANT.format(port=1)))

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3), service=unasked) as w:
            for _ in range(3):
                assert await log_in_and_read_reply(w, Protocol.POP3) == b"-ERR no\r\n"
                await asyncio.sleep(0.1)

    run(play)


def _reset(writer: asyncio.StreamWriter) -> None:
    Peer(asyncio.StreamReader(), writer).reset()


def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


@each
@pytest.mark.parametrize("leave", [_reset, _close])
@pytest.mark.parametrize("replies", [b"", b"H", b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n"])
def test_service_that_breaks_off_fails_one_login(
    protocol: Protocol, leave: Callable[[asyncio.StreamWriter], None], replies: bytes
) -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(replies)
        await asyncio.sleep(0.01)
        leave(writer)

    async def play() -> None:
        async with checked_worker(server_builder(protocol), service=breaking) as w:
            assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]
            assert w.value("mailproxy_auth_errors_total", "connect") == 1

    run(play)


def test_reload_closes_connections_of_unused_services() -> None:
    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3), _after(0.2, DENIED)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[Protocol.POP3])
            while not w.auth.requests:
                await asyncio.sleep(0.01)
            (service,) = w.app.authenticators.auth_clients.values()
            service.close()
            assert await read_until_closed(client) == b"-ERR no\r\n"
            assert not service.connections

    run(play)


def _after(seconds: float, data: bytes) -> Response:
    async def slowly(_request: bytes) -> bytes:
        await asyncio.sleep(seconds)
        return data

    return slowly


@each
def test_request_of_a_client_that_left_is_not_resent(protocol: Protocol) -> None:
    """The connection breaks just after the client disconnected: the credentials are not sent again."""
    requests: list[bytes] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(DENIED)
        requests.append(await reader.readuntil(b"\r\n\r\n"))

    async def play() -> None:
        async with checked_worker(server_builder(protocol), service=counting) as w:
            await log_in_and_read_reply(w, protocol)
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            while len(requests) < 2:
                await asyncio.sleep(0.01)
            client.reset()
            await w.wait_for_sessions()
            await asyncio.sleep(0.05)
            assert len(requests) == 2

    run(play)


def test_requests_above_the_connection_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy.auth_http.client.MAX_IDLE", 2)

    async def play() -> None:
        async with checked_worker(
            server_builder(Protocol.POP3, auth_http_max_connections=3), _after(0.02, DENIED)
        ) as w:
            replies = await asyncio.gather(*(log_in_and_read_reply(w, Protocol.POP3) for _ in range(20)))
            assert set(replies) == {b"-ERR no\r\n"}
            assert len(w.auth.requests) == 20
            assert w.auth.connections == 3
            (service,) = w.app.authenticators.auth_clients.values()
            assert len(service.connections) == 2

    run(play)


def test_waiting_request_times_out() -> None:
    build = server_builder(Protocol.POP3, auth_http_timeout=Seconds(0.3), auth_http_max_connections=1)

    async def play() -> None:
        async with checked_worker(build, _after(5.0, DENIED)) as w:
            replies = await asyncio.gather(*(log_in_and_read_reply(w, Protocol.POP3) for _ in range(5)))
            assert set(replies) == {INTERNAL_ERRORS[Protocol.POP3]}

    run(play)


@each
def test_valid_response_after_invalid_ones_logs_in(protocol: Protocol) -> None:
    async def play() -> None:
        bad = b"HTTP/1.1 200 OK\r\nAuth-User: \x01\r\n\r\n"
        async with checked_worker(server_builder(protocol), bad, bad, http_response(GRANT)) as w:
            for _ in range(2):
                assert await log_in_and_read_reply(w, protocol) == INTERNAL_ERRORS[protocol]
            client, upstream = await log_in(w, protocol)
            await upstream.send(b"hello\r\n")
            assert await client.read_line() == b"hello\r\n"
            client.close()

    run(play)
