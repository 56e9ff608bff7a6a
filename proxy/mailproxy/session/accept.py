# SPDX-License-Identifier: Apache-2.0
"""Accepting clients: the limit, the server that the local address belongs to, the start of a session."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, Limit
from mailproxy.loop.epoll import QUIET, READ
from mailproxy.protocols.types import Client
from mailproxy.session.session import Session
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.tls.connection import TlsConnection
from mailproxy_config.model import ListenConfig, LogLevel, SendProxyProtocol

_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
AT_ONCE: Final = 16
"""Clients accepted at one event, so that a rush of them does not delay the others."""
PAUSE_SECONDS: Final = 0.5
"""How long accepting rests when the process is out of descriptors."""
_TELL_EVERY: Final = 10.0
_STREAM, _UNIX = int(socket.SOCK_STREAM), int(socket.AF_UNIX)
"""As plain numbers: ``accept()`` asks three enumerations per client what a listener knows already."""


@dataclass(slots=True)
class ListenTarget:
    """Where a ``listen`` line leads."""

    server: VirtualServer
    listen: ListenConfig


class Listener:
    """One listening socket of a worker."""

    __slots__ = (
        "_doors",
        "_family",
        "_is_tls",
        "_looks",
        "_pause",
        "_told",
        "default",
        "engine",
        "fd",
        "key",
        "sock",
    )

    def __init__(
        self,
        engine: WorkerContext,
        key: str,
        sock: socket.SocketType,
        default: ListenTarget,
        doors: Mapping[str, ListenTarget],
    ) -> None:
        self.engine = engine
        self.key = key
        self.sock = sock
        self.fd = sock.fileno()
        self.default = default
        self._doors = doors
        self._family = int(sock.family)
        self._looks = bool(doors) or default.server.config.proxy_protocol is not SendProxyProtocol.DISABLED
        first = default.listen
        self._is_tls = first.ssl and not first.proxy_protocol and not doors
        self._pause: asyncio.TimerHandle | None = None
        self._told = 0.0

    def open(self) -> None:
        """Begin to accept."""
        self.engine.reactor.add(self.fd, self, READ)

    def close(self) -> None:
        """Stop accepting.  The socket may live on in other processes, so it leaves the poll by name."""
        if self._pause is not None:
            self._pause.cancel()
        self.engine.reactor.remove(self.fd)
        self.sock.close()

    def crashed(self) -> None:
        """Accepting raised: it rests, so that what raises again and again does not take the processor."""
        self._pause_accepting()

    def give_up(self) -> None:
        """Stop accepting for good: even a rest cannot be arranged."""
        with suppress(OSError):
            self.engine.reactor.remove(self.fd)

    def on_event(self, mask: int) -> None:
        """Accept a client; on a busy turn more of them, for each would wait for a turn of its own."""
        del mask
        for _ in range(min(self.engine.reactor.crowd, AT_ONCE)):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept one client; tell whether there may be another."""
        try:
            fd, address = self.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see _STREAM
        except BlockingIOError:
            return False  # nobody is left, or another worker was faster
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._rest(error)
            return False
        sock: socket.SocketType | None = None
        try:
            if self._is_tls:
                sock = TlsConnection.of(self._family, fd)
            else:
                sock = plain = socket.SocketType(self._family, _STREAM, 0, fd)
                plain.setblocking(False)
            self._welcome(sock, address)
        except Exception as crash:  # an entry point: this client has no session yet
            self._lose(fd, sock, crash)
        return True

    def _lose(self, fd: int, sock: socket.SocketType | None, crash: Exception) -> None:
        """Close a client for whom no session could be made."""
        metrics = self.default.server.metrics
        metrics.accepted.value += 1
        metrics.closed[CloseReason.INTERNAL_ERROR].value += 1
        self.engine.report_crash(self, crash, "Listener")
        if sock is None:
            os.close(fd)
        else:
            sock.close()

    def _welcome(self, sock: socket.SocketType, address: Any) -> None:  # noqa: ANN401 - as the family has it
        engine = self.engine
        client = _client(self._family, address)
        door = self.default
        if self._looks:
            _look_at_local_end(client, sock)
            door = self._doors.get(client.local_address, door)
        server, listen = door.server, door.listen
        if engine.clients >= engine.limit:
            self._refuse(sock, door)
            return
        config = server.config
        record = SessionRecord(
            engine.log.session_id(),
            config.name,
            config.protocol,
            client.address,
            client.port,
            time.monotonic(),
        )
        session = Session(engine, server, sock, client, record)
        metrics = server.metrics
        metrics.accepted.value += 1
        metrics.active.value += 1
        engine.clients += 1
        try:
            engine.reactor.add(session.fd, session, READ)
            session.start(proxy_header=listen.proxy_protocol, tls=listen.ssl)
        except Exception as crash:  # an entry point: the listener goes on
            engine.crashed(session, crash)

    def _refuse(self, sock: socket.SocketType, door: ListenTarget) -> None:
        metrics = door.server.metrics
        metrics.accepted.value += 1
        metrics.limit_rejections[Limit.CONN_TOTAL].value += 1
        metrics.closed[CloseReason.LIMIT].value += 1
        if not door.listen.ssl:
            with suppress(OSError):
                sock.send(door.server.protocol.busy)
        sock.close()
        now = self.engine.reactor.now
        if now - self._told > _TELL_EVERY:
            self._told = now
            self.engine.log.event(LogLevel.ALERT, "worker_connections_not_enough", limit=self.engine.limit)

    def _rest(self, error: OSError) -> None:
        self._pause_accepting()
        self.engine.log.event(LogLevel.CRIT, "cannot_accept", listener=self.key, reason=error.strerror or "")

    def _pause_accepting(self) -> None:
        self.engine.reactor.want(self.fd, QUIET)
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self.engine.loop.call_later(PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self.engine.reactor.want(self.fd, READ)


def _client(family: int, address: Any) -> Client:  # noqa: ANN401 - as the family has it
    if family == _UNIX:
        return Client("unix:", 0, "unix:")  # without the path, which the client chooses: it may hold CR LF
    host = address[0]
    return Client(host.partition("%")[0] if "%" in host else host, address[1])


def _look_at_local_end(client: Client, sock: socket.SocketType) -> None:
    if sock.family != socket.AF_UNIX:
        name = sock.getsockname()
        client.local_address, client.local_port = name[0].partition("%")[0], name[1]
