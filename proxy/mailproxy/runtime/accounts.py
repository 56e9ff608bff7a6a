"""Closing the books on a session: its numbers and its line in the log, once."""

from __future__ import annotations

import time

from mailproxy.events import CloseReason, LoginResult
from mailproxy.observe.meter import Gauge
from mailproxy.observe.record import SessionRecord
from mailproxy.runtime.engine import Engine
from mailproxy.runtime.server import Server


class Account:
    """What has to be booked when a client's connection ends."""

    __slots__ = ("engine", "record", "server", "state")

    def __init__(self, engine: Engine, server: Server, record: SessionRecord, state: Gauge) -> None:
        self.engine = engine
        self.server = server
        self.record = record
        self.state = state

    def close(self, reason: CloseReason) -> None:
        """Book the end: gauges, counters, the session's line."""
        record, server = self.record, self.server
        record.duration = time.monotonic() - record.started
        record.reason = reason
        self.state.value -= 1
        self.engine.clients -= 1
        server.meter.active.value -= 1
        server.meter.closed[reason].value += 1
        if reason is CloseReason.MAX_ERRORS:
            server.meter.limit_rejections["max_errors"].value += 1
        server.numbers.session_seconds[record.result is LoginResult.SUCCESS].observe(record.duration)
        self.engine.log.session(record)
