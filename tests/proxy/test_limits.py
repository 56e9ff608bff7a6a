# SPDX-License-Identifier: Apache-2.0
"""``limit_conn``, ``limit_req`` and ``limit_preauth`` in a worker, over sockets."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import pytest

from mailproxy.limits import zones
from mailproxy.limits.mutex import Busy
from mailproxy.limits.request_zone import ReqZone
from mailproxy.limits.zones import ConnZone
from mailproxy.net.listen_plan import plan_sockets
from mailproxy_config.auth_cache import AuthCacheConfig
from mailproxy_config.limits import (
    LimitConn,
    LimitConnZone,
    LimitLogLevel,
    LimitReq,
    LimitReqZone,
    LimitWords,
)
from mailproxy_config.model import AuthHttp, ListenConfig, LogLevel, Protocol, ProxyConfig, ServerConfig
from support.configs import server
from support.loopback_worker import (
    GRANT,
    LoopbackWorker,
    Peer,
    http_response,
    listening_socket,
    loopback_worker,
    run,
)

PLAIN: Final = b64encode(b"\0bob@example.org\0secret")
COMMAND: Final = {
    Protocol.IMAP: b"a1 LOGIN bob@example.org secret\r\n",
    Protocol.POP3: b"AUTH PLAIN " + PLAIN + b"\r\n",
    Protocol.SMTP: b"AUTH PLAIN " + PLAIN + b"\r\n",
}
TOO_MANY: Final = {
    Protocol.IMAP: b"a1 NO [UNAVAILABLE] Too many connections\r\n",
    Protocol.POP3: b"-ERR [SYS/TEMP] Too many connections\r\n",
    Protocol.SMTP: b"454 4.7.0 Too many connections\r\n",
}
TOO_MANY_AS_DOVECOT: Final = {
    Protocol.IMAP: b"a1 NO [LIMIT] Too many connections\r\n",
    Protocol.POP3: b"-ERR [IN-USE] Too many connections\r\n",
    Protocol.SMTP: b"421 4.7.0 Too many connections\r\n",
}
ADDR: Final = LimitConnZone(zone="addr", key="$remote_addr", size=65536)
USER: Final = LimitConnZone(zone="user", key="$remote_user", size=65536)
RATE: Final = LimitReqZone(zone="rate", key="$remote_addr", size=65536, rate=1)
GRANTED: Final = http_response(GRANT)
DENIED: Final = http_response("Auth-Status: Invalid login or password\r\nAuth-Wait: 1\r\n")
EVENTS: Final = "mailproxy_limit_zone_events_total"
REJECTIONS: Final = "mailproxy_limit_rejections_total"


def builder(
    protocol: Protocol, *, proxy_protocol: bool = False, **directives: Any
) -> Callable[..., ServerConfig]:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        where = replace(listen, proxy_protocol=proxy_protocol)
        known = {"auth_http": auth, "listen": (where,), "xclient": False, "error_log": LogLevel.DEBUG}
        return server(protocol, **(known | directives))

    return build


def limited(
    protocol: Protocol = Protocol.IMAP, most: int = 1, **directives: Any
) -> Callable[..., ServerConfig]:
    return builder(
        protocol,
        **(
            {"limit_conn_zone": (ADDR,), "limit_conn": (LimitConn(zone="addr", connections=most),)}
            | directives
        ),
    )


def rated(protocol: Protocol = Protocol.IMAP, **directives: Any) -> Callable[..., ServerConfig]:
    limit = {"limit_req_zone": (RATE,), "limit_req": (LimitReq(zone="rate"),)}
    return builder(protocol, **(limit | directives))


def play(
    build: Callable[..., ServerConfig],
    test: Callable[[LoopbackWorker], Coroutine[Any, Any, None]],
    *responses: Any,
) -> None:
    async def bounded() -> None:
        async with loopback_worker(build, *(responses or (GRANTED,)), drain=0.05) as w:
            await test(w)

    run(bounded)


async def greeted(w: LoopbackWorker, protocol: Protocol, before: bytes = b"") -> Peer:
    client = await w.client()
    if before:
        await client.send(before)
    await client.read_line()
    if protocol is Protocol.SMTP:
        await client.send(b"EHLO client\r\n")
        while not (await client.read_line()).startswith(b"250 "):
            pass
    return client


async def logged_in(w: LoopbackWorker, protocol: Protocol, client: Peer | None = None) -> tuple[Peer, Peer]:
    """Log in; returns the client and the upstream of the relay."""
    client = client or await greeted(w, protocol)
    await client.send(COMMAND[protocol])
    upstream = await w.upstream.accept()
    if protocol is Protocol.IMAP:
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        await upstream.exchange(b"+ go\r\n")
        await upstream.exchange(b"+ go\r\n")
        await upstream.send(b"a1 OK done\r\n")
    elif protocol is Protocol.POP3:
        await upstream.send(b"+OK ready\r\n")
        await upstream.read_line()
        await upstream.exchange(b"+OK\r\n")
        await upstream.send(b"+OK done\r\n")
    else:
        await upstream.send(b"220 ready\r\n")
        await upstream.read_line()
        await upstream.send(b"250 hello\r\n")
    assert (await client.read_line())[:3] in {b"a1 ", b"+OK", b"235"}
    return client, upstream


async def refused(w: LoopbackWorker, protocol: Protocol) -> bytes:
    """Log in above a limit; returns everything that the client gets after its greeting."""
    client = await greeted(w, protocol)
    await client.send(COMMAND[protocol])
    return await client.read_to_eof()


@pytest.mark.parametrize("words", LimitWords)
@pytest.mark.parametrize("protocol", Protocol)
def test_session_above_the_limit_gets_the_reply_and_is_closed(protocol: Protocol, words: LimitWords) -> None:
    replies = TOO_MANY if words is LimitWords.FREENGINX else TOO_MANY_AS_DOVECOT

    async def test(w: LoopbackWorker) -> None:
        sessions = [await logged_in(w, protocol) for _ in range(20)]
        assert await refused(w, protocol) == replies[protocol]
        assert len(w.auth.requests) == 21
        assert w.upstream.accepted.empty()
        sessions[0][0].close()
        await w.wait_for_sessions(19)
        await logged_in(w, protocol)
        assert await refused(w, protocol) == replies[protocol]
        assert w.value(EVENTS, "addr", "rejected") == 2
        assert w.value(REJECTIONS, str(protocol), "limit_conn", "enforce") == 2
        log = w.read_log()
        assert "error limit_conn" in log
        assert "result=limit_conn stage=limit" in log
        assert "limit_zone=addr" in log
        assert "reason=limit" in log
        assert "login_denied" not in log

    play(limited(protocol, 20, limit_conn_words=words), test)


def test_session_is_released_after_resets_of_client_and_upstream() -> None:
    async def test(w: LoopbackWorker) -> None:
        for number in range(4):
            client, upstream = await logged_in(w, Protocol.IMAP)
            assert await refused(w, Protocol.IMAP) == TOO_MANY[Protocol.IMAP]
            (client if number % 2 else upstream).reset()
            await w.wait_for_sessions(0)
        assert counts(w, "addr") == 0

    play(limited(), test)


def counts(w: LoopbackWorker, name: str) -> int:
    """Return how many sessions a zone counts."""
    limits = w.app.authenticators._limits
    assert limits is not None
    return sum(
        zone.held for spec, zone in limits._zones.items() if spec.zone == name and isinstance(zone, ConnZone)
    )


def test_login_that_fails_at_the_upstream_is_released() -> None:
    async def test(w: LoopbackWorker) -> None:
        for _ in range(2):
            client = await greeted(w, Protocol.IMAP)
            await client.send(COMMAND[Protocol.IMAP])
            upstream = await w.upstream.accept()
            await upstream.send(b"* BYE\r\n")
            upstream.close()
            await client.read_to_eof()
            await w.wait_for_sessions(0)
            assert counts(w, "addr") == 0

    play(limited(), test)


def test_each_limit_applies_and_a_refused_session_is_counted_nowhere() -> None:
    both = (LimitConn(zone="addr", connections=5), LimitConn(zone="user", connections=1))

    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        assert await refused(w, Protocol.IMAP) == TOO_MANY[Protocol.IMAP]
        assert "zone=user" in w.read_log()
        assert (counts(w, "addr"), counts(w, "user")) == (1, 1)

    play(limited(limit_conn_zone=(ADDR, USER), limit_conn=both), test)


def test_user_and_headers_are_those_of_the_response() -> None:
    zone = LimitConnZone(zone="mine", key="$remote_user$auth_http_x_class", size=65536)

    def response(user: str, kind: str) -> bytes:
        return http_response(f"{GRANT}Auth-User: {user}\r\nX-Class: {kind}\r\n")

    answers = [response("u", "a"), response("v", "a"), response("u", "b"), response("u", "a")]

    async def test(w: LoopbackWorker) -> None:
        for _ in range(3):
            await logged_in(w, Protocol.IMAP)
        assert await refused(w, Protocol.IMAP) == TOO_MANY[Protocol.IMAP]

    limit = (LimitConn(zone="mine", connections=1),)
    play(limited(limit_conn_zone=(zone,), limit_conn=limit), test, *answers)


def test_headers_of_a_cached_response_are_keys() -> None:
    zone = LimitConnZone(zone="mine", key="$auth_http_x_class", size=65536)

    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        assert await refused(w, Protocol.IMAP) == TOO_MANY[Protocol.IMAP]
        assert len(w.auth.requests) == 1

    limit = (LimitConn(zone="mine", connections=1),)
    config = limited(limit_conn_zone=(zone,), limit_conn=limit, auth_cache=AuthCacheConfig(size=2**20))
    play(config, test, http_response(f"{GRANT}X-Class: gold\r\n"))


def test_key_that_is_empty_or_too_long_is_not_counted() -> None:
    zone = LimitConnZone(zone="mine", key="$auth_http_x_class", size=65536)
    long = http_response(f"{GRANT}X-Class: {'x' * 256}\r\n")

    async def test(w: LoopbackWorker) -> None:
        for _ in range(3):
            await logged_in(w, Protocol.IMAP)
        assert counts(w, "mine") == 0
        assert w.value(EVENTS, "mine", "skipped") == 2
        log = w.read_log()
        assert "error limit_key_too_long" in log
        assert "xxx" not in log

    limit = (LimitConn(zone="mine", connections=1),)
    play(limited(limit_conn_zone=(zone,), limit_conn=limit), test, GRANTED, long)


def test_dry_run_counts_and_logs_and_lets_in() -> None:
    async def test(w: LoopbackWorker) -> None:
        sessions = [await logged_in(w, Protocol.IMAP) for _ in range(3)]
        assert counts(w, "addr") == 3
        assert w.value(EVENTS, "addr", "dry_run") == 2
        assert w.read_log().count("warn limit_conn") == 2
        for client, _ in sessions:
            client.close()
        await w.wait_for_sessions(0)
        assert counts(w, "addr") == 0

    play(limited(limit_conn_dry_run=True, limit_conn_log_level=LimitLogLevel.WARN), test)


@pytest.mark.parametrize("error", [Busy(), ValueError("a bug")])
def test_fault_of_the_table_refuses_nobody(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise type(error)(*error.args)  # the one of the parameter would keep the sessions of its traceback

    monkeypatch.setattr(ConnZone, "acquire", fail)
    monkeypatch.setattr(ReqZone, "charge", fail)

    async def test(w: LoopbackWorker) -> None:
        for _ in range(3):
            await logged_in(w, Protocol.IMAP)
        assert w.value(EVENTS, "addr", "skipped") == 3
        assert w.value(EVENTS, "rate", "skipped") == 3
        assert w.read_log().count("internal_error") == 1

    play(
        limited(limit_req_zone=(RATE,), limit_req=(LimitReq(zone="rate"),), limit_preauth=1),
        test,
    )


def test_reload_keeps_counts_of_a_zone_that_stays_the_same() -> None:
    async def test(w: LoopbackWorker) -> None:
        client, _ = await logged_in(w, Protocol.IMAP)
        [config] = w.config.servers

        async def reload(**changes: Any) -> None:
            listen = replace(config.listen[0], port=listening.getsockname()[1])
            changed = ProxyConfig(servers=(replace(config, listen=(listen,), **changes),))
            sockets = {planned.key: [listening.dup()] for planned in plan_sockets(changed, {})}
            await w.app.apply(changed, sockets, names={}, ticket_keys={})

        listening = listening_socket()
        w.port = listening.getsockname()[1]
        await reload(max_errors=7)
        assert await refused(w, Protocol.IMAP) == TOO_MANY[Protocol.IMAP]
        await reload(limit_conn_zone=(replace(ADDR, size=131072),))
        await logged_in(w, Protocol.IMAP)  # another size: another zone
        client.close()
        await w.wait_for_sessions(1)
        await reload(limit_conn=(), limit_conn_zone=())
        assert w.value(EVENTS, "addr", "rejected") == 0
        await logged_in(w, Protocol.IMAP)
        listening.close()

    play(limited(), test)


@pytest.mark.parametrize("protocol", Protocol)
def test_login_above_the_rate_gets_the_reply_without_a_request(protocol: Protocol) -> None:
    expected = TOO_MANY[protocol].replace(b"connections", b"requests")

    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, protocol)
        assert await refused(w, protocol) == expected
        assert len(w.auth.requests) == 1
        assert w.value(EVENTS, "rate", "rejected") == 1
        assert w.value(REJECTIONS, str(protocol), "limit_req", "enforce") == 1
        log = w.read_log()
        assert "result=limit_req stage=limit" in log
        assert "limit_zone=rate" in log

    play(rated(protocol), test)


def test_denied_logins_are_counted_within_one_session() -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.IMAP)
        assert await client.exchange(COMMAND[Protocol.IMAP]) == b"a1 NO Invalid login or password\r\n"
        await client.send(COMMAND[Protocol.IMAP])
        assert await client.read_to_eof() == b"a1 NO [UNAVAILABLE] Too many requests\r\n"

    play(rated(), test, DENIED)


def test_deferred_login_is_counted_once() -> None:
    deferral = http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n")

    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        assert len(w.auth.requests) == 2

    play(rated(), test, deferral, GRANTED)


def fast(**limit: Any) -> dict[str, Any]:
    """A rate of five logins per second."""
    return {
        "limit_req_zone": (replace(RATE, rate=300),),
        "limit_req": (LimitReq(zone="rate", **limit),),
    }


def test_login_within_the_burst_waits_without_a_request() -> None:
    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        client = await greeted(w, Protocol.IMAP)
        await client.send(COMMAND[Protocol.IMAP])
        while not w.value(EVENTS, "rate", "delayed"):
            await asyncio.sleep(0.001)
        assert len(w.auth.requests) == 1
        assert w.app.authenticators.auth_clients.popitem()[1].requests == {}
        gone = await greeted(w, Protocol.IMAP)
        await gone.send(COMMAND[Protocol.IMAP])
        while w.value(EVENTS, "rate", "delayed") < 2:
            await asyncio.sleep(0.001)
        gone.reset()
        await w.wait_for_sessions(2)
        upstream = await w.upstream.accept()
        assert len(w.auth.requests) == 2
        assert "warn limit_req_delay" in w.read_log()
        upstream.close()

    play(rated(**fast(burst=3)), test)


def test_login_within_the_burst_does_not_wait_with_nodelay() -> None:
    async def test(w: LoopbackWorker) -> None:
        for _ in range(3):
            await logged_in(w, Protocol.IMAP)
        assert await refused(w, Protocol.IMAP) == b"a1 NO [UNAVAILABLE] Too many requests\r\n"
        assert w.value(EVENTS, "rate", "delayed") == 0

    limit = (LimitReq(zone="rate", burst=2, delay=None),)
    play(rated(limit_req=limit), test)


def test_login_that_would_wait_longer_than_the_timeout_is_refused() -> None:
    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        assert await refused(w, Protocol.IMAP) == b"a1 NO [UNAVAILABLE] Too many requests\r\n"

    play(rated(limit_req=(LimitReq(zone="rate", burst=5),), timeout=50.0), test)


def test_rate_in_dry_run_neither_delays_nor_refuses() -> None:
    async def test(w: LoopbackWorker) -> None:
        for _ in range(3):
            await logged_in(w, Protocol.IMAP)
        assert w.value(EVENTS, "rate", "dry_run") == 1
        assert w.value(EVENTS, "rate", "delayed") == 1

    play(rated(limit_req_dry_run=True, limit_req=(LimitReq(zone="rate", burst=1),)), test)


def test_login_that_one_zone_refuses_is_counted_in_no_other() -> None:
    wide = LimitReqZone(zone="wide", key="$remote_addr", size=65536, rate=1)
    limits = (LimitReq(zone="wide", burst=2, delay=None), LimitReq(zone="rate"))

    async def test(w: LoopbackWorker) -> None:
        await logged_in(w, Protocol.IMAP)
        for _ in range(5):
            assert b"Too many requests" in await refused(w, Protocol.IMAP)
        log = w.read_log()
        assert "limit_zone=rate" in log
        assert "limit_zone=wide" not in log

    play(rated(limit_req_zone=(RATE, wide), limit_req=limits), test)


def test_connections_before_login_are_limited_and_closed_without_a_word() -> None:
    async def test(w: LoopbackWorker) -> None:
        waiting = [await greeted(w, Protocol.IMAP) for _ in range(2)]
        above = await w.client()
        assert await above.read_to_eof() == b""
        assert w.value(EVENTS, "limit_preauth", "rejected") == 1
        assert w.value(REJECTIONS, "imap", "limit_preauth", "enforce") == 1
        assert w.value("mailproxy_connections_closed_total", "imap", "imap", "limit") == 1
        assert "error limit_preauth" in w.read_log()
        await logged_in(w, Protocol.IMAP, waiting[0])  # is not counted any more
        await greeted(w, Protocol.IMAP)
        waiting[1].reset()
        await w.wait_for_sessions(2)
        await greeted(w, Protocol.IMAP)
        assert await (await w.client()).read_to_eof() == b""

    play(builder(Protocol.IMAP, limit_preauth=2), test)


def test_connections_before_login_are_counted_by_the_address_of_the_proxy_header() -> None:
    def header(address: bytes) -> bytes:
        return b"PROXY TCP4 " + address + b" 192.0.2.9 40000 143\r\n"

    async def test(w: LoopbackWorker) -> None:
        await greeted(w, Protocol.IMAP, header(b"192.0.2.1"))
        await greeted(w, Protocol.IMAP, header(b"192.0.2.2"))
        above = await w.client()
        await above.send(header(b"192.0.2.1"))
        assert await above.read_to_eof() == b""
        assert "client=192.0.2.1:40000 proxied" in w.read_log()
        assert counts(w, "limit_preauth") == 2

    play(builder(Protocol.IMAP, limit_preauth=1, proxy_protocol=True, set_real_ip_from=("127.0.0.1",)), test)


@pytest.mark.parametrize("is_limited", [True, False])
def test_pop3_announces_response_codes_where_logins_are_limited(is_limited: bool) -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.POP3)
        await client.send(b"CAPA\r\nQUIT\r\n")
        assert (b"\r\nRESP-CODES\r\n" in await client.read_to_eof()) is is_limited

    play(limited(Protocol.POP3) if is_limited else builder(Protocol.POP3, limit_preauth=5), test)


def test_flood_from_one_network_is_one_address_with_a_prefix() -> None:
    async def test(w: LoopbackWorker) -> None:
        for number in (b"1", b"2:3", b"ffff"):
            client = await w.client()
            await client.send(b"PROXY TCP6 2001:db8::" + number + b" ::1 40000 143\r\n")
            found = await client.read_line() if number == b"1" else await client.read_to_eof()
            assert bool(found) is (number == b"1")

    play(
        builder(
            Protocol.IMAP,
            limit_preauth=1,
            limit_conn_ipv6_prefix=64,
            proxy_protocol=True,
            set_real_ip_from=("127.0.0.1",),
        ),
        test,
    )


def test_zone_without_a_place_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(zones, "make_mutex", fail)

    async def test(w: LoopbackWorker) -> None:
        for _ in range(2):
            await logged_in(w, Protocol.IMAP)
        assert "error limit_zone_unavailable zone=addr" in w.read_log()

    play(limited(), test)
