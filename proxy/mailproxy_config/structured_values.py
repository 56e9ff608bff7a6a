# SPDX-License-Identifier: Apache-2.0
"""Types of directive values with fields: authentication service, resolver, error log, trusted addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config import addresses, units
from mailproxy_config.model import AuthHttp, AuthHttpHeader, LogLevel, ResolverConfig
from mailproxy_config.schema import Array, Boolean, Object, Rule, String
from mailproxy_config.secret_refs import KEY_REF, HeaderRef, ReferenceKind, format_key_ref, read_key_ref
from mailproxy_config.value_types import (
    SEC_SHAPE,
    ErrorPath,
    Raw,
    ValueType,
    control_character_rule,
    parse_nginx_text,
    read_items,
    string_list,
)

# --- authHttp, authHttpHeader --------------------------------------------------


def format_auth_http(value: AuthHttp) -> str:
    """The URL from which ``parse_auth_http`` reads this value."""
    scheme = "https" if value.tls else "http"
    if value.unix_path is not None:
        return f"{scheme}://unix:{value.unix_path}:{value.uri}"
    return f"{scheme}://{value.host}:{value.port}{value.uri}"


AUTH_HTTP: Final = ValueType(
    syntax="URL",
    schema=String(
        max_length=1024,
        min_length=1,
        rules=(
            Rule(
                expression=(
                    "!self.contains('://') || self.startsWith('http://') || self.startsWith('https://')"
                ),
                message="authHttp must be [http://]host[:port][/path] or an https:// URL",
                predicate=lambda url: "://" not in url or url.startswith(("http://", "https://")),
            ),
            control_character_rule("authHttp"),
        ),
    ),
    read=lambda value, _: addresses.parse_auth_http(value),
    write=format_auth_http,
    nginx=parse_nginx_text,
)


def _read_header(value: Mapping[str, Any], _: ErrorPath) -> AuthHttpHeader | HeaderRef:
    if "valueFrom" in value:
        return HeaderRef(
            value["name"], read_key_ref(ReferenceKind.SECRET, value["valueFrom"]["secretKeyRef"])
        )
    return AuthHttpHeader(name=value["name"], value=value["value"])


def _format_header(value: AuthHttpHeader | HeaderRef) -> Raw:
    if isinstance(value, HeaderRef):
        return {"name": value.name, "valueFrom": format_key_ref(value.source)}
    return {"name": value.name, "value": value.value}


HEADERS: Final = ValueType(
    syntax="list of {name, value} or {name, valueFrom: {secretKeyRef: {name, key}}}",
    schema=Array(
        max_items=32,
        items=Object(
            example="{name: NAME, value: VALUE}",
            fields={
                "name": String(
                    max_length=127,
                    min_length=1,
                    pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
                    hint="the name of a header, without spaces and colons",
                ),
                "value": String(
                    max_length=1024, rules=(control_character_rule("a header value"),), secret=True
                ),
                "valueFrom": Object(
                    fields={"secretKeyRef": KEY_REF},
                    required=("secretKeyRef",),
                    descriptions={
                        "secretKeyRef": (
                            "Key of a Secret. The operator mounts the Secret and does not read it."
                        )
                    },
                ),
            },
            required=("name",),
            descriptions={
                "name": "Name of the header.",
                "value": "Value of the header, in plain text.",
                "valueFrom": "Source of the value, for secret values.",
            },
            rules=(
                Rule(
                    expression="has(self.value) != has(self.valueFrom)",
                    message="exactly one of value and valueFrom must be set",
                    predicate=lambda header: ("value" in header) != ("valueFrom" in header),
                ),
            ),
        ),
    ),
    read=lambda value, path: read_items(value, path, _read_header),
    write=lambda value: list(map(_format_header, value)),
    nginx=lambda arguments: [{"name": arguments[0], "value": arguments[1]}],
    arity=(2, 2),
    appends=True,
)


# --- resolver ------------------------------------------------------------------


def _read_resolver(value: Mapping[str, Any], path: ErrorPath) -> ResolverConfig | None:
    if value.get("mode") in {"Disabled", "Off"}:
        return None
    valid = (
        path.field("valid").try_read(lambda: units.parse_sec_time(value["valid"]))
        if "valid" in value
        else None
    )
    servers = value.get("addresses", ())
    for index, server in enumerate(servers):
        path.field("addresses").item(index).try_read(lambda server=server: addresses.parse_host_port(server))  # type: ignore[misc]
    return ResolverConfig(
        addresses=tuple(servers),
        system=value.get("mode") == "System",
        valid=valid,
        ipv4=value.get("ipv4", True),
        ipv6=value.get("ipv6", True),
        status_zone=value.get("statusZone"),
    )


def _format_resolver(value: ResolverConfig | None) -> Raw:
    if value is None:
        return {"mode": "Disabled"}
    where: dict[str, Raw] = {"mode": "System"} if value.system else {"addresses": list(value.addresses)}
    where |= {} if value.valid is None else {"valid": units.format_time(value.valid)}
    where |= {family: False for family in ("ipv4", "ipv6") if not getattr(value, family)}
    return where | ({} if value.status_zone is None else {"statusZone": value.status_zone})


def _parse_nginx_resolver(arguments: Sequence[str]) -> Raw:
    if arguments[0] == "off":
        return {"mode": "Disabled"}
    found: dict[str, Raw] = {}
    for word in arguments:
        name, equals, rest = word.partition("=")
        if not equals:
            found.setdefault("addresses", []).append(word)
        elif name in {"ipv4", "ipv6"} and rest in {"on", "off"}:
            found[name] = rest == "on"
        elif name in {"valid", "status_zone"}:
            found["valid" if name == "valid" else "statusZone"] = rest
        else:
            raise ValueError(f"invalid parameter: {word}")
    if "addresses" not in found:
        raise ValueError("no name servers defined")
    return found


RESOLVER: Final = ValueType(
    syntax="{addresses, valid, ipv4, ipv6, statusZone} or {mode: Disabled | System}",
    schema=Object(
        example="{mode: Disabled}, {mode: System} or {addresses: [ADDRESS]}",
        fields={
            "mode": String(max_length=16, enum=("Disabled", "Off", "System"), spellings={"off": "Disabled"}),
            "addresses": Array(items=String(max_length=261, min_length=1), max_items=8, min_items=1),
            "valid": SEC_SHAPE,
            "ipv4": Boolean(),
            "ipv6": Boolean(),
            "statusZone": String(max_length=63),
        },
        rules=(
            Rule(
                expression="has(self.mode) != has(self.addresses)",
                message="resolver takes either addresses or mode (Disabled, System)",
                predicate=lambda value: ("mode" in value) != ("addresses" in value),
            ),
            Rule(
                expression="!has(self.ipv4) || !has(self.ipv6) || self.ipv4 || self.ipv6",
                message="resolver: ipv4 and ipv6 cannot both be false",
                predicate=lambda value: value.get("ipv4", True) or value.get("ipv6", True),
            ),
        ),
        descriptions={
            "mode": (
                "Disabled: no DNS lookups. System: the DNS servers of the pod. Off is the same as Disabled."
            ),
            "addresses": "DNS servers: address or host name, with an optional port. Default port: 53.",
            "valid": "Time for which responses are cached. Not set: the TTL of the response.",
            "ipv4": "Looks up IPv4 addresses (A records). Default: true.",
            "ipv6": "Looks up IPv6 addresses (AAAA records). Default: true.",
            "statusZone": "Name of this resolver in metrics.",
        },
    ),
    read=_read_resolver,
    write=_format_resolver,
    nginx=_parse_nginx_resolver,
    arity=(1, None),
)


# --- errorLog, setRealIpFrom ---------------------------------------------------

LEVELS: Final = tuple(map(str, LogLevel))


_DEBUG_LEVELS: Final = frozenset(
    f"debug_{part}" for part in ("core", "alloc", "mutex", "event", "http", "mail", "stream")
)
"""nginx's levels for parts of its debugging log; several of them can be combined."""


