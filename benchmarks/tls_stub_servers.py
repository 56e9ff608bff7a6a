# SPDX-License-Identifier: Apache-2.0
"""Stubs of an authentication service and of an IMAP server with TLS from the first byte, in one process.

Run as ``python -m benchmarks.tls_stub_servers AUTH IMAP CERTIFICATE KEY``.  After a login, ``x GIVE``
makes the IMAP server send without end, and ``x TAKE`` makes it discard all input.  TLS is done in
memory, as in ``benchmarks.clients``: a flight of a handshake is one system call.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress

from benchmarks.stub_servers import AUTHORIZED, CHUNK, DOVECOT, LOGGED_IN, NOOP

_BUFFER = 1 << 18
_RECORD = 16384
_LINES = 4096


class Connection:
    """One connection of the IMAP server."""

    __slots__ = (
        "_discards",
        "_incoming",
        "_is_logged_in",
        "_is_secure",
        "_object",
        "_outgoing",
        "_unsent",
        "sock",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_secure = self._is_logged_in = self._discards = False
        self._unsent: memoryview | None = None

    @property
    def gives(self) -> bool:
        """Whether it sends without end."""
        return self._unsent is not None

    def on_readable(self, buffer: bytearray) -> bool:
        """Read what was received; returns whether the connection is still open."""
        try:
            count = self.sock.recv_into(buffer)
        except BlockingIOError:
            return True
        if not count:
            return False
        self._incoming.write(memoryview(buffer)[:count])
        if not self._is_secure:
            with suppress(ssl.SSLWantReadError):
                self._object.do_handshake()
                self._is_secure = True
                self._object.write(DOVECOT)
        elif self._discards:
            self._read_into(buffer)
            return True
        else:
            self._reply()
        if flight := self._outgoing.read():
            self.sock.send(flight)
        return True

    def _read_into(self, buffer: bytearray) -> None:
        with suppress(ssl.SSLWantReadError):
            while self._incoming.pending:
                self._object.read(_RECORD, buffer)

    def _reply(self) -> None:
        line = b""
        with suppress(ssl.SSLWantReadError):
            while self._incoming.pending:
                line += self._object.read(_RECORD)
        if not line:
            return
        if not self._is_logged_in:
            self._is_logged_in = True
            self._object.write(line.partition(b" ")[0] + LOGGED_IN)
        elif line.startswith(b"x GIVE"):
            self._unsent = memoryview(b"")
        elif line.startswith(b"x TAKE"):
            self._discards = True
        else:
            self._object.write(NOOP)

    def give(self) -> None:
        """Send until the socket accepts no more."""
        with suppress(BlockingIOError):
            for _ in range(8):
                rest = self._unsent
                if not rest:
                    self._object.write(CHUNK)
                    rest = memoryview(self._outgoing.read())
                self._unsent = rest
                self._unsent = rest[self.sock.send(rest) :]


class TlsStubServers:
    """All connections, on one epoll."""

    def __init__(self, auth: int, imap: int, certificate: str, key: str) -> None:
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.num_tickets = 1
        self._authorized = AUTHORIZED % imap
        self._epoll = select.epoll()
        self._buffer = bytearray(_BUFFER)
        self._connections: dict[int, Connection] = {}
        self._requests: dict[int, socket.socket] = {}
        self._listeners: dict[int, Callable[[], None]] = {}
        self._listen(auth, self._add_request)
        self._listen(imap, self._add_connection)

    def _listen(self, port: int, add: Callable[[socket.socket], None]) -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listener.setblocking(False)

        def accept() -> None:
            with suppress(BlockingIOError):
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._epoll.register(sock.fileno(), select.EPOLLIN)
                add(sock)

        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._listeners[listener.fileno()] = accept

    def _add_request(self, sock: socket.socket) -> None:
        self._requests[sock.fileno()] = sock

    def _add_connection(self, sock: socket.socket) -> None:
        self._connections[sock.fileno()] = Connection(sock, self._context)

    def serve(self) -> None:
        """Serve until the process is killed."""
        while True:
            for fd, mask in self._epoll.poll(-1, 256):
                try:
                    self._on_event(fd, mask)
                except OSError:
                    self._close(fd)

    def _on_event(self, fd: int, mask: int) -> None:
        if fd in self._listeners:
            self._listeners[fd]()
        elif fd in self._requests:
            if not os.read(fd, _LINES):
                self._close(fd)
            else:
                os.write(fd, self._authorized)
        else:
            self._serve_imap(fd, mask)

    def _serve_imap(self, fd: int, mask: int) -> None:
        connection = self._connections[fd]
        if mask & ~(select.EPOLLIN | select.EPOLLOUT) or (
            mask & select.EPOLLIN and not connection.on_readable(self._buffer)
        ):
            self._close(fd)
        elif connection.gives:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
            connection.give()

    def _close(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        sock = self._requests.pop(fd, None) if connection is None else connection.sock
        if sock is not None:
            sock.close()


if __name__ == "__main__":
    stub_servers = TlsStubServers(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    gc.disable()  # this module creates no reference cycles
    stub_servers.serve()
