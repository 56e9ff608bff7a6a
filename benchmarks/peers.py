# SPDX-License-Identifier: Apache-2.0
"""The peers that a mail proxy needs: an authorization service and mail servers, in one lean process.

Run as ``python -m benchmarks.peers AUTH IMAP BARE POP3 SMTP`` (ports).  The
upstream at ``IMAP`` greets as Dovecot does, with its capabilities; the one at
``BARE`` says nothing that helps.  After a login, ``x GIVE`` makes an IMAP
upstream send without end, and ``x TAKE`` makes it swallow everything.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Generator

CHUNK = b"x" * 65536
DOVECOT = (
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN] "
    b"Dovecot ready.\r\n"
)
Talk = Generator[bytes, bytes, None]
"""Yields what to say, and is sent what was heard; ``GIVE`` and ``SWALLOW`` change the connection for good."""
GIVE, SWALLOW = b"give", b"swallow"


def imap(greeting: bytes) -> Talk:
    """Log anybody in, by literals of both kinds or in one line; then answer every line."""
    heard = yield greeting
    tag = heard.partition(b" ")[0]
    while heard.endswith(b"}\r\n") and not (heard.endswith(b"+}\r\n") or b"+}\r\n" in heard):
        heard = yield b"+ OK\r\n"
    heard = yield tag + b" OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
    while True:
        if heard.startswith(b"x GIVE"):
            heard = yield GIVE
        elif heard.startswith(b"x TAKE"):
            heard = yield SWALLOW
        else:
            heard = yield b"x OK NOOP completed (0.001 + 0.000 secs).\r\n"


def pop3() -> Talk:
    """Say yes to everything."""
    said = b"+OK Dovecot ready.\r\n"
    while True:
        yield said
        said = b"+OK\r\n"


def smtp() -> Talk:
    """Say yes to everything, with XCLIENT among what EHLO lists."""
    heard = yield b"220 backend ESMTP\r\n"
    while True:
        if heard.startswith(b"XCLIENT"):
            heard = yield b"220 backend ESMTP\r\n"
        elif heard.startswith(b"EHLO"):
            heard = yield b"250-backend\r\n250-XCLIENT ADDR LOGIN NAME\r\n250 8BITMIME\r\n"
        else:
            heard = yield b"250 OK\r\n"


class Peers:
    """Everybody's connections on one epoll."""

    def __init__(self, auth: int, imap_port: int, bare: int, pop3_port: int, smtp_port: int) -> None:
        self._epoll = select.epoll()
        self._ports = {b"pop3": pop3_port, b"smtp": smtp_port}
        self._imap, self._bare = imap_port, bare
        self._accepts: dict[int, tuple[socket.socket, Callable[[], Talk] | None]] = {}
        self._talks: dict[int, tuple[socket.socket, Talk | None]] = {}
        self._swallows: set[int] = set()
        self._listen(auth, None)
        self._listen(imap_port, lambda: imap(DOVECOT))
        self._listen(bare, lambda: imap(b"* OK ready\r\n"))
        self._listen(pop3_port, pop3)
        self._listen(smtp_port, smtp)

    def _listen(self, port: int, talk: Callable[[], Talk] | None) -> None:
        sock = socket.create_server(("127.0.0.1", port), backlog=4096)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._accepts[sock.fileno()] = (sock, talk)

    def serve(self) -> None:
        """Serve until the process is ended."""
        while True:
            for fd, mask in self._epoll.poll():
                if fd in self._accepts:
                    self._accept(*self._accepts[fd])
                elif fd in self._talks:
                    self._hear(fd, mask)

    def _accept(self, listener: socket.socket, make: Callable[[], Talk] | None) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        talk = None if make is None else make()
        self._talks[sock.fileno()] = (sock, talk)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        if talk is not None:
            sock.send(next(talk))

    def _hear(self, fd: int, mask: int) -> None:
        sock, talk = self._talks[fd]
        if mask & select.EPOLLOUT:
            self._give(fd, sock)
        if not mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            heard = sock.recv(1 << 18 if fd in self._swallows else 65536)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            self._close(fd, sock)
        elif fd in self._swallows:
            return
        elif talk is None:
            self._authorize(fd, sock, heard)
        else:
            self._answer(fd, sock, talk.send(heard))

    def _answer(self, fd: int, sock: socket.socket, said: bytes) -> None:
        if said is GIVE:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
        elif said is SWALLOW:
            self._swallows.add(fd)
        else:
            sock.send(said)

    def _give(self, fd: int, sock: socket.socket) -> None:
        try:
            for _ in range(8):
                if sock.send(CHUNK) < len(CHUNK):
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._close(fd, sock)

    def _authorize(self, fd: int, sock: socket.socket, asked: bytes) -> None:
        protocol = asked.partition(b"Auth-Protocol: ")[2][:4]
        port = self._ports.get(protocol)
        if port is None:
            port = self._bare if b"Auth-User: bare" in asked else self._imap
        sock.send(
            b"HTTP/1.1 200 OK\r\nServer: peers\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
            b"Auth-Port: %d\r\nAuth-Pass: secret\r\nContent-Length: 0\r\n\r\n" % port
        )
        if b"HTTP/1.0\r\n" in asked:
            self._close(fd, sock)

    def _close(self, fd: int, sock: socket.socket) -> None:
        self._talks.pop(fd, None)
        self._swallows.discard(fd)
        sock.close()


if __name__ == "__main__":
    Peers(*map(int, sys.argv[1:])).serve()
