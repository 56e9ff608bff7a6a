# SPDX-License-Identifier: Apache-2.0
"""Parsing ``Auth-Server`` and ``Auth-Port``: the upstreams that the authentication service names.

nginx accepts one IP address.  With ``auth_http_server_names`` the value is a list of up to eight items:
IP addresses and host names, each with or without a port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from mailproxy.auth_http.response_body import MAX_DIGITS
from mailproxy.enums import AuthErrorReason
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import UpstreamServer

MAX_ITEMS: Final = 8
"""Items of ``Auth-Server``."""
MAX_NAME: Final = 253
"""Bytes of a host name, without a dot at its end (RFC 1035 section 2.3.4)."""
_CONTROL: Final = re.compile(rb"[\x00-\x1f]")

_BYTE: Final = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = re.compile(_BYTE + rb"(?:\." + _BYTE + rb"){3}")
_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(_LABEL + rb"(?:\." + _LABEL + rb")*")
_UNIX: Final = b"unix:"
_MAX_SOCKET_PATH: Final = 107
"""The longest path in ``sockaddr_un``, in bytes (unix(7))."""
_NOT_A_HOST: Final = (
    "is neither an IP address nor a host name: the service must send an IPv4 address, an IPv6 address "
    "without a zone (in brackets if a port follows), or a host name, each with or without a port"
)


def upstream_address(headers: Mapping[bytes, bytes]) -> tuple[str, int]:
    """Parse the one address that nginx accepts, or ``unix:`` and a path.

    Raises:
        InvalidAuthResponse: It is neither, or there is no port.
    """
    server = headers.get(b"auth-server")
    if server and server[:5] == _UNIX:
        return _socket(server), 0
    port = headers.get(b"auth-port")
    if not server or not port:
        raise _missing(headers, server, port)
    return _endpoint(server, port)


def upstream_servers(headers: Mapping[bytes, bytes]) -> tuple[UpstreamServer, ...]:
    """Parse a list of addresses and names, or ``unix:`` and a path (``auth_http_server_names``).

    Returns:
        At least one; those without a port have that of ``Auth-Port``.

    Raises:
        InvalidAuthResponse: An item is invalid or has no port, or there are too many.
    """
    server = headers.get(b"auth-server")
    if not server:
        raise _missing(headers, server, headers.get(b"auth-port"))
    if server[:5] == _UNIX:
        return (UpstreamServer(_socket(server), 0),)
    return _servers(server, headers.get(b"auth-port"))


def is_name(host: str) -> bool:
    """Whether a host of ``UpstreamServer`` is a name, which has to be looked up."""
    return ":" not in host and not _IPV4.fullmatch(host.encode())


def has_controls(value: bytes) -> bool:
    """Whether a value contains a control character."""
    return not value.isalnum() and _CONTROL.search(value) is not None  # the first check is far quicker


@lru_cache(maxsize=1024)
def _endpoint(server: bytes, port: bytes) -> tuple[str, int]:
    """Parse an upstream's address; cached, as there are few of them."""
    return _address(server), parse_port(port)


@lru_cache(maxsize=1024)
def _servers(value: bytes, port: bytes | None) -> tuple[UpstreamServer, ...]:
    """Parse a list; cached, as there are few of them."""
    items = [item.strip(b" \t") for item in value.split(b",")]
    if len(items) > MAX_ITEMS:
        why = f"has {len(items)} items: the service must send at most {MAX_ITEMS}"
        raise _invalid("Auth-Server", value, why)
    return tuple(_server(item, value, port) for item in items)


