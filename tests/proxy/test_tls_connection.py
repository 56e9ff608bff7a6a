# SPDX-License-Identifier: Apache-2.0
"""TLS connections: handshake, data, shutdown, and malformed input."""

from __future__ import annotations

import ctypes
import gc
import select
import socket
import ssl
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy.enums import TlsFailure
from mailproxy.errors import TlsFailed
from mailproxy.tls.connection import HandshakeStep, TlsConnection, TlsHandshakeFailed
from mailproxy.tls.context import ServerTls
from mailproxy.tls.openssl import OpenSsl, load_openssl
from mailproxy_config.capability_choice import AlpnStrict
from mailproxy_config.model import Protocol, SendProxyProtocol, VerifyClient
from support.fuzz import examples
from support.tls_authority import Authority
from support.tls_peers import (
    TlsPair,
    client_context,
    complete_handshake,
    connect_once,
    descriptors,
    server_tls,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ServerTls:
    return server_tls(authority.issue())


def client_sending(tls: ServerTls, data: bytes) -> tuple[socket.socket, TlsConnection]:
    """A client that has sent these bytes before the server side starts the handshake."""
    near, far = socket.socketpair()
    far.setblocking(False)
    near.settimeout(5)
    near.sendall(data)
    return near, tls.accept(far)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake_result(tls: ServerTls, authority: Authority, version: ssl.TLSVersion) -> None:
    context = client_context(authority)
    context.minimum_version = context.maximum_version = version
    info, _ = connect_once(tls, context, host="localhost")
    assert info.version == version.name.replace("_", ".").replace("TLSv1.", "TLSv1.")
    assert "AES" in info.cipher or "CHACHA" in info.cipher
    assert not info.resumed
    assert (info.alpn, info.certificate, info.verify_code, info.server_name) == (None, None, 0, b"localhost")


def test_handshake_waits_for_client(tls: ServerTls) -> None:
    near, server_certificate = client_sending(tls, b"")
    assert server_certificate.handshake() is HandshakeStep.WANT_READ
    near.close()
    server_certificate.close()


def test_accept_detaches_socket(tls: ServerTls) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    descriptor = far.fileno()
    server_certificate = tls.accept(far)
    assert (far.fileno(), server_certificate.fileno()) == (-1, descriptor)
    assert isinstance(server_certificate, ssl.SSLSocket)
    assert server_certificate.context is tls.params.context
    assert not server_certificate.getblocking()
    near.close()
    server_certificate.close()


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"GET / HTTP/1.1\r\n", TlsFailure.NOT_TLS),
        (b"CONNECT mail:25 HTTP/1.1\r\n", TlsFailure.NOT_TLS),
        (b"EHLO client.example\r\n", TlsFailure.NOT_TLS),
        (b"a1 LOGIN alice secret\r\n", TlsFailure.NOT_TLS),
        (b"\r\n\r\n\r\n", TlsFailure.NOT_TLS),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", TlsFailure.OTHER),  # a ServerHello, to a server
        (b"\x15\x03\x01\x00\x02\x02\x28", TlsFailure.OTHER),  # an alert: handshake failure
    ],
)
def test_other_bytes_fail_handshake(tls: ServerTls, data: bytes, failure: TlsFailure) -> None:
    near, server_certificate = client_sending(tls, data)
    with pytest.raises(TlsHandshakeFailed) as caught:
        server_certificate.handshake()
    assert caught.value.failure is failure
    assert caught.value.detail
    assert isinstance(caught.value, TlsFailed)
    near.close()
    server_certificate.close()


def test_disconnect_during_handshake_is_eof(tls: ServerTls) -> None:
    near, server_certificate = client_sending(tls, b"")
    near.close()
    with pytest.raises(TlsHandshakeFailed) as caught:
        server_certificate.handshake()
    assert caught.value.failure is TlsFailure.EOF
    server_certificate.close()


