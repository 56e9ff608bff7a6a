# SPDX-License-Identifier: Apache-2.0
"""A ``server`` block at work: what all of its sessions share."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mailproxy.auth_http.pending_request import Authenticator
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import WorkerContext
from mailproxy.dns import Resolver
from mailproxy.dns.upstream_names import UpstreamNames
from mailproxy.enums import CloseReason, Limit, LoginResult
from mailproxy.errors import UpstreamError
from mailproxy.loop.timeouts import TimeoutQueue
from mailproxy.protocols.frontend import Frontend
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import MailProtocol
from mailproxy.protocols.types import NO_SECRETS, AuthRequest, Client, LoginSecrets, Overrides, UpstreamLogin
from mailproxy.protocols.upstream_reply import UpstreamLoginBase
from mailproxy.routing.group_choice import GroupChoice
from mailproxy.session.login_overrides import connect_for_login
from mailproxy.session.named_client import frontend_factory
from mailproxy.session.rate_limit import relay_end_for
from mailproxy.session.refusal_times import RefusalTimes
from mailproxy.session.relay_end import RelayEnd
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_candidates import connector
from mailproxy.session.upstream_lookup import Connecting, UpstreamLookup
from mailproxy.session.upstream_token import TokenUpstreamConnection
from mailproxy.telemetry.log_format import ServerFields, SessionRecord
from mailproxy.telemetry.log_writer import LogWriter
from mailproxy.telemetry.metrics import Gauge, ProtocolMetrics, ServerMetrics
from mailproxy.tls.context import ServerTls
from mailproxy.tls.upstream_context import UpstreamTls
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import ServerConfig

if TYPE_CHECKING:  # their libraries take memory, and most workers do not need them
    from mailproxy.limits.preauth import PreauthLimit
    from mailproxy.oauth.token_source import TokenSource
    from mailproxy.penalty.block_check import BlockCheck
    from mailproxy.policy.password_fingerprint import PasswordFingerprints
    from mailproxy.session.upstream_capabilities import UpstreamCapabilities

_SUCCESS: Final = LoginResult.SUCCESS  # saves 900 instructions per session on Python 3.11
_LIMITS: Final = {
    CloseReason.MAX_ERRORS: Limit.MAX_ERRORS,
    CloseReason.MAX_COMMANDS: Limit.MAX_COMMANDS,
}


@dataclass(slots=True, eq=False)
class VirtualServer:
    """One ``server`` block of one configuration; sessions keep theirs across a reload."""

    config: ServerConfig
    protocol: MailProtocol
    auth: Authenticator
    """What decides about logins (``auth_mode``)."""
    template: RequestTemplate
    resolver: Resolver | None
    tls: ServerTls | None
    """TLS with clients."""
    upstream_tls: UpstreamTls | None
    """TLS with upstreams."""
    trusted: TrustedPeers
    metrics: ServerMetrics
    """The metrics of this server."""
    protocol_metrics: ProtocolMetrics
    """The metrics of its protocol."""
    login_timeouts: TimeoutQueue
    """Timeouts of the length ``timeout``."""
    idle_timeouts: TimeoutQueue
    """Timeouts of the length ``proxy_timeout``."""
    log: LogWriter
    """The log of its sessions."""
    report_login: Callable[[AuthRequest, LoginResult], None] | None = None
    """Reports the results of logins to a policy server."""
    fingerprints: PasswordFingerprints | None = None
    """Fingerprints of refused passwords for the log."""
    tokens: TokenSource | None = None
    """The access tokens for logins at upstreams."""
    login_secrets: LoginSecrets = NO_SECRETS
    """Secrets for logins at upstreams."""
    suspects_proxy_header: bool = False
    """Whether a handshake failed because the client did not send TLS; the next client's bytes are checked."""
    refusals: RefusalTimes = field(default_factory=RefusalTimes)
    """When refused logins get their reply (``auth_mode upstream``)."""
    choices: Mapping[str, VirtualServer] | None = None
    """Servers of which the ClientHello chooses one, by name; see ``shared_listener``."""
    upstream_names: UpstreamNames | None = None
    """Resolves host names in ``Auth-Server``."""
    preauth: PreauthLimit | None = None
    """Limits connections that have not logged in (``limit_preauth``)."""
    blocks: BlockCheck | None = None
    """Finds clients whose address is blocked (``auth_block``)."""
    base: VirtualServer | None = None
    """Of a variant for logins with overrides or of a group: the server of the configuration."""
    groups: Mapping[str, VirtualServer] = field(default_factory=dict)
    """For logins at groups of upstreams with directives of their own, by the name of the group."""
    group_choices: Mapping[str, GroupChoice] = field(default_factory=dict)
    """What chooses servers of groups of upstreams, by the name of the group."""
    frontend: Callable[[Client], Frontend[Any]] = field(init=False)
    upstream: UpstreamLoginBase = field(init=False)
    connect: Callable[[Any, UpstreamLogin], Connecting] = field(init=False)
    """Connects a login of a session to its upstream."""
    connect_address: Callable[[Any, UpstreamLogin], Connecting] = field(init=False)
    """The same for a single address."""
    connection: type[UpstreamConnection] = field(init=False)
    """The class of connections to upstreams."""
    upstream_end: Callable[..., RelayEnd] = field(init=False)
    """Makes the upstream's end of a relay."""
    log_fields: ServerFields = field(init=False)
    """For the log records of its sessions."""
    capabilities: UpstreamCapabilities | None = field(init=False, default=None)
    """What upstreams can do; it replaces ``frontend`` and ``upstream_end`` where it is used."""
    variants: OrderedDict[Overrides, VirtualServer] = field(init=False, default_factory=OrderedDict)
    """For logins with overrides; the one unused for longest is first."""

    def __post_init__(self) -> None:
        self.log_fields = ServerFields(self.config.name, self.config.protocol)
        self.connection = UpstreamConnection if self.tokens is None else TokenUpstreamConnection
        self.connect_address = connector(self.config, self.connection)
        names = self.config.auth_http_server_names or self.config.upstream_groups
        self.connect = UpstreamLookup.connect if names else self.connect_address
        if self.config.auth_http_overrides or self.config.upstream_groups:
            self.connect = partial(connect_for_login, self, self.connect)
        self.frontend = frontend_factory(self.protocol, self.config, self.trusted)
        self.upstream = self.login_at_upstreams(self.config)
        self.upstream_end = relay_end_for(self.config)

    def count_accepted(self) -> None:
        """Count a client for which there is no session."""
        self.metrics.accepted.value += 1

    def login_at_upstreams(self, config: ServerConfig) -> UpstreamLoginBase:
        """Prepare the login at upstreams, with the directives of this server or others for single logins."""
        return self.protocol.upstream(config, self.login_secrets)

    def record_upstream_error(self, record: SessionRecord, error: UpstreamError) -> None:
        """Update the metrics for a login that failed at the upstream, and the report about upstreams."""
        self.protocol_metrics.upstream_failed(error)
        if error.is_misconfigured or error.tls_failure is not None:
            upstream = format_host_port(record.upstream, record.upstream_port)
            self.metrics.upstreams.failed(upstream, error, time.time())

    def record_upstream_tls(self, record: SessionRecord) -> None:
        """Record a TLS handshake with the upstream that was completed."""
        upstream = format_host_port(record.upstream, record.upstream_port)
        self.metrics.upstreams.tls_established(upstream, time.time())

    def record_end(
        self, context: WorkerContext, record: SessionRecord, state_gauge: Gauge, reason: CloseReason
    ) -> None:
        """Update the metrics for the end of a client connection, and log its session.

        Args:
            context: The worker's shared parts.
            record: The session's log record; its end is filled in.
            state_gauge: The gauge in which the session is counted.
            reason: Why it ended.
        """
        if record.held is not None:
            record.held.release()
        record.duration = duration = context.epoll.now - record.started
        record.reason = reason
        state_gauge.value -= 1
        metrics = self.metrics
        metrics.active.value -= 1
        metrics.closed[reason].value += 1
        is_authenticated = record.result is _SUCCESS
        if not is_authenticated and reason in _LIMITS:
            metrics.limit_rejections[_LIMITS[reason]].value += 1
        self.protocol_metrics.session_seconds[is_authenticated].observe(duration)
        self.log.session(record)
