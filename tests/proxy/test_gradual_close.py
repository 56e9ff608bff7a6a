# SPDX-License-Identifier: Apache-2.0
"""Relays at the end of a drain: how many are closed when, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from mailproxy.session import gradual_close
from mailproxy.session.gradual_close import SPREAD_PART, GradualClose
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, ServerConfig
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run

_SPAN = 100.0 * SPREAD_PART


def _imap(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(Protocol.IMAP, auth_http=auth, listen=(listen,))


async def _logged_in(w: LoopbackWorker) -> tuple[Peer, Peer]:
    """Log in a client; return it and its upstream."""
    client = await w.client()
    await client.read_line()
    await client.send(b"a LOGIN alice secret\r\n")
    upstream = await w.upstream.accept()
    await upstream.send(b"* OK [CAPABILITY LITERAL+] ready\r\n")
    await upstream.read_lines(3)
    await upstream.send(b"a OK logged in\r\n")
    assert await client.read_line() == b"a OK logged in\r\n"
    return client, upstream


def test_relays_are_closed_evenly_over_the_last_part_of_a_drain() -> None:
    async def play() -> None:
        async with loopback_worker(_imap, http_response(GRANT)) as w:
            pairs = [await _logged_in(w) for _ in range(10)]
            waiting = await w.client()  # has not logged in: it gets its last reply elsewhere
            await waiting.read_line()
            closing = GradualClose(w.app.context.live, 100.0)
            closed = [len(closing.due(left)) for left in (100.0, 50.0, _SPAN, 0.75 * _SPAN, 0.5 * _SPAN, 0.0)]
            assert closed == [0, 0, 0, 2, 3, 5]
            assert closing.due(0.0) == []
            for peer in (waiting, *(peer for pair in pairs for peer in pair)):
                peer.close()

    run(play)


def test_relay_that_was_silent_the_longest_is_closed_first() -> None:
    async def play() -> None:
        async with loopback_worker(_imap, http_response(GRANT)) as w:
            pairs = [await _logged_in(w) for _ in range(3)]
            for first in (2, 0, 1):
                client, upstream = pairs[first]
                await client.send(b"b NOOP\r\n")
                assert await upstream.read_line() == b"b NOOP\r\n"
            ports = [client.writer.get_extra_info("sockname")[1] for client, _ in pairs]
            due = GradualClose(w.app.context.live, 100.0).due(0.0)
            assert [relay.record.client_port for relay in due] == [ports[2], ports[0], ports[1]]
            for pair in pairs:
                for peer in pair:
                    peer.close()

    run(play)


def test_relay_that_ends_before_its_turn_is_left_out() -> None:
    async def play() -> None:
        async with loopback_worker(_imap, http_response(GRANT)) as w:
            (gone, ended), (client, upstream) = [await _logged_in(w) for _ in range(2)]
            closing = GradualClose(w.app.context.live, 100.0)
            assert closing.due(_SPAN) == []
            gone.close()
            ended.close()
            await w.wait_for_sessions(1)
            for relay in closing.due(0.0):
                relay.abort()
            assert w.value("mailproxy_connections_closed_total", "imap", "imap", "drain") == 1
            assert await client.read_to_eof() == b""
            client.close()
            upstream.close()

    run(play)


def test_drain_closes_the_first_relay_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradual_close, "SPREAD_PART", 1.0)

    async def play() -> None:
        async with loopback_worker(_imap, http_response(GRANT)) as w:
            pairs = [await _logged_in(w) for _ in range(40)]
            async with asyncio.TaskGroup() as group:
                group.create_task(w.app.drain(20.0))
                assert await pairs[0][0].read_to_eof() == b""
                assert 0 < w.app.sessions < 40
                for client, upstream in pairs:
                    client.close()
                    upstream.close()

    run(play)


def test_drain_without_a_timeout_closes_all_relays_together() -> None:
    async def play() -> None:
        async with loopback_worker(_imap, http_response(GRANT)) as w:
            pairs = [await _logged_in(w) for _ in range(3)]
            assert GradualClose(w.app.context.live, 0.0).due(0.0) == []
            await w.app.drain(0.0)
            for client, upstream in pairs:
                assert await client.read_to_eof() == b""
                client.close()
                upstream.close()

    run(play)
