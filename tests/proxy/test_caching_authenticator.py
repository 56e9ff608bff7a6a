# SPDX-License-Identifier: Apache-2.0
"""Logins that are decided by the cache (``auth_cache``), over sockets, with a service that counts."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from mailproxy.auth_cache.caching_authenticator import CachingAuthenticator
from mailproxy.auth_http.client import AuthHttpClient
from mailproxy_config.auth_cache import AuthCacheConfig
from mailproxy_config.limits import LimitConn, LimitConnZone
from mailproxy_config.model import AuthMethod, Protocol, ProxyConfig, Seconds, Tempfail
from support.checked_worker import (
    ACCEPTANCES,
    INTERNAL_ERRORS,
    LOGINS,
    UPSTREAMS,
    checked_worker,
    log_in,
    read_until_closed,
    run_iterations,
    server_builder,
)
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, run

CACHE: Final = AuthCacheConfig(size=1 << 20, ttl=60.0, stale_if_error=300.0)
GRANTED: Final = http_response(GRANT)
DENIED: Final = http_response("Auth-Status: Wrong password\r\n")
DENIED_WITH_WAIT: Final = http_response("Auth-Status: Wrong password\r\nAuth-Wait: 1\r\n")
FAILED: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
EVENTS: Final = "mailproxy_auth_cache_events_total"
ALL: Final = tuple(Protocol)


@dataclass
class Clock:
    """The time of the test."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def play(
    test: Callable[[LoopbackWorker, Clock], Coroutine[Any, Any, None]],
    *responses: Any,
    protocol: Protocol = Protocol.POP3,
    cache: AuthCacheConfig | None = CACHE,
    **directives: Any,
) -> None:
    async def bounded() -> None:
        build = server_builder(protocol, auth_cache=cache, **directives)
        async with checked_worker(build, *(responses or (GRANTED,)), drain=0.05) as w:
            clock = Clock()
            for one in w.app.authenticators.auth_caches.values():
                one._clock = clock
            await test(w, clock)

    run(bounded)


def the_cache(w: LoopbackWorker) -> CachingAuthenticator:
    [found] = w.app.authenticators.auth_caches.values()
    return found


async def enter(w: LoopbackWorker, protocol: Protocol = Protocol.POP3) -> None:
    """Log alice in, through to the upstream, and leave."""
    client, upstream = await log_in(w, protocol)
    client.close()
    await upstream.read_to_eof()
    upstream.close()
    await w.wait_for_sessions()


async def try_login(w: LoopbackWorker, line: bytes) -> bytes:
    """Send a login that fails, and return what the client gets after the greeting."""
    client = await w.client()
    await client.read_line()
    await client.send(line)
    return await read_until_closed(client)


def plain(user: bytes, password: bytes) -> bytes:
    return b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + password) + b"\r\n"


ALICE: Final = LOGINS[Protocol.POP3]


@pytest.mark.parametrize("protocol", ALL)
def test_second_login_is_decided_without_a_request(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w, protocol)
        clock.now += 59.9
        await enter(w, protocol)  # the upstream gets the client's own password
        assert len(w.auth.requests) == 1
        first, second = (line for line in w.read_log().splitlines() if " session " in line)
        assert "cache=" not in first
        assert "cache=hit" in second
        assert [w.value(EVENTS, event) for event in ("hit", "miss", "stored")] == [1, 1, 1]
        assert w.value("mailproxy_auth_cache_entries") == 1
        assert w.value("mailproxy_auth_cache_bytes") == the_cache(w).entries.used > 0

    play(test, protocol=protocol)


def test_login_that_is_never_cached_has_no_cache_in_the_log_after_one_that_was() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        await enter(w, Protocol.IMAP)
        client = await w.client()
        await client.read_line()
        await client.send(LOGINS[Protocol.IMAP])
        (await w.upstream.accept()).close()
        assert b"[UNAVAILABLE]" in await client.read_line()
        assert await client.exchange(b"b AUTHENTICATE CRAM-MD5\r\n") != b""
        assert b"NO" in await client.exchange(b64encode(b"alice " + b"0" * 32) + b"\r\n")  # no Auth-Pass
        client.close()
        await w.wait_for_sessions()
        last = [line for line in w.read_log().splitlines() if " session " in line][-1]
        assert "attempts=2" in last
        assert "cache=" not in last

    methods = frozenset({AuthMethod.PLAIN, AuthMethod.CRAM_MD5})
    play(test, protocol=Protocol.IMAP, imap_auth=methods, proxy_tempfail=Tempfail.RFC5530)


def test_expired_entry_asks_the_service() -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        for _ in range(3):
            await enter(w)
            clock.now += 60.0
        assert len(w.auth.requests) == 3

    play(test)


