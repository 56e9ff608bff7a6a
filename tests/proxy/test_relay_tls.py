# SPDX-License-Identifier: Apache-2.0
"""The relay with TLS: bytes that OpenSSL has read already keep their order."""

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
from support.checked_worker import checked_worker, open_relay, server_builder
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, run
from support.tls_identities import Identities

NO_RECORD: Final = b"\x17\x03\x03\x00\x20" + bytes(32)
"""A TLS record that is not encrypted with the session's keys."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(Path(tmp_path_factory.mktemp("identities")))


def cramp(w: LoopbackWorker) -> None:
    """Make the relay's socket buffers too small for a whole TLS record."""
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
        build = server_builder(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with checked_worker(build, http_response(GRANT)) as w:
            client, upstream = await open_relay(w, identities)
            if is_cramped:
                cramp(w)
            source, sink = (client, upstream) if sender == "client" else (upstream, client)
            async with asyncio.TaskGroup() as group:
                group.create_task(source.send(data))
                await asyncio.sleep(0.2)  # until nothing is copied any more
                arrived = group.create_task(slowly(sink))
            assert arrived.result() == hashlib.sha256(data).digest()
            client.close()
            upstream.close()

    run(play)


def test_bytes_in_the_tls_buffer_are_copied_in_the_next_iteration(identities: Identities) -> None:
    data = random.Random(1).randbytes(16 * 1024 + 9_000)

    async def play() -> None:
        build = server_builder(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with checked_worker(build, http_response(GRANT)) as w:
            client, upstream = await open_relay(w, identities)
            w.app.context.buffer = bytearray(1_000)  # one event copies four of these at most
            await client.send(data)
            assert await upstream.read_bytes(len(data)) == data
            client.close()
            upstream.close()

    run(play)


class Sipping:
    """A socket that accepts one byte at the first call of ``send``."""

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
        (8 * 1024, True),  # detected when the upstream reads again
        (3 * 16 * 1024, False),  # detected together with complete records
    ],
)
def test_broken_tls_record_closes_and_earlier_bytes_are_delivered(
    size: int, is_slow: bool, identities: Identities
) -> None:
    data = random.Random(size).randbytes(size)

    async def play() -> None:
        build = server_builder(Protocol.POP3, identities, starttls=StartTls.ENABLED)
        async with checked_worker(build, http_response(GRANT)) as w:
            client, upstream = await open_relay(w, identities)
            (relay,) = w.app.context.live
            assert isinstance(relay, Relay)
            if is_slow:
                relay.upstream.sock = cast("socket.socket", Sipping(relay.upstream.sock))
            client.writer.write(data)
            os.write(client.writer.get_extra_info("socket").fileno(), NO_RECORD)  # in the same iteration
            assert await upstream.read_to_eof() == data
            await w.wait_for_sessions()
            assert w.value("mailproxy_connections_closed_total", "pop3", "pop3", "client_reset") == 1
            upstream.close()
            client.close()

    run(play)
