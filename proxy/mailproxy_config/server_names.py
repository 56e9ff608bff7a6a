# SPDX-License-Identifier: Apache-2.0
"""Names of servers in the ``server_name`` extension of TLS (RFC 6066 section 3), and how they are compared.

Names are A-labels in lower case without a dot at the end.  A configured name may be a
wildcard, ``*.example.org``, where ``*`` stands for exactly one label (RFC 9525 section 6.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

T = TypeVar("T")

MAX_NAME: Final = 253
"""Maximum length of a host name in bytes, without the dot at its end."""
_LABEL: Final = "[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_IS_NUMBER: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_WILDCARD: Final = "*."


def parse_server_name(text: str) -> str:
    """Read a configured name, which may be a wildcard.

    Raises:
        ValueError: It is not a name: an address, a single ``*``, a label with other characters.
    """
    name = text.lower().removesuffix(".")
    host = name.removeprefix(_WILDCARD)
    if not name.isascii():
        hint = _as_a_labels(host)
        raise ValueError(f"{text[:80]!r} is not ASCII{hint}")
    if "*" in host:
        raise ValueError(f"{text[:80]!r}: * can only be the whole first label, as in *.example.org")
    if not is_host_name(host) or (host != name and "." not in host):
        raise ValueError(f"{text[:80]!r} is not a host name")
    return name


def parse_sni(data: bytes) -> str | None:
    """Return a name from a ClientHello as it is compared; ``None`` for addresses and malformed names.

    Args:
        data: The bytes of the ``HostName``.
    """
    if not data.isascii():
        return None
    name = data.decode("ascii").lower().removesuffix(".")
    return name if is_host_name(name) else None


def is_host_name(name: str) -> bool:
    """Whether a name in lower case is a host name of A-labels, and not an address.

    A name whose last label is a number is an IPv4 address for many programs, so it is not a name.
    """
    if len(name) > MAX_NAME or _NAME.fullmatch(name) is None:
        return False
    return _IS_NUMBER.fullmatch(name.rpartition(".")[2]) is None


def find_name(names: Mapping[str, T], name: str) -> T | None:
    """Return the entry of a name, else that of the wildcard for its first label."""
    found = names.get(name)
    if found is None:
        label, dot, rest = name.partition(".")
        if dot and label:
            return names.get(_WILDCARD + rest)
    return found


def _as_a_labels(host: str) -> str:
    try:
        return f"; write {host.encode('idna').decode('ascii')}"
    except UnicodeError:
        return ""