def _parse_nginx_error_log(arguments: Sequence[str]) -> Raw:
    found = ""
    for word in arguments[1:]:
        if word in LEVELS:
            if found:
                raise ValueError(f'duplicate log level "{word}"')
            found = word
        elif word not in _DEBUG_LEVELS or found not in {"", *_DEBUG_LEVELS}:
            raise ValueError(f'invalid log level "{word[:64]}"')
        else:
            found = word
    return {"level": "debug" if found in _DEBUG_LEVELS else found or "error"}


ERROR_LOG: Final = ValueType(
    syntax="{level: " + " | ".join(LEVELS) + "}",
    schema=Object(
        example="{level: info}",
        fields={"level": String(max_length=16, enum=LEVELS)},
        descriptions={"level": "Minimum severity, from debug (everything) to emerg."},
    ),
    read=lambda value, _: LogLevel(value["level"]) if "level" in value else None,
    write=lambda value: {"level": str(value)},
    nginx=_parse_nginx_error_log,
    arity=(1, None),
)


def _read_trusted_address(value: str, path: ErrorPath) -> str:
    canonical, bits_lost = addresses.parse_trusted_address(value)
    if bits_lost:
        path.problems.notice(path.text, f"low address bits of {value} are meaningless")
    return canonical


PEERS: Final = string_list(
    _read_trusted_address,
    syntax="list of address, CIDR range, unix: or host name",
    max_items=64,
    max_length=261,
)
