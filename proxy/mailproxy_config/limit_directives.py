# SPDX-License-Identifier: Apache-2.0
"""Directives that limit connections and logins, which nginx has for HTTP only.

The names of ``limit_conn`` are those of freenginx's mail module, those of ``limit_req`` those of
``ngx_http_limit_req_module``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from mailproxy_config import units
from mailproxy_config.errors import Problems
from mailproxy_config.limits import (
    HEADER_PREFIX,
    MAX_BURST,
    MAX_CONNECTIONS,
    MAX_ZONE,
    MAX_ZONES_TOTAL,
    MIN_ZONE,
    LimitConn,
    LimitConnZone,
    LimitLogLevel,
    LimitReq,
    LimitReqZone,
    LimitWords,
    variables_of,
)
from mailproxy_config.schema import Array, Boolean, Integer, Object, Schema, String
from mailproxy_config.value_types import (
    FLAG,
    INVALID_ITEM,
    SIZE_SHAPE,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
    choice,
    identity,
    parse_nginx_number,
    read_items,
)

MAX_ZONES: Final = 8
"""Zones of each kind, and limits of each kind."""
PREAUTH_ZONE: Final = "limit_preauth"
"""The name of the zone of ``limit_preauth`` in metrics, which no other zone may have."""

_MODULE: Final = "mail_core"
_VARIABLE: Final = r"[$](remote_addr|remote_user|domain|auth_http_[a-z0-9_]{1,64})"
_KEY: Final = String(
    max_length=128,
    pattern=f"^({_VARIABLE})+$",
    hint="$remote_addr, $remote_user, $domain, $auth_http_NAME, or several of them",
)
_RATE_PATTERN: Final = r"^[1-9][0-9]{0,5}r/[sm]$"
_ZONE: Final = String(max_length=63, pattern=r"^[A-Za-z0-9_.-]+$", hint="letters, digits, _, - and .")
_PER_MINUTE: Final = {"s": 60, "m": 1}

_CONN_ZONE_FIELDS: Final[Mapping[str, Schema]] = {"zone": _ZONE, "key": _KEY, "size": SIZE_SHAPE}
_REQ_ZONE_FIELDS: Final[Mapping[str, Schema]] = {
    **_CONN_ZONE_FIELDS,
    "rate": String(max_length=16, pattern=_RATE_PATTERN, hint="a rate such as 10r/m or 2r/s"),
}
_ZONE_MEANINGS: Final = {
    "zone": "Name of the zone.",
    "key": "Variables: $remote_addr, $remote_user, $domain, $auth_http_NAME.",
    "size": "Memory, 32k to 16m; 1m is for 21,000 keys.",
    "rate": "Logins of one key: 2r/s, 10r/m.",
}
_LIMIT_MEANINGS: Final = {
    "zone": "Name of the zone.",
    "connections": "Maximum number of sessions.",
    "burst": "Logins above the rate that are allowed.",
    "delay": "Logins above the rate that do not wait.",
    "nodelay": "No login waits.",
}


def _read_size(value: int | str) -> int:
    size = units.parse_size(value)
    if not MIN_ZONE <= size <= MAX_ZONE:
        raise ValueError(f"{value} is out of range 32k to 16m")
    return size


def _read_zone_fields(value: Mapping[str, Any], path: ErrorPath) -> dict[str, Any]:
    if value["zone"] == PREAUTH_ZONE:
        path.problems.add(path.field("zone").text, f"{PREAUTH_ZONE} is the zone of that directive")
    size = path.field("size").try_read(lambda: _read_size(value["size"]), MIN_ZONE)
    return {"zone": value["zone"], "key": value["key"], "size": size}


def _read_conn_zone(value: Mapping[str, Any], path: ErrorPath) -> LimitConnZone:
    return LimitConnZone(**_read_zone_fields(value, path))


def _read_req_zone(value: Mapping[str, Any], path: ErrorPath) -> LimitReqZone:
    if any(each.startswith(HEADER_PREFIX) for each in variables_of(value["key"])):
        reason = "logins are counted before there is an answer of the authentication service"
        path.problems.add(path.field("key").text, f"{HEADER_PREFIX}NAME is not allowed: {reason}")
    number, _, unit = value["rate"].partition("r/")
    return LimitReqZone(**_read_zone_fields(value, path), rate=int(number) * _PER_MINUTE[unit])


def _read_limit_conn(value: Mapping[str, Any], _: ErrorPath) -> LimitConn:
    return LimitConn(zone=value["zone"], connections=value["connections"])


def _read_limit_req(value: Mapping[str, Any], path: ErrorPath) -> LimitReq:
    if value.get("nodelay") and "delay" in value:
        path.problems.add(path.field("nodelay").text, "is not allowed together with delay")
    delay = None if value.get("nodelay") else value.get("delay", 0)
    return LimitReq(zone=value["zone"], burst=value.get("burst", 0), delay=delay)


def _unique_zones(
    read: Callable[[Mapping[str, Any], ErrorPath], object],
) -> Callable[[Sequence[Any], ErrorPath], tuple[Any, ...]]:
    """A reader of a list in which each zone is named once."""

    def read_list(values: Sequence[Any], path: ErrorPath) -> tuple[Any, ...]:
        seen: set[str] = set()
        for index, value in enumerate(values):
            if value is INVALID_ITEM:
                continue
            if value["zone"] in seen:
                path.problems.add(path.item(index).field("zone").text, f"{value['zone']} is there twice")
            seen.add(value["zone"])
        return read_items(values, path, read)

    return read_list


def _format_rate(rate: int) -> str:
    return f"{rate // 60}r/s" if rate % 60 == 0 else f"{rate}r/m"


def _format_zone(value: LimitConnZone | LimitReqZone) -> Raw:
    found: dict[str, Raw] = {"zone": value.zone, "key": value.key, "size": units.format_size(value.size)}
    return found | ({"rate": _format_rate(value.rate)} if isinstance(value, LimitReqZone) else {})


def _format_limit_req(value: LimitReq) -> Raw:
    found: dict[str, Raw] = {"zone": value.zone, "burst": value.burst}
    return found | ({"nodelay": True} if value.delay is None else {"delay": value.delay})


def _parameters(words: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Parameters ``NAME=VALUE``; ``nodelay`` has no value."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in known or not (equals or name == "nodelay"):
            raise ValueError(f'invalid parameter "{word[:64]}"')
        if name in found:
            raise ValueError(f"duplicate parameter: {name}")
        found[name] = value
    return found


def _parse_nginx_zone(arguments: Sequence[str]) -> Raw:
    """``limit_conn_zone KEY zone=NAME:SIZE``, and ``limit_req_zone`` with ``rate=RATE``."""
    found = _parameters(arguments[1:], ("zone", "rate")[: len(arguments) - 1])
    name, colon, size = found.get("zone", "").rpartition(":")
    if not colon:
        raise ValueError('"zone" must have a name and a size, such as zone=one:10m')
    zone: dict[str, Raw] = {"zone": name, "key": arguments[0], "size": size}
    return [zone | ({"rate": found["rate"]} if "rate" in found else {})]


def _parse_nginx_limit_req(arguments: Sequence[str]) -> Raw:
    """``limit_req zone=NAME [burst=N] [nodelay | delay=N]``."""
    found = _parameters(arguments, ("zone", "burst", "delay", "nodelay"))
    if "zone" not in found:
        raise ValueError('"limit_req" must have "zone" parameter')
    limit: dict[str, Raw] = {"zone": found["zone"]}
    limit |= {name: parse_nginx_number([found[name]]) for name in ("burst", "delay") if name in found}
    return [limit | ({"nodelay": True} if "nodelay" in found else {})]


def _list_of(
    fields: Mapping[str, Schema],
    required: tuple[str, ...],
    meanings: Mapping[str, str],
    **conversions: Any,  # noqa: ANN401 -- those of ``ValueType``
) -> ValueType:
    return ValueType(
        syntax=f"list of {{{', '.join(fields)}}}",
        schema=Array(
            max_items=MAX_ZONES,
            items=Object(
                example="{" + ", ".join(f"{name}: {name.upper()}" for name in required) + "}",
                fields=fields,
                required=required,
                descriptions={name: meanings[name] for name in fields},
            ),
        ),
        appends=True,
        itemwise=True,
        **conversions,
    )


_CONN_ZONES: Final = _list_of(
    _CONN_ZONE_FIELDS,
    tuple(_CONN_ZONE_FIELDS),
    _ZONE_MEANINGS,
    read=_unique_zones(_read_conn_zone),
    write=lambda value: list(map(_format_zone, value)),
    nginx=_parse_nginx_zone,
    arity=(2, 2),
)
_REQ_ZONES: Final = _list_of(
    _REQ_ZONE_FIELDS,
    tuple(_REQ_ZONE_FIELDS),
    _ZONE_MEANINGS,
    read=_unique_zones(_read_req_zone),
    write=lambda value: list(map(_format_zone, value)),
    nginx=_parse_nginx_zone,
    arity=(3, 3),
)
_LIMIT_CONNS: Final = _list_of(
    {"zone": _ZONE, "connections": Integer(minimum=1, maximum=MAX_CONNECTIONS)},
    ("zone", "connections"),
    _LIMIT_MEANINGS,
    read=_unique_zones(_read_limit_conn),
    write=lambda value: [{"zone": each.zone, "connections": each.connections} for each in value],
    nginx=lambda arguments: [{"zone": arguments[0], "connections": parse_nginx_number(arguments[1:])}],
    arity=(2, 2),
)
_LIMIT_REQS: Final = _list_of(
    {
        "zone": _ZONE,
        "burst": Integer(maximum=MAX_BURST),
        "delay": Integer(maximum=MAX_BURST),
        "nodelay": Boolean(),
    },
    ("zone",),
    _LIMIT_MEANINGS,
    read=_unique_zones(_read_limit_req),
    write=lambda value: list(map(_format_limit_req, value)),
    nginx=_parse_nginx_limit_req,
    arity=(1, 3),
)
_LEVEL: Final = choice({str(word): str(word) for word in LimitLogLevel}, LimitLogLevel)


def _number(minimum: int, maximum: int) -> ValueType:
    return ValueType(
        syntax=f"number from {minimum} to {maximum}",
        schema=Integer(minimum=minimum, maximum=maximum),
        read=identity,
        write=identity,
        nginx=parse_nginx_number,
    )


LIMIT_DIRECTIVES: Final = (
    Directive(
        name="limit_conn_zone",
        module=_MODULE,
        type=_CONN_ZONES,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Zones of memory that count sessions by a key, for limitConn.",
    ),
    Directive(
        name="limit_conn",
        module=_MODULE,
        type=_LIMIT_CONNS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Maximum number of sessions with the same key, per pod; checked after the login is allowed.",
    ),
    Directive(
        name="limit_conn_log_level",
        module=_MODULE,
        type=_LEVEL,
        default="error",
        is_ours=True,
        meaning="Severity of the log line of a session that limitConn refuses.",
    ),
    Directive(
        name="limit_conn_dry_run",
        module=_MODULE,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Sessions above limitConn are counted and logged, and not refused.",
    ),
    Directive(
        name="limit_conn_ipv6_prefix",
        module=_MODULE,
        type=_number(16, 128),
        default=128,
        is_ours=True,
        meaning="Number of bits of an IPv6 address that count as one $remote_addr in all limits.",
    ),
    Directive(
        name="limit_conn_words",
        module=_MODULE,
        type=choice({"freenginx": "Freenginx", "dovecot": "Dovecot"}, LimitWords),
        default="Freenginx",
        is_ours=True,
        meaning="Response codes of refusals: UNAVAILABLE, SYS/TEMP, 454, or Dovecot's LIMIT, IN-USE, 421.",
    ),
    Directive(
        name="limit_preauth",
        module=_MODULE,
        type=_number(0, MAX_CONNECTIONS),
        default=0,
        is_ours=True,
        meaning="Maximum number of connections of one address that have not logged in, per pod. 0: no limit.",
    ),
    Directive(
        name="limit_req_zone",
        module=_MODULE,
        type=_REQ_ZONES,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Zones of memory that count logins by a key, for limitReq.",
    ),
    Directive(
        name="limit_req",
        module=_MODULE,
        type=_LIMIT_REQS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Rates of logins, per pod; counted before the authentication service gets a request.",
    ),
    Directive(
        name="limit_req_log_level",
        module=_MODULE,
        type=_LEVEL,
        default="error",
        is_ours=True,
        meaning="Severity of the log line of a login that limitReq refuses; a delay has the next lower one.",
    ),
    Directive(
        name="limit_req_dry_run",
        module=_MODULE,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Logins above limitReq are counted and logged, and neither delayed nor refused.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""


Levels = Sequence[tuple[str, Mapping[str, Any]]]
"""Paths and values by nginx's names: of ``spec.mail`` first, then of the servers."""


