# SPDX-License-Identifier: Apache-2.0
"""Server names of TLS: reading them from a configuration and from a ClientHello, and finding them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.server_names import find_name, is_host_name, parse_server_name, parse_sni


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mail.example.org", "mail.example.org"),
        ("MAIL.Example.ORG.", "mail.example.org"),
        ("*.example.org", "*.example.org"),
        ("localhost", "localhost"),
        ("xn--mller-kva.example", "xn--mller-kva.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_configured_name_is_read_in_lower_case_without_dot(text: str, name: str) -> None:
    assert parse_server_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "*", "*.", "*.org.*", "a.*.org", "mail*.example.org", "*.com..", "a..b", ".a", "-a.org"),
        *("a-.org", "a b.org", "a_b.org", "192.0.2.1", "[::1]", "::1", "1", "0x7f.1", "a.0x1"),
        *("a" * 64 + ".example", ".".join(["a" * 49] * 6), "a\n.org", "a\x00.org"),
    ],
)
def test_configured_value_that_is_no_name_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"host name|first label"):
        parse_server_name(text)


def test_name_in_unicode_is_rejected_with_its_a_labels() -> None:
    with pytest.raises(ValueError, match=r"write xn--mller-kva\.example"):
        parse_server_name("müller.example")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"Mail.Example.org.", "mail.example.org"),
        (b"xn--mller-kva.example", "xn--mller-kva.example"),
        (b"mail.example.org..", None),
        (b"*.example.org", None),
        (b"192.0.2.1", None),
        (b"2001:db8::1", None),
        (b"[::1]", None),
        ("müller.example".encode(), None),
        (b"a\r\nX: y", None),
        (b"", None),
        (b".", None),
        (b"\x00", None),
    ],
)
def test_name_of_client_hello(data: bytes, name: str | None) -> None:
    assert parse_sni(data) == name


@given(st.binary(max_size=300))
def test_any_bytes_are_a_host_name_or_none(data: bytes) -> None:
    name = parse_sni(data)
    assert name is None or (is_host_name(name) and name == name.lower() and len(name) <= 253)


NAMES = {"a.example": 1, "*.example": 2, "*.b.example": 3}


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("a.example", 1),
        ("other.example", 2),
        ("x.b.example", 3),
        ("x.a.example", None),
        ("example", None),
        ("b.example", 2),
        ("x.y.b.example", None),
    ],
)
def test_exact_name_precedes_wildcard_of_one_label(name: str, entry: int | None) -> None:
    assert find_name(NAMES, name) == entry
