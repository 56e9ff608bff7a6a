# SPDX-License-Identifier: Apache-2.0
"""Keys of limits: addresses, users, domains, headers of the response, and several of them."""

from __future__ import annotations

from typing import Final

import pytest

from mailproxy.limits.keys import KeyTooLong, address_key, key_function
from mailproxy.protocols.types import Client

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nX-Class: gold \r\nAuth-User: bob\r\nX-CLASS:silver\r\n"
    b"X-Empty:\r\nMy-X-Class: no\r\n\r\n"
)


def key(text: str, *, address: str = "192.0.2.1", user: bytes = b"", prefix: int = 128) -> bytes:
    return key_function(text, prefix)(Client(address), user, HEAD)


@pytest.mark.parametrize(
    ("text", "user", "expected"),
    [
        ("$remote_addr", b"bob", b"192.0.2.1"),
        ("$remote_user", b"Bob@Example.org", b"Bob@Example.org"),
        ("$remote_user", b"", b""),
        ("$domain", b"a@b@Example.ORG", b"example.org"),
        ("$domain", b"bob", b""),
        ("$auth_http_x_class", b"", b"gold, silver"),
        ("$auth_http_auth_user", b"", b"bob"),
        ("$auth_http_x_empty", b"", b""),
        ("$auth_http_x_none", b"", b""),
    ],
)
def test_value_of_a_variable(text: str, user: bytes, expected: bytes) -> None:
    assert key(text, user=user) == expected


def test_joined_values_are_different_keys_where_one_of_them_is() -> None:
    first = key("$remote_user$domain", user=b"ab@c")
    assert first != key("$domain$remote_user", user=b"ab@c")
    assert key("$remote_user$remote_addr", user=b"a1", address="1.0.0.1") != key(
        "$remote_user$remote_addr", user=b"a", address="11.0.0.1"
    )
    assert key("$domain$auth_http_x_none", user=b"bob") == b""
    assert key("$domain$remote_addr", user=b"bob") != b""


def test_key_that_is_too_long() -> None:
    assert len(key("$remote_user", user=b"u" * 300)) == 300  # the caller checks it
    with pytest.raises(KeyTooLong):
        key("$remote_user$remote_addr", user=b"u" * 250)


@pytest.mark.parametrize(
    ("one", "other", "prefix", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", 64, True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", 64, False),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", 48, True),
        ("2001:db8::1", "2001:db8::2", 128, False),
        ("2001:db8::1", "2001:DB8:0::1", 128, True),
        ("::ffff:192.0.2.1", "192.0.2.1", 16, True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", 16, False),
        ("192.0.2.1", "192.0.2.2", 16, False),
        ("unix:", "192.0.2.1", 128, False),
    ],
)
def test_addresses_that_count_as_one(one: str, other: str, prefix: int, is_same: bool) -> None:
    assert (address_key(one, prefix) == address_key(other, prefix)) is is_same