def check_limits(levels: Levels, problems: Problems) -> None:
    """Report limits without their zone, and zones that contradict each other.

    There is no CEL rule for these: the API server would compare each limit with each zone of all servers.
    """
    mail = levels[0][1]
    for kind, field in (("limit_conn", "limitConn"), ("limit_req", "limitReq")):
        for path, values in levels:
            zones = {each.zone for each in values.get(f"{kind}_zone", mail.get(f"{kind}_zone", ()))}
            if values is mail:
                zones |= {each.zone for _, own in levels for each in own.get(f"{kind}_zone", ())}
            if any(f".{field}Zone" in problem.path for problem in problems.found):
                continue  # there are some, with errors
            for index, limit in enumerate(values.get(kind, ())):
                if limit.zone not in zones:
                    reason = f'"{field}Zone" has no zone {limit.zone}'
                    problems.add(f"{path}.{field}[{index}].zone", reason)
    _check_zones(levels, problems)


def _check_zones(levels: Levels, problems: Problems) -> None:
    seen: dict[str, object] = {}
    total = 0
    for path, zone in _all_zones(levels):
        first = seen.setdefault(zone.zone, zone)
        if first is zone:
            total += zone.size
        elif first != zone:
            problems.add(path, f"zone {zone.zone} is there twice, with different values")
    if total > MAX_ZONES_TOTAL:
        found = f"all zones together have {total // 1024}k"
        problems.add(f"{levels[0][0]}.limitConnZone", f"{found}, which is more than 32m")


def _all_zones(levels: Levels) -> Iterator[tuple[str, LimitConnZone | LimitReqZone]]:
    for path, values in levels:
        for name, field in (("limit_conn_zone", "limitConnZone"), ("limit_req_zone", "limitReqZone")):
            for index, zone in enumerate(values.get(name, ())):
                yield f"{path}.{field}[{index}]", zone
