# SPDX-License-Identifier: Apache-2.0
"""Finds the policies of a MailProxy, and puts what they set into its servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mailproxy_config.directives import ServerBlock
from mailproxy_config.manifest import MailProxyManifest
from mailproxy_config.model import ProxySsl
from mailproxy_config.upstream_service import FIELD, ServiceRef, upstream_services
from mailproxy_operator.api.cluster import Cluster, Key
from mailproxy_operator.api.kinds import Manifest, uid_of
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import ConditionCause
from mailproxy_operator.policies import ancestors
from mailproxy_operator.policies.backend_tls import (
    ConfigMapKeys,
    PolicyVerdict,
    TlsSettings,
    applicable,
    conflicted,
    examine,
    invalid,
    name_of,
    policies_of_ports,
    referenced_config_maps,
)
from mailproxy_operator.reasons import PolicyReason, Reason


@dataclass(frozen=True, slots=True)
class PolicyUse:
    """A policy that concerns a MailProxy, and what becomes of it."""

    policy: Manifest
    verdict: PolicyVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What the policies of its Services mean for a MailProxy.

    Attributes:
        resource: The resource, with the settings of the policies in its servers.
        uses: The policies that concern it.
        unconcerned: Policies of the namespace with an entry that is to be removed.
        notices: Notices for the condition ``Accepted``.
        cause: Why ``ResolvedRefs`` is not met.
    """

    resource: Resource
    uses: tuple[PolicyUse, ...] = ()
    unconcerned: tuple[Manifest, ...] = ()
    notices: tuple[str, ...] = ()
    cause: ConditionCause | None = None


async def resolve(cluster: Cluster, resource: Resource) -> Resolution:
    """Resolve the policies of a resource; without ``proxySslService`` no ConfigMap is read.

    Raises:
        TransientError: The cluster could not be read.
    """
    services = upstream_services(resource.manifest.raw["spec"])
    policies = await cluster.policies(resource.key.namespace)
    if policies is None:
        notice = f"{FIELD} has no effect: the cluster has no BackendTLSPolicy (CRDs of the Gateway API)"
        return Resolution(resource=resource, notices=(notice,) if services else ())
    wanted = {
        name
        for service in services.values()
        for policy in applicable(policies, service)
        for name in referenced_config_maps(policy)
    }
    config_maps: dict[str, frozenset[str]] = {}
    for name in sorted(wanted):
        keys = await cluster.config_map_keys(Key(resource.key.namespace, name))
        if keys is not None:
            config_maps[name] = keys
    return resolution(resource, services, policies, config_maps)


def resolution(
    resource: Resource,
    services: Mapping[str, ServiceRef],
    policies: Iterable[Manifest],
    config_maps: ConfigMapKeys,
) -> Resolution:
    """Return what policies mean for a resource.

    Args:
        resource: The resource.
        services: The Services by name of the server.
        policies: The policies of its namespace.
        config_maps: The ConfigMaps that policies refer to and that exist, with their keys.
    """
    policies = list(policies)
    found = _Findings()
    servers = tuple(
        _with_policy(server, resource, services.get(server.name), policies, config_maps, found)
        for server in resource.manifest.servers
    )
    uses = tuple(found.uses.values())
    concerned = {uid_of(use.policy) for use in uses}
    return Resolution(
        resource=replace(resource, manifest=replace(resource.manifest, servers=servers)),
        uses=uses,
        unconcerned=tuple(
            policy
            for policy in policies
            if uid_of(policy) not in concerned and resource.name in ancestors.names_in(policy)
        ),
        notices=tuple(dict.fromkeys(found.notices)),
        cause=_cause(uses),
    )


@dataclass(slots=True)
class _Findings:
    """What was found so far: by uid of the policy, and notices."""

    uses: dict[str, PolicyUse] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def add(self, policy: Manifest, verdict: PolicyVerdict) -> None:
        """Add a verdict; that of a server for which the policy is used wins."""
        before = self.uses.get(uid_of(policy))
        if before is None or not before.verdict.is_good:
            self.uses[uid_of(policy)] = PolicyUse(policy, verdict)


def _with_policy(
    server: ServerBlock,
    resource: Resource,
    service: ServiceRef | None,
    policies: list[Manifest],
    config_maps: ConfigMapKeys,
    found: _Findings,
) -> ServerBlock:
    if service is None:
        return server
    listed = applicable(policies, service)
    if not listed:
        found.notices.append(_no_policy(policies, service))
        return server
    verdict = _verdict(listed[0], server, resource, config_maps)
    found.add(listed[0], verdict)
    for other in listed[1:]:
        found.add(other, conflicted(listed[0]))
    if not _value(resource.manifest, server, "proxy_ssl_verify", default=True):
        found.notices.append(
            f"server {server.name}: proxySslVerify is false, so certificates are not verified, although "
            f"BackendTLSPolicy {name_of(listed[0])} demands it"
        )
    return server if verdict.settings is None else _with_settings(server, resource.manifest, verdict.settings)


def _no_policy(policies: list[Manifest], service: ServiceRef) -> str:
    ports = policies_of_ports(policies, service)
    advice = f"; there are policies for its ports {', '.join(ports)}: set {FIELD}.port" if ports else ""
    where = f"Service {service.name}" + (f", port {service.port}" if service.port else "")
    return f"{FIELD} has no effect: no BackendTLSPolicy is for {where}{advice}"


def _verdict(
    policy: Manifest, server: ServerBlock, resource: Resource, config_maps: ConfigMapKeys
) -> PolicyVerdict:
    mode = _value(resource.manifest, server, "proxy_ssl", default=ProxySsl.DISABLED)
    if mode is ProxySsl.DISABLED:
        return invalid(
            f"proxySsl of server {server.name} is Disabled: set Enabled or Starttls; a policy does not have "
            "how TLS begins"
        )
    if not ancestors.has_room(policy, resource.name):
        return invalid("status.ancestors of the policy is full")
    return examine(policy, config_maps)


def _value(manifest: MailProxyManifest, server: ServerBlock, name: str, *, default: object) -> object:
    return server.level.values.get(name, manifest.mail.values.get(name, default))


def _with_settings(server: ServerBlock, manifest: MailProxyManifest, settings: TlsSettings) -> ServerBlock:
    """Add the settings that neither the server nor ``mail`` has."""
    values = {"proxy_ssl_name": settings.name, "proxy_ssl_trusted_certificate": settings.authorities}
    given = server.level.given | manifest.mail.given
    added = {name: value for name, value in values.items() if name not in given and value is not None}
    level = replace(
        server.level, values={**server.level.values, **added}, given=server.level.given | added.keys()
    )
    return replace(server, level=level)


def _cause(uses: Iterable[PolicyUse]) -> ConditionCause | None:
    """Return the first finding about a policy that is to be used; a conflict is the other policy's."""
    for use in uses:
        verdict = use.verdict
        found = verdict.resolved if not verdict.resolved.is_met else verdict.accepted
        if not found.is_met and found.reason is not PolicyReason.CONFLICTED:
            message = f"BackendTLSPolicy {name_of(use.policy)}: {found.message}"
            return ConditionCause(Reason.INVALID_BACKEND_TLS_POLICY, message)
    return None
