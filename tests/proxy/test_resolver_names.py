# SPDX-License-Identifier: Apache-2.0
"""Names and addresses as the DNS writes them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns.dns_names import host_name, packed, reverse_name


@pytest.mark.parametrize(
    ("address", "data"),
    [
        ("192.0.2.1", b"\xc0\0\2\1"),
        ("::1", bytes(15) + b"\1"),
        ("::ffff:192.0.2.1", bytes(10) + b"\xff\xff\xc0\0\2\1"),
        ("fe80::1%eth0", b"\xfe\x80" + bytes(13) + b"\1"),
        ("192.0.2.1:25", None),
        ("unix:", None),
        ("", None),
        ("\0", None),
        ("\u0661.2.3.4", None),
    ],
)
def test_an_address_becomes_its_bytes(address: str, data: bytes | None) -> None:
    assert packed(address) == data


@given(st.ip_addresses())
def test_the_reverse_name_is_the_one_everybody_uses(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert reverse_name(address.packed) == address.reverse_pointer


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("mail.example.com", b"mail.example.com"),
        ("MAIL.example.com.", b"mail.example.com"),
        (b"mail-1.example", b"mail-1.example"),
        ("1.2.3.4", b"1.2.3.4"),
        ("", None),
        (".", None),
        ("a b", None),
        ("a_b", None),
        ("a\\.b", None),
        ("a\\010b", None),
        ("a\n", None),
        ("mäil", None),
        (b"m\xe4il", None),
        ("[UNAVAILABLE]", None),
    ],
)
def test_only_plain_names_are_host_names(name: str | bytes, host: bytes | None) -> None:
    assert host_name(name) == host
