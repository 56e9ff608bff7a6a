# SPDX-License-Identifier: Apache-2.0
"""Inheritance and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.compile import collect_references, compile_proxy, with_hostname
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.manifest import MailProxyManifest, parse_manifest
from mailproxy_config.model import (
    AuthHttpHeader,
    AuthMethod,
    CertificateFiles,
    DrainConfig,
    LogLevel,
    Protocol,
    ResolverConfig,
    Seconds,
    ServerConfig,
    SessionCache,
    StartTls,
)
from mailproxy_config.secret_refs import Mounts, Reference, ReferenceKind
from support.config_bodies import SECRET_KEY, body, server


def compiled(mail: dict[str, Any] | None = None, **fields: object) -> ServerConfig:
    """The only server of a manifest."""
    resource = body(server(**fields), mail={"authHttp": "a", **(mail or {})})
    return compile_proxy(parse_manifest(resource)).servers[0]


def test_defaults_are_those_of_nginx() -> None:
    found = compiled()
    assert (found.name, found.protocol, found.server_name) == ("imap", Protocol.IMAP, "")
    assert (found.timeout, found.proxy_timeout, found.auth_http_timeout) == (60.0, 86400.0, 60.0)
    assert (found.resolver, found.resolver_timeout, found.smtp_greeting_delay) == (None, 30.0, 0.0)
    assert (found.imap_client_buffer, found.smtp_client_buffer, found.proxy_buffer) == (4096, 4096, 4096)
    assert (found.max_errors, found.xclient, found.starttls) == (5, True, StartTls.DISABLED)
    assert (found.imap_capabilities, found.pop3_capabilities, found.smtp_capabilities) == (
        ("IMAP4", "IMAP4rev1", "UIDPLUS"),
        ("TOP", "USER", "UIDL"),
        (),
    )
    assert found.smtp_auth == {AuthMethod.PLAIN, AuthMethod.LOGIN}
    assert found.ssl_protocols == {"TLSv1.2", "TLSv1.3"}
    assert found.ssl_ciphers == "HIGH:!aNULL:!MD5"
    assert (found.ssl_session_timeout, found.ssl_session_tickets) == (300.0, True)
    assert (found.ssl_session_cache, found.error_log) == (SessionCache(), LogLevel.ERROR)


def test_defaults_of_main_directives() -> None:
    found = compile_proxy(parse_manifest(body()))
    assert (found.workers, found.worker_connections, found.error_log) == (1, 512, LogLevel.ERROR)
    assert found.drain == DrainConfig(delay=Seconds(5.0), timeout=Seconds(300.0))


def test_main_directives_are_set() -> None:
    resource = body(workers="auto", workerConnections=9, errorLog={"level": "info"}, drain={"delay": 1})
    found = compile_proxy(parse_manifest(resource))
    assert (found.workers, found.worker_connections, found.error_log) == (None, 9, LogLevel.INFO)
    assert found.drain == DrainConfig(delay=Seconds(1.0), timeout=Seconds(300.0))


@pytest.mark.parametrize(
    ("field", "mail", "own", "name", "value"),
    [
        ("timeout", "1m", None, "timeout", 60.0),
        ("timeout", "1m", "2s", "timeout", 2.0),
        ("timeout", None, "2s", "timeout", 2.0),
        ("xclient", False, None, "xclient", False),
        ("xclient", False, True, "xclient", True),
        ("serverName", "a", "", "server_name", ""),
        ("imapCapabilities", ["A"], ["B", "C"], "imap_capabilities", ("B", "C")),  # replaced, not merged
        ("imapCapabilities", ["A"], [], "imap_capabilities", ()),
        ("imapAuth", ["login"], ["external"], "imap_auth", {AuthMethod.EXTERNAL}),
        ("resolver", {"addresses": ["ns"]}, None, "resolver", ResolverConfig(addresses=("ns",))),
        ("resolver", {"addresses": ["ns"]}, {"mode": "Disabled"}, "resolver", None),
        ("errorLog", {"level": "warn"}, {}, "error_log", LogLevel.WARN),
        ("sslDhparam", {"file": "/a"}, {"file": "/b"}, "ssl_dhparam", "/b"),
        (
            "sslSessionCache",
            ["builtin", "shared:a:1m"],
            ["builtin:7"],
            "ssl_session_cache",
            SessionCache(builtin=7),
        ),
    ],
)
def test_value_of_server_overrides_value_of_mail(
    field: str, mail: object, own: object, name: str, value: object
) -> None:
    level = {} if mail is None else {field: mail}
    fields = {} if own is None else {field: own}
    assert getattr(compiled(level, **fields), name) == value


def test_error_log_is_inherited_from_spec() -> None:
    resource = body(server("a"), server("b", 993, errorLog={"level": "debug"}), errorLog={"level": "crit"})
    found = compile_proxy(parse_manifest(resource))
    assert [each.error_log for each in found.servers] == [LogLevel.CRIT, LogLevel.DEBUG]


def _with_references() -> MailProxyManifest:
    header = {"name": "X-Key", "valueFrom": {"secretKeyRef": {"name": "auth", "key": "key"}}}
    return parse_manifest(
        body(
            server(
                "tls",
                starttls="Enabled",
                sslClientCertificate={"configMapKeyRef": {"name": "clients", "key": "ca.crt"}},
                sslSessionTicketKey=[SECRET_KEY, {"file": "/ticket.key"}],
            ),
            server("plain", 110, sslCrl={"secretKeyRef": {"name": "unused", "key": "crl"}}),
            mail={
                "authHttp": "a",
                "authHttpHeader": [header, {"name": "X-Plain", "value": "v"}],
                "sslCertificate": [{"secretName": "tls-extras"}, {"certificateFile": "/c", "keyFile": "/k"}],
            },
        )
    )


def test_references_are_replaced_by_paths() -> None:
    found = compile_proxy(_with_references(), mounts=Mounts(root="/r")).servers[0]
    assert found.auth_http_header == (
        AuthHttpHeader(name="X-Key", value_file="/r/secrets/auth/key"),
        AuthHttpHeader(name="X-Plain", value="v"),
    )
    assert found.ssl_certificate == (
        CertificateFiles(certificate="/r/secrets/tls-extras/tls.crt", key="/r/secrets/tls-extras/tls.key"),
        CertificateFiles(certificate="/c", key="/k"),
    )
    assert found.ssl_client_certificate == "/r/configmaps/clients/ca.crt"
    assert found.ssl_session_ticket_key == ("/r/secrets/tls-extras/some.pem", "/ticket.key")


def test_references_of_servers_are_collected() -> None:
    assert collect_references(_with_references()) == (
        Reference(ReferenceKind.CONFIG_MAP, "clients", ("ca.crt",)),
        Reference(ReferenceKind.SECRET, "auth", ("key",)),
        Reference(ReferenceKind.SECRET, "tls-extras", ("some.pem", "tls.crt", "tls.key")),
    )


@pytest.mark.parametrize(
    ("directives", "names"),
    [({}, []), ({"proxySsl": "Starttls"}, ["mail-ca"]), ({"authHttpOverrides": True}, ["mail-ca"])],
)
def test_references_of_tls_to_mail_servers_count_if_some_login_may_use_it(
    directives: dict[str, Any], names: list[str]
) -> None:
    ca = {"configMapKeyRef": {"name": "mail-ca", "key": "ca.crt"}}
    manifest = parse_manifest(body(server(proxySslTrustedCertificate=ca, **directives)))
    assert [reference.name for reference in collect_references(manifest)] == names


def test_port_offset_keeps_derived_protocols() -> None:
    listen = [{"port": 143}, {"address": "[::]", "port": 993}]
    found = compile_proxy(parse_manifest(body(server(listen=listen))), port_offset=10_000).servers[0]
    assert [listener.port for listener in found.listen] == [10_143, 10_993]
    assert found.protocol is Protocol.IMAP


def test_unix_listener_has_no_port_offset() -> None:
    resource = body(server(protocol="imap", listen=[{"address": "unix:/x"}]))
    assert compile_proxy(parse_manifest(resource), port_offset=10_000).servers[0].listen[0].port is None


def test_port_with_offset_out_of_range_is_an_error() -> None:
    manifest = parse_manifest(body(server(port=60_000, protocol="imap")))
    with pytest.raises(ConfigError) as raised:
        compile_proxy(manifest, port_offset=10_000)
    assert raised.value.problems == (
        Problem("spec.servers[0].listen[0].port", "60000 + 10000 is out of range 1 to 65535"),
    )


def test_hostname_is_set_for_servers_without_server_name() -> None:
    manifest = parse_manifest(body(server("a"), server("b", 993, serverName="mail.example")))
    without = compile_proxy(manifest)
    assert [each.server_name for each in without.servers] == ["", "mail.example"]
    named = compile_proxy(manifest, hostname="host")
    assert [each.server_name for each in named.servers] == ["host", "mail.example"]
    assert with_hostname(without, "host") == named
    assert with_hostname(without, "") is without


def test_server_without_protocol_is_rejected() -> None:
    from mailproxy_config.errors import Problems
    from mailproxy_config.manifest import read_manifest

    manifest = read_manifest(body(server(port=1143)), Problems())
    assert manifest is not None
    with pytest.raises(ConfigError, match="protocol"):
        compile_proxy(manifest)
