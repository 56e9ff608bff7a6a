# SPDX-License-Identifier: Apache-2.0
"""The relay delivers all bytes once and in order, whatever the sizes of pieces and socket buffers."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy_config.model import Protocol, StartTls
from support.checked_worker import checked_worker, open_relay, server_builder
from support.fuzz import examples
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, run
from support.tls_identities import Identities


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(Path(tmp_path_factory.mktemp("identities")))


@dataclass(frozen=True)
class Side:
    """One side: the sizes of its pieces, the size of its reads, and its socket buffer."""

    sends: Sequence[int]
    reads: int
    is_cramped: bool


SIZES = st.one_of(st.integers(1, 200), st.integers(16_000, 17_000), st.integers(1, 300_000))
SIDES = st.builds(
    Side, st.lists(SIZES, max_size=6), st.sampled_from([1_000, 16_384, 100_000]), is_cramped=st.booleans()
)


def shrink_buffers(w: LoopbackWorker, client: Side, upstream: Side, buffer: int) -> None:
    """Make the proxy's socket buffers so small that it has to wait again and again."""
    context = w.app.context
    context.buffer = bytearray(buffer)
    (relay,) = context.live
    for end, side in ((relay.client, client), (relay.upstream, upstream)):  # type: ignore[attr-defined]
        if side.is_cramped:
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


async def send_pieces(peer: Peer, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        await peer.send(piece)
        await asyncio.sleep(0)


async def receive(peer: Peer, count: int, chunk_size: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = await peer.reader.read(chunk_size)
        assert chunk, f"{count - len(received)} bytes are missing"
        received += chunk
        await asyncio.sleep(0)
    return bytes(received)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
@settings(max_examples=examples(40))
@given(
    client=SIDES,
    upstream=SIDES,
    ahead=st.one_of(st.just(0), SIZES),
    buffer=st.sampled_from([500, 20_000, 262_144]),
)
def test_relay_delivers_all_bytes(
    is_tls: bool, client: Side, upstream: Side, ahead: int, buffer: int, identities: Identities
) -> None:
    chance = random.Random(1)
    early = chance.randbytes(ahead)
    up = [chance.randbytes(size) for size in client.sends]
    down = [chance.randbytes(size) for size in upstream.sends]

    async def play() -> None:
        tls = identities if is_tls else None
        build = server_builder(Protocol.POP3, tls, starttls=StartTls.ENABLED if is_tls else StartTls.DISABLED)
        async with checked_worker(build, http_response(GRANT)) as w:
            ours, theirs = await open_relay(w, tls, early)
            shrink_buffers(w, client, upstream, buffer)
            async with asyncio.TaskGroup() as group:
                group.create_task(send_pieces(ours, up))
                group.create_task(send_pieces(theirs, down))
                at_upstream = group.create_task(receive(theirs, ahead + sum(client.sends), upstream.reads))
                at_client = group.create_task(receive(ours, sum(upstream.sends), client.reads))
            assert at_upstream.result() == early + b"".join(up)
            assert at_client.result() == b"".join(down)
            await theirs.send(b"the last word")
            theirs.close()
            assert await ours.read_to_eof() == b"the last word"
            ours.close()

    run(play)
