# SPDX-License-Identifier: Apache-2.0
"""Compiles a manifest: a server's value, else the mail level's, else the built-in default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from mailproxy_config.cross_checks import derive_protocol
from mailproxy_config.directives import IGNORED, LEVEL_DIRECTIVES, MAIN_DIRECTIVES, Level, ServerBlock
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.manifest import MailProxyManifest
from mailproxy_config.model import (
    AuthHttpHeader,
    AuthMode,
    CertificateFiles,
    ListenConfig,
    Protocol,
    ProxyConfig,
    ProxySsl,
    ServerConfig,
    StartTls,
)
from mailproxy_config.policy_directives import PolicyServerRef
from mailproxy_config.route_directives import RouteRef
from mailproxy_config.secret_refs import (
    CertificateRef,
    HeaderRef,
    KeyRef,
    Mounts,
    Reference,
    SelectorRef,
)
from mailproxy_config.upstream_blocks import UpstreamGroupRef
from mailproxy_config.upstream_groups import Route, UpstreamGroup, UpstreamSettings
from mailproxy_config.upstream_login_directives import AuthTokenRef, MasterUserRef

_ROWS: Final = tuple(row for row in LEVEL_DIRECTIVES if row.field not in IGNORED)
_BUILT_IN: Final = {row.name: row.builtin() for row in _ROWS}
_MAIN_BUILT_IN: Final = {row.name: row.builtin() for row in MAIN_DIRECTIVES}
_MOUNTS: Final = Mounts()
_HIGHEST_PORT: Final = 65535
_GroupT = TypeVar("_GroupT", UpstreamGroup, UpstreamGroupRef)


def compile_proxy(
    manifest: MailProxyManifest,
    *,
    mounts: Mounts = _MOUNTS,
    port_offset: int = 0,
    hostname: str = "",
    is_partial: bool = False,
) -> ProxyConfig:
    """Apply inheritance and defaults.

    Args:
        manifest: The result of ``parse_manifest``.
        mounts: Where Secrets and ConfigMaps are mounted as files.
        port_offset: Added to every port; protocols are derived from the original ports.
        hostname: The ``server_name`` of servers without one.  Empty: it stays empty, so that
            the configuration is the same for every pod.
        is_partial: The manifest has errors.  The result is only for further checks: invalid
            values have their default, and a server without a protocol has an arbitrary one.

    Raises:
        ConfigError: A port with its offset is out of range.
    """
    main: dict[str, Any] = _MAIN_BUILT_IN | _without_empty_logs(manifest.main.values)
    groups = tuple(_group(each, mounts, manifest.metadata.namespace) for each in manifest.upstreams)
    servers = tuple(
        _server(
            _effective(manifest, server) | {"upstream_groups": groups},
            replace(server, own=_with_protocol(server)) if is_partial else server,
            mounts,
            port_offset,
            hostname,
        )
        for server in manifest.servers
    )
    return ProxyConfig(
        servers=servers,
        workers=main["worker_processes"],
        worker_connections=main["worker_connections"],
        error_log=main["error_log"],
        drain=manifest.deployment.drain,
    )


def _with_protocol(server: ServerBlock) -> Level:
    """The directives of the server itself, with an arbitrary protocol if there is none."""
    stand_in = derive_protocol(server.listen) or Protocol.IMAP
    return replace(server.own, values={"protocol": stand_in, **server.own.values})


def with_hostname(config: ProxyConfig, hostname: str) -> ProxyConfig:
    """Set ``server_name`` of all servers that have none."""
    servers = (
        server if server.server_name else replace(server, server_name=hostname) for server in config.servers
    )
    return replace(config, servers=tuple(servers)) if hostname else config


def collect_references(manifest: MailProxyManifest) -> tuple[Reference, ...]:
    """List every Secret and ConfigMap that a server reads, sorted.

    References of TLS directives count only for servers that use TLS: with clients, or with upstreams.
    """
    keys: dict[tuple[Any, str], set[str]] = {}
    for server in manifest.servers:
        effective = _effective(manifest, server)
        groups = _used_groups(effective["auth_mode"], effective["route"], manifest.upstreams)
        for values in (effective, *(effective | dict(group.settings) for group in groups)):
            unused = _unused_prefixes(values, server)
            for name, value in values.items():
                for ref in _key_refs(value) if not name.startswith(unused) else ():
                    keys.setdefault((ref.kind, ref.name), set()).add(ref.key)
    return tuple(sorted(Reference(kind, name, tuple(sorted(found))) for (kind, name), found in keys.items()))


def _unused_prefixes(values: Mapping[str, Any], server: ServerBlock) -> tuple[str, ...]:
    """Prefixes of directives whose files are not read: those of TLS or logins that are not used."""
    uses_tls = values["starttls"] is not StartTls.DISABLED or any(each.ssl for each in server.listen)
    unused: tuple[str, ...] = () if uses_tls else ("ssl_",)
    if values["proxy_ssl"] is ProxySsl.DISABLED and not values["auth_http_overrides"]:
        unused += ("proxy_ssl_",)
    if values["auth_mode"] is not AuthMode.STATIC:
        unused += ("auth_user_file",)
    return unused


def collect_selectors(manifest: MailProxyManifest) -> tuple[SelectorRef, ...]:
    """List every label selector of a server that uses TLS with clients, sorted."""
    found: set[SelectorRef] = set()
    for server in manifest.servers:
        effective = _effective(manifest, server)
        selector = effective["ssl_certificate_selector"]
        uses_tls = effective["starttls"] is not StartTls.DISABLED or any(each.ssl for each in server.listen)
        if uses_tls and isinstance(selector, SelectorRef):
            found.add(selector)
    return tuple(sorted(found, key=lambda selector: selector.labels))


def _without_empty_logs(values: Mapping[str, object]) -> dict[str, Any]:
    """Values without an empty ``errorLog``.  ``None`` is the value of a disabled resolver."""
    return {name: value for name, value in values.items() if value is not None or name != "error_log"}


def _effective(manifest: MailProxyManifest, server: ServerBlock) -> dict[str, Any]:
    """All directives of a server; references are not yet replaced by paths."""
    found = _BUILT_IN | _without_empty_logs(manifest.mail.values) | _without_empty_logs(server.level.values)
    main = _MAIN_BUILT_IN | _without_empty_logs(manifest.main.values)
    found["error_log"] = found["error_log"] or main["error_log"]
    return {row.name: found[row.name] for row in _ROWS}


def _server(
    effective: dict[str, Any], server: ServerBlock, mounts: Mounts, port_offset: int, hostname: str
) -> ServerConfig:
    values = {name: _with_paths(value, mounts) for name, value in effective.items()}
    values["server_name"] = values["server_name"] or hostname
    values["upstream_groups"] = _used_groups(values["auth_mode"], values["route"], values["upstream_groups"])
    protocol = server.protocol or derive_protocol(server.listen)
    if protocol is None:
        raise ConfigError([Problem(f"{server.path}.protocol", "is required")])
    return ServerConfig(
        name=server.name,
        protocol=protocol,
        listen=tuple(
            _with_offset(listener, port_offset, f"{server.path}.listen[{index}].port")
            for index, listener in enumerate(server.listen)
        ),
        server_names=server.server_names,
        **values,
    )


def _group(group: UpstreamGroupRef, mounts: Mounts, namespace: str) -> UpstreamGroup:
    """A group with paths instead of references, and with the DNS name and the members of its Service."""
    service = group.service
    settings: dict[str, Any] = {name: _with_paths(value, mounts) for name, value in group.settings}
    return UpstreamGroup(
        name=group.name,
        servers=group.servers if service is None else (service.server(namespace),),
        members=None if service is None else service.members(namespace, group.fallback, mounts.members),
        hash=group.hash,
        settings=UpstreamSettings(**settings),
    )


def _used_groups(
    mode: AuthMode, routes: Sequence[Route | RouteRef], groups: Sequence[_GroupT]
) -> tuple[_GroupT, ...]:
    """The groups that logins may go to: all, where a table or the authentication service names them."""
    if not mode.needs_routes or any(route.table is not None for route in routes):
        return tuple(groups)
    names = {route.upstream for route in routes}
    return tuple(group for group in groups if group.name in names)


def _with_offset(listener: ListenConfig, offset: int, path: str) -> ListenConfig:
    """The listener with the offset added to its port."""
    if listener.port is None or not offset:
        return listener
    if listener.port + offset > _HIGHEST_PORT:
        raise ConfigError([Problem(path, f"{listener.port} + {offset} is out of range 1 to {_HIGHEST_PORT}")])
    return replace(listener, port=listener.port + offset)


def _with_paths(value: Any, mounts: Mounts) -> Any:  # noqa: ANN401 -- the value of any directive
    """The value with paths instead of references."""
    match value:
        case KeyRef():
            return mounts.path(value)
        case CertificateRef():
            return CertificateFiles(
                certificate=mounts.path(value.certificate),
                key=mounts.path(value.key),
                server_names=value.server_names,
            )
        case HeaderRef():
            return AuthHttpHeader(name=value.name, value_file=mounts.path(value.source))
        case MasterUserRef() | AuthTokenRef() | PolicyServerRef() | SelectorRef() | RouteRef():
            return value.with_paths(mounts)
        case tuple():
            return tuple(_with_paths(item, mounts) for item in value)
    return value


def _key_refs(value: object) -> Iterator[KeyRef]:
    """Every reference in a value."""
    match value:
        case KeyRef():
            yield value
        case CertificateRef():
            yield from _key_refs(value.certificate)
            yield from _key_refs(value.key)
        case HeaderRef():
            yield value.source
        case MasterUserRef() | AuthTokenRef() | PolicyServerRef() | RouteRef():
            yield from value.references
        case tuple():
            for item in value:
                yield from _key_refs(item)
