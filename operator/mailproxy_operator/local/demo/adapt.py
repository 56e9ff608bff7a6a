# SPDX-License-Identifier: Apache-2.0
"""Fits a resource to this machine and to the demo's servers: ports that are free, certificates that exist."""

from __future__ import annotations

import copy
import errno
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mailproxy_config.compile import references
from mailproxy_config.manifest import parse_manifest
from mailproxy_config.secret_refs import ReferenceKind
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.local.demo.certificate import self_signed

_PAIR = ("tls.crt", "tls.key")


class Adapter:
    """Replaces ports that cannot be opened, and points ``authHttp`` at the demo's service.

    The same port gets the same replacement each time the file is read.

    Args:
        auth_url: Where the demo's service answers.
        say: Takes a line for people.
    """

    def __init__(self, auth_url: str, say: Callable[[str], None]) -> None:
        self._auth_url = auth_url
        self._say = say
        self._chosen: dict[tuple[str, int], int] = {}

    def __call__(self, body: Manifest) -> Manifest:
        """Return the adapted copy of a resource; what is not as expected is left for the reader to refuse."""
        body = copy.deepcopy(body)
        spec = body.get("spec")
        if not isinstance(spec, dict):
            return body
        mail = spec.setdefault("mail", {})
        if isinstance(mail, dict):
            mail["authHttp"] = self._auth_url
        servers = spec.get("servers")
        for server in servers if isinstance(servers, list) else []:
            if isinstance(server, dict):
                server.pop("authHttp", None)
                self._adapt_listeners(server.get("listen"))
        return body

    def _adapt_listeners(self, listen: object) -> None:
        for one in listen if isinstance(listen, list) else []:
            if isinstance(one, dict) and isinstance(one.get("port"), int):
                one["port"] = self._port(str(one.get("address", "*")), one["port"])

    def _port(self, address: str, port: int) -> int:
        key = (address, port)
        if key not in self._chosen:
            why = obstacle(address, port)
            self._chosen[key] = free_port() if why else port
            if why:
                self._say(f"port {port} {why}; using {self._chosen[key]} instead")
        return self._chosen[key]


def obstacle(address: str, port: int) -> str:
    """Tell why a port cannot be opened, or nothing when it can."""
    host = {"*": "0.0.0.0", "localhost": "127.0.0.1"}.get(address, address).strip("[]")  # noqa: S104
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return {errno.EADDRINUSE: "is taken", errno.EACCES: "needs root"}.get(error.errno or 0, "")
    return ""


def free_port() -> int:
    """Give a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def preferred_port(body: Mapping[str, Any]) -> int:
    """Give the port that the resource's ``authHttp`` names, if this machine can open it; else 0."""
    try:
        found = parse_manifest(body).mail.values.get("auth_http")
        port = getattr(found, "port", 0)
    except Exception:
        return 0
    return 0 if obstacle("127.0.0.1", port) else int(port)


def supply_certificates(body: Mapping[str, Any], directory: Path) -> bytes:
    """Make a certificate for every TLS Secret that the resource refers to and that is not there.

    Returns:
        The certificate, PEM, for clients to trust.

    Raises:
        ConfigError: The resource is not valid.
    """
    certificate, key = self_signed()
    for reference in references(parse_manifest(body)):
        place = directory / reference.name
        if (
            reference.kind is ReferenceKind.SECRET
            and set(reference.keys) <= set(_PAIR)
            and not place.exists()
        ):
            place.mkdir(parents=True)
            for name, content in zip(_PAIR, (certificate, key), strict=True):
                (place / name).write_bytes(content)
                (place / name).chmod(0o600)
    return certificate
