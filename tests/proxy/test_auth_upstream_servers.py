# SPDX-License-Identifier: Apache-2.0
"""``Auth-Server`` with host names and lists (``auth_http_server_names``)."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.upstream_servers import is_name, upstream_servers
from mailproxy.enums import AuthErrorReason, Method
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, Secret, UpstreamServer
from mailproxy_config.model import Protocol
from support.auth_response import parse

LABEL_63 = b"a" * 63
NAME_253 = b".".join([LABEL_63] * 3 + [b"a" * 61])
GARBAGE = (
    *(
        b"a b",
        b"a\tb",
        b"a;b",
        b"a/b",
        b"a@b",
        b"a%eth0",
        b"a\x00",
        b"\x01a",
        b"a\x7f",
        b"a\xff",
        b"caf\xc3\xa9",
    ),
    *(b"-a", b"a-", b"a..b", b".a", b".", b"a..", b"a." + b"b" * 64, NAME_253 + b"a", b"*", b"*.example.com"),
    *(b"10.0.0.256", b"1.2.3", b"1.2.3.4.5", b"010.0.0.1", b"7", b"a.7", b"1.2.3.4.", b"0x7f.1"),
    *(b"fe80::1%eth0", b"[fe80::1%1]:143", b"::1::", b"[::1", b"::1]", b"[::1]]", b"[]", b"[]:143"),
    *(b"[10.0.0.1]", b"[10.0.0.1]:143", b"[a]", b"[a]:143", b"[::1]x", b"[::1] :143", b"[::1]143"),
    *(b"http://a", b"a:143/x", b"a, unix:/run/x", b"a, UNIX:/run/x", b"unix:x"),
)


def servers(value: bytes, port: bytes | None = b"143") -> list[tuple[str, int]]:
    """Parse ``Auth-Server`` and ``Auth-Port``."""
    headers = {b"auth-server": value} | ({} if port is None else {b"auth-port": port})
    return [(each.host, each.port) for each in upstream_servers(headers)]


def decided(headers: bytes, *, accepts_names: bool = True) -> AuthAllowed:
    found = parse(
        b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n",
        protocol=Protocol.IMAP,
        method=Method.PASSWORD,
        user=b"john",
        password=Secret(b"secret"),
        accepts_names=accepts_names,
    ).decision
    assert isinstance(found, AuthAllowed)
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"192.0.2.1", [("192.0.2.1", 143)]),
        (b"192.0.2.1:1143", [("192.0.2.1", 1143)]),
        (b"2001:db8::1", [("2001:db8::1", 143)]),
        (b"[2001:db8::1]", [("2001:db8::1", 143)]),
        (b"[2001:db8::1]:1143", [("2001:db8::1", 1143)]),
        (b"::ffff:192.0.2.1", [("::ffff:192.0.2.1", 143)]),
        (b"dovecot", [("dovecot", 143)]),
        (b"Dovecot-0.Dovecot.Mail.SVC", [("dovecot-0.dovecot.mail.svc", 143)]),
        (b"_imap._tcp.example.com:65535", [("_imap._tcp.example.com", 65535)]),
        (b"imap.example.com.", [("imap.example.com.", 143)]),
        (b"7up.example", [("7up.example", 143)]),
        (b"a:1", [("a", 1)]),
        (NAME_253, [(NAME_253.decode(), 143)]),
        (NAME_253 + b".", [(NAME_253.decode() + ".", 143)]),
        (b"unix:/run/imap.sock", [("unix:/run/imap.sock", 0)]),
        (b"10.0.0.7, 10.0.0.8:1143,\t[fd00::9] ", [("10.0.0.7", 143), ("10.0.0.8", 1143), ("fd00::9", 143)]),
        (b"a,b,c,d,e,f,g,h", [(name, 143) for name in "abcdefgh"]),
        (b"a,a", [("a", 143), ("a", 143)]),
    ],
)
def test_auth_server_is_a_list_of_addresses_and_names(value: bytes, expected: list[tuple[str, int]]) -> None:
    assert servers(value) == expected


@pytest.mark.parametrize("value", GARBAGE)
def test_bad_item_makes_the_response_invalid(value: bytes) -> None:
    with pytest.raises(InvalidAuthResponse) as caught:
        servers(value)
    assert caught.value.failure is AuthErrorReason.BAD_ADDRESS


@pytest.mark.parametrize("value", GARBAGE)
def test_one_bad_item_makes_the_whole_list_invalid(value: bytes) -> None:
    with pytest.raises(InvalidAuthResponse):
        servers(b"192.0.2.1, " + value)


@pytest.mark.parametrize("value", [b",", b"a,", b",a", b"a,,b", b" , a"])
def test_empty_item_makes_the_response_invalid(value: bytes) -> None:
    with pytest.raises(InvalidAuthResponse, match="empty item"):
        servers(value)


@pytest.mark.parametrize(
    "port", [b"", b"0", b"65536", b"-1", b"+1", b"1 1", b"1x", b"0x1", b"\xb2", b"9" * 5000, b"143:1"]
)
@pytest.mark.parametrize("host", [b"a", b"10.0.0.1", b"[::1]"])
def test_port_of_an_item_is_a_number_from_1_to_65535(host: bytes, port: bytes) -> None:
    with pytest.raises(InvalidAuthResponse):
        servers(b"b, %b:%b, c" % (host, port))


def test_ninth_item_makes_the_response_invalid() -> None:
    with pytest.raises(InvalidAuthResponse, match="has 9 items: the service must send at most 8"):
        servers(b"a,b,c,d,e,f,g,h,i")


def test_port_of_an_item_wins_over_auth_port() -> None:
    assert servers(b"a:1143, b", b"143") == [("a", 1143), ("b", 143)]


@pytest.mark.parametrize("port", [None, b"", b"nonsense"])
def test_auth_port_is_not_needed_where_every_item_has_a_port(port: bytes | None) -> None:
    assert servers(b"a:1, [::1]:2", port) == [("a", 1), ("::1", 2)]


@pytest.mark.parametrize("port", [None, b""])
def test_item_without_any_port_is_named(port: bytes | None) -> None:
    with pytest.raises(InvalidAuthResponse) as caught:
        decided(b"Auth-Server: a:1, b\r\n" + (b"" if port is None else b"Auth-Port: \r\n"))
    text = 'Auth-Server "b" has no port: the service must send it after a colon, or in Auth-Port'
    assert str(caught.value) == text
    assert caught.value.failure is AuthErrorReason.NO_SERVER


def test_error_names_the_item_and_what_to_send() -> None:
    with pytest.raises(InvalidAuthResponse) as caught:
        decided(b"Auth-Server: 10.0.0.1, mail example, b\r\nAuth-Port: 143\r\n")
    assert 'Auth-Server "mail example" is neither an IP address nor a host name: ' in str(caught.value)
    assert "the service must send" in str(caught.value)


def test_error_does_not_contain_a_password_in_the_list() -> None:
    with pytest.raises(InvalidAuthResponse) as caught:
        decided(b"Auth-Server: 10.0.0.1, my secret\r\nAuth-Port: 143\r\n")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [b"dovecot", b"10.0.0.1, 10.0.0.2", b"10.0.0.1:143"])
def test_names_and_lists_are_invalid_without_the_directive(value: bytes) -> None:
    with pytest.raises(InvalidAuthResponse, match="is not an IP address: the authentication service must"):
        decided(b"Auth-Server: %b\r\nAuth-Port: 143\r\n" % value, accepts_names=False)


@pytest.mark.parametrize(
    ("value", "host", "is_listed"),
    [
        (b"192.0.2.1", "192.0.2.1", False),
        (b"192.0.2.1:143", "192.0.2.1", False),
        (b"unix:/run/x", "unix:/run/x", False),
        (b"dovecot", "dovecot", True),
        (b"192.0.2.1, dovecot", "192.0.2.1", True),
        (b"192.0.2.1, 192.0.2.2", "192.0.2.1", True),
    ],
)
def test_servers_are_those_of_names_and_lists(value: bytes, host: str, is_listed: bool) -> None:
    found = decided(b"Auth-Server: %b\r\nAuth-Port: 143\r\nAuth-User: jane\r\n" % value)
    assert found.address == host
    assert found.user == b"jane"
    assert bool(found.servers) is is_listed
    if is_listed:
        assert found.servers[0] == UpstreamServer(host, found.port)


ANY_BYTES = st.binary(max_size=40)
PIECES = st.sampled_from(
    [
        b"a",
        b"mail.example",
        b"10.0.0.1",
        b"[::1]",
        b"::1",
        b":",
        b"143",
        b",",
        b" ",
        b".",
        b"%",
        b"]",
        b"\x00",
    ]
)


@given(st.one_of(ANY_BYTES, st.lists(PIECES, max_size=12).map(b"".join)), st.one_of(st.none(), ANY_BYTES))
def test_any_value_is_a_valid_list_or_invalid(value: bytes, port: bytes | None) -> None:
    try:
        found = servers(value, port)
    except InvalidAuthResponse:
        return
    assert 1 <= len(found) <= 8
    for host, number in found:
        if host.startswith("unix:"):
            assert (number, len(found)) == (0, 1)
            continue
        assert 1 <= number <= 65535
        if is_name(host):
            assert re.fullmatch(r"[a-z0-9_.-]{1,254}", host)
        else:
            ipaddress.ip_address(host)


LABELS = st.from_regex(r"[a-z_]([a-z0-9_-]{0,9}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"))


@given(
    st.lists(
        st.tuples(st.one_of(NAMES, ADDRESSES), st.one_of(st.none(), st.integers(1, 65535))),
        min_size=1,
        max_size=8,
    )
)
def test_written_list_is_read_back(items: list[tuple[str, int | None]]) -> None:
    value = " , ".join(host if port is None else f"{host}:{port}" for host, port in items)
    expected = [(host.strip("[]"), 143 if port is None else port) for host, port in items]
    assert servers(value.encode()) == expected
