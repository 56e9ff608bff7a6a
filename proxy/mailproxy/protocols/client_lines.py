# SPDX-License-Identifier: Apache-2.0
"""Lines of clients, in every protocol: their longest size, and what a line is that is no command."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final

from mailproxy.enums import ProtocolErrorKind
from mailproxy.protocols.sasl_tokens import TOKEN_LINE
from mailproxy_config.model import AuthMethod

TLS_HANDSHAKE: Final = b"\x16\x03"
"""The first bytes of a TLS handshake."""
_PROXY_HEADER: Final = re.compile(rb"PROXY (?:TCP4|TCP6|UNKNOWN)(?: |\Z)|\0\Z")
"""A line of a PROXY header: version 1, or the third line of version 2's signature."""
_HTTP_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI")
)
_TOKENS: Final = frozenset({AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})
_CONTROL_CHARS: Final = bytes((*range(0x20), 0x7F))


def has_control_chars(data: bytes) -> bool:
    """Whether there is an ASCII control character, including TAB and DEL."""
    return len(data.translate(None, _CONTROL_CHARS)) != len(data)


def classify_bad_line(line: bytes) -> ProtocolErrorKind:
    """Classify a line without a known command: another protocol, binary data, or an unknown command."""
    if _PROXY_HEADER.match(line):
        return ProtocolErrorKind.PROXY_HEADER
    if line.startswith(TLS_HANDSHAKE) or (b" " in line and line.partition(b" ")[0] in _HTTP_METHODS):
        return ProtocolErrorKind.FOREIGN_PROTOCOL
    if has_control_chars(line):
        return ProtocolErrorKind.CONTROL_CHAR
    return ProtocolErrorKind.UNKNOWN_COMMAND


def line_limit(client_buffer: int, methods: Set[AuthMethod]) -> int:
    """Return the longest command in bytes: the client's buffer, or more where tokens are accepted."""
    return client_buffer if methods.isdisjoint(_TOKENS) else max(client_buffer, TOKEN_LINE)
