# SPDX-License-Identifier: Apache-2.0
"""Several addresses of one authentication service: one working address is enough."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.dns import HostAddresses
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, Seconds, ServerConfig
from support.configs import server
from support.dead_peers import stop_acknowledging
from support.loopback_worker import LoopbackWorker, http_response, loopback_worker, run

DENIED = http_response("Auth-Status: no\r\n")
REFUSED = b"-ERR no\r\n"
INTERNAL_ERROR = b"-ERR internal server error\r\n"
V4 = int(socket.AF_INET)


def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,))


def quick(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.POP3, auth_http=auth, listen=(listen,), auth_http_timeout=Seconds(2.0))


def pool(w: LoopbackWorker) -> AuthHttpClient:
    (service,) = w.app.authenticators.auth_clients.values()
    return service


def use(w: LoopbackWorker, *addresses: tuple[str, int]) -> None:
    """Make these the addresses of the service's name, in this order."""
    pool(w).addresses.targets = tuple((V4, address) for address in addresses)


async def log_in_and_read_reply(w: LoopbackWorker) -> bytes:
    client = await w.client()
    await client.read_line()
    await client.send(b"USER u\r\nPASS p\r\n")
    replies = await client.read_to_eof()
    client.close()
    return replies.removeprefix(b"+OK\r\n")


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of loopback that refuses connections, because it is bound but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def dropping_port() -> Iterator[int]:
    """A port of loopback that neither accepts nor refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        stop_acknowledging(sock)
        yield sock.getsockname()[1]


def test_refusing_address_costs_no_login() -> None:
    async def play() -> None:
        with closed_port() as refusing:
            async with loopback_worker(build, DENIED, closes=True) as w:
                use(w, ("127.0.0.1", refusing), ("127.0.0.1", w.auth.port))
                assert [await log_in_and_read_reply(w) for _ in range(10)] == [REFUSED] * 10
                assert len(w.auth.requests) == 10

    run(play)


def test_unreachable_address_costs_no_login() -> None:
    """``connect`` fails at once, as for an IPv6 address where there is no IPv6."""

    async def play() -> None:
        async with loopback_worker(build, DENIED, closes=True) as w:
            service = pool(w)
            service.addresses.targets = (
                (V4, ("255.255.255.255", 9)),
                (V4, ("255.255.255.255", 10)),
                (V4, ("127.0.0.1", w.auth.port)),
            )
            assert [await log_in_and_read_reply(w) for _ in range(4)] == [REFUSED] * 4

    run(play)


def test_unresponsive_address_gets_its_share_of_the_timeout() -> None:
    async def play() -> None:
        with dropping_port() as silent:
            async with loopback_worker(quick, DENIED, closes=True) as w:
                use(w, ("127.0.0.1", silent), ("127.0.0.1", w.auth.port))
                assert [await log_in_and_read_reply(w) for _ in range(4)] == [REFUSED] * 4
                assert w.value("mailproxy_auth_errors_total", "timeout") == 0

    run(play)


def test_failed_address_is_tried_last_for_a_while() -> None:
    connected: list[int] = []

    async def play() -> None:
        with closed_port() as refusing:
            async with loopback_worker(build, DENIED, closes=True) as w:
                use(w, ("127.0.0.1", refusing), ("127.0.0.1", w.auth.port))
                addresses = pool(w).addresses
                take = addresses.take

                def noted(tried: tuple[object, ...] = ()) -> object:
                    found = take(tried)
                    assert found is not None
                    connected.append(found[1][1])
                    return found

                addresses.take = noted  # type: ignore[method-assign,assignment]
                for _ in range(6):
                    await log_in_and_read_reply(w)
                assert connected.count(refusing) == 1

    run(play)


@pytest.mark.parametrize("how", ["refuses", "drops"])
def test_every_address_is_tried_once(how: str) -> None:
    async def play() -> None:
        port = closed_port if how == "refuses" else dropping_port
        with port() as first, port() as second:
            async with loopback_worker(quick, DENIED) as w:
                use(w, ("127.0.0.1", first), ("127.0.0.1", second))
                assert await log_in_and_read_reply(w) == INTERNAL_ERROR
                assert w.value("mailproxy_auth_errors_total", "connect") == 1
                assert w.value("mailproxy_auth_requests_in_flight") == 0
                assert not pool(w).connections
                failed = pool(w).addresses.failed_until
                assert {target[1][1] for target in failed} == {first, second}

    run(play)


def test_failed_addresses_are_used_when_there_is_no_other() -> None:
    async def play() -> None:
        async with loopback_worker(build, DENIED, closes=True) as w:
            target = (V4, ("127.0.0.1", w.auth.port))
            pool(w).addresses.failed(target)
            assert await log_in_and_read_reply(w) == REFUSED

    run(play)


def test_service_on_one_of_two_addresses_of_localhost_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        assert host == "localhost"
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setitem(HostAddresses.__init__.__kwdefaults__, "getaddrinfo", look_up)

    def by_name(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return build(AuthHttp(host="localhost", port=auth.port), listen)

    async def play() -> None:
        async with loopback_worker(by_name, DENIED, closes=True) as w:
            assert len(pool(w).addresses.targets) == 2
            assert [await log_in_and_read_reply(w) for _ in range(10)] == [REFUSED] * 10

    run(play)


def test_requests_move_to_another_address_when_one_stops_responding() -> None:
    """A process that hangs: the kernel accepts connections, but no response comes."""

    async def play() -> None:
        with socket.socket() as hanging:
            hanging.bind(("127.0.0.1", 0))
            hanging.listen()
            async with loopback_worker(quick, DENIED, closes=True) as w:
                use(w, hanging.getsockname(), ("127.0.0.1", w.auth.port))
                replies = [await log_in_and_read_reply(w) for _ in range(4)]
                assert replies == [INTERNAL_ERROR, REFUSED, REFUSED, REFUSED]
                assert w.value("mailproxy_auth_errors_total", "timeout") == 1

    run(play)


def test_failed_address_is_logged_once() -> None:
    async def play() -> None:
        with closed_port() as refusing:
            async with loopback_worker(build, DENIED, closes=True) as w:
                use(w, ("127.0.0.1", refusing), ("127.0.0.1", w.auth.port))
                for _ in range(6):
                    await log_in_and_read_reply(w)
                lines = [line for line in w.read_log().splitlines() if "auth_http_address_failed" in line]
                assert len(lines) == 1
                assert f"127.0.0.1:{refusing}" in lines[0]
                assert "Connection refused" in lines[0]

    run(play)


def test_client_that_leaves_while_addresses_are_tried_cancels_the_request() -> None:
    async def play() -> None:
        with dropping_port() as first, dropping_port() as second:
            async with loopback_worker(build, DENIED) as w:
                use(w, ("127.0.0.1", first), ("127.0.0.1", second))
                client = await w.client()
                await client.read_line()
                await client.exchange(b"USER u\r\n")
                await client.send(b"PASS p\r\n")
                while not pool(w).connections:
                    await asyncio.sleep(0.01)
                client.reset()
                await w.wait_for_sessions()
                assert not pool(w).connections
                assert w.value("mailproxy_auth_requests_in_flight") == 0

    run(play)


def test_unix_socket_with_a_full_queue_refuses(tmp_path: Path) -> None:
    path = str(tmp_path / "auth")

    def over_unix(_: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return build(AuthHttp(host="localhost", unix_path=path), listen)

    async def play() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
            listening.bind(path)
            listening.listen(0)
            other.connect(path)
            async with loopback_worker(over_unix, DENIED) as w:
                assert await log_in_and_read_reply(w) == INTERNAL_ERROR
                assert f"connecting to unix:{path} failed: Resource temporarily" in w.read_log()

    run(play)
