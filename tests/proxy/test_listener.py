# SPDX-License-Identifier: Apache-2.0
"""Accepting: one client an event, the door that its local address belongs to, who it is, the limit."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy.app import make_loop
from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses
from mailproxy.enums import CloseReason
from mailproxy.loop.epoll import READ
from mailproxy.protocols import PROTOCOLS
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.session.accept import AT_ONCE, Listener, ListenTarget
from mailproxy.session.session import Session
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import ListenConfig, Protocol, SendProxyProtocol
from support import configs
from support.world import listening_socket

POP3, IMAP = b"+OK POP3 ready\r\n", b"* OK IMAP4 ready\r\n"


class Scene:
    """What a worker's listeners share, and whoever came to them; served when a test says so."""

    def __init__(self, log: int) -> None:
        loop = make_loop()
        self.log = Log(log, LogFormat.TEXT)
        self.engine = WorkerContext(loop, loop.reactor, log=self.log, metrics=WorkerMetrics())
        self.listeners: list[Listener] = []
        self.clients: list[socket.socket] = []

    def door(
        self,
        protocol: Protocol,
        *,
        listen: ListenConfig | None = None,
        sends: SendProxyProtocol = SendProxyProtocol.DISABLED,
    ) -> ListenTarget:
        config = configs.server(protocol, proxy_protocol=sends)
        engine, listen = self.engine, listen or config.listen[0]
        server = VirtualServer(
            config,
            protocol=PROTOCOLS[protocol],
            auth=AuthHttpClient(engine, HostAddresses(config.auth_http, metrics=engine.metrics), 60.0),
            template=RequestTemplate(config, (), keep_alive=True),
            resolver=None,
            tls=None,
            trusted=TrustedPeers(()),
            metrics=engine.metrics.server(config.name, protocol),
            numbers=engine.metrics.protocol(protocol),
            patience=engine.timers.lane(config.timeout),
            idleness=engine.timers.lane(config.proxy_timeout),
            log=self.log,
        )
        return ListenTarget(server, listen)

    def listen(
        self, sock: socket.socket, default: ListenTarget, doors: dict[str, ListenTarget] | None = None
    ) -> Listener:
        listener = Listener(self.engine, "key", sock, default, doors or {})
        self.listeners.append(listener)
        listener.open()
        return listener

    def knock(self, host: str, listener: Listener) -> socket.socket:
        """Connect, and have what there is to do done once."""
        client = socket.create_connection((host, listener.sock.getsockname()[1]), timeout=5)
        self.clients.append(client)
        self.engine.reactor.select(0)
        return client

    @property
    def sessions(self) -> list[Session]:
        return [session for session in self.engine.live if isinstance(session, Session)]

    def close(self) -> None:
        for one in [*self.engine.live]:
            one.cut()
        for one in [*self.engine.lingering]:
            one.cut()
        for listener in self.listeners:
            listener.close()
        for client in self.clients:
            client.close()
        self.log.close()
        self.engine.loop.close()


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
def test_the_local_address_leads_to_a_server(scene: Scene, host: str, greeting: bytes) -> None:
    doors = {"127.0.0.2": scene.door(Protocol.IMAP)}
    listener = scene.listen(listening_socket("0.0.0.0"), scene.door(Protocol.POP3), doors)
    client = scene.knock(host, listener)
    assert client.recv(100) == greeting
    (session,) = scene.sessions
    assert session.client.local_address == host
    assert session.client.local_port == listener.sock.getsockname()[1]


@pytest.mark.parametrize(
    ("sends", "is_known"),
    [
        (SendProxyProtocol.DISABLED, False),  # a system call less for a client
        (SendProxyProtocol.V1, True),
        (SendProxyProtocol.V2, True),
    ],
)
def test_the_local_address_is_looked_at_only_for_who_needs_it(
    scene: Scene, sends: SendProxyProtocol, is_known: bool
) -> None:
    listener = scene.listen(listening_socket(), scene.door(Protocol.POP3, sends=sends))
    scene.knock("127.0.0.1", listener)
    (session,) = scene.sessions
    assert (session.client.local_address == "127.0.0.1") is is_known


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_is_who_connected(scene: Scene, host: str) -> None:
    listener = scene.listen(listening_socket(host), scene.door(Protocol.POP3))
    name = scene.knock(host, listener).getsockname()
    (session,) = scene.sessions
    assert (session.client.address, session.client.port) == (host, name[1])
    assert (session.record.client, session.record.client_port) == (host, name[1])


