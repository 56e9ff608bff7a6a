# SPDX-License-Identifier: Apache-2.0
"""A hostile upstream: endless, slow, invalid or early replies, or none."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

import pytest

from mailproxy_config.model import Protocol, Seconds
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

GRANTED: Final = http_response(GRANT)
each = pytest.mark.parametrize("protocol", Protocol, ids=str)
STEPS: Final = [(protocol, step) for protocol in Protocol for step in range(len(UPSTREAMS[protocol]) + 1)]
at_each_step = pytest.mark.parametrize(("protocol", "step"), STEPS, ids=str)


async def come_to(w: LoopbackWorker, protocol: Protocol, step: int) -> tuple[Peer, Peer]:
    """Start a login; the upstream replies correctly for this number of steps."""
    client = await w.client()
    await client.read_line()
    await client.send(LOGINS[protocol])
    upstream = await w.upstream.accept()
    for reply, command in UPSTREAMS[protocol][:step]:
        assert await upstream.exchange(reply) == command
    return client, upstream


NONSENSE: Final = {
    "no line end": b"x" * 100_000,
    "line ends only": b"\r\n" * 50_000,
    "nothing": bytes(100_000),
    "noise": bytes(range(256)) * 400,
    "untagged lines": b"* 1 EXISTS\r\n" * 10_000,
    "continuations": b"250-more\r\n" * 10_000,
    "a line of another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "bare CR": b"+OK\r* OK\r250 x\r" * 1000,
}


@at_each_step
@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_invalid_upstream_reply_gets_internal_error_reply(
    protocol: Protocol, step: int, nonsense: bytes
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, timeout=Seconds(0.4)), GRANTED) as w:
            client, upstream = await come_to(w, protocol, step)
            upstream.writer.write(nonsense)
            assert await read_until_closed(client) == INTERNAL_ERRORS[protocol]
            assert (
                w.value(
                    "mailproxy_connections_closed_total", protocol.value, protocol.value, "upstream_error"
                )
                == 1
            )

    run(play)


@each
def test_hundred_untagged_lines_within_the_buffer_are_accepted(protocol: Protocol) -> None:
    more = {Protocol.IMAP: b"* 1 EXISTS\r\n", Protocol.POP3: b"", Protocol.SMTP: b"250-more\r\n"}[
        protocol
    ] * 100
    reply, _ = ACCEPTANCES[protocol]

    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await come_to(w, protocol, len(UPSTREAMS[protocol]))
            await upstream.send(more + reply)
            while not (await client.read_line()).startswith((b"a OK", b"+OK", b"235")):
                pass

    run(play)


@at_each_step
@pytest.mark.parametrize("how", ["close", "reset"])
def test_upstream_that_closes_gets_internal_error_reply(protocol: Protocol, step: int, how: str) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await come_to(w, protocol, step)
            getattr(upstream, how)()
            assert await read_until_closed(client) == INTERNAL_ERRORS[protocol]

    run(play)


@at_each_step
def test_silent_upstream_times_out(protocol: Protocol, step: int) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, timeout=Seconds(0.3)), GRANTED) as w:
            client, _ = await come_to(w, protocol, step)
            assert await read_until_closed(client) == INTERNAL_ERRORS[protocol]

    run(play)


@at_each_step
def test_slow_upstream_replies_do_not_extend_the_timeout(protocol: Protocol, step: int) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, timeout=Seconds(0.3)), GRANTED) as w:
            client, upstream = await come_to(w, protocol, step)
            hearing = asyncio.ensure_future(read_until_closed(client))  # noqa: TID251 - awaited below
            while not hearing.done():
                with contextlib.suppress(ConnectionError):
                    await upstream.send(b"*")
                await asyncio.sleep(0.02)
            assert await hearing == INTERNAL_ERRORS[protocol]

    run(play)


@each
def test_early_upstream_replies_complete_no_login(protocol: Protocol) -> None:
    """A reply that is sent before its command does not count as the reply to it."""
    ahead = b"".join(reply for reply, _ in UPSTREAMS[protocol]) + ACCEPTANCES[protocol][0]

    async def play() -> None:
        async with checked_worker(server_builder(protocol, timeout=Seconds(0.4)), GRANTED) as w:
            client, upstream = await come_to(w, protocol, 0)
            await upstream.send(ahead)
            assert await read_until_closed(client) == INTERNAL_ERRORS[protocol]
            assert w.value("mailproxy_logins_total", protocol.value, "password", "success") == 0

    run(play)


@each
def test_upstream_that_never_reads_times_out(protocol: Protocol) -> None:
    """Only the bytes that fit the kernel's buffers are sent to it."""

    async def play() -> None:
        async with checked_worker(server_builder(protocol, proxy_timeout=Seconds(0.5)), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            upstream.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(bytes(20_000_000))
            await w.wait_for_sessions()
            assert (
                w.value("mailproxy_connections_closed_total", protocol.value, protocol.value, "idle_timeout")
                == 1
            )

    run(play)


@each
def test_relay_without_pipes_copies_through_memory(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.net.pipes.MAX_PIPES", 0)
    data = random.Random(3).randbytes(5_000_000)

    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await log_in(w, protocol)
            upstream.writer.write(data)
            assert await client.read_bytes(len(data)) == data
            assert w.app.context.pipes.count == 0

    run(play)


@each
@pytest.mark.parametrize("refusal", [b"-ERR no\r\n", b"554 no\r\n", b"* BYE no\r\n", b"a NO no\r\n"])
def test_upstream_error_is_hidden_without_proxy_pass_error_message(
    protocol: Protocol, refusal: bytes
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client, upstream = await come_to(w, protocol, len(UPSTREAMS[protocol]))
            await upstream.send(refusal)
            assert await read_until_closed(client) == INTERNAL_ERRORS[protocol]

    run(play)


@each
def test_pipelined_bytes_arrive_once_after_a_slow_login(protocol: Protocol) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), GRANTED) as w:
            client = await w.client()
            await client.read_line()
            await client.send(LOGINS[protocol] + b"first\r\nsecond\r\n")
            upstream = await w.upstream.accept()
            for reply, command in UPSTREAMS[protocol]:
                assert await upstream.exchange(reply) == command
            await upstream.send(ACCEPTANCES[protocol][0])
            await client.send(b"third\r\n")
            assert await upstream.read_bytes(22) == b"first\r\nsecond\r\nthird\r\n"
            await run_iterations()

    run(play)
