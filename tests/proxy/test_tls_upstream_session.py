# SPDX-License-Identifier: Apache-2.0
"""Sessions of TLS connections to upstreams, between two ends of OpenSSL in memory."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mailproxy.tls.openssl import OpenSsl, load_openssl
from mailproxy.tls.upstream_session import UpstreamSession, session_of
from support.tls_authority import Authority, Issued

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
NAME = "mail.example.com"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


@pytest.fixture
def native() -> OpenSsl:
    found = load_openssl()
    assert isinstance(found, OpenSsl)
    return found


class Peers:
    """A client and a server in memory, after a handshake."""

    def __init__(
        self,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        session: UpstreamSession | None,
        native: OpenSsl,
    ) -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = contexts[0].wrap_bio(to_client, to_server, server_hostname=NAME)
        self.server = contexts[1].wrap_bio(to_server, to_client, server_side=True)
        self.pointer = native.connection(self.client._sslobj)  # type: ignore[attr-defined]
        if session is not None:
            session.resume_with(self.pointer)
        left = [self.client, self.server]
        while left:
            try:
                left[0].do_handshake()
                del left[0]
            except ssl.SSLWantReadError:
                left.reverse()

    def exchange(self) -> None:
        """Send bytes to the client, with the ticket of TLS 1.3 before them."""
        self.server.write(b"* OK")
        assert self.client.read(4) == b"* OK"


def contexts(
    authority: Authority, issued: Issued, version: ssl.TLSVersion
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.load_verify_locations(authority.file)
    client.minimum_version = client.maximum_version = version
    server.load_cert_chain(issued.files.certificate, issued.files.key)
    return client, server


@pytest.mark.parametrize("version", VERSIONS)
def test_copy_of_a_session_is_resumed_many_times(
    authority: Authority, issued: Issued, version: ssl.TLSVersion, native: OpenSsl
) -> None:
    """Also after connections that ended without close_notify."""
    both = contexts(authority, issued, version)
    first = Peers(both, None, native)
    first.exchange()
    assert not first.client.session_reused
    session = session_of(native, first.pointer, needs_ticket=version is ssl.TLSVersion.TLSv1_3)
    assert session is not None
    del first
    for _ in range(5):
        peers = Peers(both, session, native)
        assert peers.client.session_reused
        peers.exchange()


@pytest.mark.parametrize("version", VERSIONS)
def test_session_of_a_resumed_connection_is_resumed_in_turn(
    authority: Authority, issued: Issued, version: ssl.TLSVersion, native: OpenSsl
) -> None:
    both = contexts(authority, issued, version)
    session: UpstreamSession | None = None
    for number in range(5):
        peers = Peers(both, session, native)
        assert peers.client.session_reused is (number > 0)
        peers.exchange()
        session = session_of(native, peers.pointer, needs_ticket=version is ssl.TLSVersion.TLSv1_3)
        assert session is not None


def test_connection_without_a_ticket_has_no_session(
    authority: Authority, issued: Issued, native: OpenSsl
) -> None:
    both = contexts(authority, issued, ssl.TLSVersion.TLSv1_3)
    both[1].num_tickets = 0
    peers = Peers(both, None, native)
    peers.exchange()
    assert session_of(native, peers.pointer, needs_ticket=True) is None


def test_connection_before_its_handshake_has_no_session(native: OpenSsl) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=NAME)
    assert session_of(native, native.connection(made._sslobj), needs_ticket=False) is None  # type: ignore[attr-defined]


def test_copies_do_not_accumulate(authority: Authority, issued: Issued, native: OpenSsl) -> None:
    """Twenty thousand copies of a session, of about 2 kB each, would take 40 MB."""
    both = contexts(authority, issued, ssl.TLSVersion.TLSv1_3)
    peers = Peers(both, None, native)
    peers.exchange()
    before = 0
    for number in range(22_000):
        if number == 2_000:
            before = _resident()
        assert session_of(native, peers.pointer, needs_ticket=True) is not None
    assert _resident() - before < 8_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
