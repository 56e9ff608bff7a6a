# SPDX-License-Identifier: Apache-2.0
"""IMAP clients by the ten thousand, in one process; run as ``python -m benchmarks.scale_clients SOURCE``.

``SOURCE`` is the address that they connect from: each process has another one,
since one address has some 28,000 ports for one destination.  The process reads
commands as lines of JSON, and replies to each with one.  Times are those of
``time.monotonic``, which all processes share.
"""

from __future__ import annotations

import gc
import heapq
import json
import random
import select
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

LOGIN: Final = "a LOGIN user{}@{} password\r\n"
"""Every client is another user, as far as limits and penalties are concerned."""
_BIND_WITHOUT_PORT: Final = 24
"""``IP_BIND_ADDRESS_NO_PORT`` of linux/in.h: the port is chosen at connect(2), per destination."""
_IN: Final = select.EPOLLIN | select.EPOLLRDHUP
_BATCH: Final = 256
_READ: Final = 4096
_RETRY_SECONDS: Final = (1.0, 3.0)
"""After a refusal, a client tries again after a random time between these, as mail programs do."""

Pairs = list[tuple[float, float]]
"""Time of the start, and seconds from there."""


def _nothing() -> None:
    """Do nothing: a closed client has no step, and is in no reference cycle."""


class Client:
    """One client: it connects, logs in, and stays or leaves."""

    __slots__ = ("crowd", "fd", "is_logged_in", "sent_at", "sock", "started", "step")

    def __init__(self, crowd: Crowd, started: float) -> None:
        self.crowd = crowd
        self.started = started
        self.is_logged_in = False
        self.sent_at = 0.0
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _BIND_WITHOUT_PORT, 1)
        sock.bind((crowd.source, 0))
        sock.connect_ex(crowd.target)
        self.sock: socket.socket = sock
        self.fd = sock.fileno()
        self.step: Callable[[], None] = self._connected if crowd.tls else self._greeted
        crowd.clients[self.fd] = self
        crowd.epoll.register(self.fd, select.EPOLLOUT if crowd.tls else _IN)

    def on_event(self) -> None:
        """Take the next step; a broken connection ends it."""
        try:
            self.step()
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        except OSError as error:
            self.end(type(error).__name__)

    def _connected(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "")
        assert self.crowd.tls is not None
        self.sock = self.crowd.tls.wrap_socket(self.sock, do_handshake_on_connect=False)
        self.crowd.epoll.modify(self.fd, _IN)
        self.step = self._shake_hands
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        self.step = self._greeted
        self._greeted()

    def _greeted(self) -> None:
        greeting = self._read()
        if greeting.startswith(b"* OK"):
            self.sock.send(self.crowd.login())
            self.step = self._replied
        elif greeting:
            self.end("busy")

    def _replied(self) -> None:
        reply = self._read()
        if reply.startswith(b"a OK"):
            self.is_logged_in = True
            self.step = self._idle
            self.crowd.on_login(self)
        elif reply:
            self.end("denied")

    def _idle(self) -> None:
        if self._read() and self.sent_at:
            self.crowd.replies.append((self.sent_at, time.monotonic() - self.sent_at))
            self.sent_at = 0.0

    def _read(self) -> bytes:
        data = self.sock.recv(_READ)
        if not data:
            self.end("closed")
        return data

    def noop(self) -> None:
        """Send a command, unless the reply to the last one is due."""
        if not self.sent_at:
            self.sent_at = time.monotonic()
            with suppress(OSError):
                self.sock.send(b"n NOOP\r\n")

    def end(self, reason: str) -> None:
        """Close, and count why."""
        self.close()
        self.crowd.on_end(self, reason)

    def close(self) -> None:
        """Close."""
        self.crowd.clients.pop(self.fd, None)
        self.sock.close()
        self.step = _nothing