@pytest.mark.parametrize("name", ["", "theirs", "x\r\nAuth-User: root", "x\r\nQUIT\r\n"])
def test_a_client_of_a_unix_socket_is_called_unix_whatever_its_path(
    scene: Scene, tmp_path: Path, name: str
) -> None:
    sock, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "ours"))
    sock.listen()
    sock.setblocking(False)
    scene.listen(sock, scene.door(Protocol.POP3, sends=SendProxyProtocol.V1))
    scene.clients.append(client)
    if name:
        client.bind(str(tmp_path / name))
    client.connect(str(tmp_path / "ours"))
    scene.engine.reactor.select(0)
    (session,) = scene.sessions
    assert session.client.address == "unix:"
    assert session.record.client == "unix:"
    assert (session.client.port, session.client.local_address) == (0, "unix:")


def test_an_event_brings_one_client_and_the_next_event_the_next(scene: Scene) -> None:
    listener = scene.listen(listening_socket(), scene.door(Protocol.POP3))
    address = listener.sock.getsockname()
    scene.clients += [socket.create_connection(address, timeout=5) for _ in range(3)]
    scene.engine.reactor.crowd = 1
    for count in (1, 2, 3):
        listener.on_event(READ)
        assert len(scene.sessions) == scene.engine.clients == count
    listener.on_event(READ)  # another worker was faster
    assert scene.engine.clients == 3
    assert listener.default.server.metrics.active.value == 3


@pytest.mark.parametrize(
    ("crowd", "waiting", "accepted"),
    [(2, 5, 2), (4, 3, 3), (AT_ONCE + 5, AT_ONCE + 1, AT_ONCE)],
    ids=["as many as there are events", "no more than there are", "never more than are bearable"],
)
def test_a_busy_turn_brings_more_clients(scene: Scene, crowd: int, waiting: int, accepted: int) -> None:
    listener = scene.listen(listening_socket(), scene.door(Protocol.POP3))
    address = listener.sock.getsockname()
    scene.clients += [socket.create_connection(address, timeout=5) for _ in range(waiting)]
    scene.engine.reactor.crowd = crowd
    listener.on_event(READ)
    assert len(scene.sessions) == scene.engine.clients == accepted


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        (ListenConfig(port=110), PROTOCOLS[Protocol.POP3].busy),
        (ListenConfig(port=995, ssl=True), b""),  # it could not be read
    ],
)
def test_above_the_limit_a_client_is_sent_away(
    scene: Scene, tmp_path: Path, listen: ListenConfig, said: bytes
) -> None:
    door = scene.door(Protocol.POP3, listen=listen)
    listener = scene.listen(listening_socket(), door)
    scene.engine.limit = 0
    refused = [scene.knock("127.0.0.1", listener) for _ in range(3)]
    assert [client.recv(200) for client in refused] == [said] * 3
    assert scene.sessions == []
    metrics = door.server.metrics
    assert (metrics.accepted.value, metrics.active.value, metrics.closed[CloseReason.LIMIT].value) == (
        3,
        0,
        3,
    )
    assert metrics.limit_rejections["conn_total"].value == 3
    assert scene.engine.clients == 0
    scene.log.flush()
    assert (tmp_path / "log").read_text().count("worker_connections_not_enough") == 1


def test_a_listener_that_is_closed_leaves_its_socket_to_other_processes(scene: Scene) -> None:
    sock = listening_socket()
    address, elsewhere = sock.getsockname(), sock.dup()
    listener = scene.listen(sock, scene.door(Protocol.POP3))
    listener.close()
    client = socket.create_connection(address, timeout=5)
    scene.clients.append(client)
    assert scene.engine.reactor._epoll.poll(0) == []  # or it would be told again and again
    accepted, _ = elsewhere.accept()
    accepted.close()
    elsewhere.close()
