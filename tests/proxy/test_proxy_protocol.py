# SPDX-License-Identifier: Apache-2.0
"""PROXY headers: parsing and writing."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import ProxyHeaderResult
from mailproxy.protocols.proxy_protocol import (
    MAX_V1,
    MAX_V2,
    SIGNATURE,
    BadHeader,
    Header,
    address_text,
    crc32c,
    outbound_header,
    read_header,
)
from mailproxy.protocols.types import Client, ClientCertificate, ProxyAddresses, TlsInfo
from mailproxy_config.model import Protocol, SendProxyProtocol
from support.configs import server

INVALID, MISSING = ProxyHeaderResult.INVALID, ProxyHeaderResult.MISSING
LONGEST_IPV6 = b"ffff:" * 7 + b"ffff"
V1 = server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V1)
V2 = server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V2)


def v2(kind: bytes, body: bytes) -> bytes:
    return SIGNATURE + kind + len(body).to_bytes(2, "big") + body


IPV4_BODY = bytes.fromhex("c0000201 c0000202 dc04 0019")
IPV6_BODY = (
    ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("::ffff:1.2.3.4").packed + b"\0\1\0\2"
)

# ---- version 1, inbound ----


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 25", ProxyAddresses(b"192.0.2.1", b"192.0.2.2", 56324, 25)),
        (b"PROXY TCP6 2001:DB8:0::1 ::1 0 65535", ProxyAddresses(b"2001:DB8:0::1", b"::1", 0, 65535)),
        (b"PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2", ProxyAddresses(b"::ffff:1.2.3.4", b"::1", 1, 2)),
        (
            b"PROXY TCP6 %b %b 65535 65535" % (LONGEST_IPV6, LONGEST_IPV6),
            ProxyAddresses(LONGEST_IPV6, LONGEST_IPV6, 65535, 65535),
        ),
    ],
)
def test_read_v1_keeps_addresses_as_received(line: bytes, addresses: ProxyAddresses) -> None:
    header = Header(len(line) + 2, addresses, 1, ProxyHeaderResult.V1)
    assert read_header(line + b"\r\nrest") == header


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN",
        b"PROXY UNKNOWN 192.0.2.1 whatever \xff",
        b"PROXY UNKNOWN %b %b 65535 65535" % (LONGEST_IPV6, LONGEST_IPV6),
    ],
)
def test_read_v1_unknown_has_no_addresses(line: bytes) -> None:
    assert len(line) + 2 <= MAX_V1
    assert read_header(line + b"\r\na1 NOOP\r\n") == Header(len(line) + 2, None, 1, ProxyHeaderResult.UNKNOWN)


@pytest.mark.parametrize(
    ("data", "result"),
    [
        # bytes                                              why
        (b"a1 LOGIN john secret\r\n", MISSING),
        (b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n", MISSING),
        (b"\r\n\r\nNOOP", MISSING),
        (b"PROXY\r\n", MISSING),
        (b"\x16\x03\x01", MISSING),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rx", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", INVALID),
        (b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 99999\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 000002\r\n", INVALID),
        (b"PROXY TCP4 127...1 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n", INVALID),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY TCP6 ::1 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", INVALID),
        (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", INVALID),
        (b"PROXY UNKNOWNS\r\n", INVALID),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", INVALID),
        (b"PROXY " + b"x" * 101, INVALID),
    ],
)
def test_invalid_v1_header_is_rejected(data: bytes, result: ProxyHeaderResult) -> None:
    with pytest.raises(BadHeader) as bad:
        read_header(data)
    assert bad.value.result is result


# ---- version 2, inbound ----


@pytest.mark.parametrize(
    ("data", "addresses"),
    [
        (v2(b"\x21\x11", IPV4_BODY), ProxyAddresses(b"192.0.2.1", b"192.0.2.2", 56324, 25)),
        (v2(b"\x21\x21", IPV6_BODY), ProxyAddresses(b"2001:db8::1", b"::ffff:1.2.3.4", 1, 2)),
        (v2(b"\x21\x11", IPV4_BODY + bytes(4084)), ProxyAddresses(b"192.0.2.1", b"192.0.2.2", 56324, 25)),
    ],
)
def test_read_v2_formats_addresses(data: bytes, addresses: ProxyAddresses) -> None:
    assert read_header(data + b"rest") == Header(len(data), addresses, 2, ProxyHeaderResult.V2)


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (v2(b"\x20\x00", b""), ProxyHeaderResult.LOCAL),
        (v2(b"\x20\x11", IPV4_BODY), ProxyHeaderResult.LOCAL),
        (v2(b"\x21\x00", b""), ProxyHeaderResult.UNKNOWN),
        (v2(b"\x21\x12", IPV4_BODY), ProxyHeaderResult.UNKNOWN),
        (v2(b"\x21\x31", bytes(216)), ProxyHeaderResult.UNKNOWN),
        (v2(b"\x2f\x11", IPV4_BODY), ProxyHeaderResult.UNKNOWN),
    ],
)
def test_read_v2_without_tcp_addresses_has_none(data: bytes, result: ProxyHeaderResult) -> None:
    assert read_header(data + b"rest") == Header(len(data), None, 2, result)


@pytest.mark.parametrize(
    "data",
    [
        v2(b"\x11\x11", IPV4_BODY),
        v2(b"\x31\x11", IPV4_BODY),
        v2(b"\x21\x11", IPV4_BODY[:-1]),
        v2(b"\x21\x21", IPV6_BODY[:-1]),
        SIGNATURE + b"\x21\x11\x10\x01",
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_invalid_v2_header_is_rejected(data: bytes) -> None:
    with pytest.raises(BadHeader) as bad:
        read_header(data)
    assert bad.value.result is INVALID


# ---- cuts ----


@pytest.mark.parametrize(
    "whole",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 25\r\n",
        b"PROXY UNKNOWN x\r\n",
        v2(b"\x21\x11", IPV4_BODY),
        v2(b"\x20\x00", b"tlv"),
    ],
)
def test_incomplete_header_returns_none(whole: bytes) -> None:
    complete = read_header(whole)
    assert complete is not None
    assert complete.consumed == len(whole)
    for cut in range(len(whole)):
        assert read_header(whole[:cut]) is None
    assert read_header(whole + b"* junk") == complete


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x0c"]))
def test_any_bytes_are_header_invalid_or_incomplete(data: bytes, start: bytes) -> None:
    try:
        header = read_header(start + data)
    except BadHeader:
        return
    assert header is None or header.consumed <= len(start + data)


def test_max_v2_bytes_are_never_incomplete() -> None:
    assert read_header(v2(b"\x20\x00", bytes(MAX_V2 - 16))) is not None


# ---- text ----


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ("::", "::"),
        ("::1", "::1"),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
        ("::1.2.3.4", "::1.2.3.4"),
        ("::1:0", "::0.1.0.0"),
        ("::12", "::12"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_address_text_has_nginx_format(address: str, text: str) -> None:
    assert address_text(ipaddress.ip_address(address)) == text
    assert ipaddress.ip_address(text) == ipaddress.ip_address(address)


# ---- outbound ----


def test_outbound_header_is_empty_if_disabled() -> None:
    assert outbound_header(server(Protocol.IMAP), Client("192.0.2.1", 1, "192.0.2.2", 2)) == b""


@pytest.mark.parametrize(
    ("client", "line"),
    [
        (Client("192.0.2.1", 4000, "192.0.2.2", 25), b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 25\r\n"),
        (Client("2001:db8::1", 4000, "::1", 25), b"PROXY TCP6 2001:db8::1 ::1 4000 25\r\n"),
        (
            Client("::ffff:1.2.3.4", 1, "::ffff:5.6.7.8", 2),
            b"PROXY TCP6 ::ffff:1.2.3.4 ::ffff:5.6.7.8 1 2\r\n",
        ),
        (Client("fe80::1%eth0", 1, "fe80::2%eth0", 2), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        (Client("unix:", 0, "unix:/run/imap", 0), b"PROXY UNKNOWN\r\n"),
        (Client("192.0.2.1", 1, "unix:/run/imap", 0), b"PROXY UNKNOWN\r\n"),
        (Client("192.0.2.1", 1, "::1", 2), b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
        (Client("2001:db8::1", 1, "192.0.2.2", 2), b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1 2\r\n"),
    ],
)
def test_outbound_v1_header(client: Client, line: bytes) -> None:
    assert outbound_header(V1, client) == line


@pytest.mark.parametrize(
    ("client", "header"),
    [
        (
            Client("127.0.0.1", 36994, "127.0.0.1", 8114),
            "0D0A0D0A000D0A515549540A 21 11 0013 7F000001 7F000001 9082 1FB2 03 0004 C6BD12E5",
        ),
        (
            Client("::ffff:127.0.0.1", 36994, "::ffff:127.0.0.1", 8114),
            "0D0A0D0A000D0A515549540A 21 11 0013 7F000001 7F000001 9082 1FB2 03 0004 C6BD12E5",
        ),
    ],
)
def test_outbound_v2_header(client: Client, header: str) -> None:
    assert outbound_header(V2, client) == bytes.fromhex(header)


def test_outbound_v2_maps_ipv4_if_families_differ() -> None:
    header = outbound_header(V2, Client("192.0.2.1", 1, "::1", 2))
    assert header[12:16] == bytes.fromhex("21 21 002b")
    assert header[16:32] == ipaddress.ip_address("::ffff:192.0.2.1").packed
    assert header[32:48] == ipaddress.ip_address("::1").packed


@pytest.mark.parametrize(
    "client",
    [
        Client("192.0.2.1", 1, "192.0.2.2", 2, session_id="0f3a-1c"),
        Client("192.0.2.1", 1, "::1", 2, tls=TlsInfo("TLSv1.3", "c"), session_id="0f3a-1c"),
        Client("unix:", 0, "unix:/run/imap", 0, session_id="0f3a-1c"),
    ],
    ids=["plain", "tls", "unix"],
)
def test_outbound_v2_has_unique_id_before_the_checksum_if_configured(client: Client) -> None:
    config = server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V2, proxy_protocol_unique_id=True)
    header, without = outbound_header(config, client), outbound_header(V2, client)
    tlv = b"\x05\x00\x070f3a-1c"
    assert tlv not in without
    assert header[16:-7] == without[16:-7] + tlv
    assert int.from_bytes(header[14:16], "big") == len(header) - 16
    assert int.from_bytes(header[-4:], "big") == crc32c(header[:-4] + bytes(4))
    read = read_header(header)
    assert read is not None
    assert read.consumed == len(header)


def test_version_1_has_no_unique_id() -> None:
    config = server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V1, proxy_protocol_unique_id=True)
    client = Client("192.0.2.1", 1, "192.0.2.2", 2, session_id="0f3a-1c")
    assert outbound_header(config, client) == outbound_header(V1, client)


def test_outbound_v2_is_local_for_unix_client() -> None:
    header = outbound_header(V2, Client("unix:", 0, "unix:/run/imap", 0))
    assert header[:-4] == SIGNATURE + bytes.fromhex("20 00 0007 03 0004")


def certificate(common_name: bytes | None) -> ClientCertificate:
    return ClientCertificate(b"", b"", b"", b"", b"", common_name)


FULL = TlsInfo(
    "TLSv1.3",
    "TLS_AES_128_GCM_SHA256",
    server_name=b"mx",
    alpn=b"imap",
    certificate=certificate(b"J\xc3\xb6"),
    own_signature=b"RSA-SHA256",
    own_key=b"RSA2048",
)


@pytest.mark.parametrize(
    ("tls", "values"),
    [
        (
            TlsInfo("TLSv1.2", "X"),
            b"\x20\x00\x13\x01\0\0\0\x01" b"\x21\x00\x07TLSv1.2" b"\x23\x00\x01X",
        ),
        (
            TlsInfo("TLSv1.2", "X", resumed=True, certificate=certificate(None), verify_code=18),
            b"\x20\x00\x13\x05\0\0\0\x12" b"\x21\x00\x07TLSv1.2" b"\x23\x00\x01X",
        ),
        (
            TlsInfo("TLSv1.2", "X", certificate=certificate(b"n" * 1025)),
            b"\x20\x00\x13\x07\0\0\0\0" b"\x21\x00\x07TLSv1.2" b"\x23\x00\x01X",
        ),
        (
            FULL,
            b"\x02\x00\x02mx" b"\x01\x00\x04imap" b"\x20\x00\x45\x07\0\0\0\0"
            b"\x21\x00\x07TLSv1.3" b"\x22\x00\x03J\xc3\xb6" b"\x23\x00\x16TLS_AES_128_GCM_SHA256"
            b"\x24\x00\x0aRSA-SHA256" b"\x25\x00\x07RSA2048",
        ),
    ],
)  # fmt: skip
def test_outbound_v2_has_tls_tlvs(tls: TlsInfo, values: bytes) -> None:
    header = outbound_header(V2, Client("192.0.2.1", 1, "192.0.2.2", 2, tls=tls))
    assert header[28:-7] == values
    assert int.from_bytes(header[14:16], "big") == len(header) - 16


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
PORTS = st.integers(0, 65535)


@given(ADDRESSES, ADDRESSES, PORTS, PORTS, st.sampled_from([None, FULL]))
def test_outbound_header_can_be_read(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address,
    source_port: int,
    destination_port: int,
    tls: TlsInfo | None,
) -> None:
    client = Client(str(source), source_port, str(destination), destination_port, tls=tls)
    for version, config in enumerate((V1, V2), start=1):
        data = outbound_header(config, client)
        header = read_header(data + b"* OK")
        assert header is not None
        assert header.addresses is not None
        assert (header.consumed, header.version) == (len(data), version)
        assert _plain(header.addresses.source) == _plain(str(source).encode())
        assert _plain(header.addresses.destination) == _plain(str(destination).encode())
        assert (header.addresses.source_port, header.addresses.destination_port) == (
            source_port,
            destination_port,
        )


def _plain(text: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.decode())
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@given(ADDRESSES, PORTS)
def test_outbound_v2_checksum_covers_whole_header(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    header = outbound_header(V2, Client(str(source), port, str(source), 25))
    assert crc32c(header[:-4] + bytes(4)).to_bytes(4, "big") == header[-4:]
