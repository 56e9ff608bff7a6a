# SPDX-License-Identifier: Apache-2.0
"""Maps problems of the compiled configuration to file and line of an ``nginx.conf``.

Certificates and other files are read after the configuration is compiled; their problems
name a server and a directive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mailproxy_config.directives import DIRECTIVES, by_name
from mailproxy_config.errors import Problem
from mailproxy_config.model import ProxyConfig
from mailproxy_config.nginx.error_log import ErrorLogs
from mailproxy_config.nginx.values import Block

_OF_SERVER: Final = re.compile(r"servers\[([^]]+)\]\.([a-z_0-9]+)(\[[0-9]+\])?(\.[a-z_]+)?")
_ROWS: Final = by_name(DIRECTIVES)


@dataclass(frozen=True, slots=True)
class NginxSourceMap:
    """The origin of each field.

    Attributes:
        servers: The servers, by their names.
        mail: The mail level.
        origins: File and line, and directive, by the path of a field in the manifest.
        logs: The ``error_log`` directives.
    """

    servers: Mapping[str, Block]
    mail: Block
    origins: Mapping[str, tuple[str, str]]
    logs: ErrorLogs | None = None

    def with_error_logs(self, config: ProxyConfig) -> ProxyConfig:
        """Add the logs of the file to the configuration."""
        return config if self.logs is None else self.logs.applied(config)

    def located(self, problem: Problem) -> Problem:
        """Map a problem of ``servers[NAME].directive``, or of a log, to file and line.

        An index may replace the name.
        """
        if problem.path == "error_log" and self.logs is not None:
            return Problem(
                self.logs.location(problem.reason) or problem.path, f'"error_log": {problem.reason}'
            )
        found = _OF_SERVER.fullmatch(problem.path)
        server = self._server(found[1]) if found else None
        if found is None or server is None:
            return problem
        locations = self._of_files(found[2], server, problem.reason)
        location = (
            next(locations, None) or self._of_directive(found[2], found[3] or "", server) or server.location
        )
        return Problem(location, f'"{found[2]}": {problem.reason}')

    def _server(self, which: str) -> Block | None:
        if which in self.servers:
            return self.servers[which]
        known: Sequence[Block] = tuple(self.servers.values())
        return known[int(which)] if which.isdecimal() and int(which) < len(known) else None

    def _of_files(self, directive: str, server: Block, reason: str) -> Iterator[str]:
        """The lines of the certificates and keys that are named in a message."""
        if directive.startswith("ssl_certificate"):
            for block in (server, self.mail):
                yield from (location for path, location in block.locations.items() if path in reason)

    def _of_directive(self, directive: str, item: str, server: Block) -> str | None:
        row = _ROWS.get(directive)
        if row is None:
            return None
        paths = (f"{block.path}.{row.field}{item}" for block in (server, self.mail))
        return next((self.origins[path][0] for path in paths if path in self.origins), None)
