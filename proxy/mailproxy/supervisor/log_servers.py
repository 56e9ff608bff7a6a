# SPDX-License-Identifier: Apache-2.0
"""Finds the addresses of syslog servers once, before workers start; as in nginx."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace

from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ErrorLog, ProxyConfig, SyslogServer


def with_addresses(config: ProxyConfig) -> ProxyConfig:
    """The same configuration with an address wherever a syslog server is given by its name.

    This waits for name servers.

    Raises:
        ConfigError: A name is not known.
    """
    if not config.error_logs:
        return config
    found: dict[SyslogServer, SyslogServer] = {}
    servers = (replace(each, error_logs=_located(each.error_logs, found)) for each in config.servers)
    return replace(config, error_logs=_located(config.error_logs, found), servers=tuple(servers))


def _located(logs: Iterable[ErrorLog], found: dict[SyslogServer, SyslogServer]) -> tuple[ErrorLog, ...]:
    return tuple(
        log if log.syslog is None else replace(log, syslog=_with_address(log.syslog, found)) for log in logs
    )


def _with_address(server: SyslogServer, found: dict[SyslogServer, SyslogServer]) -> SyslogServer:
    if server.unix_path is not None:
        return server
    if server not in found:
        try:
            known = socket.getaddrinfo(server.address, server.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            reason = f'host not found in syslog server "{server.address}"'
            raise ConfigError([Problem("error_log", reason)]) from error
        found[server] = replace(server, address=str(known[0][4][0]))
    return found[server]
