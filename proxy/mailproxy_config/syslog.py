# SPDX-License-Identifier: Apache-2.0
"""The parameters of ``error_log syslog:``, as nginx reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from .addresses import host_port
from .model import LogLevel, SyslogServer

FACILITIES: Final = (
    *("kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "cron"),
    *(f"local{number}" for number in range(8)),
)
"""By their numbers in RFC 3164 section 4.1.1; the names are nginx's."""
_TAG: Final = re.compile(r"[A-Za-z0-9_]*")
_LONGEST_TAG: Final = 32
_SEVERITIES: Final = frozenset(map(str, LogLevel))


def syslog_server(parameters: str) -> SyslogServer:
    """Read what follows ``syslog:``.

    Raises:
        ValueError: In nginx's words.
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
    if len(value) > _LONGEST_TAG:
        raise ValueError(f'syslog "tag" length exceeds {_LONGEST_TAG}')
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
        found = host_port(value)
    except ValueError as error:
        raise ValueError(f'syslog server "{value[:64]}": {error}') from None
    return SyslogServer(address=found.host.strip("[]"), port=found.port or SyslogServer().port)
