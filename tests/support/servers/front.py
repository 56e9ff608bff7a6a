# SPDX-License-Identifier: Apache-2.0
"""One proxy with a server block for every case of the tests against real mail servers.

Starting a proxy takes longer than most tests, so they share one.  Each server
block has a name, listeners, and a path at the authentication service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mailproxy_config.model import CertificateFiles
from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.programs import Ports
from support.servers.proxy import Proxy, manifest

_METHODS: Final[dict[str, dict[str, Any]]] = {
    "imap": {"imapAuth": ["plain", "login", "cram-md5"]},
    "pop3": {"pop3Auth": ["plain", "apop", "cram-md5"]},
    "smtp": {"smtpAuth": ["plain", "login", "cram-md5"]},
}


def server(
    name: str, protocol: str, service: AuthService, *listen: Mapping[str, Any], **directives: Any
) -> dict[str, Any]:
    """Return a server block with all methods that need no certificate, and its own ``auth_http`` path."""
    return {
        "name": name,
        "protocol": protocol,
        "listen": [{"address": "127.0.0.1", **one} for one in listen],
        "authHttp": service.url(f"/{name}"),
        **_METHODS[protocol],
        **directives,
    }


def files(own: CertificateFiles) -> dict[str, str]:
    """Return an element of ``sslCertificate``."""
    return {"certificateFile": own.certificate, "keyFile": own.key}


@dataclass
class Front:
    """The proxy, and its ports by listener."""

    proxy: Proxy
    ports: dict[str, int]


class Plan:
    """The server blocks and their ports."""

    def __init__(self, service: AuthService, ports: Ports) -> None:
        self._service = service
        self._take = ports.take
        self.ports: dict[str, int] = {}
        self.servers: list[dict[str, Any]] = []

    def add(self, name: str, protocol: str, *, implicit: str = "", **directives: Any) -> None:
        """Add a server block and its listener; ``implicit`` names a second listener with implicit TLS."""
        proxied = {"proxyProtocol": True} if directives.pop("behind_proxy", False) else {}
        listen: list[dict[str, Any]] = [{"port": self._port(name), **proxied}]
        if implicit:
            listen.append({"port": self._port(implicit), "ssl": True, **proxied})
        self.servers.append(server(name, protocol, self._service, *listen, **directives))

    def _port(self, listener: str) -> int:
        self.ports[listener] = self._take()
        return self.ports[listener]


def planned(plan: Plan, certificates: Certificates) -> dict[str, Any]:
    """Plan the shared proxy; return its manifest."""
    for protocol in ("imap", "pop3", "smtp"):
        plan.add(protocol, protocol, implicit=f"{protocol}s", starttls="Enabled")
    plan.add("smtp-bare", "smtp", xclient=False)
    plan.add("submission", "smtp", proxySmtpAuth=True, xclient=False)
    plan.add("submission-x", "smtp", proxySmtpAuth=True, xclient=True)
    plan.add("mx", "smtp", smtpAuth=["none"], xclient=True)
    for version in ("V1", "V2"):
        for protocol in ("imap", "pop3", "smtp"):
            name = f"{protocol}-{version.lower()}"
            plan.add(name, protocol, implicit=f"{name}-tls", proxyProtocol=version, xclient=False)
    trusting: dict[str, Any] = {"behind_proxy": True, "setRealIpFrom": ["127.0.0.0/8"]}
    plan.add("imap-behind", "imap", implicit="imap-behind-tls", proxyProtocol="V1", **trusting)
    plan.add("pop3-behind", "pop3", **trusting)
    plan.add("smtp-behind", "smtp", xclient=True, **trusting)
    plan.add("imap-dead", "imap")
    plan.add("imap-untrusting", "imap", behind_proxy=True)
    for name, protocol, mode in (
        ("imap-required", "imap", "Required"),
        ("pop3-optional", "pop3", "Optional"),
        ("smtp-no-ca", "smtp", "OptionalNoCA"),
    ):
        plan.add(
            name,
            protocol,
            implicit=f"{name}-tls",
            starttls="Enabled",
            sslVerifyClient=mode,
            sslClientCertificate={"file": certificates.authority},
            **{f"{protocol}Auth": ["plain", "external"]},
        )
    mail = {
        "serverName": "front.example.org",
        "authHttpTimeout": "20s",
        "timeout": "20s",
        "proxyTimeout": "60s",
        "proxyPassErrorMessage": True,
        "proxySmtpGuard": False,  # clients have the proxy's address, from which Postfix accepts XCLIENT
        "sslCertificate": [files(certificates.proxy)],
    }
    return manifest(plan.servers, mail, workerConnections=2048)
