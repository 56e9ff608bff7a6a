# SPDX-License-Identifier: Apache-2.0
"""Host names in ``listen`` and ``set_real_ip_from``: looked up once, when a configuration is put to work."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from mailproxy.net.listen_plan import is_host_name
from mailproxy_config.errors import Problems
from mailproxy_config.model import ProxyConfig


def resolve_names(config: ProxyConfig) -> dict[str, tuple[str, ...]]:
    """Look up every host name that a configuration listens on or trusts, with the system's resolver.

    Blocks until the system's resolver has answered or given up.

    Returns:
        The addresses of each, without brackets, of the families this machine has.

    Raises:
        ConfigError: Some cannot be found; a problem for each line that names one.
    """
    problems = Problems()
    found: dict[str, tuple[str, ...]] = {}
    for path, name in _host_names(config):
        if name not in found:
            found[name] = _addresses(name)
        if not found[name]:
            problems.add(path, f"host not found: {name}")
    problems.raise_if_any()
    return found


def _host_names(config: ProxyConfig) -> Iterator[tuple[str, str]]:
    """Every host name, with the path of the field that has it."""
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            if is_host_name(listen.address):
                yield f"servers[{number}].listen[{index}].address", listen.address
        for index, entry in enumerate(server.set_real_ip_from):
            if _is_trusted_name(entry):
                yield f"servers[{number}].set_real_ip_from[{index}]", entry


def _is_trusted_name(entry: str) -> bool:
    """Whether an entry of ``set_real_ip_from`` is neither ``unix:`` nor an address or network."""
    if entry == "unix:":
        return False
    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return True
    return False


def _addresses(name: str) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]).partition("%")[0] for *_, sockaddr in answers))
