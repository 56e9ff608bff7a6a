# SPDX-License-Identifier: Apache-2.0
"""The last bytes of a TLS handshake are sent with the greeting, in one segment."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailproxy_config.model import Protocol, StartTls
from support.checked_worker import checked_worker, server_builder
from support.loopback_worker import run
from support.tls_identities import Identities

_DATA_SEGMENTS_IN = struct.Struct("=152x I")
"""``tcpi_data_segs_in`` of ``tcp_info`` (tcp(7)): the number of received segments with data."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(tmp_path_factory.mktemp("tls"))


@dataclass
class Client:
    """A TLS client that counts the segments it gets."""

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @classmethod
    def over(cls, sock: socket.socket, context: ssl.SSLContext) -> Client:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        return cls(sock, context.wrap_bio(incoming, outgoing), incoming, outgoing)

    def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            else:
                self._flush()
                return

    def read_line(self) -> bytes:
        received = b""
        while not received.endswith(b"\n"):
            try:
                received += self.tls.read(4096)
            except ssl.SSLWantReadError:
                self._receive()
        return received

    def segments(self) -> int:
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _DATA_SEGMENTS_IN.size)
        (count,) = _DATA_SEGMENTS_IN.unpack(info)
        return int(count)

    def _flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self.sock.sendall(data)

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.incoming.write(data)


def greeted(port: int, context: ssl.SSLContext) -> tuple[bytes, int]:
    """Connect, and return the greeting and the number of segments up to it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        client = Client.over(sock, context)
        client.handshake()
        return client.read_line(), client.segments()


@pytest.mark.parametrize(
    ("version", "curve", "segments"),
    [
        (ssl.TLSVersion.TLSv1_3, "auto", 2),  # the server's flight; the ticket and the greeting
        (ssl.TLSVersion.TLSv1_2, "auto", 2),  # its flight; ticket, Finished and greeting
        (ssl.TLSVersion.TLSv1_3, "secp384r1", 3),  # a HelloRetryRequest comes before
    ],
    ids=["1.3", "1.2", "1.3, with a HelloRetryRequest"],
)
def test_greeting_is_sent_with_the_last_handshake_bytes(
    identities: Identities, version: ssl.TLSVersion, curve: str, segments: int
) -> None:
    async def play() -> None:
        build = server_builder(Protocol.IMAP, identities, listen_ssl=True, ssl_ecdh_curve=curve)
        async with checked_worker(build) as w:
            context = identities.client()
            context.minimum_version = context.maximum_version = version
            # under load the kernel may repeat a segment, but not each time
            segments_sent = [await asyncio.to_thread(greeted, w.port, context) for _ in range(10)]
            assert min(segments_sent) == (b"* OK IMAP4 ready\r\n", segments)

    run(play)


def started(port: int, context: ssl.SSLContext) -> int:
    """Start TLS, and wait for what is sent with the end of the handshake."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        assert sock.recv(100) == b"* OK IMAP4 ready\r\n"
        sock.sendall(b"s STARTTLS\r\n")
        assert sock.recv(100) == b"s OK completed\r\n"
        client = Client.over(sock, context)
        client.handshake()
        sock.recv(1, socket.MSG_PEEK)
        return client.segments()


def test_nothing_is_corked_after_starttls(identities: Identities) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(Protocol.IMAP, identities, starttls=StartTls.ENABLED)) as w:
            context = identities.client()
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            assert min([await asyncio.to_thread(started, w.port, context) for _ in range(10)]) == 4

    run(play)


def test_unix_socket_is_not_corked(identities: Identities, tmp_path: Path) -> None:
    """Only TCP can be corked; the handshake works without."""

    async def play() -> None:
        build = server_builder(Protocol.IMAP, identities, listen_ssl=True)
        path = str(tmp_path / "listener")
        async with checked_worker(build, unix_path=path):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(path)
                client = Client.over(sock, identities.client())
                await asyncio.to_thread(client.handshake)
                assert await asyncio.to_thread(client.read_line) == b"* OK IMAP4 ready\r\n"

    run(play)
