# SPDX-License-Identifier: Apache-2.0
"""Names and addresses as the DNS writes them.  Pure."""

from __future__ import annotations

import re
import socket
from typing import Final

_HOST_NAME: Final = re.compile(rb"[A-Za-z0-9.-]+")


def packed(address: str) -> bytes | None:
    """Give an address's 4 or 16 bytes, or ``None`` when it is no IP address.

    A zone (``fe80::1%eth0``) is dropped: no name server knows it.
    """
    try:
        if ":" in address:
            return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        return socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError, UnicodeError):
        return None


def reverse_name(address: bytes) -> str:
    """Name under which a packed address stands (RFC 1035 section 3.5, RFC 3596 section 2.5).

    An IPv4-mapped address is an IPv6 address here, as in nginx.
    """
    if len(address) == 4:
        return ".".join(str(byte) for byte in reversed(address)) + ".in-addr.arpa"
    return ".".join(reversed(address.hex())) + ".ip6.arpa"


def host_name(name: str | bytes) -> bytes | None:
    """Tell a host name from what a PTR record holds, in lower case and without the trailing dot.

    ``name`` is in presentation form, where anything odd (a control character,
    a dot within a label) is written with a backslash and so refused.
    """
    data = name.encode("ascii", "replace") if isinstance(name, str) else name
    data = data.removesuffix(b".")
    return data.lower() if _HOST_NAME.fullmatch(data) else None
