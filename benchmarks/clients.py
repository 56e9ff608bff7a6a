# SPDX-License-Identifier: Apache-2.0
"""The load: hundreds of mail clients in one process; run as ``python -m benchmarks.clients``.

It reads commands as lines of JSON from standard input, and replies to each with
one on standard output.
"""

from __future__ import annotations

import base64
import gc
import heapq
import json
import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client_tls import RECORD, Tls
from benchmarks.schedule import arrivals, percentile

try:
    from benchmarks.light_tls import LightTls
except ImportError:  # without the cryptography package, all handshakes are OpenSSL's
    LightTls = None  # type: ignore[assignment,misc]

PASSWORD = b"password"
_INET, _STREAM = int(socket.AF_INET), int(socket.SOCK_STREAM)
_READ = 8192
_BATCH = 256
_NOOP = b"x NOOP\r\n"
_EPOLL = os.open(os.devnull, os.O_RDONLY)
"""Becomes the epoll of the running command; ``select`` accepts only descriptors below 1024."""


@dataclass
class Scene:
    """An address, and how to log in there.

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
        """The commands of a client, each sent after a whole reply; ``STARTTLS`` includes the handshake."""
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
class LoginStats:
    """Counts and latencies of logins."""

    done: int = 0
    latencies: list[float] = field(default_factory=list)

    def report(self, seconds: float) -> dict[str, float]:
        """Return the summary; latencies in milliseconds."""
        times = sorted(self.latencies) or [0.0]
        return {
            "done": self.done,
            "per_second": self.done / seconds,
            "p50": percentile(times, 0.5) * 1e3,
            "p99": percentile(times, 0.99) * 1e3,
        }


def _has_more(received: bytes) -> bool:
    """Return whether the last line of an SMTP reply is followed by another."""
    return received[received.rfind(b"\n", 0, -1) + 4 :][:1] == b"-"


class Client:
    """One client, from connecting to its login.

    To be fast, it uses the C class of sockets in blocking mode, which saves
    system calls.  It never blocks: on loopback, ``connect`` returns at once,
    ``recv`` is called only after an event, and commands are short.
    """

    __slots__ = ("_next", "_received", "fd", "group", "sock", "started", "tls")

    def __init__(self, group: ClientGroup, started: float) -> None:
        self.group = group
        self.started = started
        self.sock = sock = socket.SocketType(_INET, _STREAM)
        self.tls: Any = None
        self._next = 0
        self._received = b""
        sock.connect(group.address)
        self.fd = fd = sock.fileno()
        group.clients[fd] = self
        group.epoll.register(fd, select.EPOLLIN)
        if group.scene.tls == "implicit":
            self._start_tls()

    def on_event(self) -> None:
        """Continue the handshake, or read a reply."""
        data = self.receive()
        if data:
            received = self._received + data
            if received.endswith(b"\r\n") and not (self.group.is_smtp and _has_more(received)):
                self._received = b""
                self._on_reply(received)
            else:
                self._received = received

    def receive(self) -> bytes:
        """Read what was received; nothing where it was part of a record or of the handshake."""
        data = self.sock.recv(_READ)
        if not data:
            raise SystemExit(f"a connection was closed after {self._received!r}")
        tls = self.tls
        if tls is None:
            return data
        tls.feed(data)
        if not tls.is_secure:
            if not tls.handshake():
                return b""
            if self.group.scene.tls == "starttls":
                self._on_reply(b"")
        read: bytes = tls.read()
        return read

    def send(self, data: bytes) -> None:
        """Send."""
        if self.tls is None:
            self.sock.send(data)
        else:
            self.sock.send(self.tls.encrypt(data))

    def _on_reply(self, received: bytes) -> None:
        group, step = self.group, self._next
        if step == group.last:
            if not (b"OK" in received or received.startswith(b"235")):
                raise SystemExit(f"a login was refused: {received!r}")
            group.logged_in(self)
        elif step == 1 and group.scene.tls == "starttls" and self.tls is None:
            self._start_tls()
        else:
            self._next = step + 1
            self.send(group.commands[step])

    def _start_tls(self) -> None:
        # two flights in a row after STARTTLS must not wait for an acknowledgement (Nagle)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        group = self.group
        self.tls = LightTls(self.sock) if group.is_light else Tls(self.sock, group.context, group.session)
        self.tls.handshake()

    def leave(self) -> None:
        """Close."""
        group = self.group
        if group.scene.resume and group.session is None and self.tls is not None:
            group.session = self.tls.session
        del group.clients[self.fd]
        self.sock.close()


class ClientGroup:
    """Clients of one target."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.is_smtp = scene.protocol == "smtp"
        self.address = ("127.0.0.1", scene.port)
        self.commands = scene.commands()
        self.last = len(self.commands)
        self.epoll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.idle: list[Client] = []
        self.tally = LoginStats()
        self.session: ssl.SSLSession | None = None
        self.keeps = False
        self.is_light = False
        self._on_login: Any = None
        if scene.tls != "none":
            self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.minimum_version = context.maximum_version = getattr(
                ssl.TLSVersion, scene.version.replace(".", "_")
            )

    def logged_in(self, client: Client) -> None:
        """Count a login; keep the client, or replace it by the next one."""
        self.tally.done += 1
        self.tally.latencies.append(time.monotonic() - client.started)
        if self.keeps:
            self.idle.append(client)
            self.epoll.unregister(client.fd)
        else:
            client.leave()
        if self._on_login is not None:
            self._on_login(client)

    def _poll_once(self, timeout: float) -> None:
        clients = self.clients
        for fd, _ in self.epoll.poll(max(timeout, 0.0), _BATCH):
            # a client has one event per iteration and closes in its own, so the descriptor identifies it
            clients[fd].on_event()

    def _poll_until(self, moment: float) -> None:
        """Handle events, or wait until a moment, to 0.1 ms; ``epoll`` alone rounds up to milliseconds."""
        timeout = moment - time.monotonic()
        if timeout > 0:
            select.select([_EPOLL], [], [], min(timeout, 0.1))
        self._poll_once(0)

    def _new(self, _left: Client | None = None) -> None:
        Client(self, time.monotonic())

    def _begin(self) -> None:
        """Start to count; handshakes that need nothing of OpenSSL's are light ones."""
        scene = self.scene
        is_full = scene.tls != "none" and scene.version == "TLSv1.3" and not scene.resume
        self.is_light = is_full and LightTls is not None
        os.dup2(self.epoll.fileno(), _EPOLL)
        self._fresh()

    # -- commands

    def saturate(self, conns: int, seconds: float) -> dict[str, float]:
        """Log in repeatedly, with ``conns`` clients at a time."""
        self._begin()
        self._on_login = self._new
        for _ in range(conns):
            self._new()
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            self._poll_once(0.1)
        return self._end(started)

    def cycle(self, conns: int, rate: float, seconds: float) -> dict[str, float]:
        """Log in with ``conns`` clients, each every ``conns / rate`` seconds, or as soon as it is free."""
        self._begin()
        gap, started = conns / rate, time.monotonic()
        due = [started + number / rate for number in range(conns)]
        self._on_login = lambda client: heapq.heappush(due, max(client.started + gap, time.monotonic()))
        while (now := time.monotonic()) < started + seconds:
            while due and due[0] <= now:
                heapq.heappop(due)
                self._new()
            self._poll_until(due[0] if due else now + 0.1)
        return self._end(started)

    def pace(
        self, rate: float, seconds: float, seed: int | None = None, grace: float = 20.0
    ) -> dict[str, float]:
        """Log in at the times of a schedule; a latency is counted from the scheduled time.

        So a client that is late because the proxy (or the load) is late counts as
        a slow login.  A login that is not complete ``grace`` seconds after the
        end of the schedule is counted in ``unfinished``, with its time so far.
        """
        self._begin()
        self._on_login = None
        times = arrivals(rate, seconds, seed)
        begun, total, started = 0, len(times), time.monotonic()
        while self.tally.done < total and (now := time.monotonic()) < started + seconds + grace:
            while begun < total and started + times[begun] <= now:
                Client(self, started + times[begun])
                begun += 1
            self._poll_until(started + times[begun] if begun < total else now + 0.1)
        now = time.monotonic()
        late = list(self.clients.values())
        self.tally.latencies += [now - client.started for client in late]
        self.tally.latencies += [now - started - moment for moment in times[begun:]]
        report = self.tally.report(now - started)
        for client in late:
            client.leave()
        return {**report, "unfinished": len(late) + total - begun}

    def _end(self, started: float) -> dict[str, float]:
        report = self.tally.report(time.monotonic() - started)
        self._on_login = None
        self._drain()  # the CPU of these logins is measured too
        return {**report, "done": self.tally.done}

    def hold(self, count: int, at_once: int = 64) -> dict[str, float]:
        """Log in ``count`` clients, which stay idle."""
        self.keeps, self.is_light = True, False
        self._fresh()
        before = len(self.idle)
        wanted = count - before
        begun = min(at_once, wanted)
        started = time.monotonic()

        def another(_left: Client) -> None:
            nonlocal begun
            if begun < wanted:
                begun += 1
                self._new()

        self._on_login = another
        for _ in range(begun):
            self._new()
        while len(self.idle) < count:
            self._poll_once(0.5)
        self._on_login = None
        self.keeps = False
        return self.tally.report(time.monotonic() - started)

    def leave(self) -> dict[str, float]:
        """Close all clients."""
        for client in list(self.clients.values()):
            client.leave()
        self.idle.clear()
        return {}

    def exchange(self, conns: int, seconds: float, rate: float = 0.0) -> dict[str, float]:
        """Send NOOP and wait for the reply with ``conns`` clients: repeatedly, or ``rate`` times per second.

        With a rate, each command has its time in a schedule, and is sent by the
        next client that waits for no reply.
        """
        self.hold(conns)
        epoll, clients = self._epoll_of_clients(select.EPOLLIN)
        os.dup2(epoll.fileno(), _EPOLL)
        free, sent, done = deque(clients.values()), 0, 0
        started = time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            while free and (not rate or started + sent / rate <= now):
                free.popleft().send(_NOOP)
                sent += 1
            timeout = max(started + sent / rate - time.monotonic(), 0) if rate and free else 0.1
            select.select([_EPOLL], [], [], timeout)
            for fd, _ in epoll.poll(0):
                client = clients[fd]
                if client.receive().endswith(b"\n"):
                    done += 1
                    if rate:
                        free.append(client)
                    else:
                        client.send(_NOOP)
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"done": done, "per_second": done / took}

    def fetch(self, streams: int, seconds: float) -> dict[str, float]:
        """Read as fast as possible with ``streams`` clients."""
        self.hold(streams)
        epoll, clients = self._epoll_of_clients(select.EPOLLIN)
        for client in clients.values():
            client.send(b"x GIVE\r\n")
        moved, buffer, record = 0, bytearray(1 << 18), bytearray(RECORD)
        view = memoryview(buffer)
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for fd, _ in epoll.poll(0.1):
                client = clients[fd]
                got = client.sock.recv_into(buffer)
                if client.tls is not None:
                    client.tls.incoming.write(view[:got])
                    got = client.tls.read_into(record)
                moved += got
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"bytes": moved, "per_second": moved / took}

    def store(self, streams: int, seconds: float) -> dict[str, float]:
        """Write as fast as possible with ``streams`` clients."""
        self.hold(streams)
        epoll, clients = self._epoll_of_clients(select.EPOLLOUT)
        for client in clients.values():
            client.send(b"x TAKE\r\n")
            client.sock.setblocking(False)
        time.sleep(0.2)
        moved, chunk = 0, b"x" * (1 << 16)
        unsent = dict.fromkeys(clients, memoryview(b""))
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            for fd, _ in epoll.poll(0.1):
                client, rest = clients[fd], unsent[fd]
                if not rest:
                    rest = memoryview(chunk if client.tls is None else client.tls.encrypt(chunk))
                    moved += len(chunk)
                with suppress(BlockingIOError):
                    rest = rest[client.sock.send(rest) :]
                unsent[fd] = rest
        took = time.monotonic() - started
        epoll.close()
        self.leave()
        return {"bytes": moved, "per_second": moved / took}

    def stall(self, count: int, data: str = "") -> dict[str, float]:
        """Connect ``count`` times, send ``data``, and then nothing."""
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", self.scene.port))
            if data:
                sock.send(data.encode("latin-1"))
            self.idle.append(_Stalled(self, sock))
            if number % 64 == 0:
                time.sleep(0.005)
        return {"done": count}

    def ask_and_ignore(self) -> dict[str, float]:
        """Request bulk data with all clients, and do not read it."""
        for client in self.idle:
            client.send(b"x GIVE\r\n")
        return {"done": len(self.idle)}

    def drip(self, count: int, rate: float, seconds: float) -> dict[str, float]:
        """Send an incomplete command with ``count`` clients in turn: ``rate`` times per second, one byte."""
        if not self.idle:
            self.stall(count, "a LOGIN {1000+}\r\n")
        started, sent = time.monotonic(), 0
        while (now := time.monotonic()) < started + seconds:
            while sent < (now - started) * rate:
                with suppress(OSError):  # the proxy has closed it
                    self.idle[sent % count].sock.send(b"x")
                sent += 1
            time.sleep(0.005)
        return {"done": sent}

    def _epoll_of_clients(self, events: int) -> tuple[select.epoll, dict[int, Client]]:
        """Return the logged-in clients by descriptor, and an epoll of them."""
        epoll, clients = select.epoll(), {client.fd: client for client in self.idle}
        for fd in clients:
            epoll.register(fd, events)
        return epoll, clients

    def _fresh(self) -> None:
        self.tally = LoginStats()

    def _drain(self) -> None:
        deadline = time.monotonic() + 5.0
        while len(self.clients) > len(self.idle) and time.monotonic() < deadline:
            self._poll_once(0.1)


class _Stalled(Client):
    """A connection that sends nothing more."""

    __slots__ = ()

    def __init__(self, group: ClientGroup, sock: socket.socket) -> None:  # pylint: disable=super-init-not-called
        self.group, self.sock, self.fd, self.tls = group, sock, sock.fileno(), None
        group.clients[self.fd] = self


def main() -> None:
    """Execute commands, line by line."""
    gc.disable()  # clients make no cycles
    load: dict[str, ClientGroup] = {}
    for line in sys.stdin:
        order = json.loads(line)
        scene = Scene(**order["scene"])
        name = json.dumps(order["scene"], sort_keys=True) if order.get("keep") else ""
        group = load.get(name) if name else None
        if group is None:
            group = ClientGroup(scene)
            if name:
                load[name] = group
        answer = getattr(group, order["do"])(**order.get("with", {}))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
