# SPDX-License-Identifier: Apache-2.0
"""What the ``http {}`` block of an ``nginx.conf`` listens on.

The proxy does not run that block.  An authentication service that lives in it
would be missing, which nobody sees before the first login fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mailproxy_config import addresses
from mailproxy_config.errors import ConfigError, Problems
from mailproxy_config.nginx.syntax import Files, Statement

_LOOPBACK: Final = re.compile(r"localhost\.?|127(\.[0-9]+){3}|\[::1\]|\[::ffff:127\.[0-9.]+\]", re.IGNORECASE)
_WILDCARDS: Final = frozenset({"*", "0.0.0.0", "[::]"})  # noqa: S104 -- what to look for
_LISTEN: Final = re.compile(r"(?P<host>\[[^]]*\]|[^:]*?):?(?P<port>[0-9]{1,5})")
_DEFAULT_PORT: Final = 80


@dataclass(slots=True)
class HttpServer:
    """A ``server {}`` of ``http {}``: where it listens (host and port, or a socket's path), and its names."""

    where: str
    listen: list[tuple[str, int]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def serves(self, url: str) -> bool:
        """Whether requests to the URL of an ``auth_http`` arrive here, as far as the file shows."""
        try:
            service = addresses.auth_http(url)
        except ValueError:
            return False
        if service.unix_path is not None:
            return service.unix_path in self.paths
        host = service.host.lower()
        return any(
            port == service.port and self._is_reached(host, listener) for listener, port in self.listen
        )

    def _is_reached(self, host: str, listener: str) -> bool:
        if listener in _WILDCARDS:
            return is_loopback(host) or host in self.names
        return host == listener or (is_loopback(host) and is_loopback(listener))


def is_loopback(host: str) -> bool:
    """Whether a host as it is written in an address means the machine itself."""
    return _LOOPBACK.fullmatch(host) is not None


def http_servers(blocks: Sequence[Statement], base: str, main: str) -> list[HttpServer]:
    """The servers of ``http {}`` blocks, with what they include; what is wrong with them is not our business.

    Args:
        blocks: The ``http`` statements.
        base: The directory of the main file.
        main: Its absolute path.
    """
    files = Files(base, Problems(), main)
    found: list[HttpServer] = []
    with suppress(ConfigError):
        for server in _inner(files, blocks, "server"):
            found.append(_read(server, _inner(files, [server], "listen", "server_name")))  # noqa: PERF401
    return found


def _inner(files: Files, blocks: Iterable[Statement], *names: str) -> Iterator[Statement]:
    for block in blocks:
        yield from (each for each in files.with_includes(block.block or ()) if each.name in names)


def _read(server: Statement, directives: Iterable[Statement]) -> HttpServer:
    found = HttpServer(server.where)
    for each in directives:
        if each.name == "server_name":
            found.names.update(name.lower() for name in each.arguments)
        elif each.arguments:
            _listen(each.arguments[0], found)
    if not found.listen and not found.paths:
        found.listen.append(("*", _DEFAULT_PORT))
    return found


def _listen(text: str, server: HttpServer) -> None:
    if text[:5].lower() == "unix:":
        server.paths.add(text[5:])
        return
    parts = _LISTEN.fullmatch(text) if not text.startswith("[") or not text.endswith("]") else None
    if parts is None or ("." in text and ":" not in text):
        server.listen.append((text.lower(), _DEFAULT_PORT))
    else:
        server.listen.append((parts["host"].lower() or "*", int(parts["port"])))
