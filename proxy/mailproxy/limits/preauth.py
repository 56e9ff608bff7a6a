# SPDX-License-Identifier: Apache-2.0
"""Connections of one address that have not logged in (``limit_preauth``)."""

from __future__ import annotations

from typing import Final

from mailproxy.context import WorkerContext
from mailproxy.enums import Limit
from mailproxy.limits.keys import AddressKeys
from mailproxy.limits.session_limits import SessionLimits
from mailproxy.limits.table import LimitTable
from mailproxy.limits.zones import ConnZone
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.telemetry.metrics import ServerMetrics
from mailproxy_config.model import LogLevel, ServerConfig

ZONE_BYTES: Final = 512 * 1024
"""Size of the zone, which has place for 12,000 addresses."""
LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines about closed connections."""


class PreauthLimit:
    """The limit of one server block.

    Args:
        context: The worker's shared parts.
        config: The server block.
        table: Makes hashes.
        zone: Counts connections.
        log: The log of the server's sessions.
    """

    __slots__ = ("_context", "_hash_key", "_keys", "_limit", "_log", "_logged_at", "_refused", "_zone")

    def __init__(
        self, context: WorkerContext, config: ServerConfig, table: LimitTable, zone: ConnZone, log: LogWriter
    ) -> None:
        self._context = context
        self._limit = config.limit_preauth
        self._keys = AddressKeys(config.limit_conn_ipv6_prefix)
        self._hash_key = table.hash_key
        self._zone = zone
        self._log = log
        self._logged_at = -LOG_INTERVAL
        self._refused = 0

    def admit(self, address: str, metrics: ServerMetrics) -> SessionLimits | None:
        """Count a connection.

        Args:
            address: Of the client; those of UNIX sockets are not counted.
            metrics: Of the server.

        Returns:
            What is counted of it, ``None`` where it must be closed.
        """
        zone = self._zone
        try:
            key = self._hash_key(self._keys[address])
            slot = zone.acquire_known(key, self._limit)
            if slot >= 0:
                return SessionLimits((zone, slot))
            if address.startswith("unix:"):
                return SessionLimits()
            slot, is_over = zone.acquire(key, self._limit)
        except Exception as error:  # a fault of the table refuses nobody
            self._zone.results.skipped.value += 1
            self._context.log_limit_fault(error)
            return SessionLimits()
        if is_over:
            self._refuse(address, metrics)
            return None
        return SessionLimits((zone, slot) if slot >= 0 else None)

    def _refuse(self, address: str, metrics: ServerMetrics) -> None:
        self._zone.results.rejected.value += 1
        metrics.limit_rejections[Limit.LIMIT_PREAUTH].value += 1
        self._refused += 1
        now = self._context.epoll.now
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            refused, self._refused = self._refused, 0
            self._log.event(LogLevel.ERROR, "limit_preauth", client=address, refused=refused)
