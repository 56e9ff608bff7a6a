# SPDX-License-Identifier: Apache-2.0
"""What upstreams can do, for the list that clients get before login (``imap_capabilities_from upstream``).

The configuration has no addresses of upstreams.  They are learnt from logins that succeeded, and asked
on connections of their own (``CapabilityProbe``).  Clients get what all of the last upstreams have; until
the first response, what is configured.  The next list is made before it is needed: no client waits for
a probe.  An upstream is asked with the directives of the group that the login went to.

A server without the directive has none of this.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from mailproxy.context import WorkerContext
from mailproxy.enums import Method
from mailproxy.errors import UpstreamError
from mailproxy.protocols.capabilities import Offer, common_capabilities, read_imap_offer, read_smtp_offer
from mailproxy.protocols.capability_probe import CapabilityProbe
from mailproxy.protocols.frontend import Frontend
from mailproxy.protocols.imap.capability_probe import ImapCapabilityProbe
from mailproxy.protocols.smtp.capability_probe import SmtpCapabilityProbe
from mailproxy.protocols.types import AuthAllowed, Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.session.named_client import frontend_factory
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import Counter
from mailproxy.tls.connection import TlsConnection
from mailproxy.tls.upstream_connection import UpstreamTlsConnection
from mailproxy.tls.upstream_context import Peer
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import (
    ByteCount,
    LogLevel,
    Protocol,
    Seconds,
    SendIdentity,
    ServerConfig,
)

MAX_UPSTREAMS: Final = 8
"""Upstreams that are remembered, per server; another one takes the place of one that is not used any more."""
REFRESH_SECONDS: Final = 600.0
"""How long a response is used before the upstream is asked again.

