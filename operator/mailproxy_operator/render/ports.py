# SPDX-License-Identifier: Apache-2.0
"""Which ports a pod opens and a Service offers: pure, shared by several renderers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mailproxy_config.model import ListenConfig, ProxyConfig

HIGH_PORT_OFFSET = 10_000
PRIVILEGED_BELOW = 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener as the resource has it.

    Attributes:
        server: The server's name.
        protocol: Its mail protocol.
        listen: The listener; its port is the one the resource names.
        container_port: The port opened in the pod; ``None`` for a UNIX socket.
        host_port: The port of the node that leads to it, where there is one.
    """

    server: str
    protocol: str
    listen: ListenConfig
    container_port: int | None
    host_port: int | None = None

    @property
    def port(self) -> int | None:
        """The port that clients use."""
        return self.listen.port


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """One port of the pod and of the Service: there is one per number, whatever the addresses."""

    number: int
    container_port: int
    name: str
    protocol: str
    host_port: int | None = None


def listeners(
    config: ProxyConfig, *, offset: int = 0, host_ports: Mapping[int, int] | None = None
) -> tuple[Listener, ...]:
    """List the listeners of a configuration in the resource's order.

    Args:
        config: The configuration with the ports that clients use.
        offset: What the container adds to them (``portStrategy: HighPort``).
        host_ports: Ports of the node by the ports that clients use (``listen[].hostPort``).
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
    """Collapse listeners to one port per number, sorted by number.

    The order matters to Kubernetes: the same ports in another order are
    another pod template.  Two protocols on one number (on different
    addresses) share the name of the first.
    """
    by_number: dict[int, Port] = {}
    for listener in found:
        if listener.port is not None and listener.container_port is not None:
            name = f"{listener.protocol}-{listener.port}"
            port = Port(listener.port, listener.container_port, name, listener.protocol, listener.host_port)
            by_number.setdefault(listener.port, port)
    return tuple(by_number[number] for number in sorted(by_number))


def privileged(found: Sequence[Port]) -> int | None:
    """Give the smallest container port that a process without root may not open by itself."""
    low = [port.container_port for port in found if port.container_port < PRIVILEGED_BELOW]
    return min(low, default=None)
