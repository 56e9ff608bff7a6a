# SPDX-License-Identifier: Apache-2.0
"""Listeners: clients per event, the server of the local address, client addresses, the limit."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses
from mailproxy.enums import CloseReason
from mailproxy.loop.epoll import MAX_EVENTS, READ, WRITE
from mailproxy.loop.worker_loop import make_loop
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.session.accept import EVENTS_PER_ACCEPT, MAX_ACCEPTS_PER_EVENT, Listener, ListenTarget
from mailproxy.session.session import Session
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ListenConfig, Protocol, SendProxyProtocol
from support import configs
from support.loopback_worker import listening_socket

POP3, IMAP = b"+OK POP3 ready\r\n", b"* OK IMAP4 ready\r\n"


class Busy:
    """The handler of a descriptor that is always ready."""

    def on_event(self, mask: int) -> None:
        """Leave it ready."""


class Scene:
    """A worker's context with listeners and clients; the test runs the event loop."""

    def __init__(self, log: int) -> None:
        loop = make_loop()
        self.log = Log(log, LogFormat.TEXT)
        self.context = WorkerContext(loop, loop.epoll, log=self.log, metrics=WorkerMetrics())
        self.listeners: list[Listener] = []
        self.clients: list[socket.socket] = []

    def target(
        self,
        protocol: Protocol,
        *,
        listen: ListenConfig | None = None,
        sends: SendProxyProtocol = SendProxyProtocol.DISABLED,
    ) -> ListenTarget:
        config = configs.server(protocol, proxy_protocol=sends)
        context, listen = self.context, listen or config.listen[0]
        server = VirtualServer(
            config,
            protocol=PROTOCOLS[protocol],
            auth=AuthHttpClient(context, HostAddresses(config.auth_http, metrics=context.metrics), 60.0),
            template=RequestTemplate(config, (), keep_alive=True),
            resolver=None,
            tls=None,
            upstream_tls=None,
            trusted=TrustedPeers(()),
            metrics=context.metrics.server(config.name, protocol),
            protocol_metrics=context.metrics.protocol(protocol),
            login_timeouts=context.timers.queue(config.timeout),
            idle_timeouts=context.timers.queue(config.proxy_timeout),
            log=self.log,
        )
        return ListenTarget(server, listen)

    def listen(
        self, sock: socket.socket, default: ListenTarget, targets: dict[str, ListenTarget] | None = None
    ) -> Listener:
        listener = Listener(self.context, "key", sock, default, targets or {})
        self.listeners.append(listener)
        listener.open()
        return listener

    def connect(self, host: str, listener: Listener) -> socket.socket:
        """Connect a client, and run one iteration."""
        client = socket.create_connection((host, listener.sock.getsockname()[1]), timeout=5)
        self.clients.append(client)
        self.context.epoll.serve(0)
        return client

    @property
    def sessions(self) -> list[Session]:
        return [session for session in self.context.live if isinstance(session, Session)]

    def close(self) -> None:
        for one in [*self.context.live]:
            one.abort()
        for one in [*self.context.lingering]:
            one.abort()
        for listener in self.listeners:
            listener.close()
        for client in self.clients:
            client.close()
        self.log.close()
        self.context.loop.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    made = Scene(log)
    yield made
    made.close()
    os.close(log)


@pytest.mark.parametrize(
    ("host", "greeting"),
    [
        ("127.0.0.1", POP3),
        ("127.0.0.2", IMAP),
        ("127.0.0.3", POP3),
    ],
)
def test_local_address_selects_the_server(scene: Scene, host: str, greeting: bytes) -> None:
    targets = {"127.0.0.2": scene.target(Protocol.IMAP)}
    listener = scene.listen(listening_socket("0.0.0.0"), scene.target(Protocol.POP3), targets)
    client = scene.connect(host, listener)
    assert client.recv(100) == greeting
    (session,) = scene.sessions
    assert session.client.local_address == host
    assert session.client.local_port == listener.sock.getsockname()[1]


@pytest.mark.parametrize(
    ("sends", "is_known"),
    [
        (SendProxyProtocol.DISABLED, False),  # saves a system call per client
        (SendProxyProtocol.V1, True),
        (SendProxyProtocol.V2, True),
    ],
)
def test_local_address_is_read_only_where_it_is_needed(
    scene: Scene, sends: SendProxyProtocol, is_known: bool
) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3, sends=sends))
    scene.connect("127.0.0.1", listener)
    (session,) = scene.sessions
    assert (session.client.local_address == "127.0.0.1") is is_known


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_client_address_and_port_are_those_of_the_connection(scene: Scene, host: str) -> None:
    listener = scene.listen(listening_socket(host), scene.target(Protocol.POP3))
    name = scene.connect(host, listener).getsockname()
    (session,) = scene.sessions
    assert (session.client.address, session.client.port) == (host, name[1])
    assert (session.record.client, session.record.client_port) == (host, name[1])


@pytest.mark.parametrize("name", ["", "theirs", "x\r\nAuth-User: root", "x\r\nQUIT\r\n"])
def test_address_of_a_unix_socket_client_is_unix(scene: Scene, tmp_path: Path, name: str) -> None:
    sock, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "ours"))
    sock.listen()
    sock.setblocking(False)
    scene.listen(sock, scene.target(Protocol.POP3, sends=SendProxyProtocol.V1))
    scene.clients.append(client)
    if name:
        client.bind(str(tmp_path / name))
    client.connect(str(tmp_path / "ours"))
    scene.context.epoll.serve(0)
    (session,) = scene.sessions
    assert session.client.address == "unix:"
    assert session.record.client == "unix:"
    assert (session.client.port, session.client.local_address) == (0, "unix:")


