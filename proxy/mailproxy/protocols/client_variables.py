# SPDX-License-Identifier: Apache-2.0
"""Variables in values of ``auth_http_header`` (with ``auth_http_variables``) and ``proxy_forward``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mailproxy.protocols.types import Client
from mailproxy_config.client_variables import VARIABLE, check_name
from mailproxy_config.model import Protocol

_PROTOCOL: Final = b"protocol"
_OF_CLIENT: Final[Mapping[bytes, Callable[[Client], bytes]]] = {
    b"remote_addr": lambda client: client.address.encode("utf-8", "surrogateescape"),
    b"remote_port": lambda client: b"%d" % client.port,
    b"server_addr": lambda client: client.connected[0].encode(),
    b"server_port": lambda client: b"%d" % client.connected[1],
    b"ssl_server_name": lambda client: (client.tls and client.tls.server_name) or b"",
    b"session_id": lambda client: client.session_id.encode(),
}

Part = bytes | Callable[[Client], bytes]
"""Literal bytes, or a function of the client."""


def parse_value(value: bytes, protocol: Protocol) -> Sequence[Part]:
    """Split a value into literal bytes and variables.

    Raises:
        ValueError: There is no such variable.
    """
    parts: list[Part] = []
    end = 0
    for found in VARIABLE.finditer(value):
        parts.append(value[end : found.start()])
        end = found.end()
        name: bytes = found[1] or found[2]
        check_name(name.decode())
        parts.append(protocol.encode() if name == _PROTOCOL else _OF_CLIENT[name])
    return [part for part in (*parts, value[end:]) if part != b""]


def render_value(parts: Sequence[Part], client: Client) -> bytes:
    """Return the value for a client; it may contain line breaks, e.g. of SNI."""
    return b"".join(part if isinstance(part, bytes) else part(client) for part in parts)
