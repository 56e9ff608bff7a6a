# SPDX-License-Identifier: Apache-2.0
"""The values of ``limit_conn``, ``limit_req`` and the directives beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailproxy_config.failed_logins import FailedLogins

MIN_ZONE: Final = 32 * 1024
"""Bytes of the smallest zone, as in nginx with pages of 4 KiB."""
MAX_ZONE: Final = 16 * 1024 * 1024
MAX_ZONES_TOTAL: Final = 32 * 1024 * 1024
"""Bytes of all zones together.  During a reload those of the previous configuration need their place, too."""
MAX_CONNECTIONS: Final = 65535
MAX_BURST: Final = 65535
HEADER_PREFIX: Final = "$auth_http_"
REMOTE_ADDR: Final = "$remote_addr"
REMOTE_USER: Final = "$remote_user"
DOMAIN: Final = "$domain"

_VARIABLE: Final = re.compile(r"\$[a-z0-9_]+")


class LimitLogLevel(StrEnum):
    """``limit_conn_log_level`` and ``limit_req_log_level``."""

    INFO = "info"
    NOTICE = "notice"
    WARN = "warn"
    ERROR = "error"


class LimitWords(StrEnum):
    """``limit_conn_words``: the reply to a client above a limit: freenginx's, or Dovecot's response codes."""

    FREENGINX = "Freenginx"
    DOVECOT = "Dovecot"


def variables_of(key: str) -> tuple[str, ...]:
    """The variables of a key, which is one or several of them without anything between."""
    return tuple(_VARIABLE.findall(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConnZone:
    """One item of ``limit_conn_zone``; ``size`` is in bytes."""

    zone: str
    key: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReqZone:
    """One item of ``limit_req_zone``; ``size`` is in bytes, ``rate`` in logins per minute."""

    zone: str
    key: str
    size: int
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConn:
    """One item of ``limit_conn``."""

    zone: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReq:
    """One item of ``limit_req``: logins above the rate that are allowed, and after how many they wait.

    ``delay`` is ``None`` for ``nodelay``.
    """

    zone: str
    burst: int = 0
    delay: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings(FailedLogins):
    """The part of ``ServerConfig`` about limits."""

    limit_conn_zone: tuple[LimitConnZone, ...]
    limit_conn: tuple[LimitConn, ...]
    limit_conn_log_level: LimitLogLevel
    limit_conn_dry_run: bool
    limit_conn_ipv6_prefix: int
    limit_conn_words: LimitWords
    limit_preauth: int
    limit_req_zone: tuple[LimitReqZone, ...]
    limit_req: tuple[LimitReq, ...]
    limit_req_log_level: LimitLogLevel
    limit_req_dry_run: bool
    max_commands: int

    @property
    def limit_zones(self) -> tuple[str, ...]:
        """The names of the zones."""
        zones: tuple[LimitConnZone | LimitReqZone, ...] = self.limit_conn_zone + self.limit_req_zone
        return tuple(zone.zone for zone in zones)

    @property
    def limits_logins(self) -> bool:
        """Whether a login may be refused because of ``limit_conn`` or ``limit_req``."""
        return bool(self.limit_conn or self.limit_req)
