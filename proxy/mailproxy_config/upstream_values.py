# SPDX-License-Identifier: Apache-2.0
"""Values of directives about upstreams, which a server and a group of upstreams can have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SendProxyProtocol(StrEnum):
    """``proxy_protocol``: version of the PROXY protocol header sent to the upstream."""

    DISABLED = "Disabled"
    V1 = "V1"
    V2 = "V2"


class ProxySsl(StrEnum):
    """``proxy_ssl``: TLS to the upstream: none, from the first byte, or after the protocol's STARTTLS."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"
    STARTTLS = "Starttls"


class SendIdentity(StrEnum):
    """``proxy_id`` and ``proxy_pop3_xclient``: never, where the upstream offers it, or always."""

    DISABLED = "Disabled"
    AUTO = "Auto"
    REQUIRED = "Required"


class XclientMode(StrEnum):
    """``xclient_mode``: as nginx, where the upstream lists it, or the same and required."""

    ALWAYS = "Always"
    AUTO = "Auto"
    REQUIRED = "Required"


class NextUpstream(StrEnum):
    """``proxy_next_upstream``: a failure after which a login is tried again."""

    CONNECT = "Connect"
    GREETING = "Greeting"
    TLS = "Tls"
    STARTTLS = "Starttls"
    HELLO = "Hello"
    UNAVAILABLE = "Unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """One ``ssl_certificate`` with its ``ssl_certificate_key``: paths of PEM files."""

    certificate: str
    key: str
    server_names: tuple[str, ...] | None = None
    """Names in lower case for which clients get it; empty: its DNS names; ``None``: not given."""
