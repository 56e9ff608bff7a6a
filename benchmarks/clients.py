# SPDX-License-Identifier: Apache-2.0
"""The load: mail clients by the hundred in one lean process; run as ``python -m benchmarks.clients``.

It is told what to do by lines of JSON on standard input, and answers each with
one on standard output.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

PASSWORD = b"password"


@dataclass
class Scene:
    """Where to, and how to log in there.

    Attributes:
        tls: ``none``, ``implicit`` or ``starttls``.
        version: ``TLSv1.2`` or ``TLSv1.3``, where TLS is used.
        resume: Whether each handshake resumes an earlier session.
        user: The part before the @; ``bare`` is sent to an upstream without capabilities.
    """

    protocol: str
    port: int
    tls: str = "none"
    version: str = "TLSv1.3"
    resume: bool = False
    user: str = "user"

    def commands(self) -> list[bytes]:
        """What a client says, each after a whole reply; ``STARTTLS`` stands for the handshake too."""
        user = self.user.encode() + b"@example.com"
        start = {"imap": b"s STARTTLS\r\n", "pop3": b"STLS\r\n", "smtp": b"STARTTLS\r\n"}[self.protocol]
        plain = base64.b64encode(b"\0" + user + b"\0" + PASSWORD)
        login = {
            "imap": [b"a LOGIN %b %b\r\n" % (user, PASSWORD)],
            "pop3": [b"USER %b\r\n" % user, b"PASS %b\r\n" % PASSWORD],
            "smtp": [b"EHLO client.example.com\r\n", b"AUTH PLAIN %b\r\n" % plain],
        }[self.protocol]
        return [start, *login] if self.tls == "starttls" else login


@dataclass
class Tally:
    """What came of it."""

    done: int = 0
    latencies: list[float] = field(default_factory=list)

    def report(self, seconds: float) -> dict[str, float]:
        """Sum it up; latencies in milliseconds."""
        times = sorted(self.latencies) or [0.0]
        return {
            "done": self.done,
            "per_second": self.done / seconds,
            "p50": times[len(times) // 2] * 1e3,
            "p99": times[int(len(times) * 0.99)] * 1e3,
        }


class Client:
    """One client from its connect to its login."""

    __slots__ = ("_heard", "_next", "crowd", "fd", "is_shaking", "sock", "started")

    def __init__(self, crowd: Crowd, started: float) -> None:
        self.crowd = crowd
        self.started = started
        self.sock: Any = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", crowd.scene.port))
        self.fd = self.sock.fileno()
        self.is_shaking = False
        self._next = 0
        self._heard = b""
        implicit = crowd.scene.tls == "implicit"
        crowd.epoll.register(self.fd, select.EPOLLOUT if implicit else select.EPOLLIN)
        crowd.clients[self.fd] = self
        if implicit:
            self.is_shaking = True

    def on_event(self) -> None:
        """Go on with the handshake, or hear a reply."""
        if self.is_shaking:
            self._shake_hands()
            return
        try:
            octets = self.sock.recv(16384)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        if not octets:
            raise SystemExit(f"a connection was closed after {self._heard!r}")
        self._heard += octets
        if self._is_whole():
            self._said()

    def _is_whole(self) -> bool:
        heard = self._heard
        if not heard.endswith(b"\r\n"):
            return False
        last = heard[heard.rfind(b"\n", 0, -1) + 1 :]
        return self.crowd.scene.protocol != "smtp" or last[3:4] != b"-"

    def _said(self) -> None:
        crowd, heard = self.crowd, self._heard
        self._heard = b""
        if self._next == len(crowd.commands):
            if not (b"OK" in heard or heard.startswith(b"235")):
                raise SystemExit(f"a login was refused: {heard!r}")
            crowd.logged_in(self)
        elif self._next == 1 and crowd.scene.tls == "starttls" and not isinstance(self.sock, ssl.SSLSocket):
            self._shake_hands()
        else:
            self.sock.send(crowd.commands[self._next])
            self._next += 1

    def _shake_hands(self) -> None:
        crowd = self.crowd
        if not isinstance(self.sock, ssl.SSLSocket):
            self.sock = crowd.context.wrap_socket(
                self.sock,
                do_handshake_on_connect=False,
                server_hostname="mail.example.com",
                session=crowd.session,
            )
            self.is_shaking = True
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            crowd.epoll.modify(self.fd, select.EPOLLIN)
            return
        self.is_shaking = False
        crowd.epoll.modify(self.fd, select.EPOLLIN)
        if crowd.scene.tls == "starttls":
            self.sock.send(crowd.commands[1])
            self._next = 2

    def leave(self) -> None:
        """Close."""
        if self.crowd.scene.resume:
            self.crowd.session = self.sock.session
        del self.crowd.clients[self.fd]
        self.sock.close()


class Crowd:
    """Clients of one kind."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.commands = scene.commands()
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.idle: list[Client] = []
        self.tally = Tally()
        self.session: ssl.SSLSession | None = None
        self.keeps = False
        self._on_login: Any = None
        if scene.tls != "none":
            self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.minimum_version = context.maximum_version = getattr(
                ssl.TLSVersion, scene.version.replace(".", "_")
            )

    def logged_in(self, client: Client) -> None:
        """Count a login; keep the client, or have it leave and the next one come."""
        self.tally.done += 1
        self.tally.latencies.append(time.monotonic() - client.started)
        if self.keeps:
            self.idle.append(client)
            self.epoll.unregister(client.fd)
        else:
            client.leave()
        if self._on_login is not None:
            self._on_login()

    def _turn(self, timeout: float) -> None:
        for fd, _ in self.epoll.poll(max(timeout, 0.0)):
            client = self.clients.get(fd)
            if client is not None:
                client.on_event()

    def _new(self) -> None:
        Client(self, time.monotonic())

    # -- what a crowd can do

    def saturate(self, conns: int, seconds: float) -> dict[str, float]:
        """Log in over and over, so many at a time."""
        self._on_login = self._new
        for _ in range(conns):
            self._new()
        self._fresh()
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            self._turn(0.1)
        took = time.monotonic() - started
        report = self.tally.report(took)
        self._on_login = None
        self._drain()
        return report

    def pace(self, rate: float, seconds: float) -> dict[str, float]:
        """Log in at so many a second, whatever comes of it."""
        self._on_login = None
        self._fresh()
        started = time.monotonic()
        begun, total = 0, int(rate * seconds)
        while self.tally.done < total:
            now = time.monotonic()
            while begun < total and started + begun / rate <= now:
                Client(self, started + begun / rate)
                begun += 1
            if now > started + seconds + 20:
                raise SystemExit(f"{self.tally.done} of {total} logins")
            self._turn(started + begun / rate - time.monotonic() if begun < total else 0.5)
        return self.tally.report(time.monotonic() - started)

    def hold(self, count: int, at_once: int = 64) -> dict[str, float]:
        """Have ``count`` clients logged in and idle."""
        self.keeps = True
        self._fresh()
        before = len(self.idle)
        wanted = count - before
        begun = min(at_once, wanted)
        started = time.monotonic()

        def another() -> None:
            nonlocal begun
            if begun < wanted:
                begun += 1
                self._new()

        self._on_login = another
        for _ in range(begun):
            self._new()
        while len(self.idle) < count:
            self._turn(0.5)
        self._on_login = None
        self.keeps = False
        return self.tally.report(time.monotonic() - started)

    def leave(self) -> dict[str, float]:
        """Have everybody leave."""
        for client in list(self.clients.values()):
            client.leave()
        self.idle.clear()
        return {}

    def exchange(self, conns: int, seconds: float) -> dict[str, float]:
        """Have so many clients say NOOP and wait for the answer, over and over."""
        self.hold(conns)
        noop, done = b"x NOOP\r\n", 0
        epoll = select.epoll()
        socks = {client.fd: client.sock for client in self.idle}
        for fd, sock in socks.items():
            epoll.register(fd, select.EPOLLIN)
            sock.send(noop)
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for fd, _ in epoll.poll(0.1):
                sock = socks[fd]
                try:
                    octets = sock.recv(4096)
                except ssl.SSLWantReadError:
                    continue
                if octets.endswith(b"\n"):
                    done += 1
                    sock.send(noop)
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"done": done, "per_second": done / took}

    def fetch(self, streams: int, seconds: float) -> dict[str, float]:
        """Have so many clients read as fast as they can."""
        self.hold(streams)
        epoll = select.epoll()
        socks = {client.fd: client.sock for client in self.idle}
        for fd, sock in socks.items():
            epoll.register(fd, select.EPOLLIN)
            sock.send(b"x GIVE\r\n")
        moved, buffer = 0, bytearray(1 << 18)
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for fd, _ in epoll.poll(0.1):
                try:
                    moved += socks[fd].recv_into(buffer)
                    while self.scene.tls != "none" and socks[fd].pending():
                        moved += socks[fd].recv_into(buffer)
                except (ssl.SSLWantReadError, BlockingIOError):
                    continue
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"octets": moved, "per_second": moved / took}

    def store(self, streams: int, seconds: float) -> dict[str, float]:
        """Have so many clients write as fast as they can."""
        self.hold(streams)
        epoll = select.epoll()
        socks = {client.fd: client.sock for client in self.idle}
        for sock in socks.values():
            sock.send(b"x TAKE\r\n")
        time.sleep(0.2)
        for fd in socks:
            epoll.register(fd, select.EPOLLOUT)
        moved, chunk = 0, memoryview(b"x" * (1 << 16))
        left = dict.fromkeys(socks, 0)
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for fd, _ in epoll.poll(0.1):
                try:
                    sent = socks[fd].send(chunk[left[fd] :])
                except (ssl.SSLWantWriteError, BlockingIOError):
                    continue
                moved += sent
                left[fd] = (left[fd] + sent) % len(chunk)
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"octets": moved, "per_second": moved / took}

    def stall(self, count: int, octets: str = "") -> dict[str, float]:
        """Connect ``count`` times, say ``octets``, and then nothing."""
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self.scene.port))
            if octets:
                sock.send(octets.encode("latin-1"))
            self.idle.append(_Stalled(self, sock))
            if number % 64 == 0:
                time.sleep(0.005)
        return {"done": count}

    def _fresh(self) -> None:
        self.tally = Tally()

    def _drain(self) -> None:
        deadline = time.monotonic() + 5.0
        while len(self.clients) > len(self.idle) and time.monotonic() < deadline:
            self._turn(0.1)


class _Stalled(Client):
    """A connection that says nothing any more."""

    __slots__ = ()

    def __init__(self, crowd: Crowd, sock: socket.socket) -> None:  # pylint: disable=super-init-not-called
        self.crowd, self.sock, self.fd = crowd, sock, sock.fileno()
        crowd.clients[self.fd] = self


def main() -> None:
    """Obey, line by line."""
    crowds: dict[str, Crowd] = {}
    for line in sys.stdin:
        order = json.loads(line)
        scene = Scene(**order["scene"])
        name = json.dumps(order["scene"], sort_keys=True) if order.get("keep") else ""
        crowd = crowds.get(name) if name else None
        if crowd is None:
            crowd = Crowd(scene)
            if name:
                crowds[name] = crowd
        answer = getattr(crowd, order["do"])(**order.get("with", {}))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
