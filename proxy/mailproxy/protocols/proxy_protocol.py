# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol: parsing the header of a client connection, writing the header to an upstream.

Version 1 is a line of text, version 2 is binary (specified in HAProxy's
``proxy-protocol.txt``).  Reading from the socket, with its timeout, is in
``session/handshakes.py``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from mailproxy.enums import ProxyHeaderResult
from mailproxy.protocols.types import Client, ProxyAddresses, TlsInfo
from mailproxy_config.model import SendProxyProtocol, ServerConfig

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1: Final = 107
"""Bytes of the longest version 1 header, its CRLF included."""
MAX_V2: Final = 16 + 4096
"""Bytes of the longest version 2 header that is accepted; the same limit as in nginx."""

_KEYWORD: Final = b"PROXY "
_EXCERPT: Final = 16
_V1: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?|(TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5}))",
    re.DOTALL,
)
_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!\Z)")

_STREAM_ADDRESSES: Final = {0x11: 12, 0x21: 36}
"""Family and transport of the supported addresses, and their length in bytes."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_TLV_ALPN: Final = 0x01
_TLV_AUTHORITY: Final = 0x02
_TLV_CRC32C: Final = 0x03
_TLV_UNIQUE_ID: Final = 0x05
_TLV_SSL: Final = 0x20
_SUBTYPE_VERSION: Final = 0x21
_SUBTYPE_CN: Final = 0x22
_SUBTYPE_CIPHER: Final = 0x23
_SUBTYPE_SIGNATURE: Final = 0x24
_SUBTYPE_KEY: Final = 0x25
_CLIENT_TLS: Final = 0x01
_CLIENT_CERT_NOW: Final = 0x02
_CLIENT_CERT_SESSION: Final = 0x04
_MAX_COMMON_NAME: Final = 1024


class BadHeader(Exception):
    """There is no valid PROXY header, whatever bytes follow.

    Attributes:
        result: ``MISSING`` if there is not even the start of one, otherwise ``INVALID``.
    """

    def __init__(self, result: ProxyHeaderResult) -> None:
        super().__init__(result.value)
        self.result = result


@dataclass(frozen=True, slots=True)
class Header:
    """A complete header.

    ``consumed`` is its length; the bytes after it are of the mail protocol or
    TLS.  ``addresses`` is ``None`` if the header has none (``UNKNOWN``,
    ``LOCAL``, a family other than TCP).
    """

    consumed: int
    addresses: ProxyAddresses | None
    version: int
    result: ProxyHeaderResult


def read_header(buffer: bytes) -> Header | None:
    """Parse the header at the start of a connection.

    Args:
        buffer: All bytes received so far; ``MAX_V2`` bytes are always enough.

    Returns:
        The header, or ``None`` if it is incomplete.

    Raises:
        BadHeader: There is none, or it is malformed.
    """
    if buffer.startswith(SIGNATURE):
        return _read_v2(buffer)
    if buffer.startswith(_KEYWORD):
        return _read_v1(buffer)
    if SIGNATURE.startswith(buffer) or _KEYWORD.startswith(buffer):
        return None
    raise BadHeader(ProxyHeaderResult.MISSING)


def begins_header(buffer: bytes) -> bool:
    """Whether a connection starts with a PROXY header, given its first bytes."""
    return buffer.startswith((_KEYWORD, SIGNATURE))


def excerpt(buffer: bytes) -> bytes:
    """Return the part of a connection without a valid header that may be logged.

    If it is no header at all, this is one word only: the client may have sent
    its password.
    """
    if buffer.startswith(SIGNATURE):
        return buffer[: 16 + max(_STREAM_ADDRESSES.values())]
    if buffer.startswith(_KEYWORD):
        end = _LINE_END.search(buffer, 0, MAX_V1)
        return buffer[: end.start() if end else MAX_V1]
    return (buffer.split(None, 1) or [buffer])[0][:_EXCERPT]


def _read_v1(buffer: bytes) -> Header | None:
    found = _LINE_END.search(buffer, 0, MAX_V1)
    if found is None:
        if len(buffer) < MAX_V1:
            return None
        raise BadHeader(ProxyHeaderResult.INVALID)
    line = _V1.fullmatch(buffer, 0, found.start())
    if line is None or found[0] != b"\r\n":
        raise BadHeader(ProxyHeaderResult.INVALID)
    family, source, destination, source_port, destination_port = line.groups()
    if family is None:
        return Header(found.end(), None, 1, ProxyHeaderResult.UNKNOWN)
    addresses = ProxyAddresses(source, destination, int(source_port), int(destination_port))
    _check_v1(addresses, ipaddress.IPv4Address if family == b"TCP4" else ipaddress.IPv6Address)
    return Header(found.end(), addresses, 1, ProxyHeaderResult.V1)


def _check_v1(
    addresses: ProxyAddresses, family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]
) -> None:
    """Check the addresses against the family, which nginx does not."""
    try:
        family(addresses.source.decode("ascii"))
        family(addresses.destination.decode("ascii"))
    except ValueError:
        raise BadHeader(ProxyHeaderResult.INVALID) from None
    if max(addresses.source_port, addresses.destination_port) > 65535:
        raise BadHeader(ProxyHeaderResult.INVALID)


def _read_v2(buffer: bytes) -> Header | None:
    if len(buffer) < 16:
        return None
    version, command = buffer[12] >> 4, buffer[12] & 15
    length = int.from_bytes(buffer[14:16], "big")
    if version != 2 or 16 + length > MAX_V2:
        raise BadHeader(ProxyHeaderResult.INVALID)
    if len(buffer) < 16 + length:
        return None
    if command == 0:
        return Header(16 + length, None, 2, ProxyHeaderResult.LOCAL)
    needed = _STREAM_ADDRESSES.get(buffer[13])
    if command != 1 or needed is None:
        return Header(16 + length, None, 2, ProxyHeaderResult.UNKNOWN)
    if length < needed:
        raise BadHeader(ProxyHeaderResult.INVALID)
    return Header(16 + length, _v2_addresses(buffer[16 : 16 + needed]), 2, ProxyHeaderResult.V2)


def _v2_addresses(data: bytes) -> ProxyAddresses:
    half = (len(data) - 4) // 2
    return ProxyAddresses(
        _text(data[:half]),
        _text(data[half : 2 * half]),
        int.from_bytes(data[-4:-2], "big"),
        int.from_bytes(data[-2:], "big"),
    )


def _text(packed: bytes) -> bytes:
    return address_text(ipaddress.ip_address(packed)).encode()


def address_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Format an address as nginx does: RFC 5952, mapped and compatible addresses with dots at the end."""
    packed = address.packed
    if len(packed) == 4:
        return str(address)
    if packed.startswith(_MAPPED):
        return f"::ffff:{ipaddress.IPv4Address(packed[12:])}"
    compatible = packed[12:14] != b"\0\0" or (packed[14] != 0 and packed[15] != 1)
    if packed.startswith(bytes(12)) and compatible:
        return f"::{ipaddress.IPv4Address(packed[12:])}"
    return str(address)


