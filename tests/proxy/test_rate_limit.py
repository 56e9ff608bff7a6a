# SPDX-License-Identifier: Apache-2.0
"""The rate at which a client gets relayed bytes: the allowance, and that no byte is lost by it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.session.rate_limit import ByteAllowance, RateLimitedEnd, relay_end_for
from mailproxy.session.relay import Relay
from mailproxy.session.relay_end import RelayEnd
from mailproxy_config.model import AuthHttp, ByteCount, ListenConfig, Protocol, Seconds, ServerConfig
from support.checked_worker import open_relay
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, http_response, loopback_worker, run

GRANTED = http_response(GRANT)
RATE = 400_000


def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
    return server(
        Protocol.POP3,
        auth_http=auth,
        listen=(listen,),
        proxy_timeout=Seconds(30.0),
        limit_rate=ByteCount(RATE),
        limit_rate_after=ByteCount(100_000),
    )


def relay_of(worker: LoopbackWorker) -> Relay:
    (relay,) = worker.app.context.live
    assert isinstance(relay, Relay)
    return relay


async def paused(worker: LoopbackWorker) -> Relay:
    """Return the relay when its upstream is not read for now."""
    relay = relay_of(worker)
    for _ in range(2000):
        if relay.upstream.is_paused:
            return relay
        await asyncio.sleep(0.001)
    raise AssertionError("the relay was never paused")


def test_one_second_is_available_at_first_and_after_a_pause() -> None:
    allowance = ByteAllowance(1000, 0, now=10.0)
    assert allowance.available(10.0) == 1000
    allowance.take(1000)
    assert allowance.available(10.0) == 0
    assert allowance.available(10.5) == 500
    assert allowance.available(100.0) == 1000


def test_free_bytes_are_used_first() -> None:
    allowance = ByteAllowance(1000, 5000, now=0.0)
    assert allowance.available(0.0) == 6000
    allowance.take(5500)
    assert allowance.available(0.0) == 500


@given(
    rate=st.integers(1, 10**7),
    free=st.integers(0, 10**6),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 10**6)), max_size=30),
)
def test_bytes_never_exceed_rate_by_more_than_one_second(
    rate: int, free: int, steps: list[tuple[float, int]]
) -> None:
    allowance, now, total = ByteAllowance(rate, free, now=0.0), 0.0, 0
    for pause, wanted in steps:
        now += pause
        size = min(wanted, allowance.available(now))
        allowance.take(size)
        total += size
        assert total <= free + rate * (now + 1) + 1


@given(rate=st.integers(1, 10**9), taken=st.integers(0, 10**6))
def test_pause_ends_when_bytes_are_available(rate: int, taken: int) -> None:
    allowance = ByteAllowance(rate, 0, now=0.0)
    allowance.take(min(taken, allowance.available(0.0)))
    delay = allowance.delay()
    assert 0 < delay <= 1.0
    assert allowance.available(delay + 1e-6) >= allowance.minimum


def test_relay_without_limit_has_the_usual_end() -> None:
    assert relay_end_for(server(Protocol.IMAP)) is RelayEnd
    limited: Any = relay_end_for(
        server(Protocol.IMAP, limit_rate=ByteCount(10), limit_rate_after=ByteCount(5))
    )
    assert (limited.func, limited.args) == (RateLimitedEnd, ((10, 5),))


def test_limited_relay_copies_every_byte_in_both_directions() -> None:
    data = random.Random(1).randbytes(900_000)

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            async with asyncio.TaskGroup() as group:
                group.create_task(client.send(data))
                group.create_task(upstream.send(data))
                down = group.create_task(client.read_bytes(len(data)))
                up = group.create_task(upstream.read_bytes(len(data)))
                group.create_task(paused(w))
            assert hashlib.sha256(down.result()).digest() == hashlib.sha256(data).digest()
            assert up.result() == data
            client.close()
            upstream.close()

    run(play)


def test_paused_relay_gives_the_rest_before_its_end() -> None:
    data = b"x" * 700_000

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            async with asyncio.TaskGroup() as group:
                group.create_task(upstream.send(data))
                await paused(w)
                received = group.create_task(client.read_bytes(len(data)))
            assert len(received.result()) == len(data)
            upstream.close()
            assert await client.read_to_eof() == b""

    run(play)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_reset_ends_a_paused_relay(side: str) -> None:
    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client, upstream = await open_relay(w)
            upstream.writer.write(b"x" * 3_000_000)
            await paused(w)
            (client if side == "client" else upstream).reset()
            await w.wait_for_sessions()

    run(play)
