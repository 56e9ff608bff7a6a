# SPDX-License-Identifier: Apache-2.0
"""Stubs of an authentication service and of mail servers, in one process.

Run as ``python -m benchmarks.stub_servers AUTH IMAP BARE POP3 SMTP`` (ports).  The
upstream at ``IMAP`` greets as Dovecot does, with its capabilities; the one at
``BARE`` advertises no capabilities.  After a login, ``x GIVE`` makes an IMAP
upstream send without end, and ``x TAKE`` makes it discard all input.

To be fast, the stubs use descriptors without socket objects, and keep only the
function that handles the next event of each.  The descriptors are in blocking
mode, which saves a system call for each; they never block, because they are
read only after an event, and commands are short.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
from collections.abc import Callable

Handler = Callable[[int], None]
"""Handles a readable connection."""

CHUNK = b"x" * 65536
DOVECOT = (
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN] "
    b"Dovecot ready.\r\n"
)
LOGGED_IN = b" OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
NOOP = b"x OK NOOP completed (0.001 + 0.000 secs).\r\n"
READY = b"220 backend ESMTP\r\n"
EHLO = b"250-backend\r\n250-XCLIENT ADDR LOGIN NAME\r\n250 8BITMIME\r\n"
AUTHORIZED = (
    b"HTTP/1.1 200 OK\r\nServer: peers\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
    b"Auth-Port: %d\r\nAuth-Pass: secret\r\nContent-Length: 0\r\n\r\n"
)
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP
_LINES = 4096
_BATCH = 256


class StubServers:
    """All connections, on one epoll."""

    def __init__(self, auth: int, imap: int, bare: int, pop3: int, smtp: int) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._handlers: dict[int, Handler] = {}
        self._tags: dict[int, bytes] = {}
        self._sink = bytearray(1 << 18)
        self._imap, self._bare, self._pop3, self._smtp = (
            AUTHORIZED % port for port in (imap, bare, pop3, smtp)
        )
        self._listen(auth, self._serve_auth)
        self._listen(imap, self._serve_login, DOVECOT)
        self._listen(bare, self._serve_login, b"* OK ready\r\n")
        self._listen(pop3, self._serve_pop3, b"+OK Dovecot ready.\r\n")
        self._listen(smtp, self._serve_smtp, READY)

    def _listen(self, port: int, handler: Handler, greeting: bytes = b"") -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        # what is below the public accept gives a descriptor, without the two system calls of an object for it
        accept = listener._accept  # type: ignore[attr-defined]  # noqa: SLF001
        handlers, register = self._handlers, self._epoll.register

        def accept_one() -> None:
            try:
                fd, _ = accept()
            except BlockingIOError:
                return
            handlers[fd] = handler
            register(fd, _EVENTS)
            if greeting:
                os.write(fd, greeting)

        register(listener.fileno(), select.EPOLLIN)
        self._listeners[listener.fileno()] = accept_one

    def serve(self) -> None:
        """Serve until the process is killed."""
        poll, handlers, listeners = self._epoll.poll, self._handlers, self._listeners
        readable = select.EPOLLIN
        while True:
            for fd, mask in poll(-1, _BATCH):
                try:
                    if fd in listeners:
                        listeners[fd]()
                    elif mask == readable:
                        handlers[fd](fd)
                    else:
                        self._on_close_or_writable(fd, mask)
                except OSError:
                    if fd in handlers:
                        self._close(fd)

    def _on_close_or_writable(self, fd: int, mask: int) -> None:
        """Close a connection that the peer has closed, or send bulk data where there is room."""
        if mask == select.EPOLLOUT:
            self._send_bulk(fd)
        elif mask & select.EPOLLIN and self._handlers[fd] == self._discard:
            self._discard(fd)
        else:
            self._close(fd)

    def _serve_auth(self, fd: int) -> None:
        request = os.read(fd, _LINES)
        if b"Auth-Protocol: imap" in request:
            os.write(fd, self._bare if b"Auth-User: bare" in request else self._imap)
        else:
            os.write(fd, self._pop3 if b"Auth-Protocol: pop3" in request else self._smtp)
        if b" HTTP/1.0\r\n" in request:
            self._close(fd)

    def _serve_login(self, fd: int) -> None:
        """Accept any login, with both kinds of literals or in one line."""
        received = os.read(fd, _LINES)
        tag = self._tags.pop(fd, b"") or received.partition(b" ")[0]
        if received.endswith(b"}\r\n") and b"+}\r\n" not in received:
            self._tags[fd] = tag
            os.write(fd, b"+ OK\r\n")
        else:
            os.write(fd, tag + LOGGED_IN)
            self._handlers[fd] = self._serve_imap

    def _serve_imap(self, fd: int) -> None:
        """Reply to every line."""
        received = os.read(fd, _LINES)
        if received.startswith(b"x GIVE"):
            os.set_blocking(fd, False)
            self._epoll.modify(fd, select.EPOLLOUT | select.EPOLLRDHUP)
        elif received.startswith(b"x TAKE"):
            self._handlers[fd] = self._discard
        else:
            os.write(fd, NOOP)

    def _serve_pop3(self, fd: int) -> None:
        """Accept every command."""
        os.read(fd, _LINES)
        os.write(fd, b"+OK\r\n")

    def _serve_smtp(self, fd: int) -> None:
        """Accept every command; EHLO lists XCLIENT until it was sent, as Postfix."""
        received = os.read(fd, _LINES)
        if received.startswith(b"XCLIENT"):
            os.write(fd, READY)
            self._handlers[fd] = self._serve_smtp_client
        elif received.startswith(b"EHLO"):
            os.write(fd, EHLO)
        else:
            os.write(fd, b"250 OK\r\n")

    def _serve_smtp_client(self, fd: int) -> None:
        """Accept every command of a client that XCLIENT has named."""
        os.read(fd, _LINES)
        os.write(fd, b"250 OK\r\n")

    def _discard(self, fd: int) -> None:
        if not os.readv(fd, [self._sink]):
            self._close(fd)

    def _send_bulk(self, fd: int) -> None:
        try:
            for _ in range(8):
                if os.write(fd, CHUNK) < len(CHUNK):
                    return
        except BlockingIOError:
            pass

    def _close(self, fd: int) -> None:
        self._handlers.pop(fd, None)
        self._tags.pop(fd, None)
        os.close(fd)


if __name__ == "__main__":
    stub_servers = StubServers(*map(int, sys.argv[1:]))
    gc.disable()  # this module creates no reference cycles
    stub_servers.serve()
