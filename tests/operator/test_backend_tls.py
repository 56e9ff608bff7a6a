# SPDX-License-Identifier: Apache-2.0
"""Which policy applies to a Service, what it sets, and what is wrong with it: each row is a policy."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.secret_refs import KeyRef, ReferenceKind
from mailproxy_config.upstream_service import ServiceRef
from mailproxy_operator.policies.backend_tls import (
    CA_KEY,
    applicable,
    examine,
    name_of,
    policies_of_ports,
    referenced_config_maps,
)
from mailproxy_operator.reasons.other_tables import POLICIES
from support.backend_tls import REF, policy

NAME: Final = "imap.example.com"
MAPS: Final = {"mail-ca": frozenset({"ca.crt", "more"}), "empty": frozenset({"tls.crt"})}
SECRET: Final = {**REF, "kind": "Secret", "name": "private-ca"}
BUNDLE: Final = {"group": "certificates.k8s.io", "kind": "ClusterTrustBundle", "name": "x"}
SYSTEM: Final = {"caCertificateRefs": None, "wellKnownCACertificates": "System"}


@pytest.mark.parametrize(
    ("validation", "authorities"),
    [
        ({}, KeyRef(ReferenceKind.CONFIG_MAP, "mail-ca", CA_KEY)),
        ({"caCertificateRefs": [SECRET]}, KeyRef(ReferenceKind.SECRET, "private-ca", CA_KEY)),
        (SYSTEM, None),
        (
            {"subjectAltNames": [{"type": "Hostname", "hostname": NAME}]},
            KeyRef(ReferenceKind.CONFIG_MAP, "mail-ca", CA_KEY),
        ),
    ],
)
def test_policy_that_is_used(validation: dict[str, Any], authorities: KeyRef | None) -> None:
    verdict = examine(policy(**validation), MAPS)
    assert verdict.is_good
    assert verdict.settings is not None
    assert (verdict.settings.name, verdict.settings.authorities) == (NAME, authorities)


@pytest.mark.parametrize(
    ("validation", "accepted", "resolved", "has_settings"),
    [
        ({"hostname": ""}, "Invalid", "ResolvedRefs", False),
        ({"hostname": None}, "Invalid", "ResolvedRefs", False),
        ({"subjectAltNames": [{"type": "URI", "uri": "spiffe://x/y"}]}, "Invalid", "ResolvedRefs", False),
        (
            {"subjectAltNames": [{"type": "Hostname", "hostname": "other.example"}]},
            "Invalid",
            "ResolvedRefs",
            False,
        ),
        ({"caCertificateRefs": None}, "Invalid", "ResolvedRefs", False),
        ({"caCertificateRefs": []}, "Invalid", "ResolvedRefs", False),
        ({**SYSTEM, "wellKnownCACertificates": "Mozilla"}, "Invalid", "ResolvedRefs", False),
        ({"caCertificateRefs": [REF, SECRET]}, "Invalid", "ResolvedRefs", False),
        ({"caCertificateRefs": [BUNDLE]}, "NoValidCACertificate", "InvalidKind", False),
        (
            {"caCertificateRefs": [{**REF, "name": "absent"}]},
            "NoValidCACertificate",
            "InvalidCACertificateRef",
            True,
        ),
        (
            {"caCertificateRefs": [{**REF, "name": "empty"}]},
            "NoValidCACertificate",
            "InvalidCACertificateRef",
            True,
        ),
    ],
)
def test_policy_with_a_finding(
    validation: dict[str, Any], accepted: str, resolved: str, has_settings: bool
) -> None:
    verdict = examine(policy(**validation), MAPS)
    assert (verdict.accepted.reason, verdict.resolved.reason) == (accepted, resolved)
    assert verdict.accepted.is_met is False
    assert verdict.resolved.is_met is (resolved == "ResolvedRefs")
    assert (verdict.settings is not None) is has_settings


def test_examples_on_the_page_are_messages_of_the_code() -> None:
    examples = {row.reason: row.example for row in POLICIES}
    good = examine(policy(), MAPS)
    absent, empty, bundle = (
        examine(policy(caCertificateRefs=[ref]), {"mail-ca": frozenset()} if ref is REF else {})
        for ref in ({**REF}, REF, BUNDLE)
    )
    found = [
        good.accepted, good.resolved, absent.accepted, empty.resolved, bundle.resolved,
    ]  # fmt: skip
    assert {one.reason: one.message for one in found}.items() <= examples.items()


DOVECOT: Final = ServiceRef("dovecot")
IMAP: Final = ServiceRef("dovecot", "imap")
OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(
    ("policies", "service", "wanted"),
    [
        ([policy("a"), policy("other", service="cyrus")], DOVECOT, ["a"]),
        ([policy("new", created=NEW), policy("old", created=OLD)], DOVECOT, ["old", "new"]),
        ([policy("b"), policy("a")], DOVECOT, ["a", "b"]),
        ([policy("all"), policy("port", port="imap", created=NEW)], IMAP, ["port"]),
        ([policy("all"), policy("port", port="pop3")], IMAP, ["all"]),
        ([policy("all"), policy("port", port="imap")], DOVECOT, ["all"]),
        ([policy("port", port="imap")], DOVECOT, []),
        ([], DOVECOT, []),
    ],
)
def test_order_of_policies(policies: list[Any], service: ServiceRef, wanted: list[str]) -> None:
    assert [name_of(one) for one in applicable(policies, service)] == wanted


def test_target_of_another_kind_or_group_is_no_service() -> None:
    other = policy()
    other["spec"]["targetRefs"] = [
        {"group": "", "kind": "Pod", "name": "dovecot"},
        {"group": "example.org", "kind": "Service", "name": "dovecot"},
    ]
    assert applicable([other], DOVECOT) == []


def test_ports_with_a_policy_of_their_own() -> None:
    policies = [policy("a", port="pop3"), policy("b", port="imap"), policy("c")]
    assert policies_of_ports(policies, DOVECOT) == ["imap", "pop3"]


def test_only_config_maps_are_read() -> None:
    assert referenced_config_maps(policy(caCertificateRefs=[REF, SECRET, BUNDLE])) == {"mail-ca"}
    assert referenced_config_maps(policy(**SYSTEM)) == set()
