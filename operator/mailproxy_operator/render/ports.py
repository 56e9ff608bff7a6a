# SPDX-License-Identifier: Apache-2.0
"""The ports of pods and Services: pure functions, shared by several renderers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mailproxy_config.model import ListenConfig, ProxyConfig

HIGH_PORT_OFFSET = 10_000
PRIVILEGED_BELOW = 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener of the resource.

    Attributes:
        server: The name of the server block.
        protocol: Its mail protocol.
        listen: The listener; its port is the one in the resource.
        container_port: The port in the pod; ``None`` for a UNIX socket.
        host_port: The port of the node that is forwarded to it, if any.
    """

    server: str
    protocol: str
    listen: ListenConfig
    container_port: int | None
    host_port: int | None = None

    @property
    def port(self) -> int | None:
        """The port for clients."""
        return self.listen.port


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """One port of the pod and of the Service: one per number, independent of addresses."""

    number: int
    container_port: int
    name: str
    protocol: str
    host_port: int | None = None


def listeners(
    config: ProxyConfig, *, offset: int = 0, host_ports: Mapping[int, int] | None = None
) -> tuple[Listener, ...]:
    """Return the listeners of a configuration in the order of the resource.

    Args:
        config: The configuration with the ports for clients.
        offset: The number to add for the container port (``portStrategy: HighPort``).
        host_ports: Ports of the node by ports for clients (``listen[].hostPort``).
    """
    on_host = host_ports or {}
    return tuple(
        Listener(
            server.name,
            server.protocol.value,
            listen,
            None if listen.port is None else listen.port + offset,
            None if listen.port is None else on_host.get(listen.port),
        )
        for server in config.servers
        for listen in server.listen
    )


def ports(found: Sequence[Listener]) -> tuple[Port, ...]:
    """Return one port per number, sorted by number.

    The order is significant: the same ports in another order are a different
    pod template.  Two protocols on one number (on different addresses) use the
    name of the first.
    """
    by_number: dict[int, Port] = {}
    for listener in found:
        if listener.port is not None and listener.container_port is not None:
            name = f"{listener.protocol}-{listener.port}"
            port = Port(listener.port, listener.container_port, name, listener.protocol, listener.host_port)
            by_number.setdefault(listener.port, port)
    return tuple(by_number[number] for number in sorted(by_number))


def privileged(found: Sequence[Port]) -> int | None:
    """Return the smallest container port that a process without root cannot bind by default."""
    low = [port.container_port for port in found if port.container_port < PRIVILEGED_BELOW]
    return min(low, default=None)
