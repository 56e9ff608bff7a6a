# SPDX-License-Identifier: Apache-2.0
"""``spec.upstreams``: groups of upstreams with their servers and their own directives.

In an ``nginx.conf`` for MailProxy they are ``upstream NAME {}`` blocks in ``mail {}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from ipaddress import IPv6Address
from typing import Any, Final

from mailproxy_config.addresses import check_listen_address, parse_host_port
from mailproxy_config.directives import LEVEL_DIRECTIVES, Directive, by_field, by_name
from mailproxy_config.route_directives import GROUP_NAME
from mailproxy_config.schema import Array, Boolean, Integer, IntOrString, Object, Rule, Schema, String
from mailproxy_config.upstream_groups import (
    GroupFallback,
    GroupHash,
    GroupMembers,
    GroupServer,
    UpstreamSettings,
)
from mailproxy_config.value_types import MSEC_TIME, ErrorPath, Raw

FIELD: Final = "upstreams"
MAX_GROUPS: Final = 64
MAX_SERVERS: Final = 32
"""Servers of one group."""
MAX_WEIGHT: Final = 1000
SETTINGS: Final[dict[str, Directive]] = {
    each.name: by_name(LEVEL_DIRECTIVES)[each.name] for each in fields(UpstreamSettings)
}
"""Directives that a group may have, by nginx's names."""
MEMBER_GRACE: Final = 60.0
"""Seconds for which a member that has vanished stays in its group, by default."""
MAX_MEMBER_GRACE: Final = 86400.0

_BY_FIELD: Final = by_field(SETTINGS.values())
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class GroupService:
    """The Service that a group is; without a namespace that of the resource."""

    name: str
    namespace: str
    port: int | str | None

    def server(self, namespace: str) -> GroupServer:
        """Return its DNS name as the only server; DNS has no named ports."""
        host = f"{self.name}.{self.namespace or namespace}.svc"
        return read_server({"address": f"{host}:{self.port}" if isinstance(self.port, int) else host})

    def members(self, namespace: str, fallback: GroupFallback, file: str) -> GroupMembers:
        """Return how its members are found in a file."""
        return GroupMembers(
            service=f"{self.namespace or namespace}/{self.name}",
            port="" if self.port is None else str(self.port),
            fallback=fallback,
            file=file,
        )


def service_of(members: GroupMembers) -> GroupService:
    """Return the Service of compiled members."""
    namespace, _, name = members.service.partition("/")
    port = members.port
    return GroupService(name, namespace, int(port) if port.isdecimal() else port or None)


@dataclass(frozen=True, slots=True)
class UpstreamGroupRef:
    """One group before references are replaced by paths, and its Service by a server."""

    name: str
    servers: tuple[GroupServer, ...]
    service: GroupService | None
    hash: GroupHash
    settings: tuple[tuple[str, object], ...]
    """Directives with their values, sorted by name."""
    fallback: GroupFallback = GroupFallback.NONE
    member_grace: float = MEMBER_GRACE
    """Seconds for which a member that has vanished stays in the group."""


def read_server(value: Mapping[str, Any]) -> GroupServer:
    """Read one server.

    Raises:
        ValueError: The address is invalid.
    """
    address = value["address"]
    rest: dict[str, Any] = {"weight": value.get("weight", 1), "backup": value.get("backup", False)}
    if address[:5].lower() == _UNIX:
        return GroupServer(address=address, host=check_listen_address(address), **rest)
    if address.count(":") > 1 and not address.startswith("["):
        raise ValueError("an IPv6 address must be in brackets: [2001:db8::1]:143")
    host, port = parse_host_port(address)
    plain = str(IPv6Address(host[1:-1])) if host.startswith("[") else host.lower()
    return GroupServer(address=address, host=plain, port=port, **rest)


def read_groups(valid: Sequence[Mapping[str, Any]], path: ErrorPath) -> tuple[UpstreamGroupRef, ...]:
    """Read groups that match ``UPSTREAMS``; adds errors to the path."""
    return tuple(_read_group(value, path.item(index)) for index, value in enumerate(valid))


def _read_group(value: Mapping[str, Any], path: ErrorPath) -> UpstreamGroupRef:
    hashed = GroupHash(value.get("hash", GroupHash.NONE))
    service = value.get("service")
    for field in ("memberGrace", "fallback"):
        if service is None and field in value:
            path.problems.add(path.field(field).text, "needs service: only a Service has members")
    settings = [
        (row.name, here.try_read(lambda row=row, here=here: row.type.read(value[row.field], here)))  # type: ignore[misc]
        for row, here in ((row, path.field(row.field)) for row in SETTINGS.values() if row.field in value)
    ]
    return UpstreamGroupRef(
        name=value["name"],
        servers=_read_servers(value.get("servers", ()), path.field("servers")),
        service=None
        if service is None
        else GroupService(service["name"], service.get("namespace", ""), service.get("port")),
        hash=hashed,
        settings=tuple(sorted(settings, key=lambda pair: pair[0])),
        fallback=GroupFallback(value.get("fallback", GroupFallback.NONE)),
        member_grace=_read_grace(value, path.field("memberGrace")),
    )


