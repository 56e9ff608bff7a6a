# SPDX-License-Identifier: Apache-2.0
"""Ports that Kubernetes opens for listeners: ``listen[].hostPort`` and ``service.nodePorts``.

They are not part of the proxy's configuration: the container ports are the same with and
without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from mailproxy_config.errors import Problems
from mailproxy_config.schema import Array, Integer, Object, Rule

PORT: Final = Integer(minimum=1, maximum=65535)
HIGH_PORT_OFFSET: Final = 10000
HOST_PORT: Final = PORT
HOST_PORT_MEANING: Final = (
    "Port of the node that is forwarded to this listener (hostPort of the container). Requires mode "
    "Deployment or DaemonSet, and a node per pod."
)

NODE_PORTS: Final = Array(
    max_items=64,
    keys=("port",),
    items=Object(
        fields={"port": PORT, "nodePort": PORT},
        required=("port", "nodePort"),
        descriptions={
            "port": "Port of a listener.",
            "nodePort": "Port of every node that is forwarded to it. Most clusters allow 30000 to 32767.",
        },
    ),
)
NODE_PORTS_MEANING: Final = (
    "Fixed node ports, for type NodePort or LoadBalancer. Ports that are not listed get a free node port."
)

_HOST_NETWORK: Final = "has(self.pod) && has(self.pod.hostNetwork) && self.pod.hostNetwork"
RULES: Final = (
    Rule(
        expression="self.mode != 'Sidecar' || self.servers.all(s, s.listen.all(l, !has(l.hostPort)))",
        message="listen[].hostPort of servers needs mode Deployment or DaemonSet",
        reason="FieldValueForbidden",
        predicate=None,
    ),
    Rule(
        expression=(
            "self.servers.all(s, s.listen.all(l, !has(l.hostPort) || has(l.port))) && "
            f"(!({_HOST_NETWORK}) || self.servers.all(s, s.listen.all(l, !has(l.hostPort) || "
            f"l.hostPort == l.port + (self.portStrategy == 'HighPort' ? {HIGH_PORT_OFFSET} : 0))))"
        ),
        message=("listen[].hostPort of servers needs a port; with pod.hostNetwork it is the container port"),
        reason="FieldValueInvalid",
        predicate=None,
    ),
)
"""Rules of ``spec`` about host ports for the API server; ``check`` has them with exact paths."""

SERVICE_RULE: Final = Rule(
    expression="self.type != 'ClusterIP' || !has(self.nodePorts) || self.nodePorts.size() == 0",
    message="nodePorts needs type NodePort or LoadBalancer",
    reason="FieldValueForbidden",
    predicate=lambda value: value.get("type", "ClusterIP") != "ClusterIP" or not value.get("nodePorts"),
    field_path=".nodePorts",
)


def host_ports(servers: object) -> dict[int, int]:
    """Map listen ports to host ports.

    Args:
        servers: ``spec.servers`` as written; parts that do not match the schema are ignored.
    """
    return {port: host for _, port, host in _given(servers) if host is not None}


def check(spec: Mapping[str, Any], problems: Problems) -> None:
    """Report invalid host ports and node ports.

    Args:
        spec: The whole ``spec`` as written.
        problems: Collects the errors.
    """
    given = list(_given(spec.get("servers")))
    for path, one in _listeners(spec.get("servers")):
        if "hostPort" in one and "port" not in one:
            problems.add(path, "cannot be used with a UNIX socket; remove hostPort")
    _check_mode(spec, given, problems)
    _check_agreement(given, problems)
    _check_node_ports(spec.get("service"), {port for _, port, _ in given}, problems)


_Listener = tuple[str, int, int | None]
"""The path of a host port, the listen port, and the host port."""


def _given(servers: object) -> Iterator[_Listener]:
    for path, one in _listeners(servers):
        if _is_number(one.get("port")):
            host = one.get("hostPort")
            yield path, one["port"], host if _is_number(host) else None


def _listeners(servers: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every listener, with the path of its host port."""
    for index, server in enumerate(_items(servers)):
        listeners = server.get("listen") if isinstance(server, Mapping) else None
        for number, one in enumerate(_items(listeners)):
            if isinstance(one, Mapping):
                yield f"spec.servers[{index}].listen[{number}].hostPort", one


def _items(value: object) -> Sequence[Any]:
    """The items of a list; nothing for other values."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_mode(spec: Mapping[str, Any], given: Sequence[_Listener], problems: Problems) -> None:
    pod = spec.get("pod")
    on_host = isinstance(pod, Mapping) and pod.get("hostNetwork") is True
    offset = HIGH_PORT_OFFSET if spec.get("portStrategy") == "HighPort" else 0
    for path, port, host in given:
        if host is None:
            continue
        if spec.get("mode") == "Sidecar":
            problems.add(
                path, "needs mode Deployment or DaemonSet: the operator does not own the pods of sidecars"
            )
        elif on_host and host != port + offset:
            reason = (
                f"{host} must be the container port {port + offset} with pod.hostNetwork; remove hostPort"
            )
            problems.add(path, reason)


def _check_agreement(given: Sequence[_Listener], problems: Problems) -> None:
    """Each container port has one host port, and each host port one container port."""
    by_port: dict[int, tuple[str, int | None]] = {}
    by_host: dict[int, tuple[str, int]] = {}
    for path, port, host in given:
        first_path, first_host = by_port.setdefault(port, (path, host))
        if host != first_host:
            shown = "none" if first_host is None else first_host
            problems.add(
                path, f"differs from {first_path} ({shown}): all listeners of port {port} must have the same"
            )
        if host is None:
            continue
        other_path, other_port = by_host.setdefault(host, (path, port))
        if other_port != port:
            problems.add(path, f"{host} is also the host port of port {other_port} ({other_path})")


def _check_node_ports(service: object, ports: set[int], problems: Problems) -> None:
    given = service.get("nodePorts") if isinstance(service, Mapping) else None
    seen: dict[int, int] = {}
    for index, one in enumerate(_items(given)):
        if (
            not isinstance(one, Mapping)
            or not _is_number(one.get("port"))
            or not _is_number(one.get("nodePort"))
        ):
            continue
        path = f"spec.service.nodePorts[{index}]"
        if one["port"] not in ports:
            listened = ", ".join(map(str, sorted(ports))) or "none"
            problems.add(
                f"{path}.port", f"no listener has port {one['port']}; ports of listeners: {listened}"
            )
        if seen.setdefault(one["nodePort"], one["port"]) != one["port"]:
            problems.add(
                f"{path}.nodePort", f"{one['nodePort']} is also the node port of port {seen[one['nodePort']]}"
            )
