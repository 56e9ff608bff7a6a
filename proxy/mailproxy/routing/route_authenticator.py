# SPDX-License-Identifier: Apache-2.0
"""Logins that are routed without an authentication service (``auth_mode upstream``).

The route of the login name leads to a group of upstreams, which decides about the password.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.context import WorkerContext
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.sasl_tokens import TOKEN_METHODS
from mailproxy.protocols.types import AuthAllowed, Credentials, Decision, LoginUnknown
from mailproxy.routing.group_choice import GroupChoice
from mailproxy.routing.login_name import normalised
from mailproxy.routing.member_choice import MemberChoice
from mailproxy.routing.router import RouteMatch, Router, Table
from mailproxy_config.model import ServerConfig
from mailproxy_config.upstream_groups import UpstreamGroup, default_port

NO_ROUTE: Final = b"no route for this login name"
NO_PASSWORD: Final = b"empty password"
LONG_PASSWORD: Final = b"password too long"
"""For the log; clients get the reply to a wrong password."""
MAX_PASSWORD: Final = 512
"""Bytes of a password that an upstream gets.  Mail servers close the connection after longer ones, at
lengths of their own: that would be an outage, which a login without a route is not."""


class LoginRouter:
    """Routes, groups and their servers, for the logins of one server.

    Args:
        server: The server block.
        tables: The tables of its routes, by the paths of their files.
        context: The worker's shared parts.
    """

    __slots__ = ("_groups", "_router")

    def __init__(self, server: ServerConfig, tables: Mapping[str, Table], context: WorkerContext) -> None:
        self._router = Router(server.route, tables)
        self._groups = group_choices(server, context)

    def find(self, user: bytes) -> RouteMatch | None:
        """Return the route of a login name; ``None`` if there is none."""
        return self._router.find(user)

    def allow(self, match: RouteMatch, credentials: Credentials) -> AuthAllowed:
        """Return the login at the upstream that a route leads to; without servers if none may get it now.

        Args:
            match: The route.
            credentials: Those of the client, which the upstream checks.
        """
        user = credentials.user if match.login is None else match.login
        servers = self._groups[match.upstream].servers(normalised(user))
        address, port = (servers[0].host, servers[0].port) if servers else ("", 0)
        return AuthAllowed(
            address=address,
            port=port,
            user=user,
            password=credentials.password,
            servers=servers,
            upstream_group=match.upstream,
        )


def group_choices(server: ServerConfig, context: WorkerContext) -> dict[str, GroupChoice]:
    """Return what chooses servers of each group of a server, by the name of the group."""
    configs = server.group_configs
    return {
        group.name: _choice(group, configs.get(group.name, server), context)
        for group in server.upstream_groups
    }


def _choice(group: UpstreamGroup, config: ServerConfig, context: WorkerContext) -> GroupChoice:
    """Return what chooses servers of a group, with the directives of logins there."""
    tries = config.proxy_next_upstream_tries if config.proxy_next_upstream else 1
    port = default_port(config.protocol, config.proxy_ssl)
    if group.members is None:
        return GroupChoice(group, port, tries)
    return MemberChoice(
        group,
        group.members,
        port=port,
        tries=tries,
        networks=config.auth_http_server_networks,
        lists=context.members,
        counters=context.metrics.group_logins(group.name),
    )


class RouteAuthenticator:
    """Decides about logins by their route alone; an ``Authenticator``.

    Args:
        context: The worker's shared parts.
        router: The routes of the server.
    """

    __slots__ = ("_context", "_router")

    def __init__(self, context: WorkerContext, router: LoginRouter) -> None:
        self._context = context
        self._router = router

    def send(self, pending: PendingRequest) -> None:
        """Route a login.  The request's callback gets the result; it is never called from here."""
        credentials = pending.auth_request.credentials
        match = self._router.find(credentials.user)
        if match is None:
            self.miss(pending, NO_ROUTE)
        elif (fault := password_fault(credentials)) is not None:
            self.miss(pending, fault)
        else:
            self._deliver_later(pending, self._router.allow(match, credentials))

    def cancel(self, pending: PendingRequest) -> None:
        """Drop a request whose client has left."""
        pending.callback = None

    def miss(self, pending: PendingRequest, reason: bytes) -> None:
        """Refuse a login without an upstream, as a wrong password is refused."""
        self._deliver_later(pending, LoginUnknown(reason))

    def _deliver_later(self, pending: PendingRequest, result: Decision | AuthUnavailable) -> None:
        self._context.loop.call_soon(self._deliver, pending, result)

    def _deliver(self, pending: PendingRequest, result: Decision | AuthUnavailable) -> None:
        callback, pending.callback = pending.callback, None
        if callback is None:
            return  # the client has left
        try:
            callback(result)
        except Exception as error:  # an entry point
            self._context.handle_error(callback, error)


def password_fault(credentials: Credentials) -> bytes | None:
    """Return why no upstream can accept a password, for the log."""
    if credentials.password is None:
        return None
    password = credentials.password.reveal()
    if not password:
        return NO_PASSWORD  # a success to many directories: RFC 4513 section 5.1.2
    return LONG_PASSWORD if len(password) > MAX_PASSWORD and credentials.method not in TOKEN_METHODS else None
