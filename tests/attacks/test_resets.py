# SPDX-License-Identifier: Apache-2.0
"""Whoever breaks a connection, at whatever stage: nothing is left of the session."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import pytest

from mailproxy.loop.epoll import BROKEN
from mailproxy_config.model import Protocol, Seconds, StartTls
from support.siege import (
    ACCEPTANCES,
    DENIED,
    LOGINS,
    UPSTREAMS,
    breathe,
    heard,
    log_in,
    serving,
    shake,
    siege,
)
from support.tls_identities import Identities
from support.world import GRANT, World, answer, run

GRANTED: Final = answer(GRANT)
each = pytest.mark.parametrize("protocol", Protocol, ids=str)
either = pytest.mark.parametrize("how", ["close", "reset"])
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
@pytest.mark.parametrize("said", TALK.values(), ids=TALK)
def test_a_client_before_login(protocol: Protocol, how: str, said: bytes) -> None:
    async def play() -> None:
        async with siege(serving(protocol)) as w:
            client = await w.client()
            await client.line()
            client.writer.write(said)
            await breathe()
            getattr(client, how)()
            await w.settled()

    run(play)


@each
@either
def test_a_client_before_the_greeting(protocol: Protocol, how: str) -> None:
    async def play() -> None:
        async with siege(serving(protocol, smtp_greeting_delay=Seconds(0.2))) as w:
            client = await w.client()
            getattr(client, how)()
            await w.settled()
            await breathe(10)
            await w.settled()

    run(play)


@each
@either
@pytest.mark.parametrize("when", ["before", "in", "after"])
def test_a_client_around_starttls(protocol: Protocol, how: str, when: str, identities: Identities) -> None:
    async def play() -> None:
        async with siege(serving(protocol, identities, starttls=StartTls.ENABLED)) as w:
            client = await w.client()
            await client.line()
            await client.ask(STARTS[protocol])
            if when == "in":
                await client.say(b"\x16\x03\x01")
                await breathe()
            if when == "after":
                await shake(client, identities)
            getattr(client, how)()
            await w.settled()

    run(play)


@each
def test_a_client_while_the_service_is_asked(protocol: Protocol) -> None:
    async def never(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def play() -> None:
        async with siege(serving(protocol), service=never) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            await _asked(w)
            client.reset()
            await w.settled()
            assert _logins(w, protocol, "aborted") == 1

    run(play)


async def _asked(w: World) -> None:
    while not w.metrics.auth_in_flight.value:
        await asyncio.sleep(0.005)


def _logins(w: World, protocol: Protocol, result: str) -> int:
    return sum(
        w.value("mailproxy_logins_total", protocol.value, method, result) for method in ("password", "plain")
    )


@each
def test_a_client_that_shuts_its_side_while_the_service_is_asked_hears_the_answer(protocol: Protocol) -> None:
    async def slowly(_request: bytes) -> bytes:
        await asyncio.sleep(0.1)
        return DENIED

    async def play() -> None:
        async with siege(serving(protocol), slowly) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            client.writer.write_eof()
            assert b" no\r\n" in await heard(client)
            assert _logins(w, protocol, "denied") == 1

    run(play)


@each
@pytest.mark.parametrize(
    "answered", ["Auth-Status: no\r\nAuth-Wait: 1\r\n", "Auth-Status: WAIT\r\nAuth-Wait: 1\r\n"]
)
def test_a_client_that_is_made_to_wait(protocol: Protocol, answered: str) -> None:
    async def play() -> None:
        async with siege(serving(protocol), answer(answered), DENIED) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            while not w.auth.requests or w.metrics.auth_in_flight.value:
                await asyncio.sleep(0.005)
            client.reset()
            await w.settled()
            await asyncio.sleep(1.2)
            assert len(w.auth.requests) == 1

    run(play)


@each
@pytest.mark.parametrize("how", ["close", "shut"])
def test_a_client_that_is_gone_is_not_asked_about_for_ever(protocol: Protocol, how: str) -> None:
    """The service may postpone its answer as often as it likes, as long as somebody waits for it."""

    async def play() -> None:
        async with siege(serving(protocol), answer("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n")) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            client.close() if how == "close" else client.writer.write_eof()
            await w.settled()
            assert len(w.auth.requests) == 1
            assert _logins(w, protocol, "aborted") == 1

    run(play)


@each
def test_a_service_that_postpones_its_answer_for_ever_gives_none(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.protocols.auth_retry.POSTPONED_AT_MOST", 1)

    async def play() -> None:
        async with siege(serving(protocol), answer("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n")) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            assert b"nternal server error" in await heard(client)
            assert len(w.auth.requests) == 2
            assert _logins(w, protocol, "unavailable") == 1

    run(play)


@each
def test_a_break_that_is_none_ends_nobody(protocol: Protocol) -> None:
    """An event for a descriptor that was used again within one poll is somebody else's."""

    async def slowly(_request: bytes) -> bytes:
        await asyncio.sleep(0.1)
        return DENIED

    async def play() -> None:
        async with siege(serving(protocol), slowly) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            await _asked(w)
            (session,) = w.app._engine.live
            session.on_event(BROKEN)  # type: ignore[attr-defined]
            assert b" no\r\n" in await heard(client)

    run(play)


