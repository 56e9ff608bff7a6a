# SPDX-License-Identifier: Apache-2.0
"""The relay where a side is under TLS: what lies above the socket keeps its place in the order."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from pathlib import Path
from typing import Final, cast

import pytest

from mailproxy.session.relay import Relay
from mailproxy_config.model import Protocol, StartTls
from support.siege import relayed, serving, siege
from support.tls_identities import Identities
from support.world import GRANT, Peer, World, answer, run

NO_RECORD: Final = b"\x17\x03\x03\x00\x20" + bytes(32)
"""Looks like bytes under TLS, and is not what anybody has sealed."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(Path(tmp_path_factory.mktemp("identities")))


def cramp(w: World) -> None:
    """Leave the relay's sockets so little room that no record of TLS is taken in one go."""
    (relay,) = w.app.context.live
    assert isinstance(relay, Relay)
    for end in (relay.client, relay.upstream):
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 + 1, 300_000, 2_000_000])
@pytest.mark.parametrize("sender", ["client", "upstream"])
@pytest.mark.parametrize("is_cramped", [False, True], ids=["roomy", "cramped"])
def test_slow_reader_gets_every_byte_in_order(
    is_cramped: bool, sender: str, size: int, identities: Identities
) -> None:
    data = random.Random(size).randbytes(size)

    async def slowly(peer: Peer) -> bytes:
        seen, left = hashlib.sha256(), size
        while left:
            chunk = await peer.reader.read(min(left, 50_000))
            assert chunk, f"{left} bytes are missing"
            seen.update(chunk)
            left -= len(chunk)
            await asyncio.sleep(0)
        return seen.digest()

    async def play() -> None:
        build = serving(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with siege(build, answer(GRANT)) as w:
            client, upstream = await relayed(w, identities)
            if is_cramped:
                cramp(w)
            source, sink = (client, upstream) if sender == "client" else (upstream, client)
            async with asyncio.TaskGroup() as group:
                group.create_task(source.say(data))
                await asyncio.sleep(0.2)  # until nothing goes any more
                arrived = group.create_task(slowly(sink))
            assert arrived.result() == hashlib.sha256(data).digest()
            client.close()
            upstream.close()

    run(play)


def test_bytes_in_the_tls_buffer_are_copied_in_the_next_iteration(identities: Identities) -> None:
    data = random.Random(1).randbytes(16 * 1024 + 9_000)

    async def play() -> None:
        build = serving(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with siege(build, answer(GRANT)) as w:
            client, upstream = await relayed(w, identities)
            w.app.context.buffer = bytearray(1_000)  # a turn carries four of these at most
            await client.say(data)
            assert await upstream.data(len(data)) == data
            client.close()
            upstream.close()

    run(play)


class Sipping:
    """A socket that takes one byte of the first it is to send."""

    def __init__(self, sock: socket.SocketType) -> None:
        self._sock = sock
        self._most: int | None = 1

    def send(self, data: bytes) -> int:
        most, self._most = self._most, None
        return self._sock.send(data[:most])

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


@pytest.mark.parametrize(
    ("size", "is_slow"),
    [
        (8 * 1024, True),  # found when the upstream has room again
        (3 * 16 * 1024, False),  # found in the same go as whole records
    ],
)
def test_broken_tls_record_closes_and_earlier_bytes_are_delivered(
    size: int, is_slow: bool, identities: Identities
) -> None:
    data = random.Random(size).randbytes(size)

    async def play() -> None:
        build = serving(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with siege(build, answer(GRANT)) as w:
            client, upstream = await relayed(w, identities)
            (relay,) = w.app.context.live
            assert isinstance(relay, Relay)
            if is_slow:
                relay.upstream.sock = cast("socket.socket", Sipping(relay.upstream.sock))
            client.writer.write(data)
            os.write(client.writer.get_extra_info("socket").fileno(), NO_RECORD)  # in the same breath
            assert await upstream.rest() == data
            await w.settled()
            assert w.value("mailproxy_connections_closed_total", "pop3", "pop3", "client_reset") == 1
            upstream.close()
            client.close()

    run(play)
