# SPDX-License-Identifier: Apache-2.0
"""Conditions that hold for a worker after all its sessions have ended."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from mailproxy.app import App
from mailproxy.enums import LoginResult
from mailproxy.loop.worker_loop import AsyncioHandler
from mailproxy.telemetry.metrics import WorkerMetrics

_TIMEOUT_SECONDS: Final = 30.0
"""Seconds to wait for sessions to end; a lingering close takes up to two."""
_GAUGES: Final = (
    "mailproxy_connections_active",
    "mailproxy_sessions_active",
    "mailproxy_auth_requests_in_flight",
)
_WITHOUT_AUTH_REQUEST: Final = {
    LoginResult.TLS_REQUIRED.value,
    LoginResult.METHOD_DISABLED.value,
    LoginResult.BAD_CREDENTIALS_SYNTAX.value,
}
_ATTEMPTS: Final = re.compile(r" attempts=([0-9]+)")


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def series(metrics: WorkerMetrics, family: str) -> dict[tuple[str, ...], Any]:
    """Return the series of a metric that are not 0."""
    entries = metrics.snapshot()["series"].get(family, [])
    return {tuple(labels): value for labels, value in entries if value}


async def wait_until_idle(app: App, metrics: WorkerMetrics) -> None:
    """Wait until no resources of sessions are left; fail with a list of them."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            while any(leftovers(app, metrics)):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"left over: {list(leftovers(app, metrics))}") from None


def leftovers(app: App, metrics: WorkerMetrics) -> Iterator[str]:
    """List what is left of ended sessions: objects, timeouts, descriptors, auth requests, gauges."""
    context = app.context
    found: dict[str, object] = {name: getattr(context, name) for name in ("live", "lingering")}
    found["timers"] = context.timers.waiting()
    found["pipes in use"] = context.pipes.count - len(context.pipes.kept)
    waiting = {listener.fd for listener in app.listeners}
    for service in app.authenticators.auth_clients.values():
        found["auth requests"] = [*service.requests, *service.waiting.requests, *service.waiting.holders]
        waiting |= {connection.fd for connection in service.idle}
    found["handlers"] = [
        handler
        for fd, handler in enumerate(context.epoll.handlers)
        if handler is not None and fd not in waiting and not isinstance(handler, AsyncioHandler)
    ]
    found |= {family: series(metrics, family) for family in _GAUGES}
    return (f"{name}: {value}" for name, value in found.items() if value)


def check_counters(metrics: WorkerMetrics, log: str) -> None:
    """Check that every accepted client was closed, and that every login was counted once.

    Args:
        metrics: Of a worker without sessions.
        log: All its lines, in their text form.
    """
    accepted = sum(series(metrics, "mailproxy_connections_accepted_total").values())
    closed = sum(series(metrics, "mailproxy_connections_closed_total").values())
    assert accepted == closed, f"{accepted} accepted, {closed} closed"
    refused = sum(series(metrics, "mailproxy_limit_rejections_total").get(key, 0) for key in _limits(metrics))
    entries = log.count(" info session ") + log.count(" debug session ")
    assert entries == closed - refused, f"{entries} lines for {closed - refused} sessions"
    logins = series(metrics, "mailproxy_logins_total")
    counted = sum(count for (_, _, result), count in logins.items() if result not in _WITHOUT_AUTH_REQUEST)
    attempts = sum(map(int, _ATTEMPTS.findall(log)))
    assert counted == attempts, f"{attempts} attempts, {logins}"


def _limits(metrics: WorkerMetrics) -> list[tuple[str, ...]]:
    return [key for key in series(metrics, "mailproxy_limit_rejections_total") if key[1] == "conn_total"]
