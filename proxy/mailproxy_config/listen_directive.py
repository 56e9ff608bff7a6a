# SPDX-License-Identifier: Apache-2.0
"""``listen``: its parameters, one row each, and the type of a server's list of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_config import addresses, units
from mailproxy_config.kubernetes_ports import HOST_PORT, HOST_PORT_MEANING
from mailproxy_config.model import ByteCount, KeepAlive, ListenConfig
from mailproxy_config.schema import (
    Flag,
    Integer,
    IntOrText,
    ListOf,
    Record,
    Rule,
    Shape,
    Text,
    closest,
    matches,
)
from mailproxy_config.value_types import SIZE_SHAPE, ErrorPath, Raw, ValueType, explained, read_items

_SECONDS_GRAMMAR: Final = "^([0-9]+h)?([0-9]+m)?([0-9]+s?)?$"
_LONGEST_KEEP_ALIVE: Final = 32767
_DEFAULTS: Final = ListenConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenParameter:
    """One parameter of ``listen``.

    Attributes:
        name: nginx's name.
        field: The manifest's.
        model: The attribute of ``ListenConfig``.
        shape: What the manifest may say.
        default: The built-in default, as the manifest would write it; ``None`` leaves it to the system.
        meaning: One sentence.
        own_socket: Whether giving it implies ``bind``.
    """

    name: str
    field: str
    model: str
    shape: Shape
    default: Raw
    meaning: str
    own_socket: bool = False


def _in_keep_alive_range(value: int | str) -> bool:
    try:
        return 1 <= units.sec_time(value) <= _LONGEST_KEEP_ALIVE
    except ValueError:
        return False


_SECONDS: Final = IntOrText(
    minimum=1,
    maximum=_LONGEST_KEEP_ALIVE,
    pattern=_SECONDS_GRAMMAR,
    hint="a time such as 75s or 30m",
    shortest=1,
    longest=16,
    rules=(
        Rule(
            expression=(
                f"type(self) == int || !self.matches('{_SECONDS_GRAMMAR}') || "
                "(duration(self.matches('[0-9]$') ? self + 's' : self) >= duration('1s') && "
                f"duration(self.matches('[0-9]$') ? self + 's' : self) <= duration('{_LONGEST_KEEP_ALIVE}s'))"
            ),
            message=f"must lie between 1s and {_LONGEST_KEEP_ALIVE}s, which is what the socket option takes",
            holds=_in_keep_alive_range,
        ),
    ),
)
_OF_HTTP: Final = frozenset(
    {
        *("default", "default_server", "reuseport", "deferred", "fastopen", "setfib", "accept_filter"),
        *("http2", "spdy", "quic", "udp"),
    }
)
_TIMED: Final = ("idle", "interval", "count")
_KEEP_ALIVE: Final = Record(
    example="{enabled: true}, {enabled: false} or {idle: 30m}",
    fields={
        "enabled": Flag(),
        "idle": _SECONDS,
        "interval": _SECONDS,
        "count": Integer(minimum=1, maximum=127),
    },
    rules=(
        Rule(
            expression="has(self.enabled) || has(self.idle) || has(self.interval) || has(self.count)",
            message="soKeepalive: set enabled, or at least one of idle, interval and count",
            holds=bool,
        ),
        Rule(
            expression=(
                "!has(self.enabled) || self.enabled || "
                "!(has(self.idle) || has(self.interval) || has(self.count))"
            ),
            message="soKeepalive: enabled false goes alone",
            holds=lambda value: value.get("enabled", True) or not any(field in value for field in _TIMED),
        ),
    ),
    descriptions={
        "enabled": "Whether TCP keep-alive probes are sent.",
        "idle": "Seconds of silence before the first probe.",
        "interval": "Seconds between probes.",
        "count": "Unanswered probes after which the connection is given up.",
    },
)

LISTEN_PARAMETERS: Final = (
    ListenParameter(
        name="address",
        field="address",
        model="address",
        shape=Text(longest=128, shortest=1),
        default="*",
        meaning=(
            "The address to listen on: * (every IPv4 address), an IPv4 address, an IPv6 address in brackets,"
            " a host name, or unix:/path."
        ),
    ),
    ListenParameter(
        name="port",
        field="port",
        model="port",
        shape=Integer(minimum=1, maximum=65535),
        default=None,
        meaning="The port to listen on; every listener but a unix: one needs it.",
    ),
    ListenParameter(
        name="ssl",
        field="ssl",
        model="ssl",
        shape=Flag(),
        default=False,
        meaning="Connections begin with a TLS handshake.",
    ),
    ListenParameter(
        name="proxy_protocol",
        field="proxyProtocol",
        model="proxy_protocol",
        shape=Flag(),
        default=False,
        meaning="Connections begin with a PROXY header, version 1 or 2.",
    ),
    ListenParameter(
        name="bind",
        field="bind",
        model="bind",
        shape=Flag(),
        default=False,
        meaning="Opens a socket of its own even where a wildcard listener has the same port.",
    ),
    ListenParameter(
        name="backlog",
        field="backlog",
        model="backlog",
        shape=Integer(minimum=1),
        default=_DEFAULTS.backlog,
        meaning="How many connections may wait to be accepted.",
        own_socket=True,
    ),
    ListenParameter(
        name="rcvbuf",
        field="rcvbuf",
        model="rcvbuf",
        shape=SIZE_SHAPE,
        default=None,
        meaning="The receive buffer of the socket (SO_RCVBUF).",
        own_socket=True,
    ),
    ListenParameter(
        name="sndbuf",
        field="sndbuf",
        model="sndbuf",
        shape=SIZE_SHAPE,
        default=None,
        meaning="The send buffer of the socket (SO_SNDBUF).",
        own_socket=True,
    ),
    ListenParameter(
        name="ipv6only",
        field="ipv6only",
        model="ipv6only",
        shape=Flag(),
        default=_DEFAULTS.ipv6only,
        meaning="Whether a listener on [::] takes IPv6 connections only (IPV6_V6ONLY).",
        own_socket=True,
    ),
    ListenParameter(
        name="multipath",
        field="multipath",
        model="multipath",
        shape=Flag(),
        default=False,
        meaning="Uses Multipath TCP.",
        own_socket=True,
    ),
    ListenParameter(
        name="so_keepalive",
        field="soKeepalive",
        model="so_keepalive",
        shape=_KEEP_ALIVE,
        default=None,
        meaning="TCP keep-alive of the accepted connections; absent leaves the system's settings alone.",
        own_socket=True,
    ),
)
BY_NAME: Final = {row.name: row for row in LISTEN_PARAMETERS}


def _is_unix(value: Mapping[str, Any]) -> bool:
    return str(value.get("address", "")).startswith("unix:")


def _address_is_bare(value: Mapping[str, Any]) -> bool:
    address = value.get("address", "*")
    return _is_unix(value) or ":" not in address or matches(r"^\[[0-9A-Fa-f:.]+\]$", address)


_LISTENER: Final = Record(
    example="{port: 143}",
    fields={**{row.field: row.shape for row in LISTEN_PARAMETERS}, "hostPort": HOST_PORT},
    descriptions={
        **{row.field: explained(row.name, row.meaning, row.default) for row in LISTEN_PARAMETERS},
        "hostPort": HOST_PORT_MEANING,
    },
    rules=(
        Rule(
            expression="has(self.port) != (has(self.address) && self.address.startsWith('unix:'))",
            message="a listener has either a port or a unix: address",
            holds=lambda value: ("port" in value) != _is_unix(value),
        ),
        Rule(
            expression=(
                "!has(self.address) || !self.address.startsWith('unix:') || "
                "self.address.matches('^unix:/.{1,106}$')"
            ),
            message="unix: takes an absolute path of at most 107 bytes",
            holds=lambda value: not _is_unix(value) or matches("^unix:/.{1,106}$", value["address"]),
            field_path=".address",
        ),
        Rule(
            expression=(
                "!has(self.address) || self.address.startsWith('unix:') || !self.address.contains(':') || "
                r"self.address.matches('^\\[[0-9A-Fa-f:.]+\\]$')"
            ),
            message="an IPv6 address stands in brackets, and the port in its own field",
            holds=_address_is_bare,
            field_path=".address",
        ),
        Rule(
            expression="!has(self.ipv6only) || (has(self.address) && self.address.startsWith('['))",
            message="ipv6only needs an IPv6 address in brackets",
            holds=lambda value: "ipv6only" not in value or str(value.get("address", "")).startswith("["),
            field_path=".ipv6only",
        ),
    ),
)

_SAME_ADDRESS: Final = (
    "(!has(a.address) || a.address in ['*', '0.0.0.0'] ? '*' : a.address) == "
    "(!has(b.address) || b.address in ['*', '0.0.0.0'] ? '*' : b.address)"
)


def _keep_alive(value: Mapping[str, Any]) -> KeepAlive:
    return KeepAlive(
        enabled=value.get("enabled", True),
        idle=int(units.sec_time(value["idle"])) if "idle" in value else None,
        interval=int(units.sec_time(value["interval"])) if "interval" in value else None,
        count=value.get("count"),
    )


def _listener(value: Mapping[str, Any], place: ErrorPath) -> ListenConfig:
    sizes = {
        field: ByteCount(place.field(field).attempt(lambda field=field: units.size(value[field]), 0))  # type: ignore[misc]
        for field in ("rcvbuf", "sndbuf")
        if field in value
    }
    keep_alive = _keep_alive(value["soKeepalive"]) if "soKeepalive" in value else None
    address = value.get("address", "*")
    return ListenConfig(
        address=place.field("address").attempt(lambda: addresses.listener_address(address), "*"),
        port=value.get("port"),
        ssl=value.get("ssl", False),
        proxy_protocol=value.get("proxyProtocol", False),
        bind=value.get("bind", False)
        or any(row.own_socket and row.field in value for row in LISTEN_PARAMETERS),
        backlog=value.get("backlog", _DEFAULTS.backlog),
        rcvbuf=sizes.get("rcvbuf"),
        sndbuf=sizes.get("sndbuf"),
        ipv6only=value.get("ipv6only", _DEFAULTS.ipv6only),
        multipath=value.get("multipath", False),
        so_keepalive=keep_alive,
    )


def _keep_alive_written(value: KeepAlive) -> Raw:
    timed = {"idle": value.idle, "interval": value.interval, "count": value.count}
    given = {field: number for field, number in timed.items() if number is not None}
    return given or {"enabled": value.enabled}


def _listener_written(value: ListenConfig) -> Raw:
    written: dict[str, Raw] = {}
    for row in LISTEN_PARAMETERS:
        found = getattr(value, row.model)
        if found == getattr(_DEFAULTS, row.model):
            continue
        written[row.field] = _keep_alive_written(found) if row.field == "soKeepalive" else found
    return written


# --- nginx's spelling ----------------------------------------------------------

_BARE: Final = frozenset({"ssl", "proxy_protocol", "bind", "multipath"})
_WITH_A_VALUE: Final = frozenset({"ipv6only", "backlog", "rcvbuf", "sndbuf", "so_keepalive"})


def _keep_alive_from_nginx(text: str) -> Raw:
    """``on``, ``off``, or ``[idle]:[interval]:[count]``."""
    if text in {"on", "off"}:
        return {"enabled": text == "on"}
    fields = text.split(":")
    found: dict[str, Raw] = {}
    for field, part in zip(_TIMED, fields, strict=False):
        if part and field == "count":
            found[field] = int(part) if re.fullmatch("[0-9]{1,9}", part, re.ASCII) else part
        elif part:
            try:
                found[field] = int(units.sec_time(part))
            except ValueError as error:
                raise ValueError(f'invalid so_keepalive value: "{text}": {error}') from None
    found = {field: value for field, value in found.items() if value != 0}
    if not found or len(fields) > len(_TIMED) or isinstance(found.get("count"), str):
        raise ValueError(f'invalid so_keepalive value: "{text}"')
    return found


def _parameter_from_nginx(word: str) -> dict[str, Raw]:
    """One parameter behind the address."""
    name, equals, value = word.partition("=")
    field = BY_NAME[name].field if name in BY_NAME else ""
    if name in _BARE and not equals:
        return {field: True}
    if name not in _WITH_A_VALUE or not equals:
        raise ValueError(f'invalid parameter "{word}"{_parameter_hint(name)}')
    match name:
        case "ipv6only" if value in {"on", "off"}:
            return {field: value == "on"}
        case "backlog" if re.fullmatch("[0-9]{1,9}", value, re.ASCII):
            return {field: int(value)}
        case "rcvbuf" | "sndbuf":
            return {field: value}
        case "so_keepalive":
            return {field: _keep_alive_from_nginx(value)}
    raise ValueError(f'invalid {name} "{word}"')


def _parameter_hint(name: str) -> str:
    """What to do about a parameter that listeners of mail do not have."""
    if name in _OF_HTTP:
        return ": it belongs to http {} and stream {}, leave it out"
    if name in _BARE:
        return f": write {name} without a value"
    if name in _WITH_A_VALUE:
        return f": it takes a value, {name}=VALUE"
    meant = closest(name, {*_BARE, *_WITH_A_VALUE})
    return f"; did you mean {meant}?" if meant else ""


def listen_from_nginx(words: Sequence[str]) -> list[dict[str, Raw]]:
    """Read the arguments of one ``listen``: a listener for every port of its range.

    Raises:
        ValueError: The address or a parameter is not what nginx takes.
    """
    where = addresses.listen_argument(words[0])
    parameters: dict[str, Raw] = {}
    for word in words[1:]:
        parameters |= _parameter_from_nginx(word)
    address = {} if where.address == "*" else {"address": where.address}
    if not where.ports:
        return [address | parameters]
    return [address | {"port": port} | parameters for port in where.ports]


LISTEN: Final = ValueType(
    syntax="list of listeners",
    shape=ListOf(
        items=_LISTENER,
        most=16,
        fewest=1,
        rules=(
            Rule(
                expression=(
                    f"self.all(a, self.exists_one(b, {_SAME_ADDRESS} && "
                    "(has(a.port) ? a.port : 0) == (has(b.port) ? b.port : 0)))"
                ),
                message="two listeners of one server have the same address and port",
                holds=None,
            ),
        ),
    ),
    read=lambda value, place: read_items(value, place, _listener),
    write=lambda value: list(map(_listener_written, value)),
    nginx=listen_from_nginx,
    arity=(1, None),
    appends=True,
    itemwise=True,
)
