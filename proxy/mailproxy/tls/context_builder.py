# SPDX-License-Identifier: Apache-2.0
"""A context in the making, and everything that is wrong with it so far."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from mailproxy_config.errors import Problems
from mailproxy_config.model import ServerConfig


@dataclass(slots=True)
class ContextBuilder:
    """What the parts of ``build`` share.

    Attributes:
        kept: What OpenSSL points at and Python must not forget.
    """

    server: ServerConfig
    context: ssl.SSLContext
    problems: Problems = field(default_factory=Problems)
    kept: list[object] = field(default_factory=list)

    def refuse(self, directive: str, reason: str) -> None:
        """Note what makes this server impossible to serve."""
        self.problems.add(self._path(directive), reason)

    def notice(self, directive: str, reason: str) -> None:
        """Note what is served otherwise than asked."""
        self.problems.notice(self._path(directive), reason)

    def contents(self, directive: str, path: str) -> bytes | None:
        """Read a file; ``None``, with the problem noted, when it cannot be read."""
        try:
            return Path(path).read_bytes()
        except OSError as error:
            self.refuse(directive, f'cannot read "{path}": {error.strerror or error}')
            return None

    def _path(self, directive: str) -> str:
        return f"servers[{self.server.name}].{directive}"
