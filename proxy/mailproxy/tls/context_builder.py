# SPDX-License-Identifier: Apache-2.0
"""The state of ``context.build``: the ``SSLContext`` and the problems found so far."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from mailproxy_config.errors import Problems
from mailproxy_config.model import ServerConfig


@dataclass(slots=True)
class ContextBuilder:
    """What the steps of ``context.build`` share.

    Attributes:
        references: Python objects that OpenSSL has pointers to; they must exist as long as the context.
    """

    server: ServerConfig
    context: ssl.SSLContext
    problems: Problems = field(default_factory=Problems)
    references: list[object] = field(default_factory=list)

    def add_problem(self, directive: str, reason: str) -> None:
        """Add a problem: the server cannot be started with it."""
        self.problems.add(self._path(directive), reason)

    def add_notice(self, directive: str, reason: str) -> None:
        """Add a notice: a directive has another effect than configured."""
        self.problems.notice(self._path(directive), reason)

    def read_file(self, directive: str, path: str) -> bytes | None:
        """Read a file; if that fails, add a problem and return ``None``."""
        try:
            return Path(path).read_bytes()
        except OSError as error:
            self.add_problem(directive, f'cannot read "{path}": {error.strerror or error}')
            return None

    def _path(self, directive: str) -> str:
        return f"servers[{self.server.name}].{directive}"
