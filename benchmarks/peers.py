# SPDX-License-Identifier: Apache-2.0
"""The peers that a mail proxy needs: an authorization service and mail servers, in one lean process.

Run as ``python -m benchmarks.peers AUTH IMAP BARE POP3 SMTP`` (ports).  The
upstream at ``IMAP`` greets as Dovecot does, with its capabilities; the one at
``BARE`` says nothing that helps.  After a login, ``x GIVE`` makes an IMAP
upstream send without end, and ``x TAKE`` makes it swallow everything.

Peers must not be what a measurement waits for.  So connections are bare
descriptors, and all that is known of one is which function its next event
goes to.  They block, which saves a system call each and never happens: what
there is to read has been announced, and what is said is short.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
from collections.abc import Callable

Talk = Callable[[int], None]
"""Goes on with a connection that has something to say."""

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


class Peers:
    """Everybody's connections on one epoll."""

    def __init__(self, auth: int, imap: int, bare: int, pop3: int, smtp: int) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._talks: dict[int, Talk] = {}
        self._tags: dict[int, bytes] = {}
        self._sink = bytearray(1 << 18)
        self._imap, self._bare, self._pop3, self._smtp = (
            AUTHORIZED % port for port in (imap, bare, pop3, smtp)
        )
        self._listen(auth, self._authorize)
        self._listen(imap, self._log_in, DOVECOT)
        self._listen(bare, self._log_in, b"* OK ready\r\n")
        self._listen(pop3, self._speak_pop3, b"+OK Dovecot ready.\r\n")
        self._listen(smtp, self._speak_smtp, READY)

    def _listen(self, port: int, talk: Talk, greeting: bytes = b"") -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        # what is below the public accept gives a descriptor, without the two system calls of an object for it
        accept = listener._accept  # type: ignore[attr-defined]  # noqa: SLF001
        talks, register = self._talks, self._epoll.register

        def take() -> None:
            try:
                fd, _ = accept()
            except BlockingIOError:
                return
            talks[fd] = talk
            register(fd, _EVENTS)
            if greeting:
                os.write(fd, greeting)

        register(listener.fileno(), select.EPOLLIN)
        self._listeners[listener.fileno()] = take

    def serve(self) -> None:
        """Serve until the process is ended."""
        poll, talks, listeners = self._epoll.poll, self._talks, self._listeners
        heard = select.EPOLLIN
        while True:
            for fd, mask in poll(-1, _BATCH):
                try:
                    if fd in listeners:
                        listeners[fd]()
                    elif mask == heard:
                        talks[fd](fd)
                    else:
                        self._on_other(fd, mask)
                except OSError:
                    if fd in talks:
                        self._close(fd)

    def _on_other(self, fd: int, mask: int) -> None:
        """Whoever hangs up is not read to the end, but where that is the point; or there is room to give."""
        if mask == select.EPOLLOUT:
            self._give(fd)
        elif mask & select.EPOLLIN and self._talks[fd] == self._swallow:
            self._swallow(fd)
        else:
            self._close(fd)

    def _authorize(self, fd: int) -> None:
        asked = os.read(fd, _LINES)
        if b"Auth-Protocol: imap" in asked:
            os.write(fd, self._bare if b"Auth-User: bare" in asked else self._imap)
        else:
            os.write(fd, self._pop3 if b"Auth-Protocol: pop3" in asked else self._smtp)
        if b" HTTP/1.0\r\n" in asked:
            self._close(fd)

    def _log_in(self, fd: int) -> None:
        """Log anybody in, by literals of both kinds or in one line."""
        heard = os.read(fd, _LINES)
        tag = self._tags.pop(fd, b"") or heard.partition(b" ")[0]
        if heard.endswith(b"}\r\n") and b"+}\r\n" not in heard:
            self._tags[fd] = tag
            os.write(fd, b"+ OK\r\n")
        else:
            os.write(fd, tag + LOGGED_IN)
            self._talks[fd] = self._speak_imap

    def _speak_imap(self, fd: int) -> None:
        """Answer every line."""
        heard = os.read(fd, _LINES)
        if heard.startswith(b"x GIVE"):
            os.set_blocking(fd, False)
            self._epoll.modify(fd, select.EPOLLOUT | select.EPOLLRDHUP)
        elif heard.startswith(b"x TAKE"):
            self._talks[fd] = self._swallow
        else:
            os.write(fd, NOOP)

    def _speak_pop3(self, fd: int) -> None:
        """Say yes to everything."""
        os.read(fd, _LINES)
        os.write(fd, b"+OK\r\n")

    def _speak_smtp(self, fd: int) -> None:
        """Say yes to everything, with XCLIENT among what EHLO lists."""
        heard = os.read(fd, _LINES)
        if heard.startswith(b"XCLIENT"):
            os.write(fd, READY)
        elif heard.startswith(b"EHLO"):
            os.write(fd, EHLO)
        else:
            os.write(fd, b"250 OK\r\n")

    def _swallow(self, fd: int) -> None:
        if not os.readv(fd, [self._sink]):
            self._close(fd)

    def _give(self, fd: int) -> None:
        try:
            for _ in range(8):
                if os.write(fd, CHUNK) < len(CHUNK):
                    return
        except BlockingIOError:
            pass

    def _close(self, fd: int) -> None:
        self._talks.pop(fd, None)
        self._tags.pop(fd, None)
        os.close(fd)


if __name__ == "__main__":
    peers = Peers(*map(int, sys.argv[1:]))
    gc.disable()  # nothing in here makes cycles
    peers.serve()
