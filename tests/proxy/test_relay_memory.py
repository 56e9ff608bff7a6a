# SPDX-License-Identifier: Apache-2.0
"""The memory that a relay holds while one of its sides does not read."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from mailproxy.net.pipes import Pipes
from mailproxy.session import relay_end
from mailproxy.session.relay import Relay
from mailproxy.session.relay_end import MAX_PENDING
from mailproxy.tls.connection import PIECE
from mailproxy_config.model import ByteCount, Protocol, StartTls
from support.checked_worker import checked_worker, open_relay, server_builder
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, run
from support.tls_identities import Identities

PROXY = str(Path(relay_end.__file__).parents[1])
OBJECTS = 8 * 1024
"""Bytes that the traced code allocates for other objects."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(tmp_path_factory.mktemp("identities"))


async def fill(w: LoopbackWorker, *peers: Peer) -> None:
    """Let peers send without reading until nothing is copied any more."""
    for peer in peers:
        transport = peer.writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        peer.writer.write(b"x" * 20_000_000)
    (relay,) = w.app.context.live
    assert isinstance(relay, Relay)
    copied = -1
    while copied != relay.client.bytes_read + relay.upstream.bytes_read:
        copied = relay.client.bytes_read + relay.upstream.bytes_read
        await asyncio.sleep(0.2)


def traced() -> int:
    """Memory that the proxy's own code has allocated, in bytes."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{PROXY}/*")])
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


@pytest.mark.parametrize("senders", ["client", "upstream", "both"])
@pytest.mark.parametrize("is_tls", [True, False], ids=["TLS", "plain"])
def test_stalled_direction_holds_no_more_than_max_pending(
    is_tls: bool, senders: str, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipes, "take", lambda _: None)  # plain: as if all pipes were in use

    async def play() -> None:
        tls = {"starttls": StartTls.ENABLED} if is_tls else {}
        build = server_builder(Protocol.POP3, identities, proxy_buffer=ByteCount(4096), **tls)
        async with checked_worker(build, http_response(GRANT)) as w:
            client, upstream = await open_relay(w, identities if is_tls else None)
            (relay,) = w.app.context.live
            assert isinstance(relay, Relay)
            tracemalloc.start()
            try:
                before = traced()
                await fill(w, *{"client": [client], "upstream": [upstream]}.get(senders, [client, upstream]))
                held = [len(end.pending) for end in (relay.client, relay.upstream)]
                allocated = traced() - before
            finally:
                tracemalloc.stop()
            assert max(held) > 0
            assert max(held) <= MAX_PENDING
            assert allocated <= sum(held) + OBJECTS

    run(play)


def test_memory_limit_is_documented() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert MAX_PENDING == 64 * 1024
    assert MAX_PENDING >= PIECE  # bytes that OpenSSL requires again
    for page in ("limits.md", "reference/directives.md", "quirks.md"):
        assert "64 KiB" in (docs / page).read_text(), page