def outbound_header(server: ServerConfig, client: Client) -> bytes:
    """Return the header for the upstream (directive ``proxy_protocol``), empty if it is off.

    Source is the client, after ``set_real_ip_from``; destination is the
    address that accepted the connection, never that of an inbound header.
    With ``proxy_protocol_unique_id``, version 2 has the session's ID.
    """
    if server.proxy_protocol is SendProxyProtocol.V1:
        return _write_v1(client)
    if server.proxy_protocol is SendProxyProtocol.V2:
        return _write_v2(client, has_id=server.proxy_protocol_unique_id)
    return b""


def _packed_ends(client: Client) -> tuple[bytes, bytes] | None:
    """Return both addresses in one family, ``None`` if one of them is no IP address.

    If the families differ, which ``set_real_ip_from`` may cause, the IPv4
    address becomes an IPv4-mapped one.
    """
    try:
        source = ipaddress.ip_address(client.address.partition("%")[0]).packed
        destination = ipaddress.ip_address(client.local_address.partition("%")[0]).packed
    except ValueError:
        return None
    if len(source) == len(destination):
        return source, destination
    return (
        source if len(source) == 16 else _MAPPED + source,
        destination if len(destination) == 16 else _MAPPED + destination,
    )


def _write_v1(client: Client) -> bytes:
    ends = _packed_ends(client)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination = ends
    return b"PROXY %b %b %b %d %d\r\n" % (
        b"TCP4" if len(source) == 4 else b"TCP6",
        _text(source),
        _text(destination),
        client.port,
        client.local_port,
    )


