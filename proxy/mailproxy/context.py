# SPDX-License-Identifier: Apache-2.0
"""What all sessions of a worker share: the poll, the clock, the log, the numbers, and their own number."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from contextlib import suppress
from typing import Any, Final, Protocol

from mailproxy.containment import name_of, owner_of
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.loop.epoll import Reactor
from mailproxy.loop.timeouts import Timeouts
from mailproxy.net.pipes import Pipes
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import LogLevel

CHUNK: Final = 256 * 1024
"""Bytes of the buffer that all bulk transfers of a worker share where TLS is in the way."""


class Drained(Protocol):
    """Whatever can be asked to leave when the worker drains."""

    def say_goodbye(self) -> None:
        """The proxy stops accepting: end politely where the protocol has a word for it."""
        ...

    def cut(self) -> None:
        """The time for politeness is over."""
        ...


class WorkerContext:
    """The shared parts of one worker.

    Attributes:
        live: Every session, whatever its phase; what a drain waits for.
        lingering: Connections that are over but for the peer's last bytes.
        clients: How many client connections are open.
        limit: How many may be (``worker_connections``).
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, reactor: Reactor, *, log: Log, metrics: WorkerMetrics
    ) -> None:
        self.loop = loop
        self.reactor = reactor
        self.timers = Timeouts(loop, reactor)
        self.log = log
        self.metrics = metrics
        self.live: set[Drained] = set()
        self.clients = 0
        self.limit = 512
        self.draining = False
        self.lingering: set[Drained] = set()
        self.buffer = bytearray(CHUNK)
        self.pipes = Pipes()

    def challenge(self, server_name: str) -> bytes:
        """Make a ``<R.T@NAME>`` challenge: 31 random bits, the current time, the server's name."""
        return b"<%d.%d@%b>" % (secrets.randbits(31), int(time.time()), server_name.encode())

    def look_up_failed(self, purpose: DnsPurpose, name: str, result: DnsResult) -> None:
        """Log that a name server did not answer, or not usably; nginx logs this at ``error`` too."""
        self.log.event(LogLevel.ERROR, "name_lookup_failed", purpose=purpose, name=name, result=result)

    def crashed(self, culprit: object, crash: Exception) -> None:
        """End what an exception belongs to, and log it; never raises.

        Args:
            culprit: The handler, callback or asyncio handle that raised.
            crash: What it raised.
        """
        owner = owner_of(culprit)
        self.report_crash(culprit if owner is None else owner, crash, name_of(culprit))
        if owner is None:
            return
        try:
            owner.crashed()
        except Exception:  # the exception that counts is logged; this one ends here
            owner.give_up()

    def escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what a callback or task of the event loop raised (its exception handler)."""
        crash = context.get("exception")
        if not isinstance(crash, Exception):
            loop.default_exception_handler(context)
            return
        culprits = (context.get(key) for key in ("handle", "protocol", "task", "future"))
        self.crashed(next((culprit for culprit in culprits if culprit is not None), None), crash)

    def report_crash(self, owner: object, crash: BaseException, where: str) -> None:
        """Log an error of our own: its kind and place, never the values it met; never raises.

        Args:
            owner: What ends with it; a session or relay is named.
            crash: The error.
            where: The entry point that raised it.
        """
        frames = traceback.extract_tb(crash.__traceback__)
        place = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames[-6:]))
        fields: dict[str, Any] = {"where": where, "kind": type(crash).__name__, "place": place}
        record = getattr(owner, "record", None)
        with suppress(Exception):
            if record is not None:
                fields |= {"session": record.session, "client": record.client}
            self.log.event(LogLevel.ERROR, "internal_error", **fields)
