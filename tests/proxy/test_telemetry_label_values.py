# SPDX-License-Identifier: Apache-2.0
"""Every documented label value is set by some line of the proxy's code.

A member of a label's enumeration that no code names, except where values are
compared or the enumeration is defined, can never be shown, and an
administrator who waits for it waits for ever.
"""

from __future__ import annotations

import ast
import ssl
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

from mailproxy import enums
from mailproxy.enums import TlsVersion
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.telemetry.definitions import ALL_METRICS, LIMIT_MODE
from mailproxy_config import model, upstream_members
from mailproxy_config.model import Protocol
from support.tls_authority import Authority
from support.tls_peers import client_context, connect_once, server_tls

SOURCES = Path(__file__).parents[2] / "proxy"
DEFINITIONS = {"enums.py"}
FROM_ELSEWHERE: dict[type[Enum], str] = {
    Protocol: "the configuration",
    TlsVersion: "OpenSSL",
    upstream_members.MemberState: "the document of the operator",
}
"""Enumerations whose members are not named in the code; other tests cover them."""


def enumerations() -> list[type[Enum]]:
    """The enumerations behind the labels that have closed sets of values."""
    sets = {label.values for family in ALL_METRICS for label in family.labels if label.values is not None}
    sets.remove((LIMIT_MODE,))
    known = [
        enumeration_class
        for module in (enums, model, upstream_members)
        for enumeration_class in vars(module).values()
        if isinstance(enumeration_class, type)
        and issubclass(enumeration_class, Enum)
        and enumeration_class.__module__ == module.__name__
    ]
    found = [
        enumeration_class
        for enumeration_class in known
        if tuple(str(member.value) for member in enumeration_class) in sets
    ]
    assert {tuple(str(member.value) for member in enumeration_class) for enumeration_class in found} == sets
    return found


class Named(ast.NodeVisitor):
    """Collects the members of enumerations that code names other than to compare with them."""

    def __init__(self) -> None:
        self.members: set[tuple[str, str]] = set()

    def visit_Compare(self, node: ast.Compare) -> None:
        """Skip comparisons."""

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self.members.add((node.value.id, node.attr))
        elif isinstance(node.value, ast.Attribute):  # module.Enumeration.MEMBER
            self.members.add((node.value.attr, node.attr))
        self.generic_visit(node)


@pytest.fixture(scope="module")
def named() -> set[tuple[str, str]]:
    visitor = Named()
    for path in SOURCES.rglob("*.py"):
        if path.name not in DEFINITIONS:
            visitor.visit(ast.parse(path.read_text()))
    return visitor.members


def unnamed(enumeration: type[Enum], named: set[tuple[str, str]]) -> Iterator[str]:
    return (
        str(enumeration_class.value)
        for enumeration_class in enumeration
        if (enumeration.__name__, enumeration_class.name) not in named
    )


@pytest.mark.parametrize(
    "enumeration", enumerations(), ids=lambda enumeration_class: enumeration_class.__name__
)
def test_every_value_of_a_label_can_be_set(enumeration: type[Enum], named: set[tuple[str, str]]) -> None:
    if enumeration not in FROM_ELSEWHERE:
        assert list(unnamed(enumeration, named)) == []


def test_unused_label_value_is_detected(named: set[tuple[str, str]]) -> None:
    class AuthErrorReason(Enum):
        DNS = "dns"
        NEVER = "never"

    assert list(unnamed(AuthErrorReason, named)) == ["never"]
    visitor = Named()
    visitor.visit(ast.parse("if reason is Reason.COMPARED: count[Reason.COUNTED] += 1"))
    assert visitor.members == {("Reason", "COUNTED")}


def test_every_protocol_can_be_configured() -> None:
    assert set(PROTOCOLS) == set(Protocol)


@pytest.mark.parametrize(
    "version",
    [enumeration_class for enumeration_class in TlsVersion if enumeration_class is not TlsVersion.OTHER],
)
def test_tls_versions_have_the_names_of_openssl(version: TlsVersion, tmp_path: Path) -> None:
    tls = server_tls(
        Authority(tmp_path).issue(), ssl_protocols=(version.value,), ssl_ciphers="ALL:@SECLEVEL=0"
    )
    client = client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    info, _ = connect_once(tls, client)
    assert info.version == version.value
