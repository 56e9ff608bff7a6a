# SPDX-License-Identifier: Apache-2.0
"""``auth_cache`` and ``auth_cache_key`` in manifests and in an ``nginx.conf``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mailproxy_config.auth_cache import AuthCacheConfig, CacheKeyPart
from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import ConfigError
from mailproxy_config.load import load
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import ServerConfig
from mailproxy_config.rendered import dump, parse_rendered
from support.config_bodies import body

IMAP: dict[str, Any] = {"name": "imap", "listen": [{"port": 143}]}


def servers(*bodies: dict[str, Any], **mail: Any) -> tuple[ServerConfig, ...]:
    resource = body(*(bodies or (IMAP,)), mail={"authHttp": "auth:9000", **mail})
    return compile_proxy(parse_manifest(resource)).servers


def problems(**mail: Any) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        servers(**mail)
    return [(problem.path, problem.reason) for problem in caught.value.problems]


def test_no_cache_without_directive() -> None:
    assert servers()[0].auth_cache is None
    assert servers()[0].auth_cache_key == frozenset()


def test_size_alone_has_ttl_of_a_minute_and_no_negative_or_stale_entries() -> None:
    assert servers(authCache={"size": "1m"})[0].auth_cache == AuthCacheConfig(
        size=1 << 20, ttl=60, negative_ttl=0, stale_if_error=0
    )


def test_all_fields_are_read() -> None:
    value = {"size": "10m", "ttl": "60s", "negativeTtl": "5s", "staleIfError": "5m"}
    assert servers(authCache=value)[0].auth_cache == AuthCacheConfig(
        size=10 << 20, ttl=60, negative_ttl=5, stale_if_error=300
    )


def test_server_turns_inherited_cache_off_with_size_zero() -> None:
    pop3 = {"name": "pop3", "listen": [{"port": 110}], "authCache": {"size": 0}}
    imap, other = servers(IMAP, pop3, authCache={"size": "1m"})
    assert imap.auth_cache is not None
    assert imap.auth_cache.size == 1 << 20
    assert other.auth_cache is not None
    assert other.auth_cache.size == 0


@pytest.mark.parametrize(
    ("field", "value", "maximum"),
    [("ttl", "25h", "1d"), ("negativeTtl", "61m", "1h"), ("staleIfError", "8d", "7d")],
)
def test_longer_times_are_refused(field: str, value: str, maximum: str) -> None:
    assert problems(authCache={"size": "1m", field: value}) == [
        (f"spec.mail.authCache.{field}", f"must be at most {maximum}")
    ]


def test_key_parts_make_listeners_record_the_destination() -> None:
    server = servers(authCacheKey=["Address", "ServerName"])[0]
    assert server.auth_cache_key == {CacheKeyPart.ADDRESS, CacheKeyPart.SERVER_NAME}
    assert server.uses_connected_address


def nginx(line: str) -> ServerConfig:
    text = f"mail {{ auth_http localhost:9000; server {{ listen 143; {line} }} }}\nevents {{}}\n"
    config = load(text.encode(), source="nginx.conf").config
    assert parse_rendered(json.loads(dump(config)))[0] == config
    return config.servers[0]


def test_nginx_parameters() -> None:
    server = nginx(
        "auth_cache size=10m ttl=60s negative_ttl=5s stale_if_error=5m; auth_cache_key address server_name;"
    )
    assert server.auth_cache == AuthCacheConfig(size=10 << 20, ttl=60, negative_ttl=5, stale_if_error=300)
    assert server.auth_cache_key == {CacheKeyPart.ADDRESS, CacheKeyPart.SERVER_NAME}
    assert nginx("auth_cache off; auth_cache_key off;").auth_cache == AuthCacheConfig(size=0)


@pytest.mark.parametrize(
    "line",
    [
        "auth_cache ttl=60s;",
        "auth_cache size=1m size=2m;",
        "auth_cache size=1m tll=5s;",
        "auth_cache 10m;",
        "auth_cache_key user;",
        "auth_cache_key off address;",
    ],
)
def test_invalid_nginx_parameters_are_refused(line: str) -> None:
    with pytest.raises(ConfigError):
        nginx(line)