def test_another_password_asks_the_service_and_leaves_the_entry() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        await enter(w)
        assert await try_login(w, plain(b"alice", b"other")) == b"-ERR Wrong password\r\n"
        assert await try_login(w, plain(b"alice", b"other")) == b"-ERR Wrong password\r\n"
        assert len(w.auth.requests) == 3
        await enter(w)
        assert len(w.auth.requests) == 3

    play(test, GRANTED, DENIED)


def test_refusal_after_expiry_ends_the_entry_even_during_an_outage() -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        clock.now += 60.0
        assert await try_login(w, ALICE) == b"-ERR Wrong password\r\n"
        assert len(the_cache(w).entries) == 0
        assert await try_login(w, ALICE) == INTERNAL_ERRORS[Protocol.POP3]

    play(test, GRANTED, DENIED, FAILED)


@pytest.mark.parametrize("protocol", ALL)
def test_known_login_goes_on_during_an_outage_for_stale_if_error(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w, protocol)
        clock.now += 359.0
        await enter(w, protocol)
        await enter(w, protocol)
        assert len(w.auth.requests) == 3  # the service is asked each time
        unknown = LOGINS[protocol].replace(b"AGFsaWNlAHNlY3JldA==", b64encode(b"\0bob\0pw"))
        unknown = unknown.replace(b"alice", b"bob")
        assert await try_login(w, unknown) == INTERNAL_ERRORS[protocol]
        clock.now += 1.0
        assert await try_login(w, LOGINS[protocol]) == INTERNAL_ERRORS[protocol]
        log = w.read_log()
        assert log.count("cache=stale") == 2
        assert log.count("auth_cache_used_stale") == 1
        assert "503" in log
        assert w.value(EVENTS, "stale") == 2

    play(test, GRANTED, FAILED, protocol=protocol)


def test_lost_connection_and_timeout_are_outages() -> None:
    async def no_response(_: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        clock.now += 60.0
        await enter(w)
        assert w.value("mailproxy_auth_errors_total", "timeout") == 1
        w.auth.responses[:] = [b""]
        w.auth.closes = True
        await enter(w)
        assert w.value(EVENTS, "stale") == 2

    play(test, GRANTED, no_response, auth_http_timeout=Seconds(0.05))


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        http_response("Auth-Status: OK\r\nAuth-Server: nowhere\r\nAuth-Port: 1\r\n"),
    ],
    ids=["403", "invalid address"],
)
def test_mistake_of_the_service_is_no_outage(response: bytes) -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        clock.now += 60.0
        assert await try_login(w, ALICE) == INTERNAL_ERRORS[Protocol.POP3]
        assert w.value(EVENTS, "stale") == 0

    play(test, GRANTED, response)


def test_credentials_from_the_service_are_used_again() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        for _ in range(2):
            client = await w.client()
            await client.read_line()
            await client.send(ALICE)
            upstream = await w.upstream.accept()
            assert await upstream.exchange(b"+OK\r\n") == b"USER mailbox7\r\n"
            assert await upstream.exchange(b"+OK\r\n") == b"PASS other\r\n"
            client.close()
            upstream.close()
            await w.wait_for_sessions()
        assert len(w.auth.requests) == 1
        assert "other" not in repr(the_cache(w)) + repr(the_cache(w).entries) + w.read_log()

    play(test, http_response(GRANT + "Auth-User: mailbox7\r\nAuth-Pass: other\r\n"))


@pytest.mark.parametrize(
    ("response", "negative_ttl", "requests"),
    [
        (DENIED, 0.0, 2),
        (DENIED, 5.0, 1),
        (http_response("Auth-Status: no\r\nAuth-Cache: max-age=5\r\n"), 0.0, 1),
        (http_response("Auth-Status: no\r\nAuth-Cache: no-store\r\n"), 5.0, 2),
    ],
    ids=["not asked for", "negative_ttl", "max-age of the service", "no-store of the service"],
)
def test_refusals_are_cached_only_where_asked_for(
    response: bytes, negative_ttl: float, requests: int
) -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        first = await try_login(w, ALICE)
        assert await try_login(w, ALICE) == first
        assert len(w.auth.requests) == requests
        clock.now += 5.0
        await try_login(w, ALICE)
        assert len(w.auth.requests) == requests + 1

    play(test, response, cache=replace(CACHE, negative_ttl=negative_ttl))


def test_refusal_with_auth_wait_is_not_cached() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        for _ in range(2):
            client = await w.client()
            await client.read_line()
            assert await client.exchange(ALICE) == b"-ERR Wrong password\r\n"
            client.close()
            await w.wait_for_sessions()
        assert len(w.auth.requests) == 2

    play(test, DENIED_WITH_WAIT, cache=replace(CACHE, negative_ttl=5.0))


