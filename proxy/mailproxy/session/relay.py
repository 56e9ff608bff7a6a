# SPDX-License-Identifier: Apache-2.0
"""The relay of a session after login: two ``RelayEnd`` objects, and the ``Relay`` that they share."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, UpstreamStage
from mailproxy.loop.epoll import READ
from mailproxy.loop.timeouts import Deadlines
from mailproxy.session.relay_end import RelayEnd, WriteFailed
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord

# Aliases of enum members: each access saves 900 instructions on Python 3.11.
_CLIENT_CLOSED: Final = CloseReason.CLIENT_CLOSED
_UPSTREAM_CLOSED: Final = CloseReason.UPSTREAM_CLOSED
HALF_CLOSED_SECONDS: Final = 60.0
"""The longest idle time once one side has closed, or its connection is broken."""


class Relay:
    """What both ends of a session share: its log record, its idle timeout, its end.

    Attributes:
        last_activity: Time of the last event, as in ``Epoll.now``.
        last_sender: The end whose peer sent last.
    """

    __slots__ = (
        "_awaits_response",
        "_idle_seconds",
        "_reason",
        "client",
        "context",
        "is_closed",
        "last_activity",
        "last_sender",
        "record",
        "server",
        "timer",
        "upstream",
    )

    _awaits_response: bool  # set at the first end of a stream, before it is read

    def __init__(
        self,
        context: WorkerContext,
        server: VirtualServer,
        record: SessionRecord,
        client: RelayEnd,
        upstream: RelayEnd,
    ) -> None:
        self.context = context
        self.server = server
        self.record = record
        self.client = client
        self.upstream = upstream
        client.other, upstream.other = upstream, client
        client.relay = upstream.relay = self
        self.is_closed = False
        self.last_activity = context.epoll.now
        self.last_sender = upstream
        self.timer: Deadlines | None = None
        self._idle_seconds: float = server.config.proxy_timeout
        self._reason: CloseReason | None = None

    def start(self, to_client: bytes, to_upstream: bytes) -> None:
        """Take over both connections; where this raises, they are still the session's.

        Until the end of the event loop iteration nothing is read: it must not
        overtake the bytes that are sent first.

        Args:
            to_client: The rest of the login: what the upstream replied.
            to_upstream: What the client has sent after its login.
        """
        self.client.pending, self.upstream.pending = to_client, to_upstream
        self.server.idle_timeouts.arm(self)
        self.context.live.add(self)
        epoll = self.context.epoll
        epoll.handlers.pop(self.client.fd, None)
        epoll.handlers.pop(self.upstream.fd, None)
        epoll.defer(self._open)

    def _open(self) -> None:
        """Send what both sides get first, and begin to copy."""
        if self.is_closed:
            return
        client, upstream, handlers = self.client, self.upstream, self.context.epoll.handlers
        handlers[client.fd] = client
        handlers[upstream.fd] = upstream
        to_client, client.pending = client.pending, b""
        to_upstream, upstream.pending = upstream.pending, b""
        try:
            if to_client:
                client.write(to_client)
            if to_upstream:
                client.bytes_read += len(to_upstream)
                client.counter.value += len(to_upstream)
                self.last_sender = client
                upstream.write(to_upstream)
        except WriteFailed as failed:
            self.on_broken(failed.end)
            return
        if client.has_unsent or upstream.has_unsent or client.events != upstream.events:
            client.update_events()
            upstream.update_events()
        if client.tls is not None and client.tls.pending() and not upstream.has_unsent:
            client.on_event(READ)
        if upstream.tls is not None:
            self._read_upstream_tls()

    def _read_upstream_tls(self) -> None:
        """Copy what TLS has taken from the upstream's socket with the last reply of the login."""
        tls = self.upstream.tls
        if not self.is_closed and tls is not None and tls.pending() and not self.client.has_unsent:
            self.upstream.on_event(READ)

    def copy_on(self, end: RelayEnd) -> None:
        """Copy what TLS has taken from an end's socket already, of which there will be no event."""
        if not self.is_closed:
            end.on_event(READ)

    # -- the end of one side

    def on_eof(self, end: RelayEnd) -> None:
        """The peer of an end has sent everything: pass that on, unless the relay is complete."""
        end.is_eof = True
        client = self.client
        is_first = self._reason is None
        if is_first:
            self._awaits_response = client.has_unsent or self.last_sender is client
            self._reason = _CLIENT_CLOSED if end is client else _UPSTREAM_CLOSED
        if self.is_complete():
            self.close()
            return
        if is_first:
            self.limit_idle_time()
        if not end.other.has_unsent:
            end.other.end_writing()

    def limit_idle_time(self) -> None:
        """One side is closed or broken: limit the time that the other one has for the rest."""
        self._idle_seconds = min(self._idle_seconds, HALF_CLOSED_SECONDS)
        self.context.timers.arm(self, self._idle_seconds)

    def is_complete(self) -> bool:
        """Return whether neither side awaits anything more.

        The upstream has ended and everything is sent to the client; or the
        client has ended, and had got the last response before that.
        """
        client, upstream = self.client, self.upstream
        if client.has_unsent:
            return client.is_eof and upstream.is_eof
        return upstream.is_eof or (client.is_eof and not self._awaits_response)

    def on_broken(self, end: RelayEnd) -> None:
        """The connection of an end is broken: close both."""
        if self._reason is None:
            if end is self.client:
                self._reason = CloseReason.CLIENT_RESET
            else:
                self._reason = CloseReason.UPSTREAM_ERROR
                self.server.protocol_metrics.upstream_errors[UpstreamStage.RELAY].value += 1
        self.close()

    def on_timeout(self) -> None:
        """The idle timeout has passed since it was started, but maybe not since the last event."""
        if self.is_closed:
            return
        left = self.last_activity + self._idle_seconds - self.context.epoll.now
        if left > 0.0:
            self.context.timers.arm(self, left)
        else:
            self._reason = self._reason or CloseReason.IDLE_TIMEOUT
            self.close()

    # -- the end of both

    def close(self) -> None:
        """Close both connections, update the metrics, log the session."""
        if self.is_closed:
            return
        self.is_closed = True
        context, server, record = self.context, self.server, self.record
        client, upstream = self.client, self.upstream
        context.timers.disarm(self)
        record.bytes_to_upstream, record.bytes_to_client = client.bytes_read, upstream.bytes_read
        if upstream.pipe is not None or client.pipe is not None:
            self._discard_pipes()
        if upstream.tls is not None and self._reason is not CloseReason.IDLE_TIMEOUT:
            upstream.tls.unwrap()
        context.epoll.close_socket(upstream.sock, upstream.fd)
        if client.tls is not None and self._reason is not CloseReason.IDLE_TIMEOUT:
            client.tls.unwrap()
        context.epoll.close_socket(client.sock, client.fd)
        server.record_end(context, record, server.protocol_metrics.relay, self._reason or _CLIENT_CLOSED)
        context.live.discard(self)
        del client.other, upstream.other, client.relay, upstream.relay

    def drain(self) -> None:
        """Go on: a relay ends by itself, or is aborted."""

    def abort(self) -> None:
        """Close now: the time for draining is over."""
        self._reason = self._reason or CloseReason.DRAIN
        self.close()

    def on_internal_error(self) -> None:
        """Close both connections; a reply among relayed bytes would be none."""
        if self not in self.context.live:
            return
        self._reason = CloseReason.INTERNAL_ERROR
        if self.is_closed:  # it was being closed
            self.force_close()
        else:
            self.close()

    def force_close(self) -> None:
        """Close both connections in whatever state they are; never raises."""
        context, server, record = self.context, self.server, self.record
        self.is_closed = True
        with suppress(Exception):
            context.timers.disarm(self)
        with suppress(Exception):
            self._discard_pipes()
        for end in (self.upstream, self.client):
            context.epoll.close_socket(end.sock, end.fd)  # perhaps for the second time
        if self in context.live:
            context.live.discard(self)
            if record.reason is None:
                with suppress(Exception):
                    gauge = server.protocol_metrics.relay
                    server.record_end(context, record, gauge, CloseReason.INTERNAL_ERROR)

    def _discard_pipes(self) -> None:
        for end in (self.upstream, self.client):
            if end.pipe is not None:
                self.context.pipes.discard(end.pipe)
                end.pipe = None
