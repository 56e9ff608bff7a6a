# SPDX-License-Identifier: Apache-2.0
"""What all sessions of one ``server`` block share: its configuration put to work."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailproxy.auth.request import RequestTemplate
from mailproxy.observe.log import LogWriter
from mailproxy.observe.meter import ProtocolMeter, ServerMeter
from mailproxy.protocols.record import Frontend, MailProtocol, Upstream
from mailproxy.protocols.trust import TrustedPeers
from mailproxy.runtime.auth_http import AuthService
from mailproxy.runtime.resolver import Resolver
from mailproxy.runtime.timers import Lane
from mailproxy.tls.contexts import ServerTls
from mailproxy_config.model import ServerConfig


@dataclass(slots=True, eq=False)
class Server:
    """One ``server`` block at work; made by a reload, kept by its sessions until the last has gone."""

    config: ServerConfig
    protocol: MailProtocol
    auth: AuthService
    template: RequestTemplate
    resolver: Resolver | None
    tls: ServerTls | None
    trusted: TrustedPeers
    meter: ServerMeter
    numbers: ProtocolMeter
    patience: Lane
    """For deadlines of ``timeout``."""
    idleness: Lane
    """For deadlines of ``proxy_timeout``."""
    log: LogWriter
    """Where its sessions are logged."""
    suspects_proxy_header: bool = False
    """Whether a handshake failed because what came was no TLS; the next one is looked at."""
    frontend: Frontend = field(init=False)
    upstream: Upstream = field(init=False)

    def __post_init__(self) -> None:
        self.frontend = self.protocol.frontend(self.config)
        self.upstream = self.protocol.upstream(self.config)
