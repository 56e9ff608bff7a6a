# SPDX-License-Identifier: Apache-2.0
"""The light client of TLS 1.3 against OpenSSL."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trustme
from benchmarks.light_tls import LightTls, server_key


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mail.example.com").configure_cert(made)
    return made


class _Server:
    """The server's side, in memory, behind a socket pair."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self.incoming, self.outgoing, self.sock = ssl.MemoryBIO(), ssl.MemoryBIO(), sock
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def step(self) -> None:
        """Take what the client sent, continue the handshake, and send what that gives."""
        self.incoming.write(self.sock.recv(65536))
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.sock.sendall(self.outgoing.read())

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.sock.sendall(self.outgoing.read())


@pytest.fixture
def pair(context: ssl.SSLContext) -> Iterator[tuple[LightTls, _Server]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield LightTls(ours), _Server(context, theirs)


def _handshake(client: LightTls, server: _Server, chunk: int = 65536) -> None:
    assert not client.handshake()
    server.step()
    flight = client.sock.recv(65536)
    for at in range(0, len(flight), chunk):
        client.feed(flight[at : at + chunk])
        client.handshake()
    assert client.is_secure
    server.step()


@pytest.mark.parametrize("chunk", [1, 7, 65536])
def test_handshake_is_complete_with_the_suite_of_openssl_however_it_is_cut(
    pair: tuple[LightTls, _Server], chunk: int
) -> None:
    client, server = pair
    _handshake(client, server, chunk)
    assert server.tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)


def test_data_passes_in_both_directions_after_tickets(pair: tuple[LightTls, _Server]) -> None:
    client, server = pair
    _handshake(client, server)
    server.send(b"* OK ready\r\n")
    server.send(b"a OK done\r\n")
    client.feed(client.sock.recv(65536))
    assert client.read() == b"* OK ready\r\na OK done\r\n"
    for line in (b"a LOGIN u p\r\n", b"b NOOP\r\n"):
        server.incoming.write(client.encrypt(line))
        assert server.tls.read() == line


def test_record_that_is_not_complete_is_kept(pair: tuple[LightTls, _Server]) -> None:
    client, server = pair
    _handshake(client, server)
    server.send(b"* OK ready\r\n")
    data = client.sock.recv(65536)
    client.feed(data[:-1])
    assert client.read() == b""
    client.feed(data[-1:])
    assert client.read() == b"* OK ready\r\n"


def test_changed_record_is_not_accepted(pair: tuple[LightTls, _Server]) -> None:
    client, server = pair
    _handshake(client, server)
    client.sock.setblocking(True)
    client.feed(client.sock.recv(65536))
    client.read()
    server.send(b"* OK ready\r\n")
    data = bytearray(client.sock.recv(65536))
    data[-1] ^= 1
    client.feed(bytes(data))
    with pytest.raises(Exception, match=r"^$"):
        client.read()


def test_alert_in_a_handshake_is_an_error(pair: tuple[LightTls, _Server]) -> None:
    client, _ = pair
    client.handshake()
    client.feed(bytes.fromhex("15030300020228"))
    with pytest.raises(ConnectionError, match="15030300020228"):
        client.handshake()


def test_server_hello_without_key_share_is_an_error() -> None:
    hello = b"\x02\x00\x00\x2c\x03\x03" + bytes(32) + b"\x00\x13\x02\x00\x00\x06\x00\x2b\x00\x02\x03\x04"
    with pytest.raises(ConnectionError, match="X25519"):
        server_key(hello)
