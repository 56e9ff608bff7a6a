# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for a connection to the authentication service: addresses take turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mailproxy.auth_http.client import AuthHttpClient, FairQueue, source_of
from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.enums import Method
from mailproxy.protocols.types import AuthRequest, Client, Credentials
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, Seconds, ServerConfig
from support.checked_worker import checked_worker, serve
from support.configs import server
from support.loopback_worker import Builder, LoopbackWorker, http_response, loopback_worker, run

DENIED = http_response("Auth-Status: no\r\n")
A, B, C = b"192.0.2.1", b"192.0.2.2", b"192.0.2.3"


def pending(results: list[Any] | None = None, durations: Any = None) -> PendingRequest:
    """A request whose result is appended to ``results``."""
    return pending_with((results if results is not None else []).append, durations)


def pending_with(callback: Callable[[Any], None], durations: Any = None) -> PendingRequest:
    request = AuthRequest(Credentials(Method.PASSWORD, b"u"), 1, Client("192.0.2.1"))
    return PendingRequest(
        callback,
        b"GET",
        request,
        server(Protocol.POP3),
        {} if durations is None else durations,
        time.monotonic(),
        SessionRecord(),
    )


def add(service: AuthHttpClient, request: PendingRequest) -> None:
    """Let a request wait for a connection, as where all are busy."""
    service.requests[request] = None
    service.waiting.add(request, A)
    service.context.metrics.auth_in_flight.value += 1


def filled(*sources: bytes) -> tuple[FairQueue, list[PendingRequest]]:
    queue, requests = FairQueue(), [pending() for _ in sources]
    for request, source in zip(requests, sources, strict=True):
        queue.add(request, source)
    return queue, requests


def taken(queue: FairQueue) -> list[PendingRequest | None]:
    return [queue.take(reserved=False) for _ in range(len(queue))]


def test_client_addresses_take_turns() -> None:
    queue, (a1, a2, a3, b1, c1, c2) = filled(A, A, A, B, C, C)
    assert taken(queue) == [a1, b1, c1, a2, c2, a3]
    assert queue.take(reserved=False) is None


def test_later_address_waits_for_one_request_of_another() -> None:
    queue, attackers = filled(*[A] * 100)
    late = pending()
    queue.add(late, B)
    assert queue.take(reserved=False) is attackers[0]
    assert queue.take(reserved=False) is late


@pytest.mark.parametrize("reserved", [False, True])
def test_discarded_request_is_not_returned(reserved: bool) -> None:
    queue, (a1, a2, b1) = filled(A, A, B)
    if reserved:
        queue.hold(pending(), A)
    for request in (a1, b1, b1):
        queue.discard(request)
    assert len(queue) == 1
    assert taken(queue) == [a2]
    assert queue.take(reserved=False) is None


def test_address_holds_one_reserved_connection_at_a_time() -> None:
    queue, (a1, a2, a3, b1) = filled(A, A, A, B)
    assert queue.take(reserved=True) is a1
    assert queue.take(reserved=True) is b1
    assert queue.take(reserved=True) is None
    assert not queue.may_hold(A)
    assert queue.take(reserved=False) is a2  # of the other connections it may have more
    queue.release(b1)
    assert queue.take(reserved=True) is None
    queue.release(a1)
    assert queue.take(reserved=True) is a3
    queue.release(a3)
    assert queue.may_hold(A)
    assert not queue.holders


def test_addresses_without_a_reserved_connection_go_first() -> None:
    queue, (a1, a2, b1) = filled(A, A, B)
    assert queue.take(reserved=True) is a1
    queue.add(c1 := pending(), C)
    assert taken(queue) == [b1, c1, a2]


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", b"192.0.2.1"),
        ("::ffff:192.0.2.1", b"192.0.2.1"),
        ("2001:db8:1:2::3", bytes.fromhex("20010db800010002")),
        ("2001:db8:1:2:ffff::", bytes.fromhex("20010db800010002")),
        ("2001:db8:1:3::3", bytes.fromhex("20010db800010003")),
        ("unix:", b"unix:"),
    ],
)
def test_source_of_a_client_address(address: str, source: bytes) -> None:
    assert source_of(address) == source


@pytest.mark.parametrize(
    ("maximum", "shared", "limit"), [(None, 512, 512), (512, 512, 512), (100, 75, 100), (1, 1, 1)]
)
def test_connections_are_reserved_only_below_worker_connections(
    maximum: int | None, shared: int, limit: int
) -> None:
    async def play() -> None:
        async with loopback_worker(limited(maximum), DENIED) as w:
            service = pool(w)
            assert (service.shared_limit, service.limit) == (shared, limit)

    run(play)


def limited(maximum: int | None, port: int | None = None) -> Builder:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(
            Protocol.POP3,
            timeout=Seconds(300.0),
            auth_http=auth if port is None else AuthHttp(host="127.0.0.1", port=port),
            listen=(ListenConfig(address=listen.address, port=listen.port, proxy_protocol=True),),
            auth_http_max_connections=maximum,
            set_real_ip_from=("127.0.0.0/8",),
        )

    return build


def pool(w: LoopbackWorker) -> AuthHttpClient:
    (service,) = w.app.authenticators.auth_clients.values()
    return service


async def log_in(w: LoopbackWorker, source: str, user: str) -> bytes:
    """Log in from an address of our choice."""
    client = await w.client()
    family = "TCP6" if ":" in source else "TCP4"
    local = "2001:db8::1" if ":" in source else "192.0.2.254"
    await client.send(f"PROXY {family} {source} {local} 40000 110\r\n".encode())
    await client.read_line()
    await client.send(f"USER {user}\r\nPASS p\r\n".encode())
    replies = await client.read_to_eof()
    client.close()
    return replies.removeprefix(b"+OK\r\n")