def test_reset_during_handshake_is_eof(tls: ServerTls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    server_certificate = tls.accept(accepted)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    with pytest.raises(TlsHandshakeFailed) as caught:
        server_certificate.handshake()
    assert caught.value.failure is TlsFailure.EOF
    server_certificate.close()


def test_pending_is_zero_after_close(tls: ServerTls) -> None:
    near, server_certificate = client_sending(tls, b"")
    server_certificate.close()
    assert server_certificate.pending() == 0
    near.close()


@pytest.mark.parametrize("injected", [b"a1 NOOP\r\n", b"a2 LOGIN eve evil\r\n" * 40])
def test_clear_text_before_handshake_fails_it(tls: ServerTls, authority: Authority, injected: bytes) -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    near.sendall(injected)  # after STARTTLS, in the gap before the ClientHello
    near.setblocking(False)
    client = client_context(authority).wrap_socket(near, do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    server_certificate = tls.accept(far)
    with pytest.raises(TlsHandshakeFailed) as caught:
        server_certificate.handshake()
    assert caught.value.failure is TlsFailure.NOT_TLS
    with suppress(ssl.SSLError):  # of OpenSSL 3.2 and later; earlier ones end the stream
        assert server_certificate.recv(4096) == b""
    client.close()
    server_certificate.close()


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=600))
def test_any_bytes_wait_or_fail_handshake(tls: ServerTls, data: bytes) -> None:
    near, server_certificate = client_sending(tls, data)
    near.close()
    with pytest.raises(TlsHandshakeFailed):
        handshake_alone(server_certificate)
    server_certificate.close()


def handshake_alone(server_certificate: TlsConnection) -> None:
    """Continue the handshake with a client that is disconnected."""
    for _ in range(3):
        server_certificate.handshake()


def test_no_common_version_fails(tls: ServerTls, authority: Authority) -> None:
    tls = server_tls(authority.issue(), ssl_protocols=frozenset({"TLSv1.3"}))
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert failure_with(tls, context) is TlsFailure.UNSUPPORTED_VERSION


def test_no_common_cipher_fails(authority: Authority) -> None:
    tls = server_tls(
        authority.issue(), ssl_protocols=frozenset({"TLSv1.2"}), ssl_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384"
    )
    context = client_context(authority)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    assert failure_with(tls, context) is TlsFailure.NO_SHARED_CIPHER


def test_client_that_rejects_certificate_fails(tls: ServerTls, tmp_path: Path) -> None:
    assert failure_with(tls, client_context(Authority(tmp_path, "CN=Another CA"))) is TlsFailure.VERIFY_FAILED


def failure_with(tls: ServerTls, context: ssl.SSLContext) -> TlsFailure:
    pair = TlsPair(tls, context)
    with pytest.raises(TlsHandshakeFailed) as caught:
        failing_handshake(pair)
    pair.close()
    return caught.value.failure


def failing_handshake(pair: TlsPair) -> None:
    """Perform both sides of a handshake that fails on either side."""
    for _ in range(3):
        with suppress(ssl.SSLError):
            pair.client.do_handshake()
        pair.server.handshake()


@pytest.mark.parametrize(
    ("protocol", "offered", "chosen"),
    [
        (Protocol.IMAP, ["imap"], b"imap"),
        (Protocol.IMAP, ["h2", "imap", "http/1.1"], b"imap"),
        (Protocol.POP3, ["imap", "pop3"], b"pop3"),
        (Protocol.SMTP, ["smtp"], b"smtp"),
        (Protocol.IMAP, [], None),
    ],
)
def test_alpn_selects_protocol(
    authority: Authority, protocol: Protocol, offered: list[str], chosen: bytes | None
) -> None:
    context = client_context(authority)
    context.set_alpn_protocols(offered)
    info, _ = connect_once(server_tls(authority.issue(), protocol=protocol), context)
    assert info.alpn == chosen


