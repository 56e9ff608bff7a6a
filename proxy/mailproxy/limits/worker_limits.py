# SPDX-License-Identifier: Apache-2.0
"""The limits of a worker's server blocks, and the zones that they share."""

from __future__ import annotations

from collections.abc import Iterable

from mailproxy.auth_http.pending_request import Authenticator
from mailproxy.context import WorkerContext
from mailproxy.limits.authenticator import ConnLimit, LimitedAuthenticator, ReqLimit
from mailproxy.limits.keys import key_function
from mailproxy.limits.preauth import ZONE_BYTES, PreauthLimit
from mailproxy.limits.request_zone import ReqZone
from mailproxy.limits.table import LimitTable
from mailproxy.limits.zones import ConnZone
from mailproxy_config.limit_directives import PREAUTH_ZONE
from mailproxy_config.limits import LimitConnZone, LimitReqZone
from mailproxy_config.model import LogLevel, ServerConfig

Definition = LimitConnZone | LimitReqZone
_PREAUTH: LimitConnZone = LimitConnZone(zone=PREAUTH_ZONE, key="$remote_addr", size=ZONE_BYTES)


class WorkerLimits:
    """Makes what limits the clients of server blocks.

    Args:
        context: The worker's shared parts.
    """

    __slots__ = ("_context", "_table", "_zones")

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._table = LimitTable(context.memory)
        self._table.begin()
        self._zones: dict[Definition, ConnZone | ReqZone] = {}

    def limited(self, inner: Authenticator, config: ServerConfig) -> LimitedAuthenticator:
        """Return what applies the limits of a server to its logins.

        Args:
            inner: What decides about logins within the limits.
            config: The server.
        """
        conn_zones = {zone.zone: zone for zone in config.limit_conn_zone}
        req_zones = {zone.zone: zone for zone in config.limit_req_zone}
        prefix = config.limit_conn_ipv6_prefix
        conns, reqs = [], []
        for conn in config.limit_conn:
            definition = conn_zones[conn.zone]
            zone = self._zone(definition)
            if isinstance(zone, ConnZone):
                key = key_function(definition.key, prefix)
                conns.append(ConnLimit(conn.zone, zone, key, conn.connections))
        for req in config.limit_req:
            rate = req_zones[req.zone]
            zone = self._zone(rate)
            if isinstance(zone, ReqZone):
                key = key_function(rate.key, prefix)
                reqs.append(ReqLimit(req.zone, zone, key, 60.0 / rate.rate, req.burst, req.delay))
        log = self._context.log.for_server(config)
        return LimitedAuthenticator(
            self._context, inner, config, table=self._table, conns=conns, reqs=reqs, log=log
        )

    def preauth(self, config: ServerConfig) -> PreauthLimit | None:
        """Return the limit of a server's connections before the login, ``None`` for none."""
        zone = self._zone(_PREAUTH) if config.limit_preauth else None
        if not isinstance(zone, ConnZone):
            return None
        log = self._context.log.for_server(config)
        return PreauthLimit(self._context, config, self._table, zone, log)

    def retire(self, configs: Iterable[ServerConfig]) -> None:
        """Close zones that none of these servers has, and no session of an earlier configuration uses."""
        used: set[Definition] = set()
        for config in configs:
            used.update(config.limit_conn_zone, config.limit_req_zone)
            if config.limit_preauth:
                used.add(_PREAUTH)
        for definition in self._zones.keys() - used:
            zone = self._zones[definition]
            if isinstance(zone, ReqZone) or not zone.held:
                del self._zones[definition]
                if all(zone.offset != other.offset for other in self._zones.values()):
                    self._table.close(zone)
        self._context.metrics.keep_limit_zones(definition.zone for definition in used)

    def _zone(self, definition: Definition) -> ConnZone | ReqZone | None:
        """Return a zone; ``None`` and a log line if there is none: the limit is not applied then."""
        if definition in self._zones:
            return self._zones[definition]
        name, size = definition.zone, definition.size
        results = self._context.metrics.limit_zone(name)
        found: ConnZone | ReqZone | None = None
        reason = "zones of earlier configurations are in use"
        try:
            if isinstance(definition, LimitReqZone):
                found = self._table.open_req(name, definition.key, size, results)
            else:
                found = self._table.open_conn(name, definition.key, size, results)
        except OSError as error:
            reason = error.strerror or str(error)
        if found is None:
            self._context.log.event(LogLevel.ERROR, "limit_zone_unavailable", zone=name, reason=reason)
            return None
        self._zones[definition] = found
        return found
