# SPDX-License-Identifier: Apache-2.0
"""The ``error_log`` directives of an ``nginx.conf``: files, standard error, syslog servers.

A manifest cannot contain them, because a container logs to standard error.  They are
collected here, and added to the configuration of a proxy that runs from the ``nginx.conf``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from mailproxy_config.addresses import parse_host_port
from mailproxy_config.errors import Problems
from mailproxy_config.model import FACILITIES, ErrorLog, LogLevel, ProxyConfig, SyslogServer
from mailproxy_config.nginx.syntax import Statement

MAIN: Final = "spec"
MAIL: Final = "spec.mail"
_SYSLOG: Final = "syslog:"
_MEMORY: Final = "memory:"
_CONF: Final = "conf"


class ErrorLogs:
    """The logs of each level.

    Args:
        base: The directory of the main file.
        problems: Collects errors and notices.
        is_carried_over: Whether the result is a printed manifest, where standard error is the only log.
    """

    def __init__(self, base: str, problems: Problems, *, is_printed: bool) -> None:
        self._prefix = os.path.dirname(base) if os.path.basename(base) == _CONF else base
        self._problems = problems
        self._is_printed = is_printed
        self._levels: dict[str, list[ErrorLog]] = {}
        self._places: dict[str, str] = {}

    def add(self, path: str, statement: Statement, level: LogLevel) -> None:
        """Add one ``error_log`` of the level with this path in a manifest.

        Raises:
            ValueError: Its target is invalid; the message is nginx's.
        """
        target = statement.arguments[0]
        if target.startswith(_MEMORY):
            self._problems.notice(
                statement.location, f"{target[:200]} is ignored: nginx logs to memory only for debugging"
            )
            return
        log = self._read(target, level)
        if self._is_printed and target != "stderr":
            self._problems.notice(statement.location, f"logs go to standard error, not to {target[:200]}")
        elif target == "off":
            self._problems.notice(statement.location, f'"off" is the name of a file: logs go to {log.file}')
        self._levels.setdefault(path, []).append(log)
        name = log.syslog.address if log.syslog is not None else log.file
        self._places.setdefault(f'"{name}"', statement.location)

    def _read(self, target: str, level: LogLevel) -> ErrorLog:
        if target in {"", "stderr"}:
            return ErrorLog(level=level)
        if target.startswith(_SYSLOG):
            return ErrorLog(level=level, syslog=parse_syslog_server(target.removeprefix(_SYSLOG)))
        return ErrorLog(level=level, file=os.path.normpath(os.path.join(self._prefix, target)))

    def location(self, reason: str) -> str | None:
        """File and line of the log whose target is quoted in a message; ``None`` if there is none."""
        return next((location for name, location in self._places.items() if name in reason), None)

    def applied(self, config: ProxyConfig) -> ProxyConfig:
        """Set the logs of a configuration: those of the level, else of the level around it."""
        if all(log.file is None and log.syslog is None for logs in self._levels.values() for log in logs):
            return config
        main = self._levels.get(MAIN) or [ErrorLog(level=config.error_log)]
        mail = self._levels.get(MAIL) or main
        servers = (
            replace(server, error_logs=tuple(self._levels.get(f"spec.servers[{index}]") or mail))
            for index, server in enumerate(config.servers)
        )
        return replace(config, error_logs=tuple(main), servers=tuple(servers))


_TAG: Final = re.compile(r"[A-Za-z0-9_]*")
_MAX_TAG: Final = 32
_SEVERITIES: Final = frozenset(map(str, LogLevel))


def parse_syslog_server(parameters: str) -> SyslogServer:
    """Parse the parameters after ``syslog:``.

    Raises:
        ValueError: A parameter is invalid; the message is nginx's.
    """
    found: dict[str, Any] = {}
    server: SyslogServer | None
    for parameter in parameters.split(","):
        for name, value in _parameter(parameter):
            if name in found:
                raise ValueError(f'duplicate syslog "{parameter.partition("=")[0]}"')
            found[name] = value
    server = found.pop("server", None)
    if server is None:
        raise ValueError("no syslog server specified")
    found.pop("severity", None)
    return replace(server, **found)


def _parameter(parameter: str) -> Iterator[tuple[str, object]]:
    name, has_value, value = parameter.partition("=")
    if parameter == "nohostname":
        yield "has_hostname", False
    elif name == "server" and has_value:
        yield "server", _server(value)
    elif name == "facility" and has_value:
        yield "facility", _one_of(value, FACILITIES, "facility")
    elif name == "severity" and has_value:
        yield "severity", _one_of(value, _SEVERITIES, "severity")
    elif name == "tag" and has_value:
        yield "tag", _tag(value)
    else:
        raise ValueError(f'unknown syslog parameter "{parameter[:64]}"')


def _one_of(value: str, words: Any, what: str) -> str:  # noqa: ANN401 -- any container of text
    if value not in words:
        raise ValueError(f'unknown syslog {what} "{value[:64]}"')
    return value


def _tag(value: str) -> str:
    if len(value) > _MAX_TAG:
        raise ValueError(f'syslog "tag" length exceeds {_MAX_TAG}')
    if _TAG.fullmatch(value) is None:
        raise ValueError('syslog "tag" only allows alphanumeric characters and underscore')
    return value


def _server(value: str) -> SyslogServer:
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path:
            raise ValueError('no path in the unix domain socket in syslog server "unix:"')
        return SyslogServer(unix_path=path)
    try:
        found = parse_host_port(value)
    except ValueError as error:
        raise ValueError(f'syslog server "{value[:64]}": {error}') from None
    return SyslogServer(address=found.host.strip("[]"), port=found.port or SyslogServer().port)
