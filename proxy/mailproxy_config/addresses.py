# SPDX-License-Identifier: Apache-2.0
"""Parses addresses of listeners, the authentication service, DNS servers and trusted proxies as nginx does.

Host names are not resolved.  Invalid input that nginx accepts (a listener without a
port, an IPv4 address such as ``127...1``) is an error here.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_network
from typing import Final, NamedTuple

from mailproxy_config.model import AuthHttp, Protocol

WELL_KNOWN_PORTS: Final = {
    143: Protocol.IMAP,
    993: Protocol.IMAP,
    110: Protocol.POP3,
    995: Protocol.POP3,
    25: Protocol.SMTP,
    465: Protocol.SMTP,
    587: Protocol.SMTP,
}
MAX_UNIX_PATH: Final = 107
_MAX_RANGE_PORTS: Final = 16
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?"
)
_LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+")
_PORT = re.compile(r"[0-9]{1,10}")
_UNIX = "unix:"


class HostPort(NamedTuple):
    """A host as written (IPv6 in brackets) and its port, or ``None``."""

    host: str
    port: int | None


class ListenAddress(NamedTuple):
    """The first argument of ``listen``: an address and all ports of its range.

    For a UNIX socket ``address`` is ``unix:/path`` and ``ports`` is empty.
    """

    address: str
    ports: range


_NO_CREDENTIALS: Final = (
    "user and password are not accepted in the URL: send them in a header, "
    "with auth_http_header (in a manifest authHttpHeader) and the name Authorization"
)


def parse_port(text: str | int) -> int:
    """Parse a port.

    Raises:
        ValueError: It is not a number from 1 to 65535.
    """
    if not _PORT.fullmatch(str(text)):
        raise ValueError(f"invalid port {text!r}")
    if not 1 <= int(text) <= 65535:
        raise ValueError(f"{text} is out of range 1 to 65535")
    return int(text)


def check_host(text: str) -> str:
    """Validate a host and return it unchanged.

    Accepts an IPv4 address, an IPv6 address in brackets, or a host name.

    Raises:
        ValueError: It is none of these.
    """
    if not text:
        raise ValueError("no host")
    if text.startswith("["):
        _ipv6(text)
    elif _LOOKS_LIKE_IPV4.fullmatch(text):
        _ipv4(text)
    elif not _HOST_NAME.fullmatch(text):
        raise ValueError(f"invalid host {text!r}")
    return text


def parse_host_port(text: str) -> HostPort:
    """Parse ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.

    Raises:
        ValueError: The host or the port is invalid.
    """
    written, colon, port = _split(text)
    return HostPort(check_host(written), parse_port(port) if colon else None)


def format_host_port(host: str, port: int) -> str:
    """Format an IP address or host name with its port; IPv6 addresses get brackets, port 0 is left out."""
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_listen_address(text: str) -> str:
    """Validate the ``address`` of a listener and return it unchanged.

    Accepts ``*``, an IPv4 address, an IPv6 address in brackets, a host name, or ``unix:/path``.

    Raises:
        ValueError: It is none of these, or it contains a port.
    """
    if text[:5].lower() == _UNIX:
        return _UNIX + _unix_path(text[5:])
    if ":" in text and not text.startswith("["):
        raise ValueError("an IPv6 address must be in brackets, and the port in the field port")
    return text if text == "*" else check_host(text)


def parse_listen_argument(text: str) -> ListenAddress:
    """Parse the first argument of ``listen``: ``143``, ``*:143``, ``[::]:143-150``, ``unix:/path``.

    Raises:
        ValueError: It is not an address, or it has no port (nginx would use an arbitrary one).
    """
    if text[:5].lower() == _UNIX:
        return ListenAddress(_UNIX + _unix_path(text[5:]), range(0))
    written, colon, ports = _split(text)
    if not colon and not re.fullmatch(r"[0-9]+(-[0-9]+)?", text, re.ASCII):
        raise ValueError(f"no port in {text!r}: a listener needs one")
    address = (written if written == "*" else check_host(written)) if colon else "*"
    return ListenAddress(address, _port_range(ports if colon else text))


def listen_key(address: str, port: int | None) -> tuple[str, int | None]:
    """A key that is equal for equal listeners: ``*:143`` and ``0.0.0.0:143`` have the same."""
    if address.startswith(_UNIX):
        return address, None
    if address.startswith("["):
        return f"[{IPv6Address(address[1:-1])}]", port
    return "*" if address == "0.0.0.0" else address.lower(), port  # noqa: S104 -- compared, never bound


def parse_auth_http(text: str) -> AuthHttp:
    """Parse the URL of the authentication service.

    ``[http://]host[:port][/uri]`` and ``[http://]unix:path[:uri]`` as in nginx, and in addition
    ``https://host[:port][/uri]``.  The default port is 80, or 443 for https.

    Raises:
        ValueError: It is not such a URL.
    """
    tls = text.startswith("https://")
    rest = text.removeprefix("https://") if tls else text.removeprefix("http://")
    if rest == text and "://" in text.partition("?")[0]:
        raise ValueError("must be [http://]host[:port][/path] or an https:// URL")
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise ValueError("must be printable ASCII without spaces")
    if rest[:5].lower() == _UNIX:
        return _auth_http_over_unix(rest[5:], tls=tls)
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    try:
        where = parse_host_port(rest[:end])
    except ValueError:
        if "@" in rest:  # it may contain a password, which must not be in a message
            raise ValueError(_NO_CREDENTIALS) from None
        raise
    return AuthHttp(host=where.host, port=where.port or (443 if tls else 80), uri=_uri(rest[end:]), tls=tls)


def parse_trusted_address(text: str) -> tuple[str, bool]:
    """Parse one ``set_real_ip_from``: an address, a CIDR range, ``unix:``, or a host name.

    Returns:
        The canonical text, and whether host bits of the range were set (they are cleared).

    Raises:
        ValueError: It is none of these.
    """
    if text == _UNIX:
        return text, False
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        network = ip_network(bare, strict=False)
    except ValueError:
        if "/" in text or ":" in text:
            raise ValueError(f"{text!r} is neither an address, a CIDR range, unix: nor a host name") from None
        return check_host(text), False
    written = bare.partition("/")[0]
    if "/" not in bare:
        return str(network.network_address), False
    lost = str(network.network_address) != str(ip_network(written).network_address)
    return str(network), lost


def _split(text: str) -> tuple[str, str, str]:
    """Host, colon (or nothing) and port; an IPv6 address keeps its brackets."""
    if not text.startswith("["):
        return text.partition(":")
    inside, bracket, rest = text.partition("]")
    if not bracket or (rest and not rest.startswith(":")):
        raise ValueError(f"invalid host in {text!r}")
    return inside + bracket, rest[:1], rest[1:]


def _port_range(text: str) -> range:
    """``143`` or ``143-150``, both ends included."""
    first, dash, last = text.partition("-")
    lowest = parse_port(first)
    highest = parse_port(last) if dash else lowest
    if highest < lowest:
        raise ValueError(f"invalid port range {text!r}")
    if highest - lowest >= _MAX_RANGE_PORTS:
        raise ValueError(f"port range {text!r} has more than {_MAX_RANGE_PORTS} ports")
    return range(lowest, highest + 1)


def _ipv4(text: str) -> IPv4Address:
    """Four decimal groups without leading zeros."""
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise ValueError(f"invalid IPv4 address {text!r}") from None


def _ipv6(text: str) -> IPv6Address:
    """An IPv6 address in brackets, without a zone."""
    try:
        if text.endswith("]") and "%" not in text:
            return IPv6Address(text[1:-1])
    except AddressValueError:
        pass
    raise ValueError(f"invalid IPv6 address {text!r}")


def _unix_path(path: str) -> str:
    """The path of a socket: absolute, and within the limit of ``sockaddr_un``."""
    if not path.startswith("/") or not 2 <= len(path.encode()) <= MAX_UNIX_PATH:
        raise ValueError(f"unix: takes an absolute path of at most {MAX_UNIX_PATH} bytes")
    return path


def _auth_http_over_unix(rest: str, *, tls: bool) -> AuthHttp:
    """``unix:path[:uri]``; as in nginx the ``Host`` header is ``localhost``."""
    if tls:
        raise ValueError("https:// is not supported with a unix: address")
    path, _, uri = rest.partition(":")
    return AuthHttp(host="localhost", unix_path=_unix_path(path), uri=_uri(uri))


def _uri(text: str) -> str:
    """The request target, with a leading slash; nginx would send a query without one."""
    return text if text.startswith("/") else "/" + text
