# SPDX-License-Identifier: Apache-2.0
"""Logins at upstreams with other directives than the server's (``auth_http_overrides``, ``upstream``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mailproxy.context import WorkerContext
from mailproxy.protocols.types import AuthAllowed, Overrides, UpstreamLogin, UpstreamServer
from mailproxy.routing.login_name import normalised

if TYPE_CHECKING:
    from mailproxy.session.session import Session
    from mailproxy.session.virtual_server import VirtualServer

MAX_VARIANTS: Final = 64
"""Combinations of overrides that are kept, per server."""


def connect_for_login(
    server: VirtualServer,
    connect: Callable[[Any, UpstreamLogin], Any],
    session: Session,
    login: UpstreamLogin,
) -> Any:  # noqa: ANN401 - what ``connect`` returns
    """Connect a login to its upstream, with the directives of its group and those that it overrides.

    Args:
        server: The server of the session, or a variant of it from an earlier login.
        connect: Connects a login without overrides.
        session: The session; its server becomes the variant.
        login: The login.

    Raises:
        UpstreamError: As ``connect``.
    """
    base = server.base or server
    group = login.grant.upstream_group
    if group and not login.grant.servers:  # the authentication service has named it
        choice = base.group_choices[group]
        login.grant.servers = choice.servers(normalised(login.grant.hash_key or login.grant.user))
        if not login.grant.servers:
            raise choice.no_server()
        if login.grant.port:
            login.grant.servers = _with_port(base, login.grant)
        first = login.grant.servers[0]
        login.grant.address, login.grant.port = first.host, first.port
        session.record.upstream, session.record.upstream_port = first.host, first.port
    base = base.groups.get(group, base)
    overrides = login.grant.overrides
    session.server = variant_of(base, session.context, overrides) if overrides else base
    return connect(session, login)


def _with_port(server: VirtualServer, grant: AuthAllowed) -> tuple[UpstreamServer, ...]:
    """Return the servers of a login with ``Auth-Port`` for those that have no port in the configuration."""
    group = next(each for each in server.config.upstream_groups if each.name == grant.upstream_group)
    if group.members is not None:  # the endpoints of a Service have ports
        return grant.servers
    own = {(each.host, each.port) for each in group.servers if each.port}
    return tuple(
        each
        if (each.host, each.port) in own or each.host.startswith("unix:")
        else UpstreamServer(each.host, grant.port)
        for each in grant.servers
    )


def variant_of(server: VirtualServer, context: WorkerContext, overrides: Overrides) -> VirtualServer:
    """Return a server whose logins at upstreams have other directives; the last ``MAX_VARIANTS`` are kept.

    Its ``config`` is that of the configuration; ``upstream.server`` has the other directives.
    """
    variants = server.variants
    variant = variants.get(overrides)
    if variant is None:
        variant = variants[overrides] = _make_variant(server, context, overrides)
        if len(variants) > MAX_VARIANTS:
            variants.popitem(last=False)
    else:
        variants.move_to_end(overrides)
    return variant


def _make_variant(server: VirtualServer, context: WorkerContext, overrides: Overrides) -> VirtualServer:
    changes: dict[str, Any] = dict(overrides)
    config = replace(server.config, **changes)
    tls = server.upstream_tls
    if tls is not None and config.proxy_ssl_name != server.config.proxy_ssl_name:
        tls = tls.for_login(config)
    timeouts = context.timers.queue(config.timeout)
    variant = replace(server, upstream_tls=tls, login_timeouts=timeouts, base=server.base or server)
    variant.upstream = server.login_at_upstreams(config)
    return variant
