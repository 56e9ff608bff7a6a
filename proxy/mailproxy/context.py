# SPDX-License-Identifier: Apache-2.0
"""What the parts of a worker share, and how it contains its own exceptions.

Handlers, timeouts, deferred calls and callbacks of the event loop are entry
points: nothing above them catches an exception.  ``WorkerContext.handle_error``
ends exactly the session, relay or connection that an exception belongs to.  An
entry point that works for another object names it in its attribute ``owner``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from contextlib import suppress
from typing import Any, Final, Protocol, runtime_checkable

from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.loop.epoll import Epoll
from mailproxy.loop.timeouts import Timeouts
from mailproxy.net.pipes import Pipes
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import LogLevel
from mailproxy_config.upstream_members import MemberList

BUFFER_BYTES: Final = 256 * 1024
"""Size of the buffer for bulk transfers in which one side uses TLS; all relays of a worker share it."""
_FAULT_INTERVAL: Final = 10.0
_LINKS: Final = ("owner", "__self__", "func", "_callback")
"""Of an object: its owner; of a method: its object; of a partial: its function; of a handle: its callback."""
_MAX_LINKS: Final = 10
"""Links that are followed; a chain has at most eight."""


class Drainable(Protocol):
    """A session, a relay, or a connection in its lingering close."""

    def drain(self) -> None:
        """The worker drains: end where the protocol has a reply for that, or go on."""
        ...

    def abort(self) -> None:
        """The time for draining is over: close now."""
        ...


@runtime_checkable
class ErrorOwner(Protocol):
    """What an internal error ends."""

    def on_internal_error(self) -> None:
        """End, with the protocol's internal error reply where that can still be sent."""
        ...

    def force_close(self) -> None:
        """Close all descriptors in whatever state; never raises.

        Called when ``on_internal_error`` has raised.
        """
        ...


class WorkerContext:
    """The shared parts of one worker.

    Attributes:
        buffer: For bulk transfers of all relays.
        draining: Whether the worker drains.
        limit: The most client connections: ``worker_connections``, or what the limit of open files allows.
        lingering: Connections in their lingering close.
        live: Every session and relay, so one object for each client; a drain waits for them.
        members: The members of groups of upstreams that are Services, by the name of the group.
        memory: The memory that all workers share.
        upstream_health: Addresses of upstreams that failed; all workers share it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        epoll: Epoll,
        *,
        log: Log,
        metrics: WorkerMetrics,
        memory: SharedMemory | None = None,
    ) -> None:
        self.loop = loop
        self.epoll = epoll
        self.timers = Timeouts(loop, epoll)
        self.log = log
        self.metrics = metrics
        self.live: set[Drainable] = set()
        self.members: dict[str, MemberList] = {}
        self.limit = 512
        self.draining = False
        self.lingering: set[Drainable] = set()
        self.buffer = bytearray(BUFFER_BYTES)
        self.pipes = Pipes()
        self.memory = SharedMemory() if memory is None else memory
        self.upstream_health = UpstreamHealth(self.memory)
        self._limit_fault_at = -_FAULT_INTERVAL

    def make_challenge(self, server_name: str) -> bytes:
        """Make a challenge ``<R.T@NAME>``: 31 random bits, the current time, the server's name."""
        return b"<%d.%d@%b>" % (secrets.randbits(31), int(time.time()), server_name.encode())

    def log_lookup_failure(self, purpose: DnsPurpose, name: str, result: DnsResult) -> None:
        """Log that a name server did not answer, or not usably; at ``error``, as nginx does."""
        self.log.event(LogLevel.ERROR, "name_lookup_failed", purpose=purpose, name=name, result=result)

    def log_limit_fault(self, error: Exception) -> None:
        """Log that a limit could not be applied, and so was not; at most once in 10 seconds."""
        if self.epoll.now - self._limit_fault_at >= _FAULT_INTERVAL:
            self._limit_fault_at = self.epoll.now
            self.log_internal_error(None, error, "limits")

    def log_refused_address(self, name: str, address: str, reason: str) -> None:
        """Log that a name in ``Auth-Server`` resolves to an address that it must not resolve to."""
        self.log.event(LogLevel.ERROR, "upstream_address_refused", name=name, address=address, reason=reason)

    def handle_error(self, source: object, error: Exception) -> None:
        """Log an internal error, and end what it belongs to; never raises.

        Args:
            source: The handler, callback or asyncio handle that raised.
            error: What it raised.
        """
        owner = owner_of(source)
        self.log_internal_error(source if owner is None else owner, error, name_of(source))
        if owner is None:
            return
        try:
            owner.on_internal_error()
        except Exception:  # the first exception is logged; this one ends here
            owner.force_close()

    def handle_loop_exception(self, loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
        """Handle what a callback or task of the event loop raised (``loop.set_exception_handler``)."""
        error = details.get("exception")
        if not isinstance(error, Exception):
            loop.default_exception_handler(details)
            return
        sources = (details.get(key) for key in ("handle", "protocol", "task", "future"))
        self.handle_error(next((source for source in sources if source is not None), None), error)

    def log_internal_error(self, owner: object, error: BaseException, where: str) -> None:
        """Log an internal error: its kind and place, never the values involved; never raises.

        Args:
            owner: What ends with it; of a session or relay, the identifier is logged.
            error: The error.
            where: The entry point that raised it.
        """
        frames = traceback.extract_tb(error.__traceback__)
        place = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames[-6:]))
        fields: dict[str, Any] = {"where": where, "kind": type(error).__name__, "place": place}
        record = getattr(owner, "record", None)
        with suppress(Exception):
            if record is not None:
                fields |= {"session": record.session, "client": record.client}
            self.log.event(LogLevel.ERROR, "internal_error", **fields)


def owner_of(source: object) -> ErrorOwner | None:
    """Find what an exception ends.

    Args:
        source: A handler, a callback, or an asyncio handle.

    Returns:
        The owner; ``None`` where the exception belongs to the whole worker.
    """
    for _ in range(_MAX_LINKS):
        if isinstance(source, ErrorOwner):
            return source
        links = (getattr(source, name, None) for name in _LINKS)
        source = next((link for link in links if link is not None), None)
    return None


def name_of(source: object) -> str:
    """Return the name of code for the log; a ``repr`` would show the arguments of callbacks."""
    while (inner := getattr(source, "_callback", None) or getattr(source, "func", None)) is not None:
        source = inner
    get_coro = getattr(source, "get_coro", None)  # of a task
    name = getattr(source if get_coro is None else get_coro(), "__qualname__", None)
    return name if isinstance(name, str) else type(source).__name__
