# SPDX-License-Identifier: Apache-2.0
"""``route``: which logins go to which group of upstreams.  nginx's mail module has nothing like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_config.addresses import check_host
from mailproxy_config.schema import Array, Object, Rule, String
from mailproxy_config.secret_refs import FILE, FILE_SHAPE, FileRef, KeyRef, Mounts
from mailproxy_config.upstream_groups import Route
from mailproxy_config.value_types import Directive, ErrorPath, Inheritance, Raw, ValueType, read_items

MAX_ROUTES: Final = 64
MAX_NAMES: Final = 256
"""Users and domains of one route, each; more belong into a table."""
ANY_DOMAIN: Final = "*"
GROUP_NAME: Final = String(
    max_length=63,
    min_length=1,
    pattern="^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$",
    hint="letters, digits, hyphens, underscores and dots, with a letter or digit at both ends",
)
"""The name of a group of upstreams."""

_WILDCARD: Final = "*."


@dataclass(frozen=True, slots=True)
class RouteRef:
    """One route before the reference to its table is replaced by a path."""

    users: tuple[str, ...]
    domains: tuple[str, ...]
    table: FileRef | None
    upstream: str

    @property
    def references(self) -> tuple[KeyRef, ...]:
        """The ConfigMap or Secret that it refers to."""
        return (self.table,) if isinstance(self.table, KeyRef) else ()

    @property
    def matches_all(self) -> bool:
        """Whether no login reaches the routes after this one."""
        return ANY_DOMAIN in self.domains

    def with_paths(self, mounts: Mounts) -> Route:
        """The value of the compiled configuration."""
        table = None if self.table is None else mounts.path(self.table)
        return Route(users=self.users, domains=self.domains, table=table, upstream=self.upstream)


def route_ref(value: Route) -> RouteRef:
    """The value of a manifest with this file."""
    return RouteRef(value.users, value.domains, value.table, value.upstream)


def _read_user(value: str, _: ErrorPath) -> str:
    if len(value.encode()) > 255:
        raise ValueError("has more than 255 bytes, which no login name with a route has")
    if value.count("@") > 1:
        raise ValueError("has more than one @, which no login name with a route has")
    return value


def _read_domain(value: str, _: ErrorPath) -> str:
    if value == ANY_DOMAIN:
        return value
    bare = value.removeprefix(_WILDCARD)
    if "*" in bare:
        raise ValueError('may have a "*" as its first label only: *.example.org, or * for every login')
    if bare.endswith(".") or not bare.isascii():
        raise ValueError("must be A-labels without a dot at the end: example.org, xn--bcher-kva.example")
    check_host(bare)
    return value.lower()


def _read_route(value: Mapping[str, Any], path: ErrorPath) -> RouteRef:
    table = value.get("table")
    return RouteRef(
        users=read_items(value.get("users", ()), path.field("users"), _read_user),
        domains=read_items(value.get("domains", ()), path.field("domains"), _read_domain),
        table=None if table is None else FILE.read(table, path.field("table")),  # type: ignore[arg-type]
        upstream=value.get("upstream", ""),
    )


def _read_routes(values: Sequence[Any], path: ErrorPath) -> tuple[RouteRef, ...]:
    routes: tuple[RouteRef, ...] = read_items(values, path, _read_route)
    last = next((index for index, route in enumerate(routes) if route.matches_all), len(routes))
    if len(routes) == len(values) and last < len(routes) - 1:
        reason = (
            f'is never reached: {path.text}[{last}] has "*", which matches every login; move it to the end'
        )
        path.problems.add(path.item(last + 1).text, reason)
    if len(routes) == len(values):
        _check_repeated(routes, path)
    return routes


def _check_repeated(routes: Sequence[RouteRef], path: ErrorPath) -> None:
    """Report users and domains that an earlier route has."""
    seen: dict[str, str] = {}
    for index, route in enumerate(routes):
        for field, names in (("users", route.users), ("domains", route.domains)):
            for position, name in enumerate(names):
                here = path.item(index).field(field).item(position).text
                local, at, domain = name.partition("@")
                first = seen.setdefault(f"{field} {local}{at}{domain.lower()}", here)
                if first != here:
                    path.problems.add(here, f"{name} is already in {first}, which decides")


def _format_route(value: RouteRef) -> Raw:
    found: dict[str, Raw] = {"users": list(value.users), "domains": list(value.domains)}
    found["table"] = None if value.table is None else FILE.write(value.table)
    found["upstream"] = value.upstream
    return {name: inner for name, inner in found.items() if inner}


_PARAMETERS: Final = {"user": "users", "domain": "domains"}


def _parse_nginx_route(arguments: Sequence[str]) -> Raw:
    """``route user=NAME domain=NAME ... upstream=NAME`` or ``route table=FILE``."""
    found: dict[str, Any] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or name not in {*_PARAMETERS, "table", "upstream"}:
            raise ValueError(f"invalid parameter: {word[:64]}")
        if name in _PARAMETERS:
            found.setdefault(_PARAMETERS[name], []).append(value)
        elif name in found:
            raise ValueError(f"duplicate parameter: {name}")
        else:
            found[name] = {"file": value} if name == "table" else value
    return [found]


def _is_complete(value: Mapping[str, Any]) -> bool:
    has_names = "users" in value or "domains" in value
    return ("table" in value) != has_names and has_names == ("upstream" in value)


ROUTES: Final = ValueType(
    syntax="list of {users, domains, upstream} or {table}",
    schema=Array(
        max_items=MAX_ROUTES,
        items=Object(
            example="{domains: [DOMAIN], upstream: NAME}",
            fields={
                "users": Array(
                    items=String(
                        max_length=255,
                        min_length=1,
                        pattern=r"^[^\x00-\x1f\x7f]+$",
                        hint="a login name, without control characters",
                    ),
                    max_items=MAX_NAMES,
                    min_items=1,
                ),
                "domains": Array(
                    items=String(max_length=255, min_length=1), max_items=MAX_NAMES, min_items=1
                ),
                "table": FILE_SHAPE,
                "upstream": GROUP_NAME,
            },
            descriptions={
                "users": "Login names. The part before the @ must be equal, the domain without case.",
                "domains": "Domains as A-labels; *.example.org matches below it, * matches every login.",
                "table": 'File with lines "user-or-@domain upstream [login]"; # begins a comment.',
                "upstream": "Name of an item of spec.upstreams.",
            },
            rules=(
                Rule(
                    expression=(
                        "has(self.table) != (has(self.users) || has(self.domains)) && "
                        "has(self.table) != has(self.upstream)"
                    ),
                    message="must have table alone, or upstream with users, domains or both",
                    predicate=_is_complete,
                ),
            ),
        ),
    ),
    read=_read_routes,
    write=lambda value: list(map(_format_route, value)),
    nginx=_parse_nginx_route,
    arity=(1, None),
    appends=True,
    itemwise=True,
)

ROUTE_DIRECTIVES: Final = (
    Directive(
        name="route",
        field="routes",
        module="mail_proxy",
        type=ROUTES,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning=(
            "With authMode Upstream: which logins go to which of spec.upstreams. The first match wins; "
            "other logins are refused."
        ),
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""
