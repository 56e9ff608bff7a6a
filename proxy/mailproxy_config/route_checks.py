# SPDX-License-Identifier: Apache-2.0
"""Checks of routes with the other directives of a server, and with the groups of upstreams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from mailproxy_config.cross_checks import derive_protocol
from mailproxy_config.directives import LEVEL_DIRECTIVES, Level, ServerBlock, by_name
from mailproxy_config.errors import Problems
from mailproxy_config.model import AuthMethod, AuthMode
from mailproxy_config.static_directives import static_problems
from mailproxy_config.upstream_blocks import FIELD, UpstreamGroupRef
from mailproxy_config.upstream_login import ProxyAuth

_ROWS: Final = by_name(LEVEL_DIRECTIVES)
_NAMES: Final = (
    "auth_mode",
    "auth_user_file",
    "route",
    "imap_auth",
    "pop3_auth",
    "smtp_auth",
    "proxy_auth",
    "proxy_next_upstream",
)
_BUILT_IN: Final = {name: _ROWS[name].builtin() for name in _NAMES}
_NOT_REPLAYED: Final = {
    AuthMethod.CRAM_MD5: "a client does not send its password with it, so that no mail server can check it",
    AuthMethod.APOP: "a client does not send its password with it, so that no mail server can check it",
    AuthMethod.EXTERNAL: "a client's certificate cannot be sent to a mail server",
    AuthMethod.NONE: "mail without login has no login name to route; use another server with authMode Http",
}
_DECIDES_NOTHING: Final = "every password would be accepted: the mail server must get that of the client"


class _Route(Protocol):
    @property
    def table(self) -> object: ...

    @property
    def upstream(self) -> str: ...


def routing_problems(
    value: Callable[[str], Any], protocol: str, groups: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the routes of a server, and how to fix it.

    Args:
        value: Returns the value of a directive of the server.
        protocol: The server's protocol.
        groups: Directives of all groups that its routes may lead to, by their names.

    Yields:
        A directive or the path of one below a group, and a reason.
    """
    routes: Sequence[_Route] = value("route") or ()
    yield from _target_problems(routes, groups)
    mode = value("auth_mode")
    if not mode.needs_routes:
        return
    if not routes:
        yield "route", f"is required for authMode {mode}: set it here or in spec.mail"
    listed = value(f"{protocol}_auth") or ()
    if mode is AuthMode.STATIC:
        yield from static_problems(value, protocol, listed)
        return
    for method in (each for each in _NOT_REPLAYED if each in listed):
        reason = f"{method} is not possible with authMode Upstream: {_NOT_REPLAYED[method]}"
        yield f"{protocol}_auth", reason
    yield from _login_problems(value)
    has_tables = any(route.table is not None for route in routes)
    names = groups.keys() if has_tables else {route.upstream for route in routes} & groups.keys()
    for name in sorted(names):
        for directive, reason in _login_problems(groups[name].get):
            yield f"{FIELD}[{name}].{directive}", reason


def _target_problems(
    routes: Sequence[_Route], groups: Mapping[str, Mapping[str, object]]
) -> Iterator[tuple[str, str]]:
    """Yield routes that lead to no group."""
    for index, route in enumerate(routes):
        if route.table is None and route.upstream not in groups:
            known = ", ".join(groups) or "there are none"
            yield f"route[{index}].upstream", f"{route.upstream!r} is not in spec.{FIELD} ({known})"
        elif route.table is not None and not groups:
            reason = f"has nowhere to lead to: add the groups that it names to spec.{FIELD}"
            yield f"route[{index}].table", reason


def _login_problems(value: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """Yield directives with which an upstream would accept a login whatever its password is."""
    for name in ("proxy_master_user", "proxy_auth_token"):
        if value(name) is not None:
            yield name, f"is not possible with authMode Upstream: {_DECIDES_NOTHING}"
    if ProxyAuth.EXTERNAL in (value("proxy_auth") or ()):
        yield "proxy_auth", f"External is not possible with authMode Upstream: {_DECIDES_NOTHING}"


_SHOWS_DOMAINS: Final = (
    "with authMode Upstream, the time of a refusal shows which domains have a route: leave it out for 2s"
)


def check_routes(
    mail: Level, servers: Sequence[ServerBlock], groups: Sequence[UpstreamGroupRef], problems: Problems
) -> None:
    """Report routes that do not fit to the other values of a manifest.

    Args:
        mail: The mail level.
        servers: The servers.
        groups: The groups of upstreams.
        problems: Collects the errors, and notices.
    """
    settings = {group.name: dict(group.settings) for group in groups}
    places = {group.name: f"spec.{FIELD}[{index}]" for index, group in enumerate(groups)}
    for server in servers:
        values = {**_BUILT_IN, **mail.values, **server.level.values}
        protocol = server.protocol or derive_protocol(server.listen) or "imap"
        if "route" in server.level.given | mail.given and "route" not in {
            **mail.values,
            **server.level.values,
        }:
            continue  # there are some, with errors
        for where, reason in routing_problems(values.get, str(protocol), settings):
            path = _path(where, server, mail, places)
            if not any(problem.path == path for problem in problems.found):
                problems.add(path, reason)
        _notice_ineffective(values, server, mail, problems)
        if values["auth_mode"] is AuthMode.UPSTREAM and values.get("auth_failure_delay") == 0:
            problems.notice(_path("auth_failure_delay", server, mail, {}), _SHOWS_DOMAINS)
    _notice_backups(mail, groups, problems)


def _path(where: str, server: ServerBlock, mail: Level, places: Mapping[str, str]) -> str:
    """The path of a directive where it was given: in a group, in the server or in the mail level."""
    if where.startswith(FIELD):
        group, _, directive = where.removeprefix(f"{FIELD}[").rpartition("].")
        return f"{places[group]}.{_ROWS[directive].field}"
    directive, bracket, rest = where.partition("[")
    is_inherited = directive not in server.level.given and directive in mail.given
    level = "spec.mail" if is_inherited else server.path
    return f"{level}.{_ROWS[directive].field}{bracket}{rest}"


def _notice_ineffective(
    values: Mapping[str, Any], server: ServerBlock, mail: Level, problems: Problems
) -> None:
    mode = values["auth_mode"]
    if values["auth_user_file"] is not None and mode is not AuthMode.STATIC:
        problems.notice(_path("auth_user_file", server, mail, {}), f"has no effect with authMode {mode}")
    if values["route"] and not mode.needs_routes:
        problems.notice(_path("route", server, mail, {}), f"has no effect with authMode {mode}")


def _notice_backups(mail: Level, groups: Sequence[UpstreamGroupRef], problems: Problems) -> None:
    for index, group in enumerate(groups):
        tries = {**mail.values, **dict(group.settings)}.get("proxy_next_upstream")
        if not tries and any(server.backup for server in group.servers):
            reason = 'backups get no logins without "proxyNextUpstream": set it to [Connect], for example'
            problems.notice(f"spec.{FIELD}[{index}].servers", reason)
