# SPDX-License-Identifier: Apache-2.0
"""Closing the books on a session: its numbers and its line in the log, once."""

from __future__ import annotations

import time
from typing import Final

from mailproxy.context import WorkerContext
from mailproxy.enums import CloseReason, Limit, LoginResult
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import Gauge

_SUCCESS: Final = LoginResult.SUCCESS
_MAX_ERRORS: Final = CloseReason.MAX_ERRORS


def book_end(
    engine: WorkerContext, server: VirtualServer, record: SessionRecord, state: Gauge, reason: CloseReason
) -> None:
    """Book the end of a client's connection: gauges, counters, the session's line.

    Args:
        engine: The worker's shared parts.
        server: The client's server.
        record: What is known about the session, but for its end.
        state: The gauge that counts it.
        reason: Why it ended.
    """
    record.duration = duration = time.monotonic() - record.started
    record.reason = reason
    state.value -= 1
    engine.clients -= 1
    metrics = server.metrics
    metrics.active.value -= 1
    metrics.closed[reason].value += 1
    if reason is _MAX_ERRORS:
        metrics.limit_rejections[Limit.MAX_ERRORS].value += 1
    server.numbers.session_seconds[record.result is _SUCCESS].observe(duration)
    server.log.session(record)
