# SPDX-License-Identifier: Apache-2.0
"""Connections that break in any state: no resources of the session are leaked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import pytest

from mailproxy.loop.epoll import BROKEN
from mailproxy_config.model import Protocol, Seconds, StartTls
from support.checked_worker import (
    ACCEPTANCES,
    DENIED,
    LOGINS,
    UPSTREAMS,
    checked_worker,
    log_in,
    read_until_closed,
    run_iterations,
    server_builder,
    start_tls,
)
from support.loopback_worker import GRANT, LoopbackWorker, http_response, run
from support.tls_identities import Identities

GRANTED: Final = http_response(GRANT)
each = pytest.mark.parametrize("protocol", Protocol, ids=str)
either = pytest.mark.parametrize("ending", ["close", "reset"])
STARTS: Final = {Protocol.IMAP: b"s STARTTLS\r\n", Protocol.POP3: b"STLS\r\n", Protocol.SMTP: b"STARTTLS\r\n"}
TALK: Final = {
    "at once": b"",
    "in a command": b"NO",
    "behind a command": b"NOOP\r\n",
    "in an exchange": b"AUTH LOGIN\r\n",
    "in a response": b"AUTH LOGIN\r\nQUF",
    "in a literal": b"a LOGIN {10}\r\nabc",
    "in a literal that nobody asked for": b"a LOGIN {10+}\r\nabc",
    "with errors": b"\0\r\n" * 3,
    "while it leaves": b"QUIT\r\nx LOGOUT\r\n",
    "after too many errors": b"\0\r\n" * 20,
    "in a line too long": b"x" * 10_000,
}


@each
@either
@pytest.mark.parametrize("data", TALK.values(), ids=TALK)
def test_client_breaks_off_before_login(protocol: Protocol, ending: str, data: bytes) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol)) as w:
            client = await w.client()
            await client.read_line()
            client.writer.write(data)
            await run_iterations()
            getattr(client, ending)()
            await w.wait_for_sessions()

    run(play)


@each
@either
def test_client_breaks_off_before_the_greeting(protocol: Protocol, ending: str) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, smtp_greeting_delay=Seconds(0.2))) as w:
            client = await w.client()
            getattr(client, ending)()
            await w.wait_for_sessions()
            await run_iterations(10)
            await w.wait_for_sessions()

    run(play)


@each
@either
@pytest.mark.parametrize("stage", ["before", "in", "after"])
def test_client_breaks_off_around_starttls(
    protocol: Protocol, ending: str, stage: str, identities: Identities
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, identities, starttls=StartTls.ENABLED)) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(STARTS[protocol])
            if stage == "in":
                await client.send(b"\x16\x03\x01")
                await run_iterations()
            if stage == "after":
                await start_tls(client, identities)
            getattr(client, ending)()
            await w.wait_for_sessions()

    run(play)


@each
def test_client_resets_during_auth_request(protocol: Protocol) -> None:
    async def never(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def play() -> None:
        async with checked_worker(server_builder(protocol), service=never) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            await _asked(w)
            client.reset()
            await w.wait_for_sessions()
            assert _logins(w, protocol, "aborted") == 1

    run(play)


async def _asked(w: LoopbackWorker) -> None:
    while not w.metrics.auth_in_flight.value:
        await asyncio.sleep(0.005)


def _logins(w: LoopbackWorker, protocol: Protocol, result: str) -> int:
    return sum(
        w.value("mailproxy_logins_total", protocol.value, method, result) for method in ("password", "plain")
    )


@each
def test_client_half_closed_during_auth_request_gets_the_reply(protocol: Protocol) -> None:
    async def slowly(_request: bytes) -> bytes:
        await asyncio.sleep(0.1)
        return DENIED

    async def play() -> None:
        async with checked_worker(server_builder(protocol), slowly) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            client.writer.write_eof()
            assert b" no\r\n" in await read_until_closed(client)
            assert _logins(w, protocol, "denied") == 1

    run(play)


@each
@pytest.mark.parametrize(
    "answered", ["Auth-Status: no\r\nAuth-Wait: 1\r\n", "Auth-Status: WAIT\r\nAuth-Wait: 1\r\n"]
)
def test_client_breaks_off_during_auth_wait(protocol: Protocol, answered: str) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), http_response(answered), DENIED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            while not w.auth.requests or w.metrics.auth_in_flight.value:
                await asyncio.sleep(0.005)
            client.reset()
            await w.wait_for_sessions()
            await asyncio.sleep(1.2)
            assert len(w.auth.requests) == 1

    run(play)


@each
@pytest.mark.parametrize("ending", ["close", "shut"])
def test_deferred_request_ends_when_the_client_left(protocol: Protocol, ending: str) -> None:
    """The authentication service may defer again and again, but only while the client is connected."""

    async def play() -> None:
        async with checked_worker(
            server_builder(protocol), http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n")
        ) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            client.close() if ending == "close" else client.writer.write_eof()
            await w.wait_for_sessions()
            assert len(w.auth.requests) == 1
            assert _logins(w, protocol, "aborted") == 1

    run(play)


@each
def test_endless_deferral_fails(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy.protocols.frontend.MAX_DEFERRAL", 1)

    async def play() -> None:
        async with checked_worker(
            server_builder(protocol), http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n")
        ) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            assert b"nternal server error" in await read_until_closed(client)
            assert len(w.auth.requests) == 2
            assert _logins(w, protocol, "unavailable") == 1

    run(play)


@each
def test_stale_hangup_event_ends_no_session(protocol: Protocol) -> None:
    """An event may belong to an earlier connection with the same descriptor."""

    async def slowly(_request: bytes) -> bytes:
        await asyncio.sleep(0.1)
        return DENIED

    async def play() -> None:
        async with checked_worker(server_builder(protocol), slowly) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            await _asked(w)
            (session,) = w.app.context.live
            session.on_event(BROKEN)  # type: ignore[attr-defined]
            assert b" no\r\n" in await read_until_closed(client)

    run(play)


STEPS: Final = [(protocol, step) for protocol in Protocol for step in range(len(UPSTREAMS[protocol]) + 1)]


@pytest.mark.parametrize(("protocol", "step"), STEPS, ids=str)
def test_client_resets_during_upstream_login(protocol: Protocol, step: int) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            upstream = await w.upstream.accept()
            for reply, command in UPSTREAMS[protocol][:step]:
                assert await upstream.exchange(reply) == command
            client.reset()
            assert await read_until_closed(upstream) == b""
            await w.wait_for_sessions()
            assert _logins(w, protocol, "aborted") == 1

    run(play)


@each
def test_client_resets_during_upstream_connect(protocol: Protocol) -> None:
    """192.0.2.0/24 does not exist: connecting hangs, or fails at once without a route."""
    nowhere = http_response("Auth-Status: OK\r\nAuth-Server: 192.0.2.1\r\nAuth-Port: 1\r\n")

    async def play() -> None:
        async with checked_worker(server_builder(protocol, timeout=Seconds(1.0)), nowhere) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol])
            while not w.auth.requests or w.metrics.auth_in_flight.value:
                await asyncio.sleep(0.005)
            client.reset()
            await w.wait_for_sessions()

    run(play)


BUSY: Final = {
    "idle": (0, 0),
    "client": (5_000_000, 0),
    "upstream": (0, 5_000_000),
    "both": (5_000_000, 5_000_000),
}


@each
@either
@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
def test_either_side_breaks_off_in_a_relay(
    protocol: Protocol, ending: str, side: str, busy: tuple[int, int]
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.write(bytes(busy[0]))
            upstream.writer.write(bytes(busy[1]))
            await run_iterations(10)
            leaving, other = (client, upstream) if side == "client" else (upstream, client)
            getattr(leaving, ending)()
            await read_until_closed(other)
            other.close()
            await w.wait_for_sessions()

    run(play)


@each
@pytest.mark.parametrize("side", ["client", "upstream", "both"])
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
def test_half_closed_relay(protocol: Protocol, side: str, busy: tuple[int, int]) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, proxy_timeout=Seconds(0.5)), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.write(bytes(busy[0]))
            upstream.writer.write(bytes(busy[1]))
            for peer, name in ((client, "client"), (upstream, "upstream")):
                if side in {name, "both"}:
                    peer.writer.write_eof()
            await asyncio.gather(read_until_closed(client), read_until_closed(upstream))
            await w.wait_for_sessions()

    run(play)


@each
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
@either
def test_relay_over_tls_breaks_off(
    protocol: Protocol,
    ending: str,
    busy: tuple[int, int],
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mailproxy.session.relay.HALF_CLOSED_SECONDS", 0.2)

    async def play() -> None:
        async with checked_worker(
            server_builder(protocol, identities, starttls=StartTls.ENABLED), GRANTED
        ) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(STARTS[protocol])
            await start_tls(client, identities)
            await client.send(LOGINS[protocol])
            upstream = await w.upstream.accept()
            for reply, command in UPSTREAMS[protocol]:
                assert await upstream.exchange(reply) == command
            upstream.writer.write(ACCEPTANCES[protocol][0] + bytes(busy[1]))
            client.writer.write(bytes(busy[0]))
            await run_iterations(10)
            getattr(client, ending)()
            await run_iterations(10)
            with contextlib.suppress(OSError):
                upstream.reset()
            await w.wait_for_sessions()

    run(play)


@each
def test_broken_upstream_with_a_client_that_does_not_read_times_out(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.session.relay.HALF_CLOSED_SECONDS", 0.2)

    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            upstream.writer.write(bytes(20_000_000))
            await asyncio.sleep(0.2)
            upstream.reset()
            await w.wait_for_sessions()

    run(play)


@each
def test_half_open_peers_time_out(protocol: Protocol) -> None:
    """A client, authentication service or upstream that connects and then sends nothing."""

    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def play() -> None:
        build = server_builder(
            protocol, timeout=Seconds(0.3), auth_http_timeout=Seconds(0.3), proxy_timeout=Seconds(0.3)
        )
        async with checked_worker(build, service=silent) as w:
            clients = [await w.client() for _ in range(20)]
            for client in clients[10:]:
                await client.send(LOGINS[protocol])
            await w.wait_for_sessions()
        async with checked_worker(build, GRANTED) as w:
            clients = [await w.client() for _ in range(10)]
            for client in clients:
                await client.send(LOGINS[protocol])
            await w.wait_for_sessions()
            assert (
                w.value(
                    "mailproxy_connections_closed_total", protocol.value, protocol.value, "upstream_error"
                )
                == 10
            )

    run(play)
