# SPDX-License-Identifier: Apache-2.0
"""A worker on loopback whose upstream decides about logins (``auth_mode upstream``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from mailproxy_config.model import AuthHttp, AuthMode, ListenConfig, LogLevel, Protocol, ServerConfig
from mailproxy_config.upstream_groups import GroupServer, Route, UpstreamGroup, UpstreamSettings
from support import configs
from support.loopback_worker import LoopbackWorker, Upstream, loopback_worker
from support.streams import abort

DOMAIN: Final = "example.org"
"""The only domain with a route."""
_NO_SETTINGS: Final = UpstreamSettings()


@contextlib.asynccontextmanager
async def routed_worker(
    protocol: Protocol,
    *,
    port: int = 0,
    settings: UpstreamSettings = _NO_SETTINGS,
    **directives: Any,
) -> AsyncIterator[LoopbackWorker]:
    """Run a worker with one server that routes one domain to one upstream, which the test serves.

    Args:
        protocol: The protocol.
        port: The port of another upstream instead.
        settings: The directives of the upstream's group.
        directives: Those of the server.
    """
    upstream = Upstream()
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = listener.sockets[0].getsockname()[1]
    port = port or upstream.port
    member = GroupServer(address=f"127.0.0.1:{port}", host="127.0.0.1", port=port)

    def build(_: AuthHttp, listen: ListenConfig) -> ServerConfig:
        values: dict[str, Any] = {
            "auth_http": None,
            "auth_mode": AuthMode.UPSTREAM,
            "route": (Route(domains=(DOMAIN,), upstream="main"),),
            "upstream_groups": (UpstreamGroup(name="main", servers=(member,), settings=settings),),
            "error_log": LogLevel.INFO,
            "xclient": False,
            **directives,
        }
        return configs.server(protocol, listen=(listen,), **values)

    async with loopback_worker(build, b"", drain=0.0) as w:
        w.upstream = upstream
        try:
            yield w
        finally:
            listener.close()
            for writer in upstream.writers:
                abort(writer)