def _read_grace(value: Mapping[str, Any], path: ErrorPath) -> float:
    if "memberGrace" not in value:
        return MEMBER_GRACE
    found = path.try_read(lambda: MSEC_TIME.read(value["memberGrace"], path))
    seconds = MEMBER_GRACE if found is None else float(found)
    if seconds > MAX_MEMBER_GRACE:
        path.problems.add(path.text, "is longer than 24 hours")
    return seconds


def _read_servers(values: Sequence[Mapping[str, Any]], path: ErrorPath) -> tuple[GroupServer, ...]:
    found: list[GroupServer] = []
    for index, value in enumerate(values):
        here = path.item(index).field("address")
        server = here.try_read(lambda value=value: read_server(value))  # type: ignore[misc]
        if server is None:
            continue
        if any((each.host, each.port) == (server.host, server.port) for each in found):
            path.problems.add(here.text, f"{server.address} is there twice; give it a weight instead")
        found.append(server)
    if found and all(server.backup for server in found):
        path.problems.add(path.text, "are all backups: at least one must not be")
    return tuple(found)


def format_group(value: UpstreamGroupRef) -> Raw:
    """The manifest value of a group."""
    found: dict[str, Raw] = {"name": value.name}
    if value.servers:
        found["servers"] = [_format_server(server) for server in value.servers]
    if value.service is not None:
        service = {
            "name": value.service.name,
            "namespace": value.service.namespace,
            "port": value.service.port,
        }
        found["service"] = {name: inner for name, inner in service.items() if inner}
    if value.hash is not GroupHash.NONE:
        found["hash"] = str(value.hash)
    if value.fallback is not GroupFallback.NONE:
        found["fallback"] = str(value.fallback)
    if value.member_grace != MEMBER_GRACE:
        found["memberGrace"] = MSEC_TIME.write(value.member_grace)
    for name, setting in value.settings:
        found[SETTINGS[name].field] = SETTINGS[name].type.write(setting)
    return found


def _format_server(server: GroupServer) -> Raw:
    found: dict[str, Raw] = {"address": server.address}
    found |= {"weight": server.weight} if server.weight != 1 else {}
    return found | ({"backup": True} if server.backup else {})


_SERVER: Final = Object(
    example="{address: HOST:PORT}",
    fields={
        "address": String(
            max_length=260, min_length=1, pattern="^[!-~]+$", hint="host, host:port, or unix:/path"
        ),
        "weight": Integer(minimum=1, maximum=MAX_WEIGHT),
        "backup": Boolean(),
    },
    required=("address",),
    descriptions={
        "address": "Host name or IP address, with a port unless it is that of the protocol; or unix:/path.",
        "weight": "Part of the logins, compared with the weights of the other servers. Default: 1.",
        "backup": "Gets logins only after all other servers have failed (proxyNextUpstream).",
    },
)
_SERVICE: Final = Object(
    example="{name: SERVICE}",
    fields={
        "name": String(
            max_length=63, min_length=1, pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$", hint="the name of a Service"
        ),
        "namespace": String(
            max_length=63,
            min_length=1,
            pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            hint="the name of a namespace",
        ),
        "port": IntOrString(
            minimum=1,
            maximum=65535,
            max_length=15,
            min_length=1,
            pattern="^([0-9][-0-9]*)?[a-z]([-a-z0-9]*[a-z0-9])?$",
            hint="a number, or the name of a port: lower-case letters, digits, hyphens, at least one letter",
        ),
    },
    required=("name",),
    descriptions={
        "name": "Name of the Service. Logins go to its ready members.",
        "namespace": "Its namespace. Default: that of the MailProxy.",
        "port": "Number or name of its port. Default: the port of the protocol.",
    },
)

_FIELDS: Final[Mapping[str, Schema]] = {
    "name": GROUP_NAME,
    "servers": Array(items=_SERVER, max_items=MAX_SERVERS, min_items=1),
    "service": _SERVICE,
    "hash": String(max_length=8, enum=tuple(map(str, GroupHash))),
    "memberGrace": MSEC_TIME.schema,
    "fallback": String(max_length=8, enum=tuple(map(str, GroupFallback))),
    **{field: row.type.schema for field, row in _BY_FIELD.items()},
}
UPSTREAMS: Final = Array(
    max_items=MAX_GROUPS,
    keys=("name",),
    items=Object(
        example="{name: NAME, servers: [{address: HOST:PORT}]}",
        fields=_FIELDS,
        required=("name",),
        descriptions={
            "name": "Name, for routes.",
            "servers": "Mail servers. Each has the mailboxes of all logins that are routed here.",
            "service": "A Service instead of servers.",
            "memberGrace": "How long a member of the Service that has vanished stays. Default: 60s.",
            "fallback": "Next: logins of a member that is not ready go to the next one. Default: None.",
            "hash": "User: a login always goes to the same server, as long as it works. Default: None.",
            **{
                field: f"Replaces the value of the server for logins at this group ({row.name})."
                for field, row in _BY_FIELD.items()
            },
        },
        rules=(
            Rule(
                expression="has(self.servers) != has(self.service)",
                message="must have servers or service, and not both",
                predicate=lambda value: ("servers" in value) != ("service" in value),
            ),
        ),
    ),
)
"""The schema of ``spec.upstreams``."""

MEANING: Final = (
    "Groups of mail servers that routes lead to. Fields of an item replace those of the server for "
    "logins there. Name in an nginx.conf for MailProxy: upstream."
)
