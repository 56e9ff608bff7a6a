# SPDX-License-Identifier: Apache-2.0
"""Values of a rendered configuration are validated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mailproxy_config.compile import compile_proxy
from mailproxy_config.errors import Problems
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import (
    AuthHttp,
    AuthHttpHeader,
    ByteCount,
    CertificateFiles,
    DrainConfig,
    KeepAlive,
    ListenConfig,
    Protocol,
    ProxyConfig,
    ProxySsl,
    ResolverConfig,
    Seconds,
    SessionCache,
    StartTls,
    VerifyClient,
)
from mailproxy_config.rendered import validate_rendered
from support.config_bodies import body, server

CONFIG = compile_proxy(parse_manifest(body(server("a"), server("b", 110))))


def problems_of(config: ProxyConfig) -> list[str]:
    problems = Problems()
    validate_rendered(config, problems)
    return list(map(str, problems))


def with_server(**fields: Any) -> ProxyConfig:
    return replace(CONFIG, servers=(replace(CONFIG.servers[0], **fields), CONFIG.servers[1]))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"auth_http_header": (AuthHttpHeader(name="X", value_file="/anywhere/at/all"),)},
        {"listen": (ListenConfig(port=143, backlog=9),)},  # backlog implies bind
        {"starttls": StartTls.ENABLED, "ssl_certificate": (CertificateFiles(certificate="/c", key="/k"),)},
        {"resolver": ResolverConfig(system=True)},
    ],
)
def test_valid_values_are_accepted(fields: dict[str, Any]) -> None:
    assert problems_of(with_server(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "A"}, "name: 'A' is not valid: must be lower-case letters, digits and hyphens, "
         "with a letter or digit at both ends"),
        ({"timeout": Seconds(-1.0)}, "timeout: -1 is out of range 0 to 2147483647"),
        ({"imap_client_buffer": ByteCount(5)},
         "imap_client_buffer: 5 is too small: a buffer has at least 128 bytes"),
        ({"server_name": "a\nb"},
         "server_name: serverName must not contain control characters such as CR or LF"),
        ({"imap_capabilities": ("é",)}, "imap_capabilities[0]: a capability must be ASCII"),
        ({"listen": (ListenConfig(port=99999),)}, "listen[0].port: 99999 is out of range 1 to 65535"),
        ({"listen": (ListenConfig(port=1, so_keepalive=KeepAlive(enabled=False, idle=5)),)},
         "listen: has contradictory values"),
        ({"set_real_ip_from": ("10.0.0.1/8",)}, "set_real_ip_from: has contradictory values"),
        ({"auth_http": AuthHttp(host="a", uri="x")}, "auth_http: invalid port '80x'"),
        ({"auth_http": AuthHttp(host="b", unix_path="/a")}, "auth_http: has contradictory values"),
        ({"resolver": ResolverConfig(valid=Seconds(0.5), addresses=("a",))},
         "resolver.valid: must be a time such as 30s, 5m or 1d, without milliseconds; "
         "a bare number is seconds"),
        ({"ssl_session_cache": SessionCache(off=True, builtin=5)},
         "ssl_session_cache: has contradictory values"),
        ({"ssl_dhparam": "relative"}, "ssl_dhparam.file: 'relative' is not valid: must be an absolute path"),
        ({"auth_http_header": (AuthHttpHeader(name="X"),)},
         "auth_http_header[0].value: must be text, not nothing"),
        ({"auth_http_header": (AuthHttpHeader(name="X", value="v", value_file="/f"),)},
         "auth_http_header: has contradictory values"),
        ({"proxy_forward": (("a", "$x"),)},
         "proxy_forward[0].value: \"$x\" is no variable; there are $protocol, "
         "$remote_addr, $remote_port, $server_addr, $server_port, $session_id, $ssl_server_name"),
        ({"proxy_forward": (("a", "é"),)},
         "proxy_forward[0].value: 'é' is not valid: must be printable ASCII characters"),
        ({"protocol": Protocol.SMTP, "smtp_capabilities": ("REQUIRETLS",), "proxy_ssl": ProxySsl.ENABLED},
         'smtp_capabilities: REQUIRETLS needs TLS with every client: '
         'set "starttls" to Only, or ssl for every listener'),
        ({"starttls": StartTls.ONLY}, "ssl_certificate: is required for listen ssl and starttls"),
    ],
)  # fmt: skip
def test_invalid_values_are_rejected(fields: dict[str, Any], problem: str) -> None:
    assert problems_of(with_server(**fields)) == [f"config.servers[0].{problem}"]


def test_client_verification_needs_a_ca() -> None:
    fields: dict[str, Any] = {
        "starttls": StartTls.ENABLED,
        "ssl_certificate": (CertificateFiles(certificate="/c", key="/k"),),
        "ssl_verify_client": VerifyClient.REQUIRED,
    }
    reason = "needs ssl_client_certificate or ssl_trusted_certificate"
    assert problems_of(with_server(**fields)) == [f"config.servers[0].ssl_verify_client: {reason}"]
    assert problems_of(with_server(**fields, ssl_trusted_certificate="/ca")) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"workers": 0}, "config.workers: 0 is out of range 1 to 256"),
        ({"worker_connections": 0}, "config.worker_connections: 0 is out of range 1 to 2147483647"),
        (
            {"drain": DrainConfig(delay=Seconds(-1.0))},
            "config.drain.delay: -1 is out of range 0 to 2147483647",
        ),
        ({"servers": ()}, "config.servers: has 0 items, which is out of range 1 to 32"),
    ],
)
def test_invalid_main_values_are_rejected(change: dict[str, Any], problem: str) -> None:
    assert problems_of(replace(CONFIG, **change)) == [problem]


def test_duplicate_names_and_listeners_are_rejected() -> None:
    assert problems_of(replace(CONFIG, servers=CONFIG.servers[:1] * 2)) == [
        "config.servers[1].name: 'a' is duplicate",
        "config.servers[1].listen[0]: duplicate *:143 address and port pair, also in "
        "config.servers[0].listen[0]",
    ]


def test_invalid_address_is_reported_once() -> None:
    listen = (ListenConfig(address="[x]", port=143),)
    reason = "invalid IPv6 address '[x]'"
    assert problems_of(with_server(listen=listen)) == [f"config.servers[0].listen[0].address: {reason}"]
