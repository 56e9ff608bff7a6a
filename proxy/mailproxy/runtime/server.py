"""What all sessions of one ``server`` block share: its configuration put to work."""

from __future__ import annotations

from mailproxy.auth.request import RequestTemplate
from mailproxy.observe.meter import ProtocolMeter, ServerMeter
from mailproxy.protocols.record import Frontend, MailProtocol, Upstream
from mailproxy.protocols.trust import TrustedPeers
from mailproxy.runtime.auth_http import AuthService
from mailproxy.runtime.resolver import Resolver
from mailproxy.tls.contexts import ServerTls
from mailproxy_config.model import ServerConfig


class Server:
    """One ``server`` block at work; made by a reload, kept by its sessions until the last has gone."""

    __slots__ = (
        "auth",
        "config",
        "frontend",
        "meter",
        "numbers",
        "protocol",
        "resolver",
        "template",
        "tls",
        "trusted",
        "upstream",
    )

    def __init__(
        self,
        config: ServerConfig,
        *,
        protocol: MailProtocol,
        auth: AuthService,
        template: RequestTemplate,
        resolver: Resolver | None,
        tls: ServerTls | None,
        trusted: TrustedPeers,
        meter: ServerMeter,
        numbers: ProtocolMeter,
    ) -> None:
        self.config = config
        self.protocol = protocol
        self.frontend: Frontend = protocol.frontend(config)
        self.upstream: Upstream = protocol.upstream(config)
        self.auth = auth
        self.template = template
        self.resolver = resolver
        self.tls = tls
        self.trusted = trusted
        self.meter = meter
        self.numbers = numbers
