# SPDX-License-Identifier: Apache-2.0
"""Whether the values of a compiled configuration are ones that compiling could have produced.

For configurations that come from a file rather than from ``compile``.  Each
directive is written as a manifest would write it and checked by the same table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mailproxy_config.addresses import canonical_listener
from mailproxy_config.directives import (
    IGNORED,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
)
from mailproxy_config.errors import Problems
from mailproxy_config.file_values import FILE
from mailproxy_config.manifest import MOST_SERVERS, SERVER_NAME
from mailproxy_config.model import (
    AuthHttpHeader,
    CertificateFiles,
    ListenConfig,
    ProxyConfig,
    ServerConfig,
    VerifyClient,
)
from mailproxy_config.secret_refs import CertificateRef, HeaderRef, KeyRef, ReferenceKind
from mailproxy_config.units import LARGEST_SECONDS
from mailproxy_config.value_types import ErrorPath

_MAIN_NAMES: Final = {"worker_processes": "workers"}
_STAND_IN: Final = KeyRef(ReferenceKind.SECRET, "any", "any")
"""A header's file may be anywhere; the shape of a header only knows Secrets."""


def note_unsound(config: ProxyConfig, problems: Problems) -> None:
    """Note every value that no manifest compiles to, at its path below ``config``."""
    for row in MAIN_DIRECTIVES:
        name = _MAIN_NAMES.get(row.name, row.name)
        _check(row, getattr(config, name), f"config.{name}", problems)
    for name in ("delay", "timeout"):
        _check_time(getattr(config.drain, name), f"config.drain.{name}", problems)
    if not 1 <= len(config.servers) <= MOST_SERVERS:
        reason = f"has {len(config.servers)} items, which is out of range 1 to {MOST_SERVERS}"
        problems.add("config.servers", reason)
    for index, server in enumerate(config.servers[:MOST_SERVERS]):
        _check_server(server, f"config.servers[{index}]", problems)
    _check_unique(config, problems)


def _check_server(server: ServerConfig, path: str, problems: Problems) -> None:
    SERVER_NAME.check(server.name, f"{path}.name", problems)
    for row in LEVEL_DIRECTIVES + SERVER_DIRECTIVES:
        if row.field not in IGNORED:
            _check(row, getattr(server, row.name), f"{path}.{row.name}", problems)
    if not server.tls_is_used:
        return
    if not server.ssl_certificate:
        problems.add(f"{path}.ssl_certificate", "is required for listen ssl and starttls")
    if server.ssl_verify_client in {VerifyClient.REQUIRED, VerifyClient.OPTIONAL} and not (
        server.ssl_client_certificate or server.ssl_trusted_certificate
    ):
        problems.add(f"{path}.ssl_verify_client", "needs ssl_client_certificate or ssl_trusted_certificate")


def _check(row: Directive, value: Any, here: str, problems: Problems) -> None:  # noqa: ANN401 -- of any directive
    """Write the value, and read it as if a manifest had said so."""
    if isinstance(value, float):
        _check_time(value, here, problems)
        return
    if value is None and (row.type is FILE or row.default is None):
        return
    wanted = _as_references(value)
    written = row.type.write(wanted)
    before = len(problems)
    row.type.shape.check(written, here, problems)
    if len(problems) == before:
        place = ErrorPath(here, problems)
        read = place.attempt(lambda: row.type.read(written, place))
        if len(problems) == before and _comparable(read) != _comparable(wanted):
            problems.add(here, "holds parts that do not go together")


def _comparable(value: Any) -> Any:  # noqa: ANN401 -- the value of any directive
    """The value, but for ``bind``: other parameters of a listener imply it."""
    if isinstance(value, tuple) and value and isinstance(value[0], ListenConfig):
        return tuple(replace(listener, bind=True) for listener in value)
    return value


def _check_time(seconds: float, path: str, problems: Problems) -> None:
    if not 0 <= seconds <= LARGEST_SECONDS:
        problems.add(path, f"{seconds:g} is out of range 0 to {LARGEST_SECONDS}")


def _as_references(value: Any) -> Any:  # noqa: ANN401 -- the value of any directive
    """The value as it was before its references were replaced by paths."""
    match value:
        case AuthHttpHeader(value=None, value_file=str()):
            return HeaderRef(value.name, _STAND_IN)
        case CertificateFiles():
            return CertificateRef(value.certificate, value.key)
        case tuple():
            return tuple(map(_as_references, value))
    return value


def _check_unique(config: ProxyConfig, problems: Problems) -> None:
    names: set[str] = set()
    listeners: set[tuple[str, int | None]] = set()
    for index, server in enumerate(config.servers):
        if server.name in names:
            problems.add(f"config.servers[{index}].name", f"{server.name!r} stands twice")
        names.add(server.name)
        for at, listener in enumerate(server.listen):
            key = _key(listener)
            if key in listeners:
                problems.add(f"config.servers[{index}].listen[{at}]", "duplicate address and port pair")
            listeners.add(key)


def _key(listener: ListenConfig) -> tuple[str, int | None]:
    """What makes two listeners the same, even where the address is no good."""
    try:
        return canonical_listener(listener.address, listener.port)
    except ValueError:
        return listener.address, listener.port
