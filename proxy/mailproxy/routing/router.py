# SPDX-License-Identifier: Apache-2.0
"""The routes of one server: the first that matches a login name decides (``route``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mailproxy.routing.login_name import normalised, routed_name
from mailproxy_config.upstream_groups import Route


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """The group of upstreams of a login, and its name there; ``None`` is the name that the client sent."""

    upstream: str
    login: bytes | None = None


class Table(Protocol):
    """A table of routes."""

    def find(self, key: bytes) -> RouteMatch | None:
        """Return the entry of a login name, or of ``@`` and a domain; domains are in lower case."""


class _Matcher(Protocol):
    def match(self, key: bytes, domain: bytes) -> RouteMatch | None: ...


class Router:
    """Finds the route of a login.

    Args:
        routes: The routes, in their order.
        tables: The tables of the routes, by the paths of their files.
    """

    __slots__ = ("_matchers",)

    def __init__(self, routes: Sequence[Route], tables: Mapping[str, Table]) -> None:
        self._matchers: tuple[_Matcher, ...] = tuple(_matchers(routes, tables))

    def find(self, user: bytes) -> RouteMatch | None:
        """Return the first match.

        Args:
            user: The login name as the client sent it.

        Returns:
            ``None`` if no route matches, or the name is none that is routed (see ``routed_name``).
        """
        parts = routed_name(user)
        if parts is None:
            return None
        key, domain = normalised(user), parts[1]
        for matcher in self._matchers:
            found = matcher.match(key, domain)
            if found is not None:
                return found
        return None


class _NameMatcher:
    """A route with users and domains: look-ups in sets, however many there are."""

    __slots__ = ("_domains", "_matches_all", "_result", "_users", "_wildcards")

    def __init__(self, route: Route) -> None:
        self._result = RouteMatch(route.upstream)
        self._users = frozenset(normalised(user.encode()) for user in route.users)
        domains = [domain.encode() for domain in route.domains]
        self._matches_all = b"*" in domains
        self._wildcards = frozenset(domain[2:] for domain in domains if domain.startswith(b"*."))
        self._domains = frozenset(domains)

    def match(self, key: bytes, domain: bytes) -> RouteMatch | None:
        if self._matches_all or key in self._users or (domain and domain in self._domains):
            return self._result
        return self._result if self._wildcards and self._is_below(domain) else None

    def _is_below(self, domain: bytes) -> bool:
        """Whether a domain has a label before one of the wildcards."""
        label, dot, parent = domain.partition(b".")
        while dot:
            if label and parent in self._wildcards:
                return True
            label, dot, parent = parent.partition(b".")
        return False


class _TableMatcher:
    """A route with a table: the login name is looked up first, then its domain."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    def match(self, key: bytes, domain: bytes) -> RouteMatch | None:
        found = self._table.find(key)
        return self._table.find(b"@" + domain) if found is None and domain else found


def _matchers(routes: Sequence[Route], tables: Mapping[str, Table]) -> Iterator[_Matcher]:
    for route in routes:
        if route.table is not None:
            yield _TableMatcher(tables[route.table])
        else:
            yield _NameMatcher(route)