def _write_v2(client: Client, *, has_id: bool) -> bytes:
    ends = _packed_ends(client)
    if ends is None:
        kind, body = b"\x20\x00", b""
    else:
        source, destination = ends
        if source.startswith(_MAPPED) and destination.startswith(_MAPPED):
            source, destination = source[12:], destination[12:]
        kind = b"\x21\x11" if len(source) == 4 else b"\x21\x21"
        body = source + destination + client.port.to_bytes(2, "big") + client.local_port.to_bytes(2, "big")
    if client.tls is not None:
        body += _tls_tlvs(client.tls)
    if has_id:
        body += _tlv(_TLV_UNIQUE_ID, client.upstream_session_id.encode())
    length = len(body) + 7
    unsigned = b"%b%b%b%b%b" % (
        SIGNATURE,
        kind,
        length.to_bytes(2, "big"),
        body,
        _tlv(_TLV_CRC32C, bytes(4)),
    )
    return unsigned[:-4] + crc32c(unsigned).to_bytes(4, "big")


def local_header(version: SendProxyProtocol) -> bytes:
    """Return the header of a connection without a client: ``LOCAL``, in version 1 ``UNKNOWN``."""
    return b"PROXY UNKNOWN\r\n" if version is SendProxyProtocol.V1 else SIGNATURE + b"\x20\x00\x00\x00"


def _tlv(kind: int, data: bytes) -> bytes:
    return b"%c%b%b" % (kind, len(data).to_bytes(2, "big"), data)


def _tls_tlvs(tls: TlsInfo) -> bytes:
    values = b""
    if tls.server_name is not None:
        values += _tlv(_TLV_AUTHORITY, tls.server_name)
    if tls.alpn is not None:
        values += _tlv(_TLV_ALPN, tls.alpn)
    return values + _tlv(_TLV_SSL, _ssl_tlv(tls))


def _ssl_tlv(tls: TlsInfo) -> bytes:
    flags = _CLIENT_TLS
    verify = 1
    name = None
    if tls.certificate is not None:
        flags |= _CLIENT_CERT_SESSION if tls.resumed else _CLIENT_CERT_SESSION | _CLIENT_CERT_NOW
        verify = tls.verify_code
        name = tls.certificate.common_name
    if name is not None and len(name) > _MAX_COMMON_NAME:
        name = None  # a truncated name may be the name of another client
    named = (
        (_SUBTYPE_VERSION, tls.version.encode()),
        (_SUBTYPE_CN, name),
        (_SUBTYPE_CIPHER, tls.cipher.encode()),
        (_SUBTYPE_SIGNATURE, tls.own_signature),
        (_SUBTYPE_KEY, tls.own_key),
    )
    values = b"".join(_tlv(kind, data) for kind, data in named if data is not None)
    return b"%c%b%b" % (flags, verify.to_bytes(4, "big"), values)


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C: Final = tuple(map(_crc32c_of, range(256)))


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
