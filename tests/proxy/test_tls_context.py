# SPDX-License-Identifier: Apache-2.0
"""Building a server's TLS: reuse after a reload, and operation without OpenSSL's functions."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path
from typing import Any

import pytest

from mailproxy.tls.context import ServerTls, build, fingerprint
from mailproxy.tls.openssl import OpenSslUnavailable
from mailproxy.tls.resumption import TicketKeys
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import (
    ByteCount,
    Protocol,
    Seconds,
    SendProxyProtocol,
    ServerConfig,
    SessionCache,
    VerifyClient,
)
from support.configs import server
from support.tls_authority import Authority
from support.tls_peers import KEY, TLS_PORT, TlsPair, client_context, connect_once

OUT_OF_REACH = OpenSslUnavailable("the layout of its ssl objects is not known")

KEYS = TicketKeys([KEY])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def config(authority: Authority) -> ServerConfig:
    return server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=(authority.issue().files,))


def changed(config: ServerConfig, **directives: Any) -> ServerConfig:
    return dataclasses.replace(config, **directives)


def test_build_without_changes_returns_previous(config: ServerConfig) -> None:
    first = build(config, ticket_keys=KEYS)
    again = build(changed(config, timeout=Seconds(1.0)), ticket_keys=KEYS, previous=first)
    assert again is first


@pytest.mark.parametrize(
    "directives",
    [
        {"ssl_protocols": frozenset({"TLSv1.3"})},
        {"ssl_session_cache": SessionCache(builtin=5)},
        {"proxy_protocol": SendProxyProtocol.V2},
        {"protocol": Protocol.POP3},
    ],
)
def test_changed_directive_builds_new_context(config: ServerConfig, directives: dict[str, Any]) -> None:
    first = build(config, ticket_keys=KEYS)
    again = build(changed(config, **directives), ticket_keys=KEYS, previous=first)
    assert again is not first
    assert again.fingerprint_of_inputs != first.fingerprint_of_inputs


def test_changed_file_builds_new_context(config: ServerConfig, authority: Authority) -> None:
    first = build(config, ticket_keys=KEYS)
    renewed = authority.issue("CN=renewed").files
    (current,) = config.ssl_certificate
    Path(current.certificate).write_bytes(Path(renewed.certificate).read_bytes())
    Path(current.key).write_bytes(Path(renewed.key).read_bytes())
    assert fingerprint(config) != first.fingerprint_of_inputs
    again = build(config, ticket_keys=KEYS, previous=first)
    context = client_context(authority)
    pair = TlsPair(again, context)
    pair.handshake()
    assert pair.client.getpeercert()["subject"] == ((("commonName", "renewed"),),)  # type: ignore[index]
    pair.close()


def test_broken_file_keeps_previous_context(config: ServerConfig) -> None:
    first = build(config, ticket_keys=KEYS)
    Path(config.ssl_certificate[0].key).write_bytes(b"")
    with pytest.raises(ConfigError):
        build(config, ticket_keys=KEYS, previous=first)
    assert connect_once(first, client_context())[0].version == "TLSv1.3"


# -- without access to OpenSSL


def without_openssl(config: ServerConfig, **directives: Any) -> ServerTls:
    return build(changed(config, **directives), ticket_keys=KEYS, native=OUT_OF_REACH)


def test_without_openssl_basic_tls_works_with_notices(config: ServerConfig, authority: Authority) -> None:
    tls = without_openssl(config, ssl_session_tickets=False, ssl_ecdh_curve="prime256v1")
    context = client_context(authority)
    context.set_alpn_protocols(["imap"])
    pair = TlsPair(tls, context)
    info = pair.handshake()
    assert (info.version, info.alpn) == ("TLSv1.3", b"imap")
    pair.client.send(b"a1 NOOP\r\n")
    assert pair.server.recv(4) == b"a1 N"
    assert pair.server.pending() == 5
    assert pair.server.unwrap() is pair.server
    pair.close()
    assert pair.server.unwrap() is pair.server
    assert tls.not_after == ()
    (notice,) = tls.notices
    assert notice.reason.startswith("the layout of its ssl objects is not known: sessions are resumed")


@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("ssl_verify_client", VerifyClient.REQUIRED),
        ("ssl_session_ticket_key", ("/key",)),
        ("ssl_session_cache", SessionCache(shared_name="x", shared_size=ByteCount(1 << 20))),
        ("ssl_session_timeout", Seconds(60.0)),
        ("ssl_ecdh_curve", "X25519:prime256v1"),
        ("ssl_conf_command", (("Ciphersuites", "TLS_AES_128_GCM_SHA256"),)),
    ],
)
def test_without_openssl_unsupported_directives_are_problems(
    config: ServerConfig, directive: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        without_openssl(config, **{directive: value})
    assert (
        str(caught.value)
        == f"servers[imap].{directive}: cannot be served on this Python: {OUT_OF_REACH.reason}"
    )


def test_without_openssl_unknown_curve_is_a_problem(config: ServerConfig) -> None:
    with pytest.raises(ConfigError, match="unknown elliptic curve name"):
        without_openssl(config, ssl_ecdh_curve="nonsense")


def test_without_openssl_bad_files_are_problems(config: ServerConfig, authority: Authority) -> None:
    key = authority.issue().files.key
    (pair,) = config.ssl_certificate
    with pytest.raises(ConfigError) as caught:
        without_openssl(config, ssl_certificate=(dataclasses.replace(pair, key=key),))
    assert "it is not the key of" in str(caught.value)


def test_without_openssl_compression_is_a_notice(config: ServerConfig) -> None:
    compressing = without_openssl(config, ssl_certificate_compression=True)
    assert [notice.path for notice in compressing.notices] == [
        "servers[imap].ssl_certificate_compression",
        "servers[imap].ssl_certificate",
    ]
    assert ssl.OPENSSL_VERSION in compressing.notices[0].reason
