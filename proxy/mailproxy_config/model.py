# SPDX-License-Identifier: Apache-2.0
"""The effective configuration: the values that apply to each server after inheritance and defaults.

Fields are named after nginx's directives.  Parsing is in ``load``, validation in ``directives``,
inheritance in ``compile``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, NewType

from mailproxy_config.auth_cache import AuthCacheConfig, CacheKeyPart
from mailproxy_config.capability_choice import AlpnStrict, CapabilitiesFrom, CapabilityChoice
from mailproxy_config.certificate_choice import CertificateChoice
from mailproxy_config.limits import LimitSettings
from mailproxy_config.oauth_issuer import OAuthIssuer
from mailproxy_config.policy_server import AuthPolicyServer
from mailproxy_config.upstream_groups import Route, UpstreamGroup, UpstreamSettings
from mailproxy_config.upstream_login import ProxyAuth, ProxyAuthToken, ProxyMasterUser
from mailproxy_config.upstream_values import (
    CertificateFiles,
    NextUpstream,
    ProxySsl,
    SendIdentity,
    SendProxyProtocol,
    XclientMode,
)

__all__ = ["CertificateFiles", "NextUpstream", "ProxySsl", "SendIdentity", "SendProxyProtocol", "XclientMode"]
"""What other modules import from here although it is defined elsewhere."""

Seconds = NewType("Seconds", float)
ByteCount = NewType("ByteCount", int)


class Protocol(StrEnum):
    """A mail protocol; the values are nginx's names."""

    IMAP = "imap"
    POP3 = "pop3"
    SMTP = "smtp"


class AuthMethod(StrEnum):
    """An authentication method of ``imap_auth``, ``pop3_auth`` or ``smtp_auth``."""

    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    APOP = "apop"
    EXTERNAL = "external"
    NONE = "none"
    XOAUTH2 = "xoauth2"
    OAUTHBEARER = "oauthbearer"


class ImapId(StrEnum):
    """``imap_id_command``: the response to ID before login."""

    IGNORE = "Ignore"
    ANSWER = "Answer"


class StartTls(StrEnum):
    """``starttls``: not offered, offered, or required before login."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"
    ONLY = "Only"


class VerifyClient(StrEnum):
    """``ssl_verify_client``."""

    DISABLED = "Disabled"
    REQUIRED = "Required"
    OPTIONAL = "Optional"
    OPTIONAL_NO_CA = "OptionalNoCA"


class Tempfail(StrEnum):
    """``proxy_tempfail``: replies to a login that an outage made fail; nginx's, or temporary failures."""

    NGINX = "Nginx"
    RFC5530 = "Rfc5530"


class SmtpHelo(StrEnum):
    """``proxy_smtp_helo``: whose name an SMTP upstream gets in EHLO."""

    SERVER = "Server"
    CLIENT = "Client"


class AuthMode(StrEnum):
    """``auth_mode``: who decides about logins: the authentication service, the proxy, or the upstream.

    ``STATIC`` is the proxy too, with a list of users.
    """

    HTTP = "Http"
    JWT = "Jwt"
    UPSTREAM = "Upstream"
    STATIC = "Static"

    @property
    def needs_routes(self) -> bool:
        """Whether logins are routed without an authentication service."""
        return self in {AuthMode.UPSTREAM, AuthMode.STATIC}


class LogLevel(StrEnum):
    """A severity of ``error_log``, lowest first."""

    DEBUG = "debug"
    INFO = "info"
    NOTICE = "notice"
    WARN = "warn"
    ERROR = "error"
    CRIT = "crit"
    ALERT = "alert"
    EMERG = "emerg"