STEPS: Final = [(protocol, step) for protocol in Protocol for step in range(len(UPSTREAMS[protocol]) + 1)]


@pytest.mark.parametrize(("protocol", "step"), STEPS, ids=str)
def test_a_client_while_it_is_logged_in_at_the_upstream(protocol: Protocol, step: int) -> None:
    async def play() -> None:
        async with siege(serving(protocol), GRANTED) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            upstream = await w.upstream.next()
            for says, hears in UPSTREAMS[protocol][:step]:
                assert await upstream.ask(says) == hears
            client.reset()
            assert await heard(upstream) == b""
            await w.settled()
            assert _logins(w, protocol, "aborted") == 1

    run(play)


@each
def test_a_client_while_we_connect(protocol: Protocol) -> None:
    """192.0.2.0/24 is nowhere: connecting hangs, or fails at once for want of a route."""
    nowhere = answer("Auth-Status: OK\r\nAuth-Server: 192.0.2.1\r\nAuth-Port: 1\r\n")

    async def play() -> None:
        async with siege(serving(protocol, timeout=Seconds(1.0)), nowhere) as w:
            client = await w.client()
            await client.line()
            await client.say(LOGINS[protocol])
            while not w.auth.requests or w.metrics.auth_in_flight.value:
                await asyncio.sleep(0.005)
            client.reset()
            await w.settled()

    run(play)


BUSY: Final = {
    "idle": (0, 0),
    "client": (5_000_000, 0),
    "upstream": (0, 5_000_000),
    "both": (5_000_000, 5_000_000),
}


@each
@either
@pytest.mark.parametrize("who", ["client", "upstream"])
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
def test_either_side_of_a_relay(protocol: Protocol, how: str, who: str, busy: tuple[int, int]) -> None:
    async def play() -> None:
        async with siege(serving(protocol), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.write(bytes(busy[0]))
            upstream.writer.write(bytes(busy[1]))
            await breathe(10)
            leaving, other = (client, upstream) if who == "client" else (upstream, client)
            getattr(leaving, how)()
            await heard(other)
            other.close()
            await w.settled()

    run(play)


@each
@pytest.mark.parametrize("who", ["client", "upstream", "both"])
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
def test_halves_of_a_relay_that_are_shut(protocol: Protocol, who: str, busy: tuple[int, int]) -> None:
    async def play() -> None:
        async with siege(serving(protocol, proxy_timeout=Seconds(0.5)), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.write(bytes(busy[0]))
            upstream.writer.write(bytes(busy[1]))
            for peer, name in ((client, "client"), (upstream, "upstream")):
                if who in {name, "both"}:
                    peer.writer.write_eof()
            await asyncio.gather(heard(client), heard(upstream))
            await w.settled()

    run(play)


@each
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY)
@either
def test_a_relay_over_tls(
    protocol: Protocol,
    how: str,
    busy: tuple[int, int],
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mailproxy.session.relay.HALF_CLOSED_SECONDS", 0.2)

    async def play() -> None:
        async with siege(serving(protocol, identities, starttls=StartTls.ENABLED), GRANTED) as w:
            client = await w.client()
            await client.line()
            await client.ask(STARTS[protocol])
            await shake(client, identities)
            await client.say(LOGINS[protocol])
            upstream = await w.upstream.next()
            for says, hears in UPSTREAMS[protocol]:
                assert await upstream.ask(says) == hears
            upstream.writer.write(ACCEPTANCES[protocol][0] + bytes(busy[1]))
            client.writer.write(bytes(busy[0]))
            await breathe(10)
            getattr(client, how)()
            await breathe(10)
            with contextlib.suppress(OSError):
                upstream.reset()
            await w.settled()

    run(play)


@each
def test_an_upstream_that_breaks_does_not_wait_for_a_client_that_does_not_read(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.session.relay.HALF_CLOSED_SECONDS", 0.2)

    async def play() -> None:
        async with siege(serving(protocol), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            upstream.writer.write(bytes(20_000_000))
            await asyncio.sleep(0.2)
            upstream.reset()
            await w.settled()

    run(play)


@each
def test_half_open_peers_are_left_in_time(protocol: Protocol) -> None:
    """Whoever connects and is never heard of again: client, service, upstream."""

    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def play() -> None:
        build = serving(
            protocol, timeout=Seconds(0.3), auth_http_timeout=Seconds(0.3), proxy_timeout=Seconds(0.3)
        )
        async with siege(build, service=silent) as w:
            clients = [await w.client() for _ in range(20)]
            for client in clients[10:]:
                await client.say(LOGINS[protocol])
            await w.settled()
        async with siege(build, GRANTED) as w:
            clients = [await w.client() for _ in range(10)]
            for client in clients:
                await client.say(LOGINS[protocol])
            await w.settled()
            assert (
                w.value(
                    "mailproxy_connections_closed_total", protocol.value, protocol.value, "upstream_error"
                )
                == 10
            )

    run(play)
