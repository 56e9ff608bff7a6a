# SPDX-License-Identifier: Apache-2.0
"""Random combinations of clients, services and upstreams: no resources are leaked, and the metrics add up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mailproxy_config.model import Protocol, Seconds, StartTls, Tempfail
from support.checked_worker import (
    ACCEPTANCES,
    LOGINS,
    UPSTREAMS,
    Handler,
    checked_worker,
    read_until_closed,
    server_builder,
)
from support.fuzz import examples
from support.loopback_player import ShortDelayLoop
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response
from support.streams import abort
from support.tls_identities import Identities

STARTS: Final = {Protocol.IMAP: b"s STARTTLS\r\n", Protocol.POP3: b"STLS\r\n", Protocol.SMTP: b"STARTTLS\r\n"}

CLIENT: Final = st.sampled_from(
    [
        "login",
        "login",
        "login",
        "half a login",
        "noop",
        "nonsense",
        "drip",
        "flood",
        "start tls",
        "read",
        "pause",
    ]
)
SERVICE: Final = st.sampled_from(
    [
        "grant",
        "grant",
        "grant",
        "deny",
        "wait",
        "ask again",
        "nonsense",
        "close",
        "reset",
        "drip",
        "silence",
        "flood",
    ]
)
UPSTREAM: Final = st.sampled_from(
    [
        "log in",
        "log in",
        "log in and pour",
        "refuse",
        "nonsense",
        "close",
        "reset",
        "drip",
        "silence",
        "flood",
        "halfway",
    ]
)
END: Final = st.sampled_from(["close", "reset", "shut", "stay"])


@dataclass(frozen=True)
class Visit:
    """One client: its actions, how it ends, and how its upstream behaves."""

    acts: list[str]
    end: str


VISITS: Final = st.lists(
    st.builds(Visit, st.lists(CLIENT, min_size=1, max_size=5), END), min_size=1, max_size=6
)


def _leave(peer: Peer, how: str) -> None:
    with contextlib.suppress(OSError, RuntimeError, AttributeError):
        if how == "shut" and peer.writer.can_write_eof():
            peer.writer.write_eof()
        elif how in {"close", "reset"}:
            getattr(peer, how)()


async def visit(w: LoopbackWorker, visitor: Visit, protocol: Protocol, identities: Identities) -> None:
    """Run one client until its connection ends."""
    client = await w.client()
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(0.3):
            for act in visitor.acts:
                await _act(w, client, act, protocol, identities)
        _leave(client, visitor.end)
        async with asyncio.timeout(0.3):
            await read_until_closed(client)
    abort(client.writer)


async def _act(w: LoopbackWorker, client: Peer, act: str, protocol: Protocol, identities: Identities) -> None:
    login = LOGINS[protocol]
    outputs = {
        "login": login,
        "half a login": login[:9],
        "noop": b"a NOOP\r\nNOOP\r\n",
        "nonsense": b"\0\x16\x03 {9+}\r\n",
        "flood": b"NOOP\r\na NOOP\r\n" * 5000,
    }.get(act)
    if outputs is not None:
        client.writer.write(outputs)
    elif act == "drip":
        for byte in login:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
    elif act == "start tls":
        client.writer.write(STARTS[protocol])
        w.writers.remove(client.writer)  # asyncio waits without a limit for a writer whose handshake failed
        await client.writer.start_tls(identities.client(), ssl_handshake_timeout=0.2)
    elif act == "read":
        await client.read_line()
    await asyncio.sleep(0.005)


def service_of(behaviours: list[str], port: Callable[[], int]) -> Handler:
    """Return an authentication service that behaves differently each time."""
    responses: dict[str, Callable[[], bytes]] = {
        "grant": lambda: http_response(GRANT.format(port=port())),
        "deny": lambda: http_response("Auth-Status: no\r\n"),
        "wait": lambda: http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n"),
        "ask again": lambda: http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\n"),
        "nonsense": lambda: b"nonsense\0\r\n\r\n",
        "flood": lambda: b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
    }
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while True:
            await reader.readuntil(b"\r\n\r\n")
            behaviour = behaviours[count % len(behaviours)]
            if behaviour == "ask again" and count % 8 == 7:
                behaviour = "deny"  # or a lost client would be deferred without a limit
            count += 1
            if behaviour in responses:
                writer.write(responses[behaviour]())
            elif behaviour == "drip":
                for byte in responses["deny"]():
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.001)
            else:
                _leave(Peer(reader, writer), behaviour)

    return serve


async def be_upstreams(w: LoopbackWorker, behaviours: list[str], protocol: Protocol) -> None:
    """Serve one connection after another, each with a different behaviour."""
    count = 0
    async with asyncio.TaskGroup() as group:
        while True:
            upstream = await w.upstream.accept()
            group.create_task(_be_upstream(upstream, behaviours[count % len(behaviours)], protocol))
            count += 1


async def _be_upstream(upstream: Peer, behaviour: str, protocol: Protocol) -> None:
    with contextlib.suppress(ConnectionError, OSError, TimeoutError):
        if behaviour.startswith(("log in", "halfway")):
            for reply, _ in UPSTREAMS[protocol]:
                await upstream.exchange(reply)
                if behaviour == "halfway":
                    upstream.close()
                    return
            await upstream.send(ACCEPTANCES[protocol][0])
            if behaviour.endswith("pour"):
                upstream.writer.write(bytes(2_000_000))
            async with asyncio.timeout(0.1):
                await read_until_closed(upstream)
            upstream.close()
        elif behaviour in {"close", "reset"}:
            _leave(upstream, behaviour)
        elif behaviour == "drip":
            while True:
                await upstream.send(b"*")
                await asyncio.sleep(0.01)
        else:
            outputs = {
                "refuse": b"554 no\r\n",
                "nonsense": b"\0\r\n",
                "flood": b"x" * 100_000,
                "silence": b"",
            }
            await upstream.send(outputs[behaviour])


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20.0):
            await play()

    with asyncio.Runner(loop_factory=ShortDelayLoop) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("protocol", Protocol, ids=str)
@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(
    visits=VISITS,
    service=st.lists(SERVICE, min_size=1, max_size=4),
    upstreams=st.lists(UPSTREAM, min_size=1, max_size=4),
    tempfail=st.sampled_from(Tempfail),
)
def test_no_resources_are_left_after_random_events(
    protocol: Protocol,
    identities: Identities,
    visits: list[Visit],
    service: list[str],
    upstreams: list[str],
    tempfail: Tempfail,
) -> None:
    build = server_builder(
        protocol,
        identities,
        starttls=StartTls.ENABLED,
        proxy_tempfail=tempfail,
        timeout=Seconds(0.2),
        auth_http_timeout=Seconds(0.2),
        proxy_timeout=Seconds(0.2),
    )

    async def play() -> None:
        port = 0
        async with checked_worker(build, limit=4, service=service_of(service, lambda: port)) as w:
            port = w.upstream.port
            playing = asyncio.ensure_future(be_upstreams(w, upstreams, protocol))  # noqa: TID251 - cancelled below
            await asyncio.gather(*(visit(w, visitor, protocol, identities) for visitor in visits))
            await w.wait_for_sessions()
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            assert "internal_error" not in w.read_log()

    run(play)
