# SPDX-License-Identifier: Apache-2.0
"""Both ends of a TLS connection in one process, and a small server for other TLS clients."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mailproxy.protocols.types import TlsInfo
from mailproxy.tls.connection import HandshakeStep, TlsConnection, TlsHandshakeFailed
from mailproxy.tls.context import ServerTls, build
from mailproxy.tls.openssl import OpenSsl, load_openssl
from mailproxy.tls.resumption import KEY_BYTES, TicketKeys
from mailproxy_config.model import ListenConfig, Protocol
from support.configs import server
from support.tls_authority import Authority, Issued

KEY: Final = bytes(range(KEY_BYTES))
TIMEOUT_SECONDS: Final = 40.0
_SET_HOST_NAME: Final = 55
"""``SSL_CTRL_SET_TLSEXT_HOSTNAME``."""
TLS_PORT: Final = (ListenConfig(port=993, ssl=True),)


def server_tls(
    *issued: Issued, protocol: Protocol = Protocol.IMAP, key: bytes | TicketKeys = KEY, **directives: Any
) -> ServerTls:
    """Build the TLS of a server with these certificates and directives."""
    chosen = tuple(certificate.files for certificate in issued)
    config = server(protocol, **{"listen": TLS_PORT, "ssl_certificate": chosen, **directives})
    return build(config, ticket_keys=TicketKeys([key]) if isinstance(key, bytes) else key)


def client_context(
    authority: Authority | None = None, *, certificate: Issued | None = None
) -> ssl.SSLContext:
    """Make a client's context that trusts this authority, or any, and may have a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if authority is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(authority.file)
    if certificate is not None:
        context.load_cert_chain(certificate.files.certificate, certificate.files.key)
    return context


def send_server_name(client: ssl.SSLSocket, name: bytes) -> None:
    """Send these bytes as the server name, which ``ssl`` does not do for addresses and malformed names."""
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    pointer = native.connection(client._sslobj)  # type: ignore[attr-defined]
    assert native.lib.SSL_ctrl(pointer, _SET_HOST_NAME, 0, name) == 1


class TlsPair:
    """A client and the server side, on a pair of sockets, before the handshake."""

    def __init__(
        self,
        tls: ServerTls,
        context: ssl.SSLContext,
        *,
        session: ssl.SSLSession | None = None,
        host: str | None = None,
        over: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        near, far = over or socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.server = tls.accept(far)
        self.client = context.wrap_socket(
            near, server_hostname=host, do_handshake_on_connect=False, session=session
        )

    def handshake(self) -> TlsInfo:
        """Complete the handshake and return its result."""
        steps = {self._client_step(), self.server.handshake()}
        for _ in range(20):
            if steps == {HandshakeStep.DONE}:
                break
            steps = {self._client_step(), self.server.handshake()}
        assert steps == {HandshakeStep.DONE}
        return self.server.info()

    def send_to_client(self, data: bytes) -> bytes:
        """Send bytes to the client, which also reads the session tickets before them."""
        assert self.server.send(data) == len(data)
        return self.client.recv(len(data))

    def close(self) -> None:
        """Close both sides."""
        self.client.close()
        self.server.close()

    def _client_step(self) -> HandshakeStep:
        try:
            self.client.do_handshake()
        except ssl.SSLWantReadError:
            return HandshakeStep.WANT_READ
        return HandshakeStep.DONE


def connect_once(
    tls: ServerTls, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None, host: str | None = None
) -> tuple[TlsInfo, ssl.SSLSession | None]:
    """Make a short connection; return the result of its handshake, and the session to resume."""
    pair = TlsPair(tls, context, session=session, host=host)
    try:
        info = pair.handshake()
        assert pair.send_to_client(b"x") == b"x"
        return info, pair.client.session
    finally:
        pair.close()


def complete_handshake(connection: TlsConnection) -> TlsInfo:
    """Complete the handshake of the server side with a client elsewhere."""
    while (step := connection.handshake()) is not HandshakeStep.DONE:
        reading = step is HandshakeStep.WANT_READ
        wait_for(connection, reading=reading)
    return connection.info()


def wait_for(connection: socket.socket, *, reading: bool) -> None:
    """Wait until a socket is readable or writable."""
    descriptors_to_poll = ([connection], []) if reading else ([], [connection])
    assert any(select.select(*descriptors_to_poll, [], TIMEOUT_SECONDS))


@contextmanager
def serve_tls(tls: ServerTls) -> Iterator[int]:
    """Serve other TLS clients: a handshake, a line with its result, close."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve, args=(listener, tls))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _serve(listener: socket.socket, tls: ServerTls) -> None:
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        with tls.accept(accepted) as connection:
            try:
                info = complete_handshake(connection)
            except TlsHandshakeFailed:
                continue
            connection.send(result_line(info))
            connection.unwrap()
            wait_for(connection, reading=True)


def result_line(info: TlsInfo) -> bytes:
    """The line that ``serve_tls`` sends."""
    subject = info.certificate.subject.decode() if info.certificate else "-"
    alpn = info.alpn.decode() if info.alpn else "-"
    return (
        f"{info.version} resumed={info.resumed} alpn={alpn} verify={info.verify_code} {subject}\r\n".encode()
    )


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir(Path("/proc/self/fd")))