@pytest.mark.parametrize("offered", [["http/1.1"], ["pop3", "h2"], ["ximap"], ["imap4"]])
def test_alpn_mismatch_fails_handshake(tls: ServerTls, authority: Authority, offered: list[str]) -> None:
    context = client_context(authority)
    context.set_alpn_protocols(offered)
    pair = TlsPair(tls, context)
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    with pytest.raises(TlsHandshakeFailed) as caught:
        pair.server.handshake()
    assert caught.value.failure is TlsFailure.ALPN_MISMATCH
    with pytest.raises(ssl.SSLError, match=r"NO_APPLICATION_PROTOCOL|no application protocol"):
        pair.client.do_handshake()
    pair.close()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["smtp"], b"smtp"), (["h2", "smtp"], b"smtp"), (["mta"], None), (["smtp/1", "GREASE"], None)],
)
def test_alpn_without_other_registered_protocols_is_accepted_if_configured(
    authority: Authority, offered: list[str], chosen: bytes | None
) -> None:
    context = client_context(authority)
    context.set_alpn_protocols(offered)
    tls = server_tls(authority.issue(), protocol=Protocol.SMTP, ssl_alpn_strict=AlpnStrict.REGISTERED)
    info, _ = connect_once(tls, context)
    assert info.alpn == chosen


@pytest.mark.parametrize("offered", [["imap"], ["mta", "http/1.1"], ["h2"]])
def test_alpn_with_other_registered_protocol_is_refused_in_every_mode(
    authority: Authority, offered: list[str]
) -> None:
    context = client_context(authority)
    context.set_alpn_protocols(offered)
    tls = server_tls(authority.issue(), protocol=Protocol.SMTP, ssl_alpn_strict=AlpnStrict.REGISTERED)
    pair = TlsPair(tls, context)
    with pytest.raises(TlsHandshakeFailed) as caught:
        failing_handshake(pair)
    assert caught.value.failure is TlsFailure.ALPN_MISMATCH
    pair.close()


