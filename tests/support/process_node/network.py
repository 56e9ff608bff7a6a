# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of pods, each with an address that the node routes to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Final

from support.process_node.commands import run

NODE_ADDRESS: Final = "10.244.0.1"
API_SERVICE: Final = "10.96.0.1"
"""The address of the Service ``kubernetes``."""
API_NAMES: Final = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
_GATEWAY: Final = "169.254.1.1"
_FORWARDING: Final = Path("/proc/sys/net/ipv4/ip_forward")


class Network:
    """Gives addresses to pods.

    Every pod has a pair of interfaces.  The node answers the pod's ARP requests for
    the gateway, and has a route to the pod's address, so all packets between pods
    pass the node's packet filter.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(2)
        self._lock = Lock()
        run("ip", "link", "set", "lo", "up")
        run("ip", "addr", "add", f"{NODE_ADDRESS}/32", "dev", "lo")
        # The API server searches a default route at its start; packets to other networks are dropped.
        # Addresses of Services need a route too, before the packet filter translates them.
        run("ip", "link", "add", "services", "type", "bridge")
        run("ip", "link", "set", "services", "up")
        run("ip", "route", "add", "default", "dev", "services", "src", NODE_ADDRESS)
        _FORWARDING.write_text("1")

    def add(self, sysctls: Mapping[str, str]) -> PodNetwork:
        """Create the network of a pod, with the pod's sysctls."""
        with self._lock:
            number = next(self._numbers)
        name, link = f"pod{number}", f"veth{number}"
        address = f"10.244.{number // 250}.{number % 250}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", link, "up")
        Path(f"/proc/sys/net/ipv4/conf/{link}/proxy_arp").write_text("1")
        made = PodNetwork(name, address)
        made.run("ip", "link", "set", "lo", "up")
        made.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
        made.run("ip", "link", "set", "eth0", "up")
        made.run("ip", "route", "add", _GATEWAY, "dev", "eth0")
        made.run("ip", "route", "add", "default", "via", _GATEWAY)
        run("ip", "route", "add", f"{address}/32", "dev", link, "src", NODE_ADDRESS)
        for key, value in sysctls.items():
            made.run("sysctl", "-q", "-w", f"{key}={value}")
        return made


class PodNetwork:
    """The network namespace of one pod.

    Attributes:
        address: The pod's IPv4 address.
    """

    def __init__(self, name: str, address: str) -> None:
        self.address = address
        self._name = name

    def enter(self) -> list[str]:
        """Return the command that runs another command in this network."""
        return ["nsenter", f"--net=/run/netns/{self._name}"]

    def run(self, *command: str) -> None:
        """Run a command in this network."""
        run(*self.enter(), *command)

    def remove(self) -> None:
        """Delete it, with its interfaces and routes."""
        run("ip", "netns", "delete", self._name)