FACILITIES: Final = (
    *("kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "cron"),
    *(f"local{number}" for number in range(8)),
)
"""nginx's names; the index is the number of the facility in RFC 3164, section 4.1.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogServer:
    """The parameters of ``error_log syslog:``.

    ``address`` is an IP address without brackets or a host name.  For ``server=unix:``
    ``unix_path`` is set and ``address`` is empty.  ``facility`` is one of ``FACILITIES``.
    """

    address: str = ""
    port: int = 514
    unix_path: str | None = None
    facility: str = "local7"
    tag: str = "mailproxy"
    has_hostname: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLog:
    """One ``error_log`` of an ``nginx.conf``: a file, a syslog server, or (neither is set) standard error."""

    level: LogLevel = LogLevel.ERROR
    file: str | None = None
    """An absolute path."""
    syslog: SyslogServer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """``so_keepalive``; a field that is ``None`` keeps the setting of the operating system.

    ``idle`` and ``interval`` are in seconds (1 to 32767), ``count`` is 1 to 127.
    """

    enabled: bool = True
    idle: int | None = None
    interval: int | None = None
    count: int | None = None


ALPN_CLOSE: Final = "Close"
"""The value of ``alpn_default`` that rejects clients without ALPN; no server has a name in upper case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """One ``listen`` directive.

    ``address`` is ``*``, an IPv4 address, a host name, an IPv6 address in brackets, or
    ``unix:/path``.  ``port`` is ``None`` for ``unix:`` addresses only.
    """

    address: str = "*"
    port: int | None = None
    ssl: bool = False
    proxy_protocol: bool = False
    bind: bool = False
    backlog: int = 511
    rcvbuf: ByteCount | None = None
    sndbuf: ByteCount | None = None
    ipv6only: bool = True
    multipath: bool = False
    so_keepalive: KeepAlive | None = None
    alpn_servers: tuple[tuple[str, str], ...] = ()
    """ALPN protocols, sorted, and the names of their ``server`` blocks; empty: only that of the listener."""
    alpn_default: str = ALPN_CLOSE
    """The ``server`` block of clients without ALPN, or ``ALPN_CLOSE``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHttp:
    """The URL of ``auth_http``.

    ``host`` is as written (IPv6 addresses in brackets) and the value of the ``Host`` header.
    For ``unix:`` addresses ``unix_path`` is the socket and ``host`` is ``localhost``.
    """

    host: str
    port: int = 80
    uri: str = "/"
    unix_path: str | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHttpHeader:
    """One ``auth_http_header``: a value, or the path of the file that a Secret is mounted at.

    The file is read when the proxy starts or reloads; one line end at its end is removed.
    """

    name: str
    value: str | None = field(default=None, repr=False)
    value_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverConfig:
    """``resolver``: DNS servers (``1.2.3.4``, ``[::1]:5353``, ``ns.example``), or those of the system."""

    addresses: tuple[str, ...] = ()
    system: bool = False
    valid: Seconds | None = None
    ipv4: bool = True
    ipv6: bool = True
    status_zone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCache:
    """``ssl_session_cache``: ``off`` disables resumption from the cache.

    ``builtin`` is a number of sessions, ``shared_size`` is in bytes.  A cache with only
    default values is nginx's ``none``.
    """

    off: bool = False
    builtin: int | None = None
    shared_name: str | None = None
    shared_size: ByteCount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(LimitSettings, CapabilityChoice, CertificateChoice):
    """One ``server`` block with all inherited values."""

    name: str
    protocol: Protocol
    listen: tuple[ListenConfig, ...]

    server_name: str
    error_log: LogLevel
    timeout: Seconds
    max_errors: int
    resolver: ResolverConfig | None
    resolver_timeout: Seconds

    auth_http: AuthHttp | None
    """``None`` where ``auth_mode`` needs none."""
    auth_http_timeout: Seconds
    auth_http_header: tuple[AuthHttpHeader, ...]
    auth_http_pass_client_cert: bool
    auth_http_keepalive: bool
    auth_http_max_connections: int | None

    imap_auth: frozenset[AuthMethod]
    imap_capabilities: tuple[str, ...]
    imap_client_buffer: ByteCount
    pop3_auth: frozenset[AuthMethod]
    pop3_capabilities: tuple[str, ...]
    pop3_client_buffer: ByteCount
    smtp_auth: frozenset[AuthMethod]
    smtp_capabilities: tuple[str, ...]
    smtp_client_buffer: ByteCount
    smtp_greeting_delay: Seconds

    proxy_buffer: ByteCount
    proxy_timeout: Seconds
    proxy_pass_error_message: bool
    proxy_smtp_auth: bool
    proxy_protocol: SendProxyProtocol
    xclient: bool
    set_real_ip_from: tuple[str, ...]

    starttls: StartTls
    ssl_certificate: tuple[CertificateFiles, ...]
    ssl_certificate_selector: str | None  # a directory with ``NAME/tls.crt`` and ``NAME/tls.key``
    ssl_reject_handshake: bool
    ssl_certificate_compression: bool
    ssl_protocols: frozenset[str]
    ssl_ciphers: str
    ssl_prefer_server_ciphers: bool
    ssl_ecdh_curve: str
    ssl_dhparam: str | None
    ssl_password_file: str | None
    ssl_session_cache: SessionCache
    ssl_session_timeout: Seconds
    ssl_session_tickets: bool
    ssl_session_ticket_key: tuple[str, ...]
    ssl_verify_client: VerifyClient
    ssl_verify_depth: int
    ssl_client_certificate: str | None
    ssl_trusted_certificate: str | None
    ssl_crl: str | None
    ssl_conf_command: tuple[tuple[str, str], ...]

    auth_http_server_names: bool
    auth_http_server_networks: tuple[str, ...]
    auth_http_variables: bool
    proxy_ssl: ProxySsl
    proxy_ssl_verify: bool
    proxy_ssl_verify_depth: int
    proxy_ssl_name: str
    proxy_ssl_server_name: bool
    proxy_ssl_trusted_certificate: str | None
    proxy_ssl_crl: str | None
    proxy_ssl_certificate: CertificateFiles | None
    proxy_ssl_password_file: str | None
    proxy_ssl_protocols: frozenset[str]
    proxy_ssl_ciphers: str
    proxy_ssl_session_reuse: bool
    proxy_ssl_alpn: tuple[str, ...]
    proxy_ssl_conf_command: tuple[tuple[str, str], ...]
    proxy_smtp_guard: bool
    proxy_imap_guard: bool
    oauth_strict: bool
    auth_mode: AuthMode
    auth_user_file: str | None
    route: tuple[Route, ...]
    oauth_issuer: tuple[OAuthIssuer, ...]
    imap_id_command: ImapId | None
    imap_capabilities_from: CapabilitiesFrom
    imap_capability_after_login: bool
    smtp_capabilities_from: CapabilitiesFrom
    ssl_alpn_strict: AlpnStrict
    smtp_auth_command: bool
    real_ip_command: bool
    limit_rate: ByteCount
    limit_rate_after: ByteCount
    proxy_id: SendIdentity
    proxy_pop3_xclient: SendIdentity
    xclient_mode: XclientMode
    proxy_connect_timeout: Seconds | None
    proxy_next_upstream: frozenset[NextUpstream]
    proxy_next_upstream_tries: int
    proxy_next_upstream_timeout: Seconds
    proxy_protocol_unique_id: bool
    proxy_forward: tuple[tuple[str, str], ...]
    auth_http_facts: bool
    auth_http_overrides: bool
    proxy_tempfail: Tempfail
    proxy_smtp_helo: SmtpHelo
    proxy_auth: tuple[ProxyAuth, ...]
    proxy_auth_require_tls: bool | None
    proxy_master_user: ProxyMasterUser | None
    proxy_auth_token: ProxyAuthToken | None
    auth_cache: AuthCacheConfig | None
    auth_cache_key: frozenset[CacheKeyPart]
    auth_policy_server: AuthPolicyServer | None
    log_password_fingerprint: bool

    upstream_groups: tuple[UpstreamGroup, ...] = ()
    """The groups of upstreams that ``route`` uses."""
    server_names: tuple[str, ...] = ()
    """Names by which clients choose this block among those with the same ``ssl`` listener."""
    error_logs: tuple[ErrorLog, ...] = ()
    """Session logs of an ``nginx.conf``.  Empty: standard error with the level ``error_log``."""

    @property
    def tls_is_used(self) -> bool:
        """Whether this server has an ``ssl`` listener or ``starttls``, and so needs certificates."""
        return self.starttls is not StartTls.DISABLED or any(listen.ssl for listen in self.listen)

    @property
    def client_verification_files(self) -> tuple[tuple[str, str], ...]:
        """Directives and paths of the files that verify client certificates; none if that is disabled."""
        if self.ssl_verify_client is VerifyClient.DISABLED:
            return ()
        files = (
            ("ssl_client_certificate", self.ssl_client_certificate),
            ("ssl_trusted_certificate", self.ssl_trusted_certificate),
            ("ssl_crl", self.ssl_crl),
        )
        return tuple((directive, path) for directive, path in files if path is not None)

    @property
    def negotiates_xclient(self) -> bool:
        """Whether an SMTP upstream gets the XCLIENT attributes that it lists, not those of nginx."""
        is_nginx = self.xclient_mode is XclientMode.ALWAYS and self.auth_mode is not AuthMode.UPSTREAM
        return self.xclient and not is_nginx

    @property
    def sends_identity(self) -> bool:
        """Whether upstreams of this protocol get the address that the client has connected to."""
        if self.protocol is Protocol.IMAP:
            return self.proxy_id is not SendIdentity.DISABLED
        if self.protocol is Protocol.POP3:
            return self.proxy_pop3_xclient is not SendIdentity.DISABLED
        return self.negotiates_xclient

    @property
    def used_issuers(self) -> tuple[OAuthIssuer, ...]:
        """The issuers whose tokens this server validates."""
        return self.oauth_issuer if self.auth_mode is AuthMode.JWT else ()

    @property
    def used_user_file(self) -> str | None:
        """The file with users and password hashes, if this server verifies passwords."""
        return self.auth_user_file if self.auth_mode is AuthMode.STATIC else None

    @property
    def group_configs(self) -> dict[str, ServerConfig]:
        """This server with the directives of each group that has some, by the name of the group."""
        groups = tuple(replace(group, settings=UpstreamSettings()) for group in self.upstream_groups)
        found: dict[str, ServerConfig] = {}
        for group in self.upstream_groups:
            changes: dict[str, Any] = dict(group.settings.directives)
            if changes:
                found[group.name] = replace(self, upstream_groups=groups, **changes)
        return found

    @property
    def with_groups(self) -> tuple[ServerConfig, ...]:
        """This server, and ``group_configs``."""
        return self, *self.group_configs.values()

    @property
    def uses_connected_address(self) -> bool:
        """Whether the address and the SNI name that a client has connected to may be passed on."""
        for_service = self.auth_http_variables or self.auth_http_facts or self.auth_http_overrides
        return self.sends_identity or for_service or bool(self.auth_cache_key)

    @property
    def may_use_upstream_tls(self) -> bool:
        """Whether some logins at upstreams use TLS."""
        return self.proxy_ssl is not ProxySsl.DISABLED or self.auth_http_overrides

    @property
    def upstream_login_files(self) -> tuple[tuple[str, str], ...]:
        """Directives and paths of the files with secrets for upstreams and for the policy server."""
        master, token, policy = self.proxy_master_user, self.proxy_auth_token, self.auth_policy_server
        found = [] if master is None else [("proxy_master_user", master.password_file)]
        found += [("proxy_auth_token", path) for path in (() if token is None else token.files)]
        found += [("auth_policy_server", path) for path in (() if policy is None else policy.files)]
        return tuple(found)

    @property
    def upstream_tls_files(self) -> tuple[tuple[str, str], ...]:
        """Directives and paths of all files that TLS to upstreams reads; none if it is not used."""
        if not self.may_use_upstream_tls:
            return ()
        pair = self.proxy_ssl_certificate
        files: tuple[tuple[str, str | None], ...] = (
            ("proxy_ssl_certificate", pair.certificate if pair else None),
            ("proxy_ssl_certificate_key", pair.key if pair else None),
            ("proxy_ssl_password_file", self.proxy_ssl_password_file),
            ("proxy_ssl_trusted_certificate", self.proxy_ssl_trusted_certificate),
            ("proxy_ssl_crl", self.proxy_ssl_crl),
        )
        return tuple((directive, path) for directive, path in files if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    """Graceful shutdown: delay before the listeners are closed, and time limit for relays after it."""

    delay: Seconds = Seconds(0.0)
    timeout: Seconds = Seconds(300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """The configuration of one proxy.  ``workers`` is ``None`` for ``auto``."""

    servers: tuple[ServerConfig, ...]
    workers: int | None = 1
    worker_connections: int = 512
    error_log: LogLevel = LogLevel.ERROR
    error_logs: tuple[ErrorLog, ...] = ()
    """Logs for events outside of sessions; see ``ServerConfig.error_logs``."""
    drain: DrainConfig = DrainConfig()