class Tarpit:
    """A service that answers bad logins only when it is let, and counts how many it holds."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.held = 0
        self.most = 0
        self.order: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            user = request.split("Auth-User: ")[1].split("\r\n")[0]
            self.order.append(user)
            if user.startswith("bad"):
                self.held += 1
                self.most = max(self.most, self.held)
                await self.let.wait()
                self.held -= 1
            writer.write(DENIED)


BAD = 2000


def test_delayed_denials_of_one_address_do_not_delay_another_address() -> None:
    """Two thousand logins from one address are held back by the service; one from another is answered."""

    async def play() -> None:
        tarpit = Tarpit()
        async with serve(tarpit) as port, loopback_worker(limited(256, port), DENIED, limit=BAD + 10) as w:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(log_in(w, "198.51.100.1", f"bad{n}")) for n in range(BAD)]
                while len(pool(w).requests) < BAD:
                    await asyncio.sleep(0.01)
                while tarpit.held < 192 + 1:
                    await asyncio.sleep(0.01)
                for source in ("203.0.113.1", "2001:db8::5"):
                    assert await log_in(w, source, "good") == b"-ERR no\r\n"
                assert tarpit.held == tarpit.most == 192 + 1  # three in four, and one that was reserved
                assert tarpit.order.count("good") == 2
                tarpit.let.set()
            assert {task.result() for task in tasks} == {b"-ERR no\r\n"}
            assert len(tarpit.order) == BAD + 2
            assert not pool(w).waiting.holders

    run(play)


def test_default_limit_is_worker_connections() -> None:
    """By default no request waits for a connection, as with nginx."""

    async def play() -> None:
        tarpit = Tarpit()
        async with (
            checked_worker(limited(None), service=tarpit, limit=600) as w,
            asyncio.TaskGroup() as group,
        ):
            for number in range(500):
                group.create_task(log_in(w, "198.51.100.1", f"bad{number}"))
            while tarpit.held < 500:
                await asyncio.sleep(0.01)
            assert await log_in(w, "198.51.100.1", "good") == b"-ERR no\r\n"
            tarpit.let.set()

    run(play)


def test_many_addresses_with_delayed_denials_delay_another_by_one_request_each() -> None:
    """Each attacking address has one turn before the good one, however many logins it sends."""

    async def play() -> None:
        tarpit = Tarpit()
        async with checked_worker(limited(1), service=tarpit) as w:
            async with asyncio.TaskGroup() as group:
                for number in range(60):
                    group.create_task(log_in(w, f"198.51.100.{number % 3}", f"bad{number}"))
                while len(pool(w).waiting) < 59:
                    await asyncio.sleep(0.01)
                group.create_task(log_in(w, "203.0.113.1", "good"))
                while len(pool(w).waiting) < 60:
                    await asyncio.sleep(0.01)
                tarpit.let.set()
            assert "good" in tarpit.order[:5]

    run(play)


def test_request_of_a_client_that_left_is_not_sent() -> None:
    async def play() -> None:
        tarpit = Tarpit()
        async with checked_worker(limited(1), service=tarpit) as w:
            async with asyncio.TaskGroup() as group:
                group.create_task(log_in(w, "198.51.100.1", "bad"))
                while not tarpit.held:
                    await asyncio.sleep(0.01)
                client = await w.client()
                await client.send(b"PROXY TCP4 198.51.100.2 192.0.2.254 1 110\r\n")
                await client.read_line()
                await client.send(b"USER gone\r\nPASS p\r\n")
                while not len(pool(w).waiting):
                    await asyncio.sleep(0.01)
                client.reset()
                while len(pool(w).waiting):
                    await asyncio.sleep(0.01)
                tarpit.let.set()
            assert tarpit.order == ["bad"]

    run(play)


class Counted(dict[Any, Any]):
    def __missing__(self, key: object) -> Any:
        class Nothing:
            def observe(self, seconds: float) -> None: ...

        return Nothing()


@pytest.mark.parametrize("count", [1_000, 8_000])
def test_requests_time_out_and_are_cancelled_in_linear_time(count: int) -> None:
    """Counted, not timed: requests that are over are not visited again."""

    async def play() -> None:
        async with loopback_worker(limited(1), DENIED) as w:
            service = pool(w)
            discards = 0
            real = FairQueue.discard

            def discard(self: FairQueue, request: PendingRequest) -> None:
                nonlocal discards
                discards += 1
                real(self, request)

            results: list[list[Any]] = [[] for _ in range(count)]
            all_pending = [pending(result, Counted()) for result in results]
            for request in all_pending:
                add(service, request)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FairQueue, "discard", discard)
                for request in all_pending[::2]:
                    service.cancel(request)
                service.seconds = 0.0
                service.time_out_requests()
            assert discards == count
            assert not service.requests
            assert not len(service.waiting)
            assert [len(result) for result in results] == [0, 1] * (count // 2)
            assert w.value("mailproxy_auth_requests_in_flight") == 0

    run(play)


def test_exception_in_one_callback_does_not_stop_other_timeouts() -> None:
    def fail(_: object) -> None:
        raise RuntimeError

    async def play() -> None:
        async with loopback_worker(limited(1), DENIED) as w:
            service = pool(w)
            results: list[Any] = []
            add(service, pending_with(fail, Counted()))
            add(service, pending(results, Counted()))
            service.seconds = 0.0
            service.time_out_requests()
            assert len(results) == 1
            assert "internal_error" in w.read_log()

    run(play)