An upstream is in use for so long after a login.
"""
RETRY_SECONDS: Final = 60.0
"""The pause after a probe that failed; it doubles with each further failure, up to ``REFRESH_SECONDS``."""
PROBE_SECONDS: Final = Seconds(10.0)
"""Time limit of a probe, from connecting to the last response."""
PROBE_BYTES: Final = ByteCount(8192)
"""The longest response to a probe."""

_NEVER: Final = float("inf")
_PROBES: Final[dict[Protocol, Callable[[ServerConfig], CapabilityProbe]]] = {
    Protocol.IMAP: ImapCapabilityProbe,
    Protocol.SMTP: SmtpCapabilityProbe,
}
_READERS: Final[dict[Protocol, Callable[[bytes], Offer]]] = {
    Protocol.IMAP: read_imap_offer,
    Protocol.SMTP: read_smtp_offer,
}


@dataclass(slots=True)
class _Known:
    """One upstream.  Times are monotonic seconds."""

    offer: Offer | None = None
    group: str = ""
    """The group with directives of its own to which the last login there went; empty for none."""
    used: float = 0.0
    """When a client logged in there."""
    asked: float = 0.0
    due: float = 0.0
    """When it is asked next; infinite while it is being asked."""
    failures: int = 0
    """Probes that failed in a row."""


class UpstreamCapabilities:
    """The capabilities of the upstreams of one server.

    Args:
        context: The worker's shared parts.
        server: The server; its clients get lists from here from now on.
        previous: The same before a reload.
    """

    __slots__ = (
        "_announced",
        "_context",
        "_due",
        "_known",
        "_make_end",
        "_make_frontend",
        "_probes",
        "server",
    )

    def __init__(
        self, context: WorkerContext, server: VirtualServer, previous: UpstreamCapabilities | None
    ) -> None:
        self._context = context
        self.server = server
        self._known: OrderedDict[Peer, _Known] = OrderedDict()
        self._probes: set[_Probe] = set()
        self._due = _NEVER
        self._make_frontend, self._make_end = server.frontend, server.upstream_end
        self._announced: tuple[str, ...] | None = None
        server.frontend, server.upstream_end = self.frontend, self.upstream_end
        for name, group in server.groups.items():
            group.upstream_end = partial(self._end_in_group, name, group.upstream_end)
        if previous is not None:  # what is known is used until upstreams are asked with the new configuration
            last = previous._known  # noqa: SLF001 - of this class
            self._known.update((peer, replace(known, due=0.0)) for peer, known in last.items())
            self._due = 0.0 if self._known else _NEVER
            self._announce()

    # -- what a server calls

    def frontend(self, client: Client) -> Frontend[Any]:
        """Make the frontend of a client; ask upstreams whose responses are too old."""
        if self._context.epoll.now >= self._due:
            self._refresh()
        return self._make_frontend(client)

    def upstream_end(
        self,
        sock: socket.SocketType,
        fd: int,
        events: int,
        counter: Counter,
        tls: TlsConnection | None = None,
    ) -> RelayEnd:
        """Make the upstream's end of a relay; remember the upstream."""
        return self._end_in_group("", self._make_end, sock, fd, events, counter, tls)

    def _end_in_group(
        self,
        group: str,
        make_end: Callable[..., RelayEnd],
        sock: socket.SocketType,
        fd: int,
        events: int,
        counter: Counter,
        tls: TlsConnection | None = None,
    ) -> RelayEnd:
        peer = tls.peer if isinstance(tls, UpstreamTlsConnection) else _peer_of(sock)
        if peer is not None:
            self._learn(peer, group)
        return make_end(sock, fd, events, counter, tls)

    def close(self) -> None:
        """Stop all probes."""
        probes, self._probes = self._probes, set()
        for probe in probes:
            probe.force_close()

    # -- upstreams

    def _learn(self, peer: Peer, group: str) -> None:
        now = self._context.epoll.now
        known = self._known.get(peer)
        if known is None:
            if len(self._known) == MAX_UPSTREAMS and not self._forget_unused(now):
                return
            known = self._known[peer] = _Known()
        self._known.move_to_end(peer)
        known.used, known.group = now, group
        if now >= known.due:
            self._ask(peer, known)

    def _forget_unused(self, now: float) -> bool:
        """Forget the upstream without a login for longest; return false if all are in use."""
        peer, known = next(iter(self._known.items()))
        if now - known.used < REFRESH_SECONDS:
            return False
        del self._known[peer]
        self._announce()
        return True

    def _refresh(self) -> None:
        now = self._context.epoll.now
        for peer, known in tuple(self._known.items()):
            if now >= known.due:
                self._ask(peer, known)
        self._plan()

    def _plan(self) -> None:
        self._due = min((known.due for known in self._known.values()), default=_NEVER)

    def _ask(self, peer: Peer, known: _Known) -> None:
        known.asked, known.due = self._context.epoll.now, _NEVER
        probe = _Probe(self, peer, self.server.groups.get(known.group, self.server))
        self._probes.add(probe)
        try:
            probe.connect()
        except UpstreamError as error:
            probe.on_upstream_error(error)

    def on_response(self, probe: _Probe, response: bytes) -> None:
        """An upstream has responded."""
        try:
            offer = _READERS[self.server.config.protocol](response)
        except ValueError as error:
            self.on_failed(probe, str(error))
            return
        self._probes.discard(probe)
        known = self._known.get(probe.peer)
        if known is not None:
            known.offer, known.failures = offer, 0
            known.due = self._context.epoll.now + REFRESH_SECONDS
            self._plan()
            self._announce()

    def on_failed(self, probe: _Probe, reason: str) -> None:
        """An upstream could not be asked: what is known of it is used on, while clients log in there."""
        self._probes.discard(probe)
        known = self._known.get(probe.peer)
        self.server.log.event(
            LogLevel.WARN, "capabilities_unknown", upstream=probe.name, reason=reason, protocol=self._protocol
        )
        if known is None:
            return
        known.due = self._context.epoll.now + min(RETRY_SECONDS * 2**known.failures, REFRESH_SECONDS)
        known.failures = min(known.failures + 1, 8)
        self._plan()
        if known.used < known.asked and any(
            other.offer is not None for other in self._known.values() if other is not known
        ):
            known.offer = None  # it is not used any more
            self._announce()

    # -- clients

    @property
    def _protocol(self) -> str:
        return self.server.config.protocol.value

    def _announce(self) -> None:
        """Make new clients get what all upstreams have that are known."""
        server = self.server
        offers = [known.offer for known in self._known.values() if known.offer is not None]
        if not offers:
            return
        common = common_capabilities(server.config, offers)
        if common == self._announced:
            return
        self._announced = common
        changes: dict[str, Any] = {f"{self._protocol}_capabilities": common}
        self._make_frontend = frontend_factory(
            server.protocol, replace(server.config, **changes), server.trusted
        )
        server.log.event(
            LogLevel.INFO, "capabilities_announced", protocol=self._protocol, capabilities=", ".join(common)
        )


