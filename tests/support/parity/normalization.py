# SPDX-License-Identifier: Apache-2.0
"""Removes the differences that two proxies always have: times, random values and addresses."""

from __future__ import annotations

import re
import struct
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

_SALT: Final = re.compile(rb"<[0-9]+\.[0-9]+@")
_PROMPT: Final = re.compile(rb"^(\+|334) ([A-Za-z0-9+/=]{24,})(?=\r\n)", re.MULTILINE)
_VERSION: Final = re.compile(rb"(?<= HTTP/1\.)[01](?=\r\n)")


_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_TLV_NAMES: Final = {0x01: "ALPN", 0x02: "AUTHORITY", 0x03: "CRC32C", 0x20: "SSL"}
_SSL_TLV_NAMES: Final = {0x21: "VERSION", 0x22: "CN", 0x23: "CIPHER", 0x24: "SIGNATURE", 0x25: "KEY"}


def proxy_header_as_text(data: bytes) -> tuple[bytes, bytes]:
    """Return a PROXY header of version 2 as text, and the bytes after it.

    The checksum depends on addresses and ports, so the text only contains whether it is right.
    """
    if not data.startswith(_V2):
        return b"", data
    command, family, length = struct.unpack("!BBH", data[12:16])
    header, rest = data[: 16 + length], data[16 + length :]
    size = {0x11: 12, 0x21: 36}.get(family, 0)
    ends = _addresses_and_ports(header[16 : 16 + size])
    parts = " ".join(f"{name}={value}" for name, value in _tlvs(header, 16 + size))
    return f"PROXY2 {command:02x} {family:02x} {ends}{parts}\r\n".encode(), rest


def _addresses_and_ports(data: bytes) -> str:
    if not data:
        return ""
    half = (len(data) - 4) // 2
    source, target = ip_address(data[:half]), ip_address(data[half : 2 * half])
    ports = struct.unpack("!HH", data[2 * half :])
    return f"{_address_text(source)} {_address_text(target)} {ports[0]} {ports[1]} "


def _address_text(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _tlvs(header: bytes, at: int) -> Iterator[tuple[str, str]]:
    while at < len(header):
        kind, length = struct.unpack("!BH", header[at : at + 3])
        value = header[at + 3 : at + 3 + length]
        if kind == 0x03:
            blank = header[: at + 3] + bytes(4) + header[at + 7 :]
            yield "CRC32C", "right" if struct.unpack("!I", value)[0] == _crc32c(blank) else value.hex()
        elif kind == 0x20:
            yield "SSL", f"{value[0]:02x}/{struct.unpack('!I', value[1:5])[0]}"
            yield from _ssl_tlvs(value[5:])
        else:
            yield _TLV_NAMES.get(kind, f"{kind:02x}"), value.decode("latin-1")
        at += 3 + length


def _ssl_tlvs(data: bytes) -> Iterator[tuple[str, str]]:
    while data:
        kind, length = struct.unpack("!BH", data[:3])
        yield _SSL_TLV_NAMES.get(kind, f"{kind:02x}"), data[3 : 3 + length].decode("latin-1")
        data = data[3 + length :]


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli), bit by bit, as in the specification of the header."""
    total = 0xFFFFFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0x82F63B78 if total & 1 else 0)
    return total ^ 0xFFFFFFFF


class Normalizer:
    """Replaces addresses and ports that are different in each run with names.

    Args:
        replaced: The name for each replaced text.
    """

    def __init__(self, replaced: dict[str, str]) -> None:
        self._replaced = [
            (re.compile(rb"(?<![0-9A-Fa-f])%b(?![0-9A-Fa-f])" % re.escape(old.encode())), new.encode())
            for old, new in replaced.items()
        ]

    def normalize(self, data: bytes) -> bytes:
        """Return normalised bytes that a client or an upstream received."""
        for old, new in self._replaced:
            data = old.sub(new, data)
        return _PROMPT.sub(_without_salt, _SALT.sub(b"<R.T@", data))

    def normalize_upstream(self, data: bytes) -> bytes:
        """Return normalised bytes that an upstream received, a PROXY header of version 2 as text."""
        header, rest = proxy_header_as_text(data)
        return self.normalize(header + rest)

    def normalize_request(self, request: bytes) -> bytes:
        """Return a normalised request to the authentication service, without the minor version of HTTP."""
        line, end, rest = request.partition(b"\r\n")
        return self.normalize(_VERSION.sub(b"x", line + end) + rest)


def _without_salt(prompt: re.Match[bytes]) -> bytes:
    try:
        text = b64decode(prompt[2], validate=True)
    except NotBase64:
        return prompt[0]
    return prompt[1] + b" " + b64encode(_SALT.sub(b"<R.T@", text))