def test_bytes_are_sent_in_both_directions(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    assert pair.send_to_client(b"* OK ready\r\n") == b"* OK ready\r\n"
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.recv(4096)
    pair.client.send(b"a1 NOOP\r\na2 NOOP\r\n")
    assert pair.server.recv(9) == b"a1 NOOP\r\n"
    assert pair.server.pending()
    buffer = bytearray(64)
    assert pair.server.recv_into(buffer) == 9
    assert buffer[:9] == b"a2 NOOP\r\n"
    assert not pair.server.pending()
    pair.close()


def test_read_ahead_bytes_are_pending(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    for record in (b"one", b"two", b"three"):
        pair.client.send(record)
    received = [pair.server.recv(4096)]
    while pair.server.pending():
        received.append(pair.server.recv(4096))
    assert received == [b"one", b"two", b"three"]
    pair.close()


def test_bytes_with_end_of_handshake_are_pending_or_readable(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    assert pair.server.handshake() is HandshakeStep.WANT_READ
    pair.client.do_handshake()
    pair.client.send(b"a1 CAPABILITY\r\n")  # in one flight with the client's Finished
    assert pair.server.handshake() is HandshakeStep.DONE
    # OpenSSL reads ahead in the handshake, too, but not since 3.2: then they are still in the socket
    assert pair.server.pending() or select.select([pair.server], [], [], 0)[0]
    assert pair.server.recv(4096) == b"a1 CAPABILITY\r\n"
    pair.close()


@pytest.mark.parametrize("wants_answer", [False, True])
def test_read_ahead_bytes_after_key_update_are_pending(
    tls: ServerTls, authority: Authority, wants_answer: bool
) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    pair.client.send(b"old keys")
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    update = native.lib.SSL_key_update
    update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    assert update(native.connection(pair.client._sslobj), int(wants_answer)) == 1  # type: ignore[attr-defined]
    for record in (b"new keys", b"and more"):
        pair.client.send(record)
    received = [pair.server.recv(4096)]
    while pair.server.pending():
        received.append(pair.server.recv(4096))
    assert received == [b"old keys", b"new keys", b"and more"]
    assert pair.send_to_client(b"answer") == b"answer"
    pair.close()


def test_send_writes_until_socket_is_full(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    data = bytes(range(256)) * 8192
    left, got = memoryview(data), bytearray()
    partial = 0
    while len(got) < len(data):
        try:
            sent = pair.server.send(left) if left else 0
        except ssl.SSLWantWriteError:
            sent = 0
        partial += sent < len(left)
        left = left[sent:]
        try:
            while True:
                got += pair.client.recv(65536)
        except ssl.SSLWantReadError:
            pass
    assert bytes(got) == data
    assert partial
    pair.close()


def test_close_notify_ends_stream(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    pair.send_to_client(b"x")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    assert pair.server.recv(4096) == b""
    assert pair.server.recv_into(bytearray(16)) == 0
    pair.close()


def test_close_without_close_notify_ends_stream(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    pair.send_to_client(b"x")
    pair.client.close()
    assert pair.server.recv(4096) == b""
    pair.close()


def test_unwrap_sends_close_notify_and_reading_still_works(tls: ServerTls, authority: Authority) -> None:
    pair = TlsPair(tls, client_context(authority))
    pair.handshake()
    pair.send_to_client(b"x")
    pair.client.send(b"last words")
    assert pair.server.unwrap() is pair.server
    assert pair.client.recv(4096) == b""
    assert pair.server.recv(4096) == b"last words"
    pair.close()


@pytest.mark.parametrize("moment", ["before the handshake", "after a failure", "after the end"])
def test_unwrap_never_raises(tls: ServerTls, moment: str) -> None:
    near, server_certificate = client_sending(
        tls, b"EHLO x.example\r\n" if moment == "after a failure" else b""
    )
    if moment == "after a failure":
        with pytest.raises(TlsHandshakeFailed):
            server_certificate.handshake()
    if moment == "after the end":
        server_certificate.close()
    assert server_certificate.unwrap() is server_certificate
    near.close()
    server_certificate.close()


def test_failed_unwrap_leaves_no_openssl_error(tls: ServerTls, authority: Authority) -> None:
    near, server_certificate = client_sending(tls, b"")
    server_certificate.unwrap()
    info, _ = connect_once(tls, client_context(authority))
    assert info.version
    near.close()
    server_certificate.close()


def test_sni_and_server_certificate_only_with_proxy_v2(
    authority: Authority,
) -> None:
    ecdsa, rsa = authority.issue(), authority.issue(key="rsa")
    tls = server_tls(ecdsa, rsa, proxy_protocol=SendProxyProtocol.V2, ssl_protocols=frozenset({"TLSv1.2"}))
    context = client_context(authority)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    info, _ = connect_once(tls, context, host="mail.example.com")
    assert (info.server_name, info.own_signature, info.own_key) == (
        b"mail.example.com",
        b"ecdsa-with-SHA256",
        b"RSA2048",
    )
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    info, _ = connect_once(tls, context)
    assert (info.server_name, info.own_signature, info.own_key) == (None, b"ecdsa-with-SHA256", b"EC256")


def test_2000_handshakes_leak_nothing(authority: Authority) -> None:
    tls = server_tls(
        authority.issue(), ssl_verify_client=VerifyClient.OPTIONAL, ssl_client_certificate=authority.file
    )
    context = client_context(authority, certificate=authority.issue("CN=alice"))
    context.set_alpn_protocols(["imap"])
    connect_once(tls, context)
    gc.collect()
    before, open_before = len(gc.get_objects()), descriptors()
    for _ in range(2000):
        connect_once(tls, context)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert descriptors() == open_before


def test_connection_object_is_small(tls: ServerTls) -> None:
    near, server_certificate = client_sending(tls, b"")
    assert vars(server_certificate) == {}
    near.close()
    server_certificate.close()


def test_many_records_are_sent_in_full_segments(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), timeout=20)
        far, _ = listener.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pair = TlsPair(server_tls(authority.issue()), client_context(authority), over=(near, far))
    pair.client.settimeout(20)
    steps = threading.Thread(target=pair.client.do_handshake)
    steps.start()
    complete_handshake(pair.server)
    steps.join(20)
    before = _segments_out(pair.server)
    data = bytes(range(256)) * 256  # four records
    assert pair.server.send(data) == len(data)
    sent = _segments_out(pair.server) - before
    received = b""
    while len(received) < len(data):
        received += pair.client.recv(65536)
    assert received == data
    assert 1 <= sent < 4
    assert pair.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0
    pair.close()


def _segments_out(sock: socket.socket) -> int:
    """The number of segments with data that the kernel has sent (tcp(7), ``tcp_info``)."""
    tcp_info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(tcp_info[156:160], sys.byteorder)
