# SPDX-License-Identifier: Apache-2.0
"""The groups of a resource that are Services, what is known about these, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mailproxy_config.model import ProxyConfig
from mailproxy_config.upstream_blocks import MEMBER_GRACE, UpstreamGroupRef
from mailproxy_config.upstream_groups import GroupMembers, default_port
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.members.endpoints import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceGroup:
    """A group that is a Service.

    Attributes:
        ports: The ports of the Service that logins may go to: numbers or names.
        needed: Those of servers with a route that names the group.  An authentication service or a table
            may name any group; those at servers of other protocols need not have the port.
        grace: Seconds for which a member that has vanished is kept.
    """

    name: str
    service: Key
    ports: frozenset[str]
    needed: frozenset[str]
    grace: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """What is known about a Service.

    Attributes:
        service: The Service; ``None`` if it does not exist.
        endpoints: Its endpoints.
        failure: Why it could not be read; then ``service`` and ``endpoints`` mean nothing.
    """

    service: Manifest | None = None
    endpoints: tuple[Endpoint, ...] = ()
    failure: ConditionCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """What came of a group.

    Attributes:
        ready: The number of members that are ready.
        total: The number of members.
        cause: Why logins may fail; ``None`` if they do not.
        is_unknown: Whether the members could not be read, so that the last ones stay in use.
    """

    name: str
    ready: int = 0
    total: int = 0
    cause: ConditionCause | None = None
    is_unknown: bool = False


class ServiceStates(Protocol):
    """Where the states of Services come from."""

    async def read(self, owner: Key, services: frozenset[Key]) -> Mapping[Key, ServiceState]:
        """Return the states of the Services of a MailProxy, which is reconciled when one of them changes.

        Args:
            owner: The MailProxy.
            services: All of its Services; none for a MailProxy that has been deleted.
        """


def service_groups(config: ProxyConfig, upstreams: Iterable[UpstreamGroupRef]) -> tuple[ServiceGroup, ...]:
    """Return the groups of a configuration that are Services and have logins, by name.

    Args:
        config: The configuration.
        upstreams: ``spec.upstreams``.
    """
    found: dict[str, GroupMembers] = {}
    ports: dict[str, set[str]] = {}
    needed: dict[str, set[str]] = {}
    for server in config.servers:
        configs = server.group_configs
        named = {route.upstream for route in server.route} if server.auth_mode.needs_routes else set()
        for group in server.upstream_groups:
            if group.members is not None:
                proxy_ssl = configs.get(group.name, server).proxy_ssl
                port = group.members.port_key(default_port(server.protocol, proxy_ssl))
                found[group.name] = group.members
                ports.setdefault(group.name, set()).add(port)
                needed.setdefault(group.name, set()).update([port] if group.name in named else ())
    graces = {one.name: one.member_grace for one in upstreams}
    return tuple(
        ServiceGroup(
            name=name,
            service=Key(*members.service.split("/", 1)),
            ports=frozenset(ports[name]),
            needed=frozenset(needed[name]),
            grace=graces.get(name, MEMBER_GRACE),
        )
        for name, members in sorted(found.items())
    )
