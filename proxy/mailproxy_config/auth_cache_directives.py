# SPDX-License-Identifier: Apache-2.0
"""Directives about the cache of the authentication service's decisions; nginx does not have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.auth_cache import AuthCacheConfig, CacheKeyPart
from mailproxy_config.schema import Array, Object, String
from mailproxy_config.upstream_login_directives import parse_parameters
from mailproxy_config.value_types import (
    MSEC_SHAPE,
    SIZE_SHAPE,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
)

MAX_TTL: Final = 86400.0
"""Seconds: a day."""
MAX_NEGATIVE_TTL: Final = 3600.0
MAX_STALE: Final = 7 * 86400.0

_MODULE: Final = "mail_auth_http"
_OFF: Final = "off"
_TIMES: Final = {
    "ttl": ("ttl", MAX_TTL),
    "negativeTtl": ("negative_ttl", MAX_NEGATIVE_TTL),
    "staleIfError": ("stale_if_error", MAX_STALE),
}
"""Fields with a time, their attributes, and the maximum in seconds."""
_PARAMETERS: Final = {"size": "size", **{name: field for field, (name, _) in _TIMES.items()}}
_PARTS: Final = {
    "address": str(CacheKeyPart.ADDRESS),
    "destination": str(CacheKeyPart.DESTINATION),
    "server_name": str(CacheKeyPart.SERVER_NAME),
}


def _time(text: int | str, maximum: float) -> float:
    seconds = units.parse_msec_time(text)
    if seconds > maximum:
        raise ValueError(f"must be at most {units.format_time(maximum)}")
    return float(seconds)


def _read(value: Mapping[str, Any], path: ErrorPath) -> AuthCacheConfig:
    def tried(field: str, parse: Callable[[], object]) -> Any:  # noqa: ANN401 -- a number
        return path.field(field).try_read(parse, 0)

    times = {
        name: tried(field, lambda field=field, maximum=maximum: _time(value[field], maximum))  # type: ignore[misc]
        for field, (name, maximum) in _TIMES.items()
        if field in value
    }
    return AuthCacheConfig(size=tried("size", lambda: units.parse_size(value["size"])), **times)


def _write(value: AuthCacheConfig) -> Raw:
    times = {field: units.format_time(getattr(value, name)) for field, (name, _) in _TIMES.items()}
    return {"size": units.format_size(value.size), **times}


def _nginx(arguments: Sequence[str]) -> Raw:
    """``auth_cache size=10m ttl=60s negative_ttl=5s stale_if_error=5m`` or ``auth_cache off``."""
    if list(arguments) == [_OFF]:
        return {"size": "0"}
    found = parse_parameters(arguments, _PARAMETERS)
    if "size" not in found:
        raise ValueError("size is required: auth_cache size=10m ttl=60s; or off")
    return found


def _nginx_parts(arguments: Sequence[str]) -> list[str]:
    words = [word.lower() for word in arguments]
    if words == [_OFF]:
        return []
    unknown = [word for word in words if word not in _PARTS]
    if unknown:
        valid = f"{', '.join(_PARTS)}, or off alone"
        raise ValueError(f'invalid value "{unknown[0][:40]}", the valid words are {valid}')
    return list(dict.fromkeys(_PARTS[word] for word in words))


_AUTH_CACHE: Final = ValueType(
    syntax="{size, ttl, negativeTtl, staleIfError}",
    schema=Object(
        example="{size: 10m, ttl: 60s}",
        fields={"size": SIZE_SHAPE, **dict.fromkeys(_TIMES, MSEC_SHAPE)},
        required=("size",),
        descriptions={
            "size": "Memory for entries, in each worker, for each server. 0: no cache.",
            "ttl": "How long an allowed login is used without a request, at most 1d. Default: 60s.",
            "negativeTtl": "The same for a refused login, at most 1h. Default: 0s, none is cached.",
            "staleIfError": "How long after ttl it is used while the service fails, at most 7d. Default: 0s.",
        },
    ),
    read=_read,
    write=_write,
    nginx=_nginx,
    arity=(1, 4),
)
_KEY: Final = ValueType(
    syntax="list of " + ", ".join(_PARTS.values()),
    schema=Array(
        items=String(max_length=64, enum=tuple(_PARTS.values()), spellings=_PARTS),
        max_items=len(_PARTS),
    ),
    read=lambda value, _: frozenset(map(CacheKeyPart, value)),
    write=lambda value: sorted(map(str, value)),
    nginx=_nginx_parts,
    arity=(1, None),
    unordered=True,
)

AUTH_CACHE_DIRECTIVES: Final = (
    Directive(
        name="auth_cache",
        module=_MODULE,
        type=_AUTH_CACHE,
        is_ours=True,
        meaning="Caches decisions of the authentication service in memory. Not set: no cache.",
    ),
    Directive(
        name="auth_cache_key",
        module=_MODULE,
        type=_KEY,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Facts about the client, besides its credentials, that a cached login must have in common.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""
