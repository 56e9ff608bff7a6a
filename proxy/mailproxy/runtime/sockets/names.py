"""Host names in ``listen`` lines: looked up once, when a configuration is put to work."""

from __future__ import annotations

import socket

from mailproxy.runtime.sockets.plan import is_host_name
from mailproxy_config.errors import Problems
from mailproxy_config.model import ProxyConfig


def resolve_names(config: ProxyConfig) -> dict[str, tuple[str, ...]]:
    """Look up every host name that a configuration listens on, with the system's resolver.

    Blocks until the system's resolver has answered or given up.

    Returns:
        The addresses of each, without brackets, of the families this machine has.

    Raises:
        ConfigError: Some cannot be found; a problem for each line that names one.
    """
    problems = Problems()
    found: dict[str, tuple[str, ...]] = {}
    for number, server in enumerate(config.servers):
        for index, listen in enumerate(server.listen):
            name = listen.address
            if is_host_name(name):
                addresses = found[name] if name in found else _addresses(name)
                found[name] = addresses
                if not addresses:
                    problems.add(f"servers[{number}].listen[{index}].address", f"host not found: {name}")
    problems.raise_if_any()
    return found


def _addresses(name: str) -> tuple[str, ...]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(sockaddr[0]).partition("%")[0] for *_, sockaddr in answers))
