# SPDX-License-Identifier: Apache-2.0
"""What must hold for a worker when all its sessions are over."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from mailproxy.app import App
from mailproxy.enums import LoginResult
from mailproxy.telemetry.metrics import Meter

_SETTLING: Final = 30.0
"""Seconds to wait for sessions to end; a lingering close takes up to two."""
_NOW: Final = (
    "mailproxy_connections_active",
    "mailproxy_sessions_active",
    "mailproxy_auth_requests_in_flight",
)
_UNASKED: Final = {
    LoginResult.TLS_REQUIRED.value,
    LoginResult.METHOD_DISABLED.value,
    LoginResult.BAD_CREDENTIALS_SYNTAX.value,
}
_ATTEMPTS: Final = re.compile(r" attempts=([0-9]+)")


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def series(meter: Meter, family: str) -> dict[tuple[str, ...], Any]:
    """Return the series of a metric that are not 0."""
    told = meter.snapshot()["series"].get(family, [])
    return {tuple(labels): value for labels, value in told if value}


async def settle(app: App, meter: Meter) -> None:
    """Wait until nothing is left over, and fail with what is."""
    try:
        async with asyncio.timeout(_SETTLING):
            while any(leftovers(app, meter)):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"left over: {list(leftovers(app, meter))}") from None


def leftovers(app: App, meter: Meter) -> Iterator[str]:
    """List what is left of sessions that are over: objects, timeouts, descriptors, auth requests, gauges."""
    context = app.context
    found: dict[str, object] = {name: getattr(context, name) for name in ("live", "lingering", "clients")}
    found["timers"] = context.timers.waiting()
    found["pipes in use"] = context.pipes.count - len(context.pipes.kept)
    waiting = {listener.fd for listener in app.listeners}
    for service in app.auth_clients.values():
        found["auth requests"] = [*service.requests, *service.waiting.requests, *service.waiting.holders]
        waiting |= {connection.fd for connection in service.idle}
    found["handlers"] = context.epoll.handlers.keys() - waiting
    found |= {family: series(meter, family) for family in _NOW}
    return (f"{name}: {what}" for name, what in found.items() if what)


def check_accounts(meter: Meter, log: str) -> None:
    """Check that every accepted client was closed, and that every login was counted once.

    Args:
        meter: Of a worker without sessions.
        log: All its lines, in their text form.
    """
    accepted = sum(series(meter, "mailproxy_connections_accepted_total").values())
    closed = sum(series(meter, "mailproxy_connections_closed_total").values())
    assert accepted == closed, f"{accepted} accepted, {closed} closed"
    refused = sum(series(meter, "mailproxy_limit_rejections_total").get(key, 0) for key in _limits(meter))
    told = log.count(" info session ") + log.count(" debug session ")
    assert told == closed - refused, f"{told} lines for {closed - refused} sessions"
    logins = series(meter, "mailproxy_logins_total")
    counted = sum(count for (_, _, result), count in logins.items() if result not in _UNASKED)
    attempts = sum(map(int, _ATTEMPTS.findall(log)))
    assert counted == attempts, f"{attempts} attempts, {logins}"


def _limits(meter: Meter) -> list[tuple[str, ...]]:
    return [key for key in series(meter, "mailproxy_limit_rejections_total") if key[1] == "conn_total"]
