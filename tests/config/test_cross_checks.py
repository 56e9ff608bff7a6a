# SPDX-License-Identifier: Apache-2.0
"""Conditions between several fields of a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy_config.cross_checks import SPEC_RULES, derive_protocol
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.manifest import read_manifest
from mailproxy_config.model import ListenConfig, Protocol
from support.config_bodies import body, server

_CERTIFICATE = {"sslCertificate": [{"secretName": "tls"}]}
_SHM = {"name": "kernel.shm_rmid_forced", "value": "1"}
_REQUIRE_TLS = {
    "smtpCapabilities": ["SIZE 1000", "RequireTLS"],
    "starttls": "Only",
    "proxySsl": "Starttls",
    **_CERTIFICATE,
}
_CA = {"sslClientCertificate": {"file": "/ca.pem"}}


def problems_of(resource: dict[str, Any]) -> list[Problem]:
    problems = Problems()
    read_manifest(resource, problems)
    return problems.found


@pytest.mark.parametrize(
    ("ports", "protocol"),
    [
        ([143, 993], Protocol.IMAP),
        ([110, 995], Protocol.POP3),
        ([25, 465, 587], Protocol.SMTP),
        ([143, 25], None),  # nginx takes the first
        ([143, 1143], None),
        ([None], None),
    ],
)
def test_protocol_is_derived_from_well_known_ports(
    ports: list[int | None], protocol: Protocol | None
) -> None:
    assert derive_protocol(ListenConfig(port=port) for port in ports) is protocol


@pytest.mark.parametrize(
    "resource",
    [
        body(server(listen=[{"port": 143}, {"port": 993, "ssl": True}], **_CERTIFICATE)),
        body(server(port=1143, protocol="pop3")),
        body(server(authHttp="a"), mail={}),
        body(server(starttls="Disabled"), mail={"authHttp": "a", "starttls": "Enabled"}),
        body(server(starttls="Only"), mail={"authHttp": "a", **_CERTIFICATE}),
        body(server(starttls="Only", sslVerifyClient="Required", **_CERTIFICATE, **_CA)),
        body(server(starttls="Only", sslVerifyClient="OptionalNoCA", **_CERTIFICATE)),
        body(server(sslVerifyClient="Required")),  # without TLS it has no effect
        body(server("a", 143), server("b", listen=[{"address": "[::]", "port": 143}])),
        body(server(port=9113, protocol="imap"), portStrategy="HighPort"),
        body(server(port=143), portStrategy="HighPort", pod={"hostNetwork": True}),
        body(
            pod={"hostNetwork": False}, sysctls={"extra": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}
        ),
        body(server(port=1143, protocol="imap"), pod={"hostNetwork": True}, sysctls={"extra": [_SHM]}),
        body(autoscaling={"maxReplicas": 3}),
        body(server(port=25, **_REQUIRE_TLS)),
        body(server(listen=[{"port": 465, "ssl": True}], **_REQUIRE_TLS | {"starttls": "Enabled"})),
        body(server(port=25, **_CERTIFICATE), mail={"authHttp": "a", **_REQUIRE_TLS}),
        body(server(port=143, smtpCapabilities=["REQUIRETLS"])),  # not of SMTP
        body(server(port=25, smtpCapabilities=["XREQUIRETLS"])),
    ],
)
def test_consistent_manifest_is_accepted(resource: dict[str, Any]) -> None:
    assert problems_of(resource) == []


@pytest.mark.parametrize(
    ("resource", "path", "reason"),
    [
        (body(server(listen=[{"port": 143}, {"port": 25}])), "spec.servers[0].protocol",
         "is required unless all ports are well-known ports of the same protocol: "
         "143 993 imap, 110 995 pop3, 25 465 587 smtp"),
        (body(server("a", authHttp="a"), server("b", 993), mail={}), "spec.servers[1].authHttp",
         "is required: set it here or in spec.mail"),
        (body(server(listen=[{"port": 993, "ssl": True}])), "spec.servers[0].sslCertificate",
         "is required for listen ssl: set it here or in spec.mail"),
        (body(server(starttls="Enabled")), "spec.servers[0].sslCertificate",
         "is required for starttls: set it here or in spec.mail"),
        (body(server(starttls="Enabled", sslCertificate=[]), mail={"authHttp": "a", **_CERTIFICATE}),
         "spec.servers[0].sslCertificate", "is required for starttls: set it here or in spec.mail"),
        (body(server(starttls="Only", sslVerifyClient="Optional", **_CERTIFICATE)),
         "spec.servers[0].sslVerifyClient", "Optional needs sslClientCertificate or sslTrustedCertificate"),
        (body(server("a", 143), server("a", 993)), "spec.servers[1].name",
         "'a' is also the name of spec.servers[0]"),
        (body(server("a", 143), server("b", listen=[{"address": "0.0.0.0", "port": 143}])),
         "spec.servers[1].listen[0]",
         "duplicate 0.0.0.0:143 address and port pair, also in spec.servers[0].listen[0]"),
        (body(server(protocol="imap", listen=[{"address": "unix:/x"}, {"address": "unix:/x"}])),
         "spec.servers[0].listen[1]",
         "duplicate unix:/x address and port pair, also in spec.servers[0].listen[0]"),
        (body(server(port=9113, protocol="imap")), "spec.servers[0].listen[0].port",
         "9113 is the admin port; use another port, or portStrategy HighPort"),
        (body(server(port=55536, protocol="imap"), portStrategy="HighPort"), "spec.servers[0].listen[0].port",
         "55536 is above 55535, the highest with portStrategy HighPort"),
        (body(pod={"hostNetwork": True}), "spec.servers[0].listen[0].port",
         "with pod.hostNetwork a process without root cannot open ports below 1024; "
         "use portStrategy HighPort"),
        (body(server(port=1143, protocol="imap"), pod={"hostNetwork": True},
              sysctls={"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "1"}]}),
         "spec.sysctls.extra[0]", "with pod.hostNetwork no net.* sysctl can be set"),
        (body(server(port=25, **_REQUIRE_TLS | {"starttls": "Enabled"})), "spec.servers[0].smtpCapabilities",
         'REQUIRETLS needs TLS with every client: set "starttls" to Only, or ssl for every listener'),
        (body(server(listen=[{"port": 465, "ssl": True}, {"port": 25}],
                     **_REQUIRE_TLS | {"starttls": "Disabled"})),
         "spec.servers[0].smtpCapabilities",
         'REQUIRETLS needs TLS with every client: set "starttls" to Only, or ssl for every listener'),
        (body(server(port=25, **_REQUIRE_TLS | {"proxySsl": "Disabled"})), "spec.servers[0].smtpCapabilities",
         'REQUIRETLS needs TLS to mail servers: set "proxySsl" to Starttls or Enabled (on)'),
        (body(server(port=587), mail={"authHttp": "a", **_REQUIRE_TLS, "proxySslVerify": False}),
         "spec.servers[0].smtpCapabilities",
         'REQUIRETLS needs certificates of mail servers to be verified: remove "proxySslVerify"'),
        (body(mode="DaemonSet", autoscaling={"maxReplicas": 3}), "spec.autoscaling", "needs mode Deployment"),
        (body(mode="Sidecar", networkPolicy={"enabled": True}), "spec.networkPolicy.enabled",
         "is not allowed with mode Sidecar: the operator does not own the pods; "
         "remove networkPolicy, or write enabled: false"),
    ],
)  # fmt: skip
def test_inconsistent_manifest_is_rejected(resource: dict[str, Any], path: str, reason: str) -> None:
    assert problems_of(resource) == [Problem(path, reason)]


def test_invalid_directive_is_not_reported_as_missing() -> None:
    resource = body(server(starttls="Only", sslCertificate=[{}]), mail={"authHttp": "a:b"})
    assert [problem.path for problem in problems_of(resource)] == [
        "spec.mail.authHttp",
        "spec.servers[0].sslCertificate[0]",
    ]


def test_cel_rules_read_only_existing_fields() -> None:
    assert len({rule.message for rule in SPEC_RULES}) == len(SPEC_RULES) == 18
    assert {rule.reason for rule in SPEC_RULES} == {
        "FieldValueRequired",
        "FieldValueInvalid",
        "FieldValueForbidden",
    }
