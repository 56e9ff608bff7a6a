# SPDX-License-Identifier: Apache-2.0
"""Directive values with parts of their own: the authorization service, name servers, logs, peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mailproxy_config import addresses, units
from mailproxy_config.model import AuthHttp, AuthHttpHeader, LogLevel, ResolverConfig
from mailproxy_config.schema import Flag, ListOf, Record, Rule, Text
from mailproxy_config.secret_refs import KEY_REF, HeaderRef, ReferenceKind, key_ref, key_ref_written
from mailproxy_config.value_types import (
    SEC_SHAPE,
    ErrorPath,
    Raw,
    ValueType,
    nginx_text,
    no_control_characters,
    read_items,
    texts,
)

# --- authHttp, authHttpHeader --------------------------------------------------


def _scheme_is_known(text: str) -> bool:
    return "://" not in text or text.startswith(("http://", "https://"))


def auth_http_text(value: AuthHttp) -> str:
    """The URL that reads as this value."""
    scheme = "https" if value.tls else "http"
    if value.unix_path is not None:
        return f"{scheme}://unix:{value.unix_path}:{value.uri}"
    return f"{scheme}://{value.host}:{value.port}{value.uri}"


AUTH_HTTP: Final = ValueType(
    syntax="URL",
    shape=Text(
        longest=1024,
        shortest=1,
        rules=(
            Rule(
                expression=(
                    "!self.contains('://') || self.startsWith('http://') || self.startsWith('https://')"
                ),
                message="authHttp must be [http://]host[:port][/path] or an https:// URL",
                holds=_scheme_is_known,
            ),
            no_control_characters("authHttp"),
        ),
    ),
    read=lambda value, _: addresses.auth_http(value),
    write=auth_http_text,
    nginx=nginx_text,
)


def _header(value: Mapping[str, Any], _: ErrorPath) -> AuthHttpHeader | HeaderRef:
    if "valueFrom" in value:
        return HeaderRef(value["name"], key_ref(ReferenceKind.SECRET, value["valueFrom"]["secretKeyRef"]))
    return AuthHttpHeader(name=value["name"], value=value["value"])


def _header_written(value: AuthHttpHeader | HeaderRef) -> Raw:
    if isinstance(value, HeaderRef):
        return {"name": value.name, "valueFrom": key_ref_written(value.source)}
    return {"name": value.name, "value": value.value}


HEADERS: Final = ValueType(
    syntax="list of {name, value} or {name, valueFrom: {secretKeyRef: {name, key}}}",
    shape=ListOf(
        most=32,
        items=Record(
            example="{name: NAME, value: VALUE}",
            fields={
                "name": Text(
                    longest=127,
                    shortest=1,
                    pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
                    hint="the name of a header, without spaces and colons",
                ),
                "value": Text(longest=1024, rules=(no_control_characters("a header value"),), secret=True),
                "valueFrom": Record(
                    fields={"secretKeyRef": KEY_REF},
                    required=("secretKeyRef",),
                    descriptions={
                        "secretKeyRef": "A key of a Secret; the operator mounts it and never reads it."
                    },
                ),
            },
            required=("name",),
            descriptions={
                "name": "The name of the header.",
                "value": "Its value, in clear.",
                "valueFrom": "Where its value comes from, for values that are secret.",
            },
            rules=(
                Rule(
                    expression="has(self.value) != has(self.valueFrom)",
                    message="exactly one of value and valueFrom must be set",
                    holds=lambda header: ("value" in header) != ("valueFrom" in header),
                ),
            ),
        ),
    ),
    read=lambda value, place: read_items(value, place, _header),
    write=lambda value: list(map(_header_written, value)),
    nginx=lambda words: [{"name": words[0], "value": words[1]}],
    arity=(2, 2),
    appends=True,
)


# --- resolver ------------------------------------------------------------------


def _name_server(value: str, _: ErrorPath) -> str:
    addresses.host_port(value)
    return value


def _resolver(value: Mapping[str, Any], place: ErrorPath) -> ResolverConfig | None:
    if value.get("mode") in {"Disabled", "Off"}:
        return None
    valid = place.field("valid").attempt(lambda: units.sec_time(value["valid"])) if "valid" in value else None
    return ResolverConfig(
        addresses=read_items(value.get("addresses", ()), place.field("addresses"), _name_server),
        system=value.get("mode") == "System",
        valid=valid,
        ipv4=value.get("ipv4", True),
        ipv6=value.get("ipv6", True),
        status_zone=value.get("statusZone"),
    )


def _resolver_written(value: ResolverConfig | None) -> Raw:
    if value is None:
        return {"mode": "Disabled"}
    where: dict[str, Raw] = {"mode": "System"} if value.system else {"addresses": list(value.addresses)}
    where |= {} if value.valid is None else {"valid": units.printed_time(value.valid)}
    where |= {family: False for family in ("ipv4", "ipv6") if not getattr(value, family)}
    return where | ({} if value.status_zone is None else {"statusZone": value.status_zone})


def _resolver_from_nginx(words: Sequence[str]) -> Raw:
    if words[0] == "off":
        return {"mode": "Disabled"}
    found: dict[str, Raw] = {}
    for word in words:
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
    shape=Record(
        example="{mode: Disabled}, {mode: System} or {addresses: [ADDRESS]}",
        fields={
            "mode": Text(longest=16, words=("Disabled", "Off", "System"), spellings={"off": "Disabled"}),
            "addresses": ListOf(items=Text(longest=261, shortest=1), most=8, fewest=1),
            "valid": SEC_SHAPE,
            "ipv4": Flag(),
            "ipv6": Flag(),
            "statusZone": Text(longest=63),
        },
        rules=(
            Rule(
                expression="has(self.mode) != has(self.addresses)",
                message="resolver takes either addresses or mode (Disabled, System)",
                holds=lambda value: ("mode" in value) != ("addresses" in value),
            ),
            Rule(
                expression="!has(self.ipv4) || !has(self.ipv6) || self.ipv4 || self.ipv6",
                message="resolver: ipv4 and ipv6 cannot both be false",
                holds=lambda value: value.get("ipv4", True) or value.get("ipv6", True),
            ),
        ),
        descriptions={
            "mode": "Disabled looks nothing up, System asks the name servers of the pod. Off means Disabled.",
            "addresses": "Name servers: an address or a name, each with an optional port (53).",
            "valid": "How long answers are kept, instead of their own time to live.",
            "ipv4": "Whether IPv4 addresses are looked up (on unless false).",
            "ipv6": "Whether IPv6 addresses are looked up (on unless false).",
            "statusZone": "The name under which look-ups are counted.",
        },
    ),
    read=_resolver,
    write=_resolver_written,
    nginx=_resolver_from_nginx,
    arity=(1, None),
)


# --- errorLog, setRealIpFrom ---------------------------------------------------

LEVELS: Final = tuple(map(str, LogLevel))


_DEBUG_LEVELS: Final = frozenset(
    f"debug_{part}" for part in ("core", "alloc", "mutex", "event", "http", "mail", "stream")
)
"""Parts of nginx's debugging log, of which several may be named."""


def _level_from_nginx(words: Sequence[str]) -> Raw:
    found = ""
    for word in words[1:]:
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
    shape=Record(
        example="{level: info}",
        fields={"level": Text(longest=16, words=LEVELS)},
        descriptions={"level": "The least severe level that is written, from debug (everything) to emerg."},
    ),
    read=lambda value, _: LogLevel(value["level"]) if "level" in value else None,
    write=lambda value: {"level": str(value)},
    nginx=_level_from_nginx,
    arity=(1, None),
)


def _peer(value: str, place: ErrorPath) -> str:
    canonical, bits_lost = addresses.trusted_peer(value)
    if bits_lost:
        place.problems.notice(place.path, f"low address bits of {value} are meaningless")
    return canonical


PEERS: Final = texts(_peer, syntax="list of address, CIDR range, unix: or host name", most=64, longest=261)
