# SPDX-License-Identifier: Apache-2.0
"""What all sessions of a worker share: the poll, the clock, the log, the numbers, and their own number."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from typing import Final, Protocol

from mailproxy.events import DnsPurpose, DnsResult
from mailproxy.observe.log import Log
from mailproxy.observe.meter import Meter
from mailproxy.runtime.pipes import Pipes
from mailproxy.runtime.reactor import Reactor
from mailproxy.runtime.timers import Timers
from mailproxy_config.model import LogLevel

CHUNK: Final = 256 * 1024
"""Octets of the buffer that bulk transfers through TLS share."""


class Drained(Protocol):
    """Whatever can be asked to leave when the worker drains."""

    def say_goodbye(self) -> None:
        """The proxy stops accepting: end politely where the protocol has a word for it."""
        ...

    def cut(self) -> None:
        """The time for politeness is over."""
        ...


class Engine:
    """The shared parts of one worker.

    Attributes:
        live: Every session, whatever its phase; what a drain waits for.
        lingering: Connections that are over but for the peer's last octets.
        clients: How many client connections are open.
        limit: How many may be (``worker_connections``).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, reactor: Reactor, *, log: Log, meter: Meter) -> None:
        self.loop = loop
        self.reactor = reactor
        self.timers = Timers(loop, reactor)
        self.log = log
        self.meter = meter
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

    def crashed(self, handler: object, crash: Exception) -> None:
        """A handler let an exception escape: report it, and end what it belongs to."""
        self.report_crash(type(handler).__name__, crash)
        cut = getattr(handler, "cut", None)
        if cut is not None:
            cut()

    def report_crash(self, where: str, crash: BaseException) -> None:
        """Log an error of our own: its kind and place, never the values it met."""
        frames = traceback.extract_tb(crash.__traceback__)
        place = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames[-6:]))
        self.log.event(LogLevel.ERROR, "internal_error", where=where, kind=type(crash).__name__, place=place)
