# SPDX-License-Identifier: Apache-2.0
"""The addresses of a manifest's listeners on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailproxy_config.model import StartTls
from mailproxy_demo.local_cluster import LOCAL_VERSION
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned
from mailproxy_operator.settings import Platform

TLS = "TLS"
_ANY_ADDRESS = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  compared, not bound
_SECURITY = {
    StartTls.DISABLED: "plain",
    StartTls.ENABLED: "plain, STARTTLS",
    StartTls.ONLY: "STARTTLS required",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients of this machine reach a listener.

    Attributes:
        protocol: ``imap``, ``pop3`` or ``smtp``.
        text: ``HOST:PORT``, or ``unix:PATH``.
        security: ``TLS``, or what a connection without TLS may do.
        expects_proxy_header: Whether a client must send a PROXY header first.
    """

    protocol: str
    text: str
    security: str
    expects_proxy_header: bool = False


def find_addresses(manifest: Manifest) -> list[Address]:
    """Return the addresses of all listeners, in the order of the manifest.

    Raises:
        ConfigError: The manifest is not valid.
    """
    plan = planned(Resource.read(manifest), Platform(kube_version=LOCAL_VERSION))
    starttls = {server.name: server.starttls for server in plan.config.servers}
    found: list[Address] = []
    for one in plan.listeners:
        host = _ANY_ADDRESS.get(one.listen.address, one.listen.address)
        text = host if one.container_port is None else f"{host}:{one.container_port}"
        security = TLS if one.listen.ssl else _SECURITY[starttls[one.server]]
        found.append(Address(one.protocol, text, security, one.listen.proxy_protocol))
    return found


def format_addresses(addresses: Sequence[Address]) -> Iterable[str]:
    """Return one line for each address: protocol, address, security."""
    width = max((len(one.text) for one in addresses), default=0)
    for one in addresses:
        header = "; expects a PROXY header" if one.expects_proxy_header else ""
        yield f"  {one.protocol.upper():5}  {one.text:{width}}  {one.security}{header}"
