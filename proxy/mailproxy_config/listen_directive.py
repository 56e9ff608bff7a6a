# SPDX-License-Identifier: Apache-2.0
"""The ``listen`` directive: its parameters, one row each, and the type of a list of listeners."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_config import addresses, units
from mailproxy_config.kubernetes_ports import HOST_PORT, HOST_PORT_MEANING
from mailproxy_config.model import ByteCount, KeepAlive, ListenConfig, Protocol
from mailproxy_config.schema import (
    Array,
    Boolean,
    Integer,
    IntOrString,
    Object,
    Rule,
    Schema,
    String,
    closest_match,
    matches,
)
from mailproxy_config.value_types import (
    SIZE_SHAPE,
    ErrorPath,
    Raw,
    ValueType,
    describe,
    identity,
    read_items,
)

_SECONDS_GRAMMAR: Final = "^([0-9]+h)?([0-9]+m)?([0-9]+s?)?$"
_MAX_KEEP_ALIVE: Final = 32767
_DEFAULTS: Final = ListenConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenParameter:
    """One parameter of ``listen``.

    Attributes:
        name: nginx's name.
        field: The field of the manifest.
        model: The attribute of ``ListenConfig``.
        schema: Schema of the manifest value.
        default: The built-in default as a manifest value; ``None`` keeps the setting of the operating system.
        meaning: Description.
        own_socket: Whether it implies ``bind``.
        is_ours: Whether nginx does not have it.
    """

    name: str
    field: str
    model: str
    schema: Schema
    default: Raw
    meaning: str
    own_socket: bool = False
    is_ours: bool = False


def _in_keep_alive_range(value: int | str) -> bool:
    try:
        return 1 <= units.parse_sec_time(value) <= _MAX_KEEP_ALIVE
    except ValueError:
        return False


_SECONDS: Final = IntOrString(
    minimum=1,
    maximum=_MAX_KEEP_ALIVE,
    pattern=_SECONDS_GRAMMAR,
    hint="a time such as 75s or 30m",
    min_length=1,
    max_length=16,
    rules=(
        Rule(
            expression=(
                f"type(self) == int || !self.matches('{_SECONDS_GRAMMAR}') || "
                "(duration(self.matches('[0-9]$') ? self + 's' : self) >= duration('1s') && "
                f"duration(self.matches('[0-9]$') ? self + 's' : self) <= duration('{_MAX_KEEP_ALIVE}s'))"
            ),
            message=f"must be between 1s and {_MAX_KEEP_ALIVE}s, the range of the socket option",
            predicate=_in_keep_alive_range,
        ),
    ),
)
_OF_HTTP: Final = frozenset(
    {
        *("default", "default_server", "reuseport", "deferred", "fastopen", "setfib", "accept_filter"),
        *("http2", "spdy", "quic", "udp"),
    }
)
_BLOCK_NAME: Final = String(max_length=63, min_length=1)
_TIMED: Final = ("idle", "interval", "count")
_KEEP_ALIVE: Final = Object(
    example="{enabled: true}, {enabled: false} or {idle: 30m}",
    fields={
        "enabled": Boolean(),
        "idle": _SECONDS,
        "interval": _SECONDS,
        "count": Integer(minimum=1, maximum=127),
    },
    rules=(
        Rule(
            expression="has(self.enabled) || has(self.idle) || has(self.interval) || has(self.count)",
            message="soKeepalive: set enabled, or at least one of idle, interval and count",
            predicate=bool,
        ),
        Rule(
            expression=(
                "!has(self.enabled) || self.enabled || "
                "!(has(self.idle) || has(self.interval) || has(self.count))"
            ),
            message="soKeepalive: idle, interval and count are not allowed with enabled: false",
            predicate=lambda value: value.get("enabled", True) or not any(field in value for field in _TIMED),
        ),
    ),
    descriptions={
        "enabled": "Sends TCP keepalive probes.",
        "idle": "Idle time before the first probe (TCP_KEEPIDLE), in seconds or as a time such as 30m.",
        "interval": "Time between probes (TCP_KEEPINTVL), in seconds or as a time such as 75s.",
        "count": "Number of unanswered probes after which the connection is closed (TCP_KEEPCNT).",
    },
)

LISTEN_PARAMETERS: Final = (
    ListenParameter(
        name="address",
        field="address",
        model="address",
        schema=String(max_length=128, min_length=1),
        default="*",
        meaning=(
            "Address to listen on: * (all IPv4 addresses), an IPv4 address, an IPv6 address in brackets, "
            "a host name, or unix:/path."
        ),
    ),
    ListenParameter(
        name="port",
        field="port",
        model="port",
        schema=Integer(minimum=1, maximum=65535),
        default=None,
        meaning="Port to listen on. Required except for unix: addresses.",
    ),
    ListenParameter(
        name="ssl",
        field="ssl",
        model="ssl",
        schema=Boolean(),
        default=False,
        meaning="Connections start with a TLS handshake.",
    ),
    ListenParameter(
        name="proxy_protocol",
        field="proxyProtocol",
        model="proxy_protocol",
        schema=Boolean(),
        default=False,
        meaning="Connections start with a PROXY protocol header, version 1 or 2.",
    ),
    ListenParameter(
        name="bind",
        field="bind",
        model="bind",
        schema=Boolean(),
        default=False,
        meaning="Opens a separate socket even if a wildcard listener has the same port.",
    ),
    ListenParameter(
        name="backlog",
        field="backlog",
        model="backlog",
        schema=Integer(minimum=1),
        default=_DEFAULTS.backlog,
        meaning="Maximum length of the queue of pending connections.",
        own_socket=True,
    ),
    ListenParameter(
        name="rcvbuf",
        field="rcvbuf",
        model="rcvbuf",
        schema=SIZE_SHAPE,
        default=None,
        meaning="Receive buffer size of the socket (SO_RCVBUF).",
        own_socket=True,
    ),
    ListenParameter(
        name="sndbuf",
        field="sndbuf",
        model="sndbuf",
        schema=SIZE_SHAPE,
        default=None,
        meaning="Send buffer size of the socket (SO_SNDBUF).",
        own_socket=True,
    ),
    ListenParameter(
        name="ipv6only",
        field="ipv6only",
        model="ipv6only",
        schema=Boolean(),
        default=_DEFAULTS.ipv6only,
        meaning="An IPv6 wildcard listener ([::]) accepts only IPv6 connections (IPV6_V6ONLY).",
        own_socket=True,
    ),
    ListenParameter(
        name="multipath",
        field="multipath",
        model="multipath",
        schema=Boolean(),
        default=False,
        meaning="Enables Multipath TCP.",
        own_socket=True,
    ),
    ListenParameter(
        name="so_keepalive",
        field="soKeepalive",
        model="so_keepalive",
        schema=_KEEP_ALIVE,
        default=None,
        meaning="TCP keepalive of accepted connections. Not set: the settings of the operating system.",
        own_socket=True,
    ),
    ListenParameter(
        name="alpn_servers",
        field="alpnServers",
        model="alpn_servers",
        schema=Object(
            example="{imap: NAME, pop3: NAME, smtp: NAME}",
            fields={protocol.value: _BLOCK_NAME for protocol in Protocol},
            descriptions={
                protocol.value: f"Name of the server for clients that offer the protocol {protocol.value}."
                for protocol in Protocol
            },
        ),
        default=None,
        meaning=(
            "Servers by the ALPN protocol that the client offers; other offers are rejected (alert "
            "no_application_protocol). Requires ssl."
        ),
        is_ours=True,
    ),
    ListenParameter(
        name="alpn_default",
        field="alpnDefault",
        model="alpn_default",
        schema=String(max_length=63, min_length=1),
        default=None,
        meaning="With alpnServers: the server of clients without ALPN. Close, the default, rejects them.",
        is_ours=True,
    ),
)
BY_NAME: Final = {row.name: row for row in LISTEN_PARAMETERS}


def _is_unix(value: Mapping[str, Any]) -> bool:
    return str(value.get("address", "")).startswith("unix:")


def _address_is_bare(value: Mapping[str, Any]) -> bool:
    address = value.get("address", "*")
    return _is_unix(value) or ":" not in address or matches(r"^\[[0-9A-Fa-f:.]+\]$", address)


_LISTENER: Final = Object(
    example="{port: 143}",
    fields={**{row.field: row.schema for row in LISTEN_PARAMETERS}, "hostPort": HOST_PORT},
    descriptions={
        **{
            row.field: describe(row.name, row.meaning, row.default, is_ours=row.is_ours)
            for row in LISTEN_PARAMETERS
        },
        "hostPort": HOST_PORT_MEANING,
    },
    rules=(
        Rule(
            expression="has(self.port) != (has(self.address) && self.address.startsWith('unix:'))",
            message="a listener has either a port or a unix: address",
            predicate=lambda value: ("port" in value) != _is_unix(value),
        ),
        Rule(
            expression=(
                "!has(self.address) || !self.address.startsWith('unix:') || "
                "self.address.matches('^unix:/.{1,106}$')"
            ),
            message="unix: takes an absolute path of at most 107 bytes",
            predicate=lambda value: not _is_unix(value) or matches("^unix:/.{1,106}$", value["address"]),
            field_path=".address",
        ),
        Rule(
            expression=(
                "!has(self.address) || self.address.startsWith('unix:') || !self.address.contains(':') || "
                r"self.address.matches('^\\[[0-9A-Fa-f:.]+\\]$')"
            ),
            message="an IPv6 address must be in brackets, and the port in the field port",
            predicate=_address_is_bare,
            field_path=".address",
        ),
        Rule(
            expression="!has(self.ipv6only) || (has(self.address) && self.address.startsWith('['))",
            message="ipv6only needs an IPv6 address in brackets",
            predicate=lambda value: "ipv6only" not in value or str(value.get("address", "")).startswith("["),
            field_path=".ipv6only",
        ),
    ),
)

_SAME_ADDRESS: Final = (
    "(!has(a.address) || a.address in ['*', '0.0.0.0'] ? '*' : a.address) == "
    "(!has(b.address) || b.address in ['*', '0.0.0.0'] ? '*' : b.address)"
)


def _read_keep_alive(value: Mapping[str, Any]) -> KeepAlive:
    return KeepAlive(
        enabled=value.get("enabled", True),
        idle=int(units.parse_sec_time(value["idle"])) if "idle" in value else None,
        interval=int(units.parse_sec_time(value["interval"])) if "interval" in value else None,
        count=value.get("count"),
    )


def _read_listener(value: Mapping[str, Any], path: ErrorPath) -> ListenConfig:
    sizes = {
        field: ByteCount(path.field(field).try_read(lambda field=field: units.parse_size(value[field]), 0))  # type: ignore[misc]
        for field in ("rcvbuf", "sndbuf")
        if field in value
    }
    keep_alive = _read_keep_alive(value["soKeepalive"]) if "soKeepalive" in value else None
    address = value.get("address", "*")
    return ListenConfig(
        address=path.field("address").try_read(lambda: addresses.check_listen_address(address), "*"),
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
        alpn_servers=tuple(sorted(value.get("alpnServers", {}).items())),
        alpn_default=value.get("alpnDefault", _DEFAULTS.alpn_default),
    )


def _format_keep_alive(value: KeepAlive) -> Raw:
    timed = {"idle": value.idle, "interval": value.interval, "count": value.count}
    given = {field: number for field, number in timed.items() if number is not None}
    return given or {"enabled": value.enabled}


_FORMATS: Final[Mapping[str, Callable[[Any], Raw]]] = {"soKeepalive": _format_keep_alive, "alpnServers": dict}


def _format_listener(value: ListenConfig) -> Raw:
    written: dict[str, Raw] = {}
    for row in LISTEN_PARAMETERS:
        found = getattr(value, row.model)
        if found == getattr(_DEFAULTS, row.model):
            continue
        written[row.field] = _FORMATS.get(row.field, identity)(found)
    return written


# --- nginx's notation ----------------------------------------------------------

_BARE: Final = frozenset({"ssl", "proxy_protocol", "bind", "multipath"})
_WITH_A_VALUE: Final = frozenset(
    {"ipv6only", "backlog", "rcvbuf", "sndbuf", "so_keepalive", "alpn_servers", "alpn_default"}
)


def _parse_nginx_keep_alive(text: str) -> Raw:
    """Parse ``on``, ``off``, or ``[idle]:[interval]:[count]``."""
    if text in {"on", "off"}:
        return {"enabled": text == "on"}
    fields = text.split(":")
    found: dict[str, Raw] = {}
    for field, part in zip(_TIMED, fields, strict=False):
        if part and field == "count":
            found[field] = int(part) if re.fullmatch("[0-9]{1,9}", part, re.ASCII) else part
        elif part:
            try:
                found[field] = int(units.parse_sec_time(part))
            except ValueError as error:
                raise ValueError(f'invalid so_keepalive value: "{text}": {error}') from None
    found = {field: value for field, value in found.items() if value != 0}
    if not found or len(fields) > len(_TIMED) or isinstance(found.get("count"), str):
        raise ValueError(f'invalid so_keepalive value: "{text}"')
    return found


def _parse_nginx_alpn_servers(text: str) -> Raw:
    """Parse ``PROTOCOL:SERVER[,PROTOCOL:SERVER...]``."""
    pairs = [item.partition(":") for item in text.split(",")]
    if not all(protocol and name for protocol, _, name in pairs):
        raise ValueError(f'invalid alpn_servers "{text[:200]}": must be PROTOCOL:SERVER, separated by commas')
    return {protocol: name for protocol, _, name in pairs}


def _parse_nginx_parameter(word: str) -> dict[str, Raw]:
    """Parse one parameter after the address."""
    name, equals, value = word.partition("=")
    field = BY_NAME[name].field if name in BY_NAME else ""
    if name in _BARE and not equals:
        return {field: True}
    if name not in _WITH_A_VALUE or not equals:
        raise ValueError(f'invalid parameter "{word}"{_parameter_hint(name)}')
    return {field: _parse_nginx_value(name, value, word)}


def _parse_nginx_value(name: str, value: str, word: str) -> Raw:
    """Parse the value of a parameter."""
    match name:
        case "ipv6only" if value in {"on", "off"}:
            return value == "on"
        case "backlog" if re.fullmatch("[0-9]{1,9}", value, re.ASCII):
            return int(value)
        case "rcvbuf" | "sndbuf" | "alpn_default":
            return value
        case "so_keepalive":
            return _parse_nginx_keep_alive(value)
        case "alpn_servers":
            return _parse_nginx_alpn_servers(value)
    raise ValueError(f'invalid {name} "{word}"')


def _parameter_hint(name: str) -> str:
    """How to fix an unknown parameter."""
    if name in _OF_HTTP:
        return ": it belongs to http {} and stream {}, leave it out"
    if name in _BARE:
        return f": write {name} without a value"
    if name in _WITH_A_VALUE:
        return f": it takes a value, {name}=VALUE"
    meant = closest_match(name, {*_BARE, *_WITH_A_VALUE})
    return f"; did you mean {meant}?" if meant else ""


def parse_nginx_listen(arguments: Sequence[str]) -> list[dict[str, Raw]]:
    """Parse the arguments of one ``listen``: one listener for each port of its range.

    Raises:
        ValueError: The address or a parameter is invalid.
    """
    where = addresses.parse_listen_argument(arguments[0])
    parameters: dict[str, Raw] = {}
    for word in arguments[1:]:
        parameters |= _parse_nginx_parameter(word)
    address = {} if where.address == "*" else {"address": where.address}
    if not where.ports:
        return [address | parameters]
    return [address | {"port": port} | parameters for port in where.ports]


LISTEN: Final = ValueType(
    syntax="list of listeners",
    schema=Array(
        items=_LISTENER,
        max_items=16,
        min_items=1,
        rules=(
            Rule(
                expression=(
                    f"self.all(a, self.exists_one(b, {_SAME_ADDRESS} && "
                    "(has(a.port) ? a.port : 0) == (has(b.port) ? b.port : 0)))"
                ),
                message="two listeners of one server have the same address and port",
                predicate=None,
            ),
        ),
    ),
    read=lambda value, path: read_items(value, path, _read_listener),
    write=lambda value: list(map(_format_listener, value)),
    nginx=parse_nginx_listen,
    arity=(1, None),
    appends=True,
    itemwise=True,
)