class Crowd:
    """The clients of this process."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.idle: list[Client] = []
        self.tls: ssl.SSLContext | None = None
        self.target = ("127.0.0.1", 0)
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._stays = True
        self._retries = False
        self._lost: list[float] = []
        self._jitter: float | None = None
        self._then: Callable[[], None] | None = None
        self._reset()

    def _reset(self) -> None:
        self.logins: Pairs = []
        self.replies: Pairs = []
        self.failures: Counter[str] = Counter()

    def report(self) -> dict[str, Any]:
        """Return what was measured."""
        return {"logins": self.logins, "replies": self.replies, "failures": dict(self.failures)}

    # -- events of clients

    def on_login(self, client: Client) -> None:
        """Count, and keep or close the client."""
        self.logins.append((client.started, time.monotonic() - client.started))
        if self._stays:
            self.idle.append(client)
        else:
            client.close()
        if self._then is not None:
            self._then()

    def on_end(self, client: Client, reason: str) -> None:
        """A connection has ended: perhaps another one replaces it."""
        now = time.monotonic()
        if client.is_logged_in:
            if self._jitter is None:
                return  # for ``leave``, or for ``storm``, which may be called later
            self._lost.append(now)
            self._at(now + random.random() * self._jitter, self._connect)
            return
        self.failures[reason] += 1
        if self._retries:
            self._at(now + random.uniform(*_RETRY_SECONDS), self._connect)
        elif self._then is not None:
            self._then()

    def login(self) -> bytes:
        """Return the command of another user."""
        self._count += 1
        return LOGIN.format(self._count, self.source).encode()

    def _connect(self) -> None:
        Client(self, time.monotonic())

    def _at(self, when: float, call: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (when, self._count, call))

    def _run(self, is_over: Callable[[], bool], ends_at: float) -> None:
        due, clients = self._due, self.clients
        while not is_over() and (now := time.monotonic()) < ends_at:
            while due and due[0][0] <= now:
                heapq.heappop(due)[2]()
            timeout = min(due[0][0] - time.monotonic() if due else 0.2, 0.2)
            for fd, _ in self.epoll.poll(max(timeout, 0.0), _BATCH):
                client = clients.get(fd)
                if client is not None:
                    client.on_event()
        due.clear()

    # -- commands

    def aim(self, address: str, port: int, *, tls: bool) -> None:
        """Connect to this address from now on."""
        self.target = (address, port)
        self.tls = None
        if tls:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE

    def hold(self, count: int, at_once: int, seconds: float) -> dict[str, Any]:
        """Log in ``count`` clients, ``at_once`` at a time, which stay; refused ones are not replaced."""
        self._stays, self._retries = True, False
        begun, ended = 0, 0

        def begin() -> None:
            nonlocal begun
            if begun < count:
                begun += 1
                self._connect()

        def another() -> None:
            nonlocal ended
            ended += 1
            begin()

        self._then = another
        for _ in range(at_once):
            begin()
        self._run(lambda: ended >= count, time.monotonic() + seconds)
        self._then = None
        return self.report()

    def pace(self, rate: float, seconds: float, start: float, patience: float) -> dict[str, Any]:
        """Log in at a fixed rate; latencies count from the moment at which a login was due."""
        self._stays, self._retries = False, False
        total = int(rate * seconds)
        for number in range(total):
            moment = start + number / rate
            self._at(moment, partial(Client, self, moment))
        self._run(lambda: len(self.logins) + sum(self.failures.values()) >= total, start + seconds + patience)
        for client in list(self.clients.values()):
            if not client.is_logged_in:
                client.close()
        missing = total - len(self.logins) - sum(self.failures.values())
        return {**self.report(), "missing": missing}

    def probe(self, rate: float, seconds: float, start: float) -> dict[str, Any]:
        """Log in, and send a command on a session that is kept, each at this rate."""
        held = list(self.idle)
        for number in range(int(rate * seconds)):
            moment = start + number / rate
            self._at(moment + 0.5 / rate, held[number % len(held)].noop)
        return self.pace(rate, seconds, start, 5.0)

    def storm(self, jitter: float, seconds: float) -> dict[str, Any]:
        """Wait until the clients are disconnected; each connects again after up to ``jitter`` seconds."""
        self._stays, self._retries, self._jitter = True, True, jitter
        wanted = len(self.idle)
        self.idle.clear()
        self._lost = []
        self._run(lambda: len(self.idle) >= wanted, time.monotonic() + seconds)
        self._retries, self._jitter = False, None
        back = [started + took for started, took in self.logins]
        return {**self.report(), "lost": self._lost, "back": back, "missing": wanted - len(self.idle)}

    def leave(self) -> dict[str, Any]:
        """Close all clients."""
        for client in list(self.clients.values()):
            client.close()
        self.idle.clear()
        return {}

    def execute(self, order: dict[str, Any]) -> dict[str, Any]:
        """Execute a command."""
        self._reset()
        self.aim(**order["target"])
        answer: dict[str, Any] = getattr(self, order["do"])(**order["with"])
        return answer


def main() -> None:
    """Execute commands, line by line."""
    gc.disable()
    crowd = Crowd(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(crowd.execute(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
