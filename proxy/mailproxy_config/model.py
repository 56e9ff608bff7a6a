# SPDX-License-Identifier: Apache-2.0
"""The effective configuration: what is left when inheritance and defaults have been applied.

The proxy reads nothing else.  Every value of ``ServerConfig`` is the one that
holds for that server; the names are nginx's directives.  Nothing here parses,
validates or inherits: see ``directives``, ``compile`` and ``load`` for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

Seconds = NewType("Seconds", float)
ByteCount = NewType("ByteCount", int)


class Protocol(StrEnum):
    """A mail protocol, by nginx's name for it."""

    IMAP = "imap"
    POP3 = "pop3"
    SMTP = "smtp"


class AuthMethod(StrEnum):
    """A word of ``imap_auth``, ``pop3_auth`` and ``smtp_auth``."""

    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    APOP = "apop"
    EXTERNAL = "external"
    NONE = "none"


class StartTls(StrEnum):
    """``starttls``: not offered, offered, or demanded before authentication."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"
    ONLY = "Only"


class SendProxyProtocol(StrEnum):
    """``proxy_protocol`` towards the upstream."""

    DISABLED = "Disabled"
    V1 = "V1"
    V2 = "V2"


class VerifyClient(StrEnum):
    """``ssl_verify_client``."""

    DISABLED = "Disabled"
    REQUIRED = "Required"
    OPTIONAL = "Optional"
    OPTIONAL_NO_CA = "OptionalNoCA"


class LogLevel(StrEnum):
    """A level of ``error_log``, most verbose first."""

    DEBUG = "debug"
    INFO = "info"
    NOTICE = "notice"
    WARN = "warn"
    ERROR = "error"
    CRIT = "crit"
    ALERT = "alert"
    EMERG = "emerg"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyslogServer:
    """The parameters of ``error_log syslog:``.

    ``address`` is an IP address without brackets or a host name; ``unix_path``
    is set instead of it for ``server=unix:``.  ``facility`` is nginx's name.
    """

    address: str = ""
    port: int = 514
    unix_path: str | None = None
    facility: str = "local7"
    tag: str = "mailproxy"
    has_hostname: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLog:
    """One ``error_log`` of an ``nginx.conf``: a file, a syslog server, or else standard error."""

    level: LogLevel = LogLevel.ERROR
    file: str | None = None
    """An absolute path."""
    syslog: SyslogServer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlive:
    """``so_keepalive``: ``None`` in a field leaves the system's own value.

    ``idle`` and ``interval`` are whole seconds (1 to 32767), ``count`` is 1 to 127.
    """

    enabled: bool = True
    idle: int | None = None
    interval: int | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig:
    """One ``listen`` line.

    ``address`` is ``*``, an IPv4 address, a host name, an IPv6 address in
    brackets, or ``unix:/path``; then, and only then, ``port`` is ``None``.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHttp:
    """Where ``auth_http`` points.

    ``host`` is as written (an IPv6 address keeps its brackets) and is what the
    ``Host`` header says; ``unix_path`` is set instead of a port to connect to
    for ``unix:`` addresses, whose ``host`` is ``localhost``.
    """

    host: str
    port: int = 80
    uri: str = "/"
    unix_path: str | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthHttpHeader:
    """One ``auth_http_header``: a value, or the file a Secret is mounted at.

    A value from a file is read when the configuration is put to work; one
    trailing line end is not part of it.
    """

    name: str
    value: str | None = field(default=None, repr=False)
    value_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverConfig:
    """``resolver``: name servers (``1.2.3.4``, ``[::1]:5353``, ``ns.example``), or the system's own."""

    addresses: tuple[str, ...] = ()
    system: bool = False
    valid: Seconds | None = None
    ipv4: bool = True
    ipv6: bool = True
    status_zone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """One ``ssl_certificate`` with its key: paths of PEM files."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCache:
    """``ssl_session_cache``: ``off`` refuses sessions; ``builtin`` and ``shared`` are sizes.

    ``builtin`` counts sessions; ``shared`` counts bytes and has a name.  With
    everything at its default the cache is nginx's ``none``.
    """

    off: bool = False
    builtin: int | None = None
    shared_name: str | None = None
    shared_size: ByteCount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One ``server`` block with everything it inherits."""

    name: str
    protocol: Protocol
    listen: tuple[ListenConfig, ...]

    server_name: str
    error_log: LogLevel
    timeout: Seconds
    max_errors: int
    resolver: ResolverConfig | None
    resolver_timeout: Seconds

    auth_http: AuthHttp
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

    error_logs: tuple[ErrorLog, ...] = ()
    """Where an ``nginx.conf`` logs sessions to; empty is standard error, at the level ``error_log``."""

    @property
    def tls_is_used(self) -> bool:
        """Whether this server needs certificates: an ``ssl`` listener, or ``starttls``."""
        return self.starttls is not StartTls.DISABLED or any(listen.ssl for listen in self.listen)

    @property
    def tls_files(self) -> tuple[tuple[str, str], ...]:
        """Every file that its TLS reads, as directive and path; none if TLS is not used.

        As in nginx, the files for verifying clients are not read with ``ssl_verify_client off``.
        """
        if not self.tls_is_used:
            return ()
        named: list[tuple[str, str | None]] = []
        for pair in self.ssl_certificate:
            named += [("ssl_certificate", pair.certificate), ("ssl_certificate_key", pair.key)]
        named += [("ssl_session_ticket_key", path) for path in self.ssl_session_ticket_key]
        named += [("ssl_dhparam", self.ssl_dhparam), ("ssl_password_file", self.ssl_password_file)]
        if self.ssl_verify_client is not VerifyClient.DISABLED:
            named += [
                ("ssl_client_certificate", self.ssl_client_certificate),
                ("ssl_trusted_certificate", self.ssl_trusted_certificate),
                ("ssl_crl", self.ssl_crl),
            ]
        return tuple((directive, path) for directive, path in named if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    """How a proxy leaves: the time before it stops accepting, and what relays get after that."""

    delay: Seconds = Seconds(0.0)
    timeout: Seconds = Seconds(300.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Everything one proxy runs with.  ``workers`` is ``None`` for ``auto``."""

    servers: tuple[ServerConfig, ...]
    workers: int | None = 1
    worker_connections: int = 512
    error_log: LogLevel = LogLevel.ERROR
    error_logs: tuple[ErrorLog, ...] = ()
    """As a server's, for what belongs to no session."""
    drain: DrainConfig = DrainConfig()