def test_temporary_refusal_is_not_cached() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        for _ in range(2):
            assert await try_login(w, LOGINS[Protocol.SMTP]) == b"451 4.3.0 later\r\n"
        assert len(w.auth.requests) == 2

    busy = http_response("Auth-Status: later\r\nAuth-Error-Code: 451 4.3.0\r\n")
    play(test, busy, cache=replace(CACHE, negative_ttl=5.0), protocol=Protocol.SMTP)


@pytest.mark.parametrize(
    ("wish", "seconds", "requests", "stale"),
    [
        ("no-store", 0.0, 2, 0),
        ("max-age=10", 9.9, 1, 0),
        ("max-age=10", 10.0, 2, 1),
        ("max-age=100", 99.0, 1, 0),
        ("max-age=10, stale-if-error=0", 10.0, 2, 0),
        ("max-age=0", 0.0, 2, 1),
        ("stale-if-error=1000", 900.0, 2, 1),
    ],
)
def test_wish_of_the_service_wins(wish: str, seconds: float, requests: int, stale: int) -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        clock.now += seconds
        if requests == 1 or stale:
            await enter(w)
        else:
            assert await try_login(w, ALICE) == INTERNAL_ERRORS[Protocol.POP3]
        assert len(w.auth.requests) == requests
        assert w.value(EVENTS, "stale") == stale

    play(test, http_response(GRANT + f"Auth-Cache: {wish}\r\n"), FAILED)


def test_no_store_drops_the_entry_before() -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        clock.now += 60.0
        await enter(w)
        assert len(the_cache(w).entries) == 0

    play(test, GRANTED, http_response(GRANT + "Auth-Cache: no-store\r\n"))


def test_ttl_of_zero_asks_each_time_and_helps_in_an_outage() -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        await enter(w)
        await enter(w)
        clock.now += 300.0
        assert len(w.auth.requests) == 2
        assert await try_login(w, ALICE) == INTERNAL_ERRORS[Protocol.POP3]

    play(test, GRANTED, GRANTED, FAILED, cache=replace(CACHE, ttl=0.0))


def test_login_with_a_digest_is_never_cached() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        for _ in range(2):
            client = await w.client()
            await client.read_line()
            await client.exchange(b"APOP alice 0123456789abcdef0123456789abcdef\r\n")
            client.close()
            await w.wait_for_sessions()
        assert len(w.auth.requests) == 2
        assert w.value(EVENTS, "miss") == 0

    apop = frozenset({AuthMethod.APOP})
    play(test, DENIED_WITH_WAIT, cache=replace(CACHE, negative_ttl=5.0), pop3_auth=apop)


