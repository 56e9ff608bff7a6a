# SPDX-License-Identifier: Apache-2.0
"""What a manifest needs around its proxy: an authentication service, or mail servers in ``upstreams``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailproxy_config.compile import compile_proxy
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.model import AuthMode, ServerConfig
from mailproxy_operator.api.kinds import Manifest


def needs_auth_service(manifest: Mapping[str, Any]) -> bool:
    """Return whether a server asks an authentication service, or the manifest is not valid."""
    servers = _servers(manifest)
    return not servers or any(one.auth_mode is AuthMode.HTTP for one in servers)


def wanted_ports(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the port of the first mail server in ``upstreams`` of each protocol that has one."""
    found: dict[str, int] = {}
    protocols = _protocols(manifest)
    for server in _servers(manifest):
        for group in server.upstream_groups:
            protocol = protocols.get(group.name, "")
            port = group.servers[0].port if group.servers else None
            if protocol and port is not None:
                found.setdefault(protocol, port)
    return found


def use_mail_servers(manifest: Manifest, ports: Mapping[str, int]) -> None:
    """Replace the servers of each upstream by the demo's, in place.

    An upstream that is used by servers of several protocols is left alone: it has one address for all.

    Args:
        manifest: A valid manifest; another one is left alone.
        ports: The port of each mail server on 127.0.0.1, by protocol.
    """
    protocols = _protocols(manifest)
    for group in manifest["spec"].get("upstreams", ()) if protocols else ():
        protocol = protocols.get(group["name"])
        if protocol is not None and protocol in ports:
            group.pop("service", None)
            group["servers"] = [{"address": f"127.0.0.1:{ports[protocol]}"}]


def _protocols(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the protocol of each upstream that is used by servers of one protocol."""
    found: dict[str, set[str]] = {}
    for server in _servers(manifest):
        for route in server.route:
            if route.upstream:
                found.setdefault(route.upstream, set()).add(server.protocol.value)
    return {name: next(iter(protocols)) for name, protocols in found.items() if len(protocols) == 1}


def _servers(manifest: Mapping[str, Any]) -> tuple[ServerConfig, ...]:
    """Return the servers; none if the manifest is not valid, which is reported when the proxy starts."""
    try:
        return compile_proxy(parse_manifest(manifest)).servers
    except Exception:
        return ()
