# SPDX-License-Identifier: Apache-2.0
"""Accepting clients: the limit of connections, the server of the local address, the start of a session."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, Limit
from mailproxy.loop.epoll import MAX_EVENTS, NO_EVENTS, READ
from mailproxy.net.open_files import HINTS, open_files_limit
from mailproxy.protocols.types import Client
from mailproxy.session.session import Session
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.tls.connection import TlsConnection
from mailproxy_config.model import ListenConfig, LogLevel, SendProxyProtocol

if TYPE_CHECKING:
    from mailproxy.limits.session_limits import SessionLimits

EVENTS_PER_ACCEPT: Final = 4
"""For each so many events of a poll one client is accepted.  A login has about seven events, so more clients
seldom wait, and to find that none does costs as much as another poll."""
MAX_ACCEPTS_PER_EVENT: Final = MAX_EVENTS // EVENTS_PER_ACCEPT
"""Clients accepted at one event, so that a burst of them does not delay the others."""
PAUSE_SECONDS: Final = 0.5
"""How long nothing is accepted when the process is out of descriptors."""
_LOG_INTERVAL: Final = 10.0
"""Seconds between two logs of ``worker_connections_not_enough``, and of ``cannot_accept``."""
_STREAM, _UNIX = int(socket.SOCK_STREAM), int(socket.AF_UNIX)
"""As plain numbers: ``accept()`` looks up members of three enums per client."""


@dataclass(slots=True)
class ListenTarget:
    """The ``server`` block and the ``listen`` directive that a client belongs to."""

    server: VirtualServer
    listen: ListenConfig


class Listener:
    """One listening socket of a worker; the handler of its descriptor.

    Attributes:
        default: The target of clients whose local address has none of its own.
        key: Of the socket's plan; named in the log.
    """

    __slots__ = (
        "_family",
        "_is_tls",
        "_logged_at",
        "_needs_local_addr",
        "_pause",
        "_shortage_logged_at",
        "_targets",
        "context",
        "default",
        "fd",
        "key",
        "sock",
    )

    def __init__(
        self,
        context: WorkerContext,
        key: str,
        sock: socket.SocketType,
        default: ListenTarget,
        targets: Mapping[str, ListenTarget],
    ) -> None:
        self.context = context
        self.key = key
        self.sock = sock
        self.fd = sock.fileno()
        self.default = default
        self._targets = targets
        self._family = int(sock.family)
        configs = default.server.config.with_groups
        sends_proxy_header = any(each.proxy_protocol is not SendProxyProtocol.DISABLED for each in configs)
        self._needs_local_addr = (
            bool(targets)
            or sends_proxy_header
            or any(each.uses_connected_address for each in configs)
            or default.server.choices is not None
        )
        first = default.listen
        self._is_tls = first.ssl and not first.proxy_protocol and not targets
        self._pause: asyncio.TimerHandle | None = None
        self._logged_at = 0.0
        self._shortage_logged_at = -_LOG_INTERVAL

    def open(self) -> None:
        """Begin to accept."""
        self.context.epoll.add(self.fd, self, READ)

    def close(self) -> None:
        """Stop accepting.  The socket may be open in other processes, so it is unregistered here."""
        if self._pause is not None:
            self._pause.cancel()
        self.context.epoll.remove(self.fd)
        self.sock.close()

    def on_internal_error(self) -> None:
        """Accepting raised: pause, so that an error at every event does not take all CPU time."""
        self._pause_accepting()

    def force_close(self) -> None:
        """Stop accepting for good: the pause raised, too."""
        with suppress(OSError):
            self.context.epoll.remove(self.fd)

    def on_event(self, mask: int) -> None:
        """Accept a client; more of them while many events are ready, as each would wait for another poll."""
        del mask
        most = len(self.context.epoll.ready) // EVENTS_PER_ACCEPT
        while self._accept() and most > 1:
            most -= 1

    def _accept(self) -> bool:
        """Accept one client; return whether there may be another."""
        try:
            fd, address = self.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see _STREAM
        except BlockingIOError:
            return False  # none is left, or another worker accepted it
        except OSError as error:
            if error.errno in HINTS:
                self._pause_accepting()
                self._log_shortage(error.strerror or "", HINTS[error.errno])
            return False
        sock: socket.SocketType | None = None
        try:
            if self._is_tls:
                sock = TlsConnection.from_fd(self._family, fd)
            else:
                sock = plain = socket.SocketType(self._family, _STREAM, 0, fd)
                plain.setblocking(False)
            self._on_accept(sock, address)
        except Exception as error:  # an entry point: this client has no session yet
            self._close_unserved(fd, sock, error)
        return True

    def _close_unserved(self, fd: int, sock: socket.SocketType | None, error: Exception) -> None:
        """Close a client for which no session could be made."""
        self.default.server.count_accepted()
        self.default.server.metrics.closed[CloseReason.INTERNAL_ERROR].value += 1
        self.context.log_internal_error(self, error, "Listener")
        if sock is None:
            os.close(fd)
        else:
            sock.close()

    def _on_accept(self, sock: socket.SocketType, address: Any) -> None:  # noqa: ANN401 - as the family has it
        context = self.context
        client = _client(self._family, address)
        target = self.default
        if self._needs_local_addr:
            if self._family != _UNIX:
                host, port = sock.getsockname()[:2]
                client.local_address, client.local_port = host.partition("%")[0], port
            target = self._targets.get(client.local_address, target)
        server, listen = target.server, target.listen
        if (
            server.blocks is not None
            and not listen.proxy_protocol
            and server.blocks.is_blocked(client.address)
        ):
            self._close_blocked(sock, server)
            return
        if len(context.live) >= context.limit:
            self._refuse(sock, target)
            return
        held: SessionLimits | None = None
        if server.preauth is not None and not listen.proxy_protocol:
            held = server.preauth.admit(client.address, server.metrics)
            if held is None:
                self._close_limited(sock, server)
                return
        record = SessionRecord(
            context.log.session_id(),
            server.log_fields,
            client.address,
            client.port,
            context.epoll.now,
        )
        record.held = held
        client.session_id = record.session
        session = Session(context, server, sock, client, record)
        metrics = server.metrics
        metrics.accepted.value += 1
        metrics.active.value += 1
        try:
            context.epoll.add(session.fd, session, READ)
            session.start(listen)
        except Exception as error:  # an entry point: the listener goes on
            context.handle_error(session, error)

    def _close_limited(self, sock: socket.SocketType, server: VirtualServer) -> None:
        """Close a client above ``limit_preauth``, without a reply."""
        server.count_accepted()
        server.metrics.closed[CloseReason.LIMIT].value += 1
        sock.close()

    def _close_blocked(self, sock: socket.SocketType, server: VirtualServer) -> None:
        """Close a client whose address is blocked, without a reply."""
        server.count_accepted()
        server.metrics.limit_rejections[Limit.BLOCKED].value += 1
        server.metrics.closed[CloseReason.LIMIT].value += 1
        sock.close()

    def _refuse(self, sock: socket.SocketType, target: ListenTarget) -> None:
        metrics = target.server.metrics
        target.server.count_accepted()
        metrics.limit_rejections[Limit.CONN_TOTAL].value += 1
        metrics.closed[CloseReason.LIMIT].value += 1
        if not target.listen.ssl:
            with suppress(OSError):
                sock.send(target.server.protocol.busy)
        sock.close()
        now = self.context.epoll.now
        if now - self._logged_at > _LOG_INTERVAL:
            self._logged_at = now
            self.context.log.event(
                LogLevel.ALERT,
                "worker_connections_not_enough",
                limit=self.context.limit,
                hint="raise workerConnections, or add workers or replicas",
            )

    def _log_shortage(self, reason: str, hint: str) -> None:
        """Log why no client can be accepted: not at every try, of which there are two in a second."""
        now = self.context.epoll.now
        if now - self._shortage_logged_at >= _LOG_INTERVAL:
            self._shortage_logged_at = now
            self.context.log.event(
                LogLevel.CRIT,
                "cannot_accept",
                listener=self.key,
                limit=open_files_limit(),
                reason=reason,
                hint=hint,
            )

    def _pause_accepting(self) -> None:
        self.context.epoll.modify(self.fd, NO_EVENTS)
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self.context.loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self.context.epoll.modify(self.fd, READ)


def _client(family: int, address: Any) -> Client:  # noqa: ANN401 - as the family has it
    if family == _UNIX:
        return Client("unix:", 0, "unix:")  # without the path, which the client chooses: it may hold CR LF
    host = address[0]
    return Client(host.partition("%")[0] if "%" in host else host, address[1])
