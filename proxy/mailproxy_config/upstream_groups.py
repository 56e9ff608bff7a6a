# SPDX-License-Identifier: Apache-2.0
"""Groups of upstreams, and the routes of logins to them (``upstream``, ``route``).

Secrets and tables are in files; only their paths are part of a configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from mailproxy_config.upstream_login import ProxyAuth, ProxyAuthToken, ProxyMasterUser
from mailproxy_config.upstream_values import (
    CertificateFiles,
    NextUpstream,
    ProxySsl,
    SendIdentity,
    SendProxyProtocol,
    XclientMode,
)

_PORTS: Final = {"imap": (143, 993), "pop3": (110, 995), "smtp": (587, 465)}
"""Ports without and with TLS from the first byte; SMTP servers get logins at the ports for submission."""


class GroupHash(StrEnum):
    """``hash``: how a server of a group is chosen: by weight, or always the same for a user."""

    NONE = "None"
    USER = "User"


class GroupFallback(StrEnum):
    """``fallback``: which member gets a login whose own member is not ready: none, or the next by score."""

    NONE = "None"
    NEXT = "Next"


def default_port(protocol: str, proxy_ssl: ProxySsl) -> int:
    """Return the port of servers without one."""
    return _PORTS[protocol][proxy_ssl is ProxySsl.ENABLED]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupServer:
    """One ``server`` of a group.

    ``host`` is a host name in lower case, an IP address without brackets, or ``unix:`` and a path.
    ``port`` is ``None`` for the port of the protocol, and for ``unix:``.  ``address`` is as written: the
    identifier of the server in ``hash``.
    """

    address: str
    host: str
    port: int | None = None
    weight: int = 1
    backup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """Directives of a group, named as in ``ServerConfig``; ``None`` is the value of the server.

    Timeouts are in seconds.
    """

    proxy_smtp_auth: bool | None = None
    proxy_protocol: SendProxyProtocol | None = None
    xclient: bool | None = None
    xclient_mode: XclientMode | None = None
    proxy_id: SendIdentity | None = None
    proxy_pop3_xclient: SendIdentity | None = None
    proxy_smtp_guard: bool | None = None
    proxy_imap_guard: bool | None = None
    proxy_ssl: ProxySsl | None = None
    proxy_ssl_verify: bool | None = None
    proxy_ssl_verify_depth: int | None = None
    proxy_ssl_name: str | None = None
    proxy_ssl_server_name: bool | None = None
    proxy_ssl_trusted_certificate: str | None = None
    proxy_ssl_crl: str | None = None
    proxy_ssl_certificate: CertificateFiles | None = None
    proxy_ssl_password_file: str | None = None
    proxy_ssl_protocols: frozenset[str] | None = None
    proxy_ssl_ciphers: str | None = None
    proxy_ssl_session_reuse: bool | None = None
    proxy_connect_timeout: float | None = None
    proxy_next_upstream: frozenset[NextUpstream] | None = None
    proxy_next_upstream_tries: int | None = None
    proxy_next_upstream_timeout: float | None = None
    proxy_auth: tuple[ProxyAuth, ...] | None = None
    proxy_auth_require_tls: bool | None = None
    proxy_master_user: ProxyMasterUser | None = None
    proxy_auth_token: ProxyAuthToken | None = None

    @property
    def directives(self) -> tuple[tuple[str, object], ...]:
        """The directives that are set, with their values, sorted by name."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return tuple(sorted((name, value) for name, value in values if value is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMembers:
    """The Service that a group is, whose members get the logins.

    Attributes:
        service: ``NAMESPACE/NAME``.
        port: Number or name of its port; empty for the port of the protocol.
        fallback: Which member gets a login whose own member is not ready.
        file: The path of the document with the members (``upstream_members``); empty where nobody writes
            one, and the DNS name of the Service is used.
    """

    service: str
    port: str = ""
    fallback: GroupFallback = GroupFallback.NONE
    file: str = ""

    def port_key(self, protocol_port: int) -> str:
        """Return what the port of a member is found by; ``protocol_port`` is the port of the protocol."""
        return self.port or str(protocol_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamGroup:
    """One ``upstream`` block: servers of which each has all mailboxes of the logins that are routed to it.

    Of a Service, ``servers`` has its DNS name alone.
    """

    name: str
    servers: tuple[GroupServer, ...]
    members: GroupMembers | None = None
    hash: GroupHash = GroupHash.NONE
    settings: UpstreamSettings = UpstreamSettings()


def service_groups(groups: Iterable[UpstreamGroup]) -> frozenset[str]:
    """Return the names of the groups that are Services."""
    return frozenset(group.name for group in groups if group.members is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One ``route``: which logins go to which group.

    A route has either users and domains with their group, or a table with a group in each line.
    ``users`` are login names, ``domains`` are ``example.org``, ``*.example.org`` or ``*``; domains
    are in lower case.  ``table`` is the path of a file.
    """

    users: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    table: str | None = None
    upstream: str = ""
