# SPDX-License-Identifier: Apache-2.0
"""What all sessions of one ``server`` block share: its configuration put to work."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.dns import Resolver
from mailproxy.loop.timeouts import TimeoutQueue
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import FrontendFactory, MailProtocol, Upstream
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.telemetry.metrics import ProtocolMetrics, ServerMetrics
from mailproxy.tls.context import ServerTls
from mailproxy_config.model import ServerConfig


@dataclass(slots=True, eq=False)
class VirtualServer:
    """One ``server`` block at work; made by a reload, kept by its sessions until the last has gone."""

    config: ServerConfig
    protocol: MailProtocol
    auth: AuthHttpClient
    template: RequestTemplate
    resolver: Resolver | None
    tls: ServerTls | None
    trusted: TrustedPeers
    metrics: ServerMetrics
    numbers: ProtocolMetrics
    patience: TimeoutQueue
    """For deadlines of ``timeout``."""
    idleness: TimeoutQueue
    """For deadlines of ``proxy_timeout``."""
    log: LogWriter
    """Where its sessions are logged."""
    suspects_proxy_header: bool = False
    """Whether a handshake failed because what came was no TLS; the next one is looked at."""
    frontend: FrontendFactory = field(init=False)
    upstream: Upstream = field(init=False)

    def __post_init__(self) -> None:
        self.frontend = self.protocol.frontend(self.config)
        self.upstream = self.protocol.upstream(self.config)
