# SPDX-License-Identifier: Apache-2.0
"""Addresses are parsed as in nginx."""

from __future__ import annotations

import pytest

from mailproxy_config import addresses
from mailproxy_config.model import AuthHttp


@pytest.mark.parametrize(
    ("text", "address", "ports"),
    [
        ("143", "*", [143]),
        ("*:143", "*", [143]),
        ("127.0.0.1:143", "127.0.0.1", [143]),
        ("localhost:143", "localhost", [143]),
        ("[::1]:143", "[::1]", [143]),
        ("143-145", "*", [143, 144, 145]),
        ("[::1]:143-144", "[::1]", [143, 144]),
        ("unix:/run/x.sock", "unix:/run/x.sock", []),
        ("UNIX:/run/x.sock", "unix:/run/x.sock", []),
    ],
)
def test_listen_argument_is_parsed(text: str, address: str, ports: list[int]) -> None:
    found = addresses.parse_listen_argument(text)
    assert (found.address, list(found.ports)) == (address, ports)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "no port"),  # nginx would use an arbitrary port
        ("localhost", "no port"),
        ("*", "no port"),
        ("[::1]", "no port"),
        (":143", "no host"),
        ("0", "out of range"),
        ("65536", "out of range"),
        ("a:b", "invalid port"),
        ("a:", "invalid port"),
        ("150-143", "invalid port range"),
        ("1000-2000", "more than 16 ports"),
        ("[::1", "invalid host"),
        ("[::1]x:1", "invalid host"),
        ("[::x]:1", "invalid IPv6 address"),
        ("[fe80::1%eth0]:1", "invalid IPv6 address"),
        ("a/b:1", "invalid host"),
        ("127...1:143", "invalid IPv4 address"),
        ("010.0.0.1:143", "invalid IPv4 address"),
        ("256.0.0.1:143", "invalid IPv4 address"),
        ("unix:", "unix: takes an absolute path"),
        ("unix:/" + "x" * 107, "unix: takes an absolute path"),
    ],
)
def test_invalid_listen_argument_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        addresses.parse_listen_argument(text)


@pytest.mark.parametrize("text", ["*", "0.0.0.0", "[::]", "mail.example.com", "a_b", "unix:/x"])
def test_listen_address_is_kept_as_written(text: str) -> None:
    assert addresses.check_listen_address(text) == text


@pytest.mark.parametrize("text", ["::1", "127.0.0.1:143", "a b", "x" * 254, "unix:x", ""])
def test_invalid_listen_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        addresses.check_listen_address(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("*", 143), ("0.0.0.0", 143), True),
        (("[::1]", 143), ("[0:0::1]", 143), True),
        (("Mail", 143), ("mail", 143), True),
        (("unix:/A", None), ("unix:/a", None), False),
        (("*", 143), ("[::]", 143), False),
        (("*", 143), ("127.0.0.1", 143), False),
        (("*", 143), ("*", 144), False),
    ],
)
def test_equal_listeners_have_the_same_key(one: tuple[str, int], other: tuple[str, int], same: bool) -> None:
    assert (addresses.listen_key(*one) == addresses.listen_key(*other)) is same


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("localhost:9000/cgi-bin/x.cgi", AuthHttp(host="localhost", port=9000, uri="/cgi-bin/x.cgi")),
        ("http://auth", AuthHttp(host="auth")),
        ("http://[::1]:8080", AuthHttp(host="[::1]", port=8080)),
        ("127.0.0.1:9000?x=1", AuthHttp(host="127.0.0.1", port=9000, uri="/?x=1")),  # nginx: "?x=1"
        ("a/b?c=http://d", AuthHttp(host="a", uri="/b?c=http://d")),
        ("https://auth.example/x", AuthHttp(host="auth.example", port=443, uri="/x", tls=True)),
        ("https://auth.example:8443", AuthHttp(host="auth.example", port=8443, tls=True)),
        ("unix:/run/a.sock", AuthHttp(host="localhost", unix_path="/run/a.sock")),
        ("http://unix:/run/a.sock:/u", AuthHttp(host="localhost", unix_path="/run/a.sock", uri="/u")),
    ],
)
def test_auth_http_url_is_parsed(text: str, found: AuthHttp) -> None:
    assert addresses.parse_auth_http(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("HTTP://auth/", "must be"),
        ("ftp://auth/", "must be"),
        ("", "no host"),
        ("http://", "no host"),
        (":80", "no host"),
        ("auth:0", "out of range"),
        ("auth:x/", "invalid port"),
        ("user@auth/", "not accepted in the URL"),
        ("auth/a b", "without spaces"),
        ("auth/\r\nX: y", "printable ASCII"),
        ("auth/é", "printable ASCII"),
        ("https://unix:/x", "is not supported with a unix"),
        ("unix:relative", "absolute path"),
    ],
)
def test_invalid_auth_http_url_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        addresses.parse_auth_http(text)


@pytest.mark.parametrize(
    "text",
    ["http://user:s3cret@h/auth", "https://user:s3cret@h:9/", "u:s3cret@h", "s3cret@h"],
)
def test_credentials_in_auth_http_are_rejected_and_not_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match="auth_http_header") as caught:
        addresses.parse_auth_http(text)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "canonical", "bits_lost"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", False),
        ("10.1.2.3/8", "10.0.0.0/8", True),
        ("192.0.2.1", "192.0.2.1", False),
        ("2001:DB8::/32", "2001:db8::/32", False),
        ("[::1]", "::1", False),
        ("unix:", "unix:", False),
        ("lb.example", "lb.example", False),
    ],
)
def test_trusted_address_is_parsed(text: str, canonical: str, bits_lost: bool) -> None:
    assert addresses.parse_trusted_address(text) == (canonical, bits_lost)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.0/", "1:2", "10.0.0", "a b", "unix:/x", ""])
def test_invalid_trusted_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        addresses.parse_trusted_address(text)


def test_dns_server_can_have_a_port() -> None:
    assert addresses.parse_host_port("[::1]:5353") == ("[::1]", 5353)
    assert addresses.parse_host_port("ns.example") == ("ns.example", None)


def test_host_and_port_are_formatted_with_brackets_for_ipv6() -> None:
    formatted = [addresses.format_host_port("192.0.2.1", 53), addresses.format_host_port("::1", 5353)]
    assert formatted == ["192.0.2.1:53", "[::1]:5353"]
    assert addresses.format_host_port("unix:/run/a.sock", 0) == "unix:/run/a.sock"
