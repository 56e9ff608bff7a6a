# SPDX-License-Identifier: Apache-2.0
"""Which field of a manifest is the cause of a running server's trouble.

Certificates and the like are looked at when the configuration is made already;
what is then found wrong names a server and a directive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .directives import DIRECTIVES, by_name
from .errors import Problem
from .levels import ServerBlock
from .manifest import MailProxyManifest
from .model import ProxyConfig

_OF_SERVER: Final = re.compile(r"servers\[([^]]+)\]\.([a-z_0-9]+)((\[[0-9]+\])?(\.[a-z_]+)?)")
_ROWS: Final = by_name(DIRECTIVES)


@dataclass(frozen=True, slots=True)
class ManifestPlaces:
    """The fields of a manifest."""

    manifest: MailProxyManifest

    def completed(self, config: ProxyConfig) -> ProxyConfig:
        """The configuration as it is: a manifest says all of it."""
        return config

    def located(self, problem: Problem) -> Problem:
        """A problem of ``servers[NAME].directive`` or one of its items, at its field of the manifest.

        A number may stand for the name.
        """
        found = _OF_SERVER.fullmatch(problem.path)
        server = self._server(found[1]) if found else None
        if found is None or server is None or found[2] not in _ROWS:
            return problem
        row = _ROWS[found[2]]
        name = row.part_of or row.name
        is_inherited = name not in server.level.given | server.own.given and name in self.manifest.mail.given
        level = "spec.mail" if is_inherited else server.path
        return Problem(f"{level}.{_ROWS[name].field}{found[3]}", problem.reason)

    def _server(self, which: str) -> ServerBlock | None:
        servers = self.manifest.servers
        named = next((server for server in servers if server.name == which), None)
        if named is None and which.isdecimal() and int(which) < len(servers):
            return servers[int(which)]
        return named
