# SPDX-License-Identifier: Apache-2.0
"""The manifest of a guide as a running proxy, with an authentication service and certificates."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from support.guides.blocks import Object, local_manifest
from support.guides.dovecot import ADDRESS
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRule, AuthService, auth_service
from support.servers.certificates import Certificates, certificates
from support.servers.programs import Ports
from support.servers.proxy import Proxy


@dataclass(frozen=True)
class GuideFront:
    """A running proxy; ``ports`` are those on this machine for the ports of the manifest."""

    proxy: Proxy
    ports: dict[int, int]


class GuideFronts:
    """Starts proxies for one test, and ends them with it."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        passwords: Mapping[str, str],
        kind: type[AuthService] = AuthService,
    ) -> None:
        self._folder = folder
        self._stack = stack
        self.ports = Ports()
        self.tls: Certificates = certificates(folder)
        self.service: AuthService = stack.enter_context(auth_service(dict(passwords), kind=kind))

    def new_folder(self) -> Path:
        """Make a folder that every user may enter."""
        made = Path(tempfile.mkdtemp(dir=self._folder))
        made.chmod(0o755)
        return made

    def start(self, body: Object, backends: Mapping[str, int]) -> GuideFront:
        """Start the proxy.

        Args:
            body: The MailProxy of the page.
            rules: The port at the mail servers' address for each server block or protocol.
        """
        written = [listen["port"] for server in body["spec"]["servers"] for listen in server["listen"]]
        ports = {port: self.ports.take() for port in written}
        files = {"certificateFile": self.tls.proxy.certificate, "keyFile": self.tls.proxy.key}
        made = local_manifest(body, ports, self.service.url("/"), files)
        for server in made["spec"]["servers"]:
            path = f"/{server['name']}"
            server["authHttp"] = self.service.url(path)
            port = backends.get(server["name"]) or backends[server["protocol"]]
            self.service.rules[path] = AuthRule(port, address=ADDRESS)
        running = proxies.start(self.new_folder(), made)
        self._stack.callback(running.stop)
        return GuideFront(running, ports)