def _server(item: bytes, value: bytes, auth_port: bytes | None) -> UpstreamServer:
    if not item:
        raise _invalid("Auth-Server", value, "has an empty item: the service must leave out the comma")
    if item[:5].lower() == _UNIX:
        raise _invalid("Auth-Server", item, "is a UNIX socket, which cannot be in a list: send it alone")
    host, colon, port = _split(item)
    name = _host(host)
    if name is None:
        raise _invalid("Auth-Server", item, _NOT_A_HOST)
    if colon:
        if not _is_port(port):
            why = "has no valid port: the service must send a number from 1 to 65535 after the colon"
            raise _invalid("Auth-Server", item, why)
        return UpstreamServer(name, int(port))
    if not auth_port:
        why = "has no port: the service must send it after a colon, or in Auth-Port"
        raise _invalid("Auth-Server", item, why, AuthErrorReason.NO_SERVER)
    return UpstreamServer(name, parse_port(auth_port))


def _split(item: bytes) -> tuple[bytes, bytes, bytes]:
    """Return host, colon and port; the last two are empty without a port."""
    if item.startswith(b"["):
        host, bracket, rest = item[1:].partition(b"]")
        # An empty host is not valid: neither are brackets around anything but an IPv6 address.
        is_whole = bracket and b":" in host and rest[:1] in {b"", b":"}
        return host if is_whole else b"", rest[:1], rest[1:]
    if item.count(b":") > 1:
        return item, b"", b""
    return item.partition(b":")


def _host(text: bytes) -> str | None:
    """Parse an IP address without brackets, or a host name; names are in lower case."""
    if b":" in text:
        return _ipv6(text)
    if _IPV4.fullmatch(text):
        return text.decode("ascii")
    bare = text.removesuffix(b".")
    # A name whose last label is a number would be a misspelt IPv4 address.
    if len(bare) > MAX_NAME or not _HOST_NAME.fullmatch(bare) or bare.rpartition(b".")[2].isdigit():
        return None
    return text.decode("ascii").lower()


def _ipv6(text: bytes) -> str | None:
    try:
        address = text.decode("ascii")
        if "%" not in address:
            ipaddress.IPv6Address(address)
            return address
    except ValueError:
        pass
    return None


def _socket(text: bytes) -> str:
    """Parse ``unix:`` and an absolute path; nginx refuses it.  It needs no ``Auth-Port``."""
    path = text[len(_UNIX) :]
    if path.startswith(b"/") and len(path) <= _MAX_SOCKET_PATH and not has_controls(path):
        try:
            return text.decode()
        except UnicodeDecodeError:
            pass
    why = f"is not unix: and the absolute path of a socket, of at most {_MAX_SOCKET_PATH} bytes"
    raise _invalid("Auth-Server", text, why)


def _address(text: bytes) -> str:
    """Parse an IP address.  IPv6 may be in brackets, which nginx refuses; a zone is refused."""
    if _IPV4.fullmatch(text):
        return text.decode("ascii")
    bare = text[1:-1] if text.startswith(b"[") and text.endswith(b"]") else text
    address = _ipv6(bare)
    if address is not None:
        return address
    why = "is not an IP address: the authentication service must resolve names,"
    why += " and send an IPv4 or IPv6 address there and the port in Auth-Port"
    raise _invalid("Auth-Server", text, why)


def parse_port(text: bytes) -> int:
    """Parse ``Auth-Port``.

    Raises:
        InvalidAuthResponse: It is no port.
    """
    if _is_port(text):
        return int(text)
    raise _invalid("Auth-Port", text, "is not a port: the service must send a number from 1 to 65535")


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= MAX_DIGITS and 0 < int(text) < 65536


def _missing(headers: Mapping[bytes, bytes], server: bytes | None, port: bytes | None) -> InvalidAuthResponse:
    missing = " and ".join(
        name for name, value in (("Auth-Server", server), ("Auth-Port", port)) if not value
    )
    hint = "" if b"auth-status" in headers or server or port else "; is auth_http the right URL?"
    return InvalidAuthResponse(f"the response has no {missing}{hint}", AuthErrorReason.NO_SERVER)


def _invalid(
    header: str, value: bytes, why: str, reason: AuthErrorReason = AuthErrorReason.BAD_ADDRESS
) -> InvalidAuthResponse:
    error = InvalidAuthResponse(f"{header} {{}} {why}", reason)
    error.value = value
    return error
