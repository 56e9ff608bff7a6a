# SPDX-License-Identifier: Apache-2.0
"""The values of ``auth_cache`` and ``auth_cache_key``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CacheKeyPart(StrEnum):
    """A fact about the client that belongs to the key of a cached login (``auth_cache_key``)."""

    ADDRESS = "Address"
    """The client's address, after ``set_real_ip_from`` and ``real_ip_command``."""
    DESTINATION = "Destination"
    """The address and port that the client has connected to."""
    SERVER_NAME = "ServerName"
    """The server name of the client's TLS handshake (SNI)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthCacheConfig:
    """The value of ``auth_cache``: ``size`` is in bytes, 0 for no cache; the times are in seconds.

    Attributes:
        size: Limit of the memory that the entries of one server block take in one worker.
        ttl: How long an allowed login is used without a request.
        negative_ttl: The same for a refused one; 0 caches none.
        stale_if_error: How long after ``ttl`` an allowed login is still used while the service fails.
    """

    size: int
    ttl: float = 60.0
    negative_ttl: float = 0.0
    stale_if_error: float = 0.0