class _Probe:
    """Asks one upstream.  It has of a ``Session`` what an ``UpstreamConnection`` uses.

    Attributes:
        client: No client: nothing of it is sent.
        context: The worker's shared parts.
        name: The upstream, for the log.
        peer: The upstream.
        protocol_metrics: The metrics of the protocol, which count this connection as any other.
        record: What the report about upstreams takes the address from; it is not logged.
        server: The server or its group, with the probe in place of the login.
    """

    __slots__ = (
        "_connection",
        "_source",
        "client",
        "context",
        "name",
        "peer",
        "protocol_metrics",
        "record",
        "server",
    )

    def __init__(self, source: UpstreamCapabilities, peer: Peer, base: VirtualServer) -> None:
        self._source = source
        self._connection: UpstreamConnection | None = None
        self.peer = peer
        self.context = context = source._context  # noqa: SLF001 - of this module
        self.client = Client("")
        self.name = format_host_port(peer.address, peer.port)
        self.record = SessionRecord(upstream=peer.address, upstream_port=peer.port)
        self.protocol_metrics = base.protocol_metrics
        self.server = replace(base, login_timeouts=context.timers.queue(PROBE_SECONDS), base=base)
        self.server.upstream = _PROBES[base.config.protocol](_config_of_probes(base.config))

    def connect(self) -> None:
        """Begin.

        Raises:
            UpstreamError: No socket can be made.
        """
        login = UpstreamLogin(AuthAllowed(self.peer.address, self.peer.port, b""), Method.NONE, tag=b"x0")
        connect: Callable[..., UpstreamConnection] = UpstreamConnection.connect
        self._connection = connect(self, login, self.peer.name)

    def on_upstream_login(self, connection: UpstreamConnection, reply: UpstreamLoginResult) -> None:
        """The upstream has responded."""
        self._connection = None
        connection.release()
        connection.close()
        self._source.on_response(self, reply)

    def on_upstream_error(self, error: Exception) -> None:
        """The upstream could not be reached, or did not keep to the protocol; the connection is closed."""
        self._connection = None
        if not isinstance(error, UpstreamError):
            self.context.log_internal_error(self, error, "CapabilityProbe")
        self._source.on_failed(self, str(error))

    def on_internal_error(self) -> None:
        """See ``ErrorOwner``."""
        self.force_close()
        self._source.on_failed(self, "internal error")

    def force_close(self) -> None:
        """See ``ErrorOwner``."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cancel()


def _config_of_probes(config: ServerConfig) -> ServerConfig:
    return replace(
        config, timeout=PROBE_SECONDS, proxy_buffer=PROBE_BYTES, xclient=False, proxy_id=SendIdentity.DISABLED
    )


def _peer_of(sock: socket.SocketType) -> Peer | None:
    """Return the address that a connection without TLS goes to; ``None`` if it is broken by now."""
    try:
        address = sock.getpeername()
    except OSError:
        return None
    return Peer(address, 0) if isinstance(address, str) else Peer(address[0], address[1])


def follow_upstreams(context: WorkerContext, server: VirtualServer, previous: VirtualServer | None) -> None:
    """Make clients of a server get what its upstreams have, if it is configured.

    Args:
        context: The worker's shared parts.
        server: The server.
        previous: The same before a reload.
    """
    if server.config.asks_capabilities:
        last = previous.capabilities if previous is not None else None
        is_same = last is not None and last.server.config.protocol is server.config.protocol
        server.capabilities = UpstreamCapabilities(context, server, last if is_same else None)


def stop_probes(servers: Iterable[VirtualServer]) -> None:
    """Stop the probes of these servers: they are not used any more."""
    for server in servers:
        if server.capabilities is not None:
            server.capabilities.close()
