# SPDX-License-Identifier: Apache-2.0
"""Stubs for tens of thousands of sessions: an authentication service, or an IMAP server, per process.

    python -m benchmarks.scale_stubs auth PORT DELAY_SECONDS IMAP_PORT...
    python -m benchmarks.scale_stubs imap PORT

The authentication service distributes logins evenly over the IMAP servers, so
that no process and no pair of addresses runs out of descriptors or ports.  For
each line on standard input, it prints what it has counted since the last one.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from collections import deque
from itertools import cycle
from typing import Final

GREETING: Final = b"* OK [CAPABILITY IMAP4rev1 SASL-IR ID ENABLE IDLE LITERAL+ AUTH=PLAIN] Ready.\r\n"
LOGGED_IN: Final = b" OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
NOOP: Final = b"n OK NOOP completed.\r\n"
GRANT: Final = (
    b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: %d\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP
_BATCH: Final = 256
_READ: Final = 4096


class Stub:
    """A server on one epoll; descriptors are in blocking mode, and read only after an event."""

    def __init__(self, port: int) -> None:
        self.epoll = select.epoll()
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listener.setblocking(False)
        self.epoll.register(self.listener, select.EPOLLIN)
        self.open = 0

    def serve(self) -> None:
        """Serve until the process is ended."""
        listening = self.listener.fileno()
        while True:
            for fd, mask in self.epoll.poll(self.next_timeout(), _BATCH):
                if fd == listening:
                    self._accept()
                elif fd == 0:
                    self.on_command()
                elif mask == select.EPOLLIN:
                    self._serve(fd)
                else:
                    self.close(fd)
            self.on_iteration()

    def next_timeout(self) -> float:
        """Return the longest time to wait for an event; -1 for no limit."""
        return -1

    def on_iteration(self) -> None:
        """Do what is due."""

    def on_command(self) -> None:
        """Reply to a line on standard input."""

    def on_accepted(self, fd: int) -> None:
        """Greet."""

    def on_data(self, fd: int, data: bytes) -> None:
        """Reply to what was received."""

    def close(self, fd: int) -> None:
        """Close a connection."""
        self.open -= 1
        os.close(fd)

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(True)
        fd = sock.detach()
        self.open += 1
        self.epoll.register(fd, _EVENTS)
        self.on_accepted(fd)

    def _serve(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ)
            if data:
                self.on_data(fd, data)
                return
        except OSError:
            pass
        self.close(fd)


class ImapStub(Stub):
    """An IMAP server that accepts every login."""

    def on_accepted(self, fd: int) -> None:
        """Greet."""
        os.write(fd, GREETING)

    def on_data(self, fd: int, data: bytes) -> None:
        """Reply to ``LOGIN``, or to ``NOOP`` with the tag ``n``."""
        os.write(fd, NOOP if data.startswith(b"n NOOP") else data.partition(b" ")[0] + LOGGED_IN)


class AuthStub(Stub):
    """An authentication service that allows every login, after a delay."""

    def __init__(self, port: int, delay: float, upstreams: list[int]) -> None:
        super().__init__(port)
        self.delay = delay
        self.grants = cycle([GRANT % upstream for upstream in upstreams])
        self.due: deque[tuple[float, int]] = deque()
        self.epoll.register(0, select.EPOLLIN)
        self._reset()

    def _reset(self) -> None:
        self.connections = self.requests = 0
        self.most_open, self.most_waiting = self.open, len(self.due)

    def on_command(self) -> None:
        """Print the counts, and count from zero."""
        if not sys.stdin.readline():
            raise SystemExit
        names = ("connections", "requests", "most_open", "most_waiting")
        print(json.dumps({name: getattr(self, name) for name in names}), flush=True)
        self._reset()

    def on_accepted(self, fd: int) -> None:
        """Count."""
        self.connections += 1
        self.most_open = max(self.most_open, self.open)

    def on_data(self, fd: int, data: bytes) -> None:
        """Reply now, or after the delay."""
        self.requests += data.count(b"GET ")
        if not self.delay:
            os.write(fd, next(self.grants))
            return
        self.due.append((time.monotonic() + self.delay, fd))
        self.most_waiting = max(self.most_waiting, len(self.due))

    def next_timeout(self) -> float:
        """Wait until a reply is due."""
        return max(self.due[0][0] - time.monotonic(), 0.0) if self.due else -1

    def on_iteration(self) -> None:
        """Send the replies that are due."""
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            try:
                os.write(self.due.popleft()[1], next(self.grants))
            except OSError:
                continue  # the proxy has closed the connection


def main(kind: str, port: str, *rest: str) -> None:
    """Serve."""
    gc.disable()  # this module makes no reference cycles
    stub = (
        ImapStub(int(port)) if kind == "imap" else AuthStub(int(port), float(rest[0]), [*map(int, rest[1:])])
    )
    stub.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