def test_one_client_is_accepted_per_event(scene: Scene) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3))
    address = listener.sock.getsockname()
    scene.clients += [socket.create_connection(address, timeout=5) for _ in range(3)]
    scene.context.epoll.ready = [(0, READ)]
    for count in (1, 2, 3):
        listener.on_event(READ)
        assert len(scene.sessions) == count
    listener.on_event(READ)  # another worker accepted it
    assert len(scene.sessions) == 3
    assert listener.default.server.metrics.active.value == 3


@pytest.mark.parametrize(
    ("events", "waiting", "accepted"),
    [
        (2 * EVENTS_PER_ACCEPT - 1, 2, 1),
        (2 * EVENTS_PER_ACCEPT, 5, 2),
        (4 * EVENTS_PER_ACCEPT, 3, 3),
        (MAX_EVENTS, MAX_ACCEPTS_PER_EVENT + 1, MAX_ACCEPTS_PER_EVENT),
    ],
    ids=["few events", "as many as events allow", "as many as wait", "limit"],
)
def test_more_clients_are_accepted_while_many_events_are_ready(
    scene: Scene, events: int, waiting: int, accepted: int
) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3))
    address = listener.sock.getsockname()
    scene.clients += [socket.create_connection(address, timeout=5) for _ in range(waiting)]
    scene.context.epoll.ready = [(0, READ)] * events
    listener.on_event(READ)
    assert len(scene.sessions) == accepted


@pytest.mark.parametrize(
    ("busy", "polls"),
    [
        (0, 100),  # nothing else is served: each poll accepts one
        (60, 100 // (60 // EVENTS_PER_ACCEPT) + 1),
        (2 * MAX_EVENTS, 3 * (100 // MAX_ACCEPTS_PER_EVENT + 1)),  # each is returned by every third poll
    ],
)
def test_burst_of_clients_is_accepted_while_sessions_are_busy(scene: Scene, busy: int, polls: int) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3))
    for _ in range(busy):
        pair = socket.socketpair()
        scene.clients += pair
        scene.context.epoll.add(pair[0].fileno(), Busy(), WRITE)
    address = listener.sock.getsockname()
    scene.clients += [socket.create_connection(address, timeout=5) for _ in range(100)]
    for _ in range(polls):
        scene.context.epoll.serve(0)
    assert len(scene.sessions) == 100


@pytest.mark.parametrize(
    ("listen", "reply"),
    [
        (ListenConfig(port=110), PROTOCOLS[Protocol.POP3].busy),
        (ListenConfig(port=995, ssl=True), b""),  # the client could not read it
    ],
)
def test_client_above_worker_connections_is_refused(
    scene: Scene, tmp_path: Path, listen: ListenConfig, reply: bytes
) -> None:
    target = scene.target(Protocol.POP3, listen=listen)
    listener = scene.listen(listening_socket(), target)
    scene.context.limit = 0
    refused = [scene.connect("127.0.0.1", listener) for _ in range(3)]
    assert [client.recv(200) for client in refused] == [reply] * 3
    assert scene.sessions == []
    metrics = target.server.metrics
    assert (metrics.accepted.value, metrics.active.value, metrics.closed[CloseReason.LIMIT].value) == (
        3,
        0,
        3,
    )
    assert metrics.limit_rejections["conn_total"].value == 3
    scene.log.flush()
    assert (tmp_path / "log").read_text().count("worker_connections_not_enough") == 1


def test_client_is_accepted_when_another_has_left(scene: Scene) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3))
    scene.context.limit = 1
    first, refused = (scene.connect("127.0.0.1", listener) for _ in range(2))
    assert first.recv(200) == POP3
    assert refused.recv(200) == PROTOCOLS[Protocol.POP3].busy
    first.close()
    while scene.sessions:
        scene.context.epoll.serve(0.1)
    assert scene.connect("127.0.0.1", listener).recv(200) == POP3


def test_lack_of_descriptors_is_logged_once_with_the_limit(scene: Scene, tmp_path: Path) -> None:
    listener = scene.listen(listening_socket(), scene.target(Protocol.POP3))
    scene.clients.append(socket.create_connection(listener.sock.getsockname(), timeout=5))
    scene.context.epoll.ready = [(0, READ)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        for _ in range(3):
            listener.on_event(READ)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    scene.log.flush()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert f"cannot_accept listener=key limit={lowest_free} " in line
    assert "raise the limit of open files" in line


def test_closed_listener_leaves_its_socket_to_other_processes(scene: Scene) -> None:
    sock = listening_socket()
    address, elsewhere = sock.getsockname(), sock.dup()
    listener = scene.listen(sock, scene.target(Protocol.POP3))
    listener.close()
    client = socket.create_connection(address, timeout=5)
    scene.clients.append(client)
    assert scene.context.epoll.kernel.poll(0) == []  # it would be reported at every poll
    accepted, _ = elsewhere.accept()
    accepted.close()
    elsewhere.close()