def test_deferred_login_is_not_cached() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        await enter(w)
        assert len(w.auth.requests) == 2
        assert len(the_cache(w).entries) == 0

    play(test, http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n"), GRANTED)


def test_token_is_used_until_it_expires_even_during_an_outage() -> None:
    claims = urlsafe_b64encode(json.dumps({"exp": 5000.0 + 30.0}).encode()).rstrip(b"=")
    token = b"user=alice\1auth=Bearer e30." + claims + b".c2ln\1\1"
    line = b"AUTH XOAUTH2 " + b64encode(token) + b"\r\n"

    async def attempt(w: LoopbackWorker) -> Peer:
        client = await w.client()
        await client.read_line()
        await client.send(line)
        return client

    async def test(w: LoopbackWorker, clock: Clock) -> None:
        the_cache(w)._wall_clock = lambda: clock.now + 4000.0
        for _ in range(2):
            client = await attempt(w)
            (await w.upstream.accept()).close()
            await read_until_closed(client)
            clock.now += 29.0
        assert len(w.auth.requests) == 1
        assert await read_until_closed(await attempt(w)) == INTERNAL_ERRORS[Protocol.POP3]
        assert w.value(EVENTS, "hit") == 1

    play(test, GRANTED, FAILED, pop3_auth=frozenset({AuthMethod.XOAUTH2}))


# -- several logins at the same time


class SlowService:
    """Responses that the test gives one by one."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[bytes]] = asyncio.Queue()

    async def __call__(self, _: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await self.asked.put(future)
        return await future


async def herd(w: LoopbackWorker, size: int = 3) -> list[Peer]:
    """Begin so many logins of alice; all of them wait."""
    clients = []
    for _ in range(size):
        client = await w.client()
        await client.read_line()
        await client.send(ALICE)
        clients.append(client)
    while w.value("mailproxy_sessions_active", "pop3", "auth") != size:
        await asyncio.sleep(0.001)
    await run_iterations()
    return clients


async def upstream_logins(w: LoopbackWorker, clients: list[Peer]) -> None:
    for _ in clients:
        upstream = await w.upstream.accept()
        for reply, command in UPSTREAMS[Protocol.POP3]:
            assert await upstream.exchange(reply) == command
        await upstream.send(ACCEPTANCES[Protocol.POP3][0])
    for client in clients:
        assert await client.read_line() == ACCEPTANCES[Protocol.POP3][1]


def grant(w: LoopbackWorker) -> bytes:
    return GRANTED.replace(b"{port}", str(w.upstream.port).encode())


def test_logins_with_the_same_credentials_ask_once() -> None:
    service = SlowService()

    async def test(w: LoopbackWorker, _: Clock) -> None:
        clients = await herd(w)
        (await service.asked.get()).set_result(grant(w))
        await upstream_logins(w, clients)
        assert len(w.auth.requests) == 1
        assert [w.value(EVENTS, event) for event in ("miss", "joined", "hit")] == [1, 2, 0]

    play(test, service)


def test_each_of_several_logins_is_sent_after_a_refusal() -> None:
    service = SlowService()

    async def test(w: LoopbackWorker, _: Clock) -> None:
        clients = await herd(w)
        for _ in clients:
            (await service.asked.get()).set_result(DENIED)
        for client in clients:
            assert await client.read_line() == b"-ERR Wrong password\r\n"
        assert len(w.auth.requests) == 3

    play(test, service)


def test_next_login_asks_when_the_first_client_leaves() -> None:
    service = SlowService()

    async def test(w: LoopbackWorker, _: Clock) -> None:
        first, second, third = await herd(w)
        await service.asked.get()
        second.reset()
        first.reset()
        await w.wait_for_sessions(1)
        (await service.asked.get()).set_result(grant(w))
        await upstream_logins(w, [third])
        assert len(w.auth.requests) == 2

    play(test, service)


def test_each_of_several_logins_gets_its_own_error_in_an_outage() -> None:
    service = SlowService()

    async def test(w: LoopbackWorker, clock: Clock) -> None:
        clients = await herd(w)
        (await service.asked.get()).set_result(FAILED)
        for client in clients:
            assert await read_until_closed(client) == INTERNAL_ERRORS[Protocol.POP3]
        assert w.read_log().count("authorization_failed") == 3
        clients = await herd(w)
        (await service.asked.get()).set_result(grant(w))
        await upstream_logins(w, clients)
        for client in clients:
            client.close()
        await w.wait_for_sessions()
        clock.now += 60.0
        clients = await herd(w)
        (await service.asked.get()).set_result(FAILED)
        await upstream_logins(w, clients)
        assert w.value(EVENTS, "stale") == 3
        assert len(w.auth.requests) == 3

    play(test, service)


def test_limit_by_a_header_of_the_response_counts_logins_from_the_cache() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        await log_in(w, Protocol.POP3)
        assert await try_login(w, ALICE) == b"-ERR [SYS/TEMP] Too many connections\r\n"
        assert len(w.auth.requests) == 1
        [entry] = the_cache(w).entries._entries.values()
        assert b"secret" not in entry.head

    zone = LimitConnZone(zone="class", key="$auth_http_x_class", size=65536)
    play(
        test,
        http_response(GRANT + "X-Class: small\r\nAuth-Pass: secret\r\nauth-pass: secret\r\n"),
        limit_conn_zone=(zone,),
        limit_conn=(LimitConn(zone="class", connections=1),),
    )


# -- configuration


def test_without_cache_logins_go_to_the_client_of_the_service_directly() -> None:
    async def test(w: LoopbackWorker, _: Clock) -> None:
        [server] = w.app._servers.values()
        assert type(server.auth) is AuthHttpClient
        await enter(w)
        await enter(w)
        assert len(w.auth.requests) == 2

    play(test, cache=None)
    play(test, cache=AuthCacheConfig(size=0))


def test_reload_keeps_the_cache_of_an_unchanged_server_and_drops_that_of_a_changed_one() -> None:
    async def test(w: LoopbackWorker, clock: Clock) -> None:
        async def reload(**changes: Any) -> None:
            [server] = w.config.servers
            w.config = ProxyConfig(servers=(replace(server, **changes),), worker_connections=512)
            [listener] = w.app.listeners
            sockets = {listener.key: [listener.sock.dup()]}
            await w.app.apply(w.config, sockets, names={}, ticket_keys={})

        await enter(w)
        kept = the_cache(w)
        await reload()
        assert the_cache(w) is kept
        assert len(kept.entries) == 1
        await reload(max_errors=9)
        assert the_cache(w) is not kept
        assert len(kept.entries) == len(the_cache(w).entries) == 0
        assert w.value("mailproxy_auth_cache_entries") == 0
        assert kept._sweep_timer is None

    play(test)
