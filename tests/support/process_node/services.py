# SPDX-License-Identifier: Apache-2.0
"""The work of kube-proxy: rules that translate the addresses of Services to those of ready pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from support.kube_api import Object
from support.process_node.commands import run

SERVICE_NAME: Final = "kubernetes.io/service-name"
_HEADLESS: Final = "None"


def endpoints_of(slices: Iterable[Object], namespace: str, service: str, port: str) -> list[str]:
    """Return ``ADDRESS:PORT`` of every endpoint that gets new connections.

    These are the ready endpoints; if there are none, the terminating ones that still serve.
    """
    ready, serving = [], []
    for one in slices:
        metadata = one["metadata"]
        if (metadata["namespace"], (metadata.get("labels") or {}).get(SERVICE_NAME)) != (namespace, service):
            continue
        numbers = [found["port"] for found in one.get("ports") or [] if (found.get("name") or "") == port]
        for endpoint in one.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            listed = [f"{endpoint['addresses'][0]}:{number}" for number in numbers]
            if conditions.get("ready", True):
                ready += listed
            elif conditions.get("serving"):
                serving += listed
    return sorted(ready or serving)


def render_rules(services: Iterable[Object], slices: Iterable[Object]) -> str:
    """Render the nftables ruleset for these Services."""
    known = list(slices)
    chains: dict[str, list[str]] = {}
    entries: list[str] = []
    hairpins: set[str] = set()
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP") or _HEADLESS
        for port in spec.get("ports") or [] if address != _HEADLESS else []:
            found = endpoints_of(known, metadata["namespace"], metadata["name"], port.get("name") or "")
            chain = f"service-{metadata['uid'][:8]}-{port['port']}"
            chains[chain] = _choose(chains, found)
            protocol = port.get("protocol", "TCP").lower()
            entries.append(f"ip daddr {address} {protocol} dport {port['port']} goto {chain}")
            hairpins.update(one.partition(":")[0] for one in found)
    translate = "".join(f"    {entry}\n" for entry in entries)
    loops = "".join(f"    ip saddr {one} ip daddr {one} masquerade\n" for one in sorted(hairpins))
    bodies = "".join(
        f"  chain {name} {{\n" + "".join(f"    {rule}\n" for rule in rules) + "  }\n"
        for name, rules in sorted(chains.items())
    )
    return (
        "table ip services\ndelete table ip services\ntable ip services {\n"
        f"{bodies}"
        f"  chain output {{\n    type nat hook output priority -100\n{translate}  }}\n"
        f"  chain prerouting {{\n    type nat hook prerouting priority -100\n{translate}  }}\n"
        f"  chain postrouting {{\n    type nat hook postrouting priority 100\n{loops}  }}\n"
        "}\n"
    )


def _choose(chains: dict[str, list[str]], endpoints: list[str]) -> list[str]:
    """Return the rules that choose one endpoint at random, and add the chains they need."""
    if not endpoints:
        return ["counter drop"]
    branches = []
    for number, endpoint in enumerate(endpoints):
        name = "to-" + endpoint.replace(".", "-").replace(":", "-")
        chains[name] = [f"meta l4proto tcp dnat to {endpoint}"]
        branches.append(f"{number} : goto {name}")
    return [f"numgen random mod {len(endpoints)} vmap {{ {', '.join(branches)} }}"]


class ServiceRules:
    """The rules in the kernel; they are replaced in one step when they change."""

    def __init__(self) -> None:
        self._current = ""

    def update(self, services: Iterable[Object], slices: Iterable[Object]) -> None:
        """Load the rules for these objects."""
        rules = render_rules(services, slices)
        if rules != self._current:
            run("nft", "-f", "-", stdin=rules)
            self._current = rules


def addresses_by_name(services: Iterable[Object], slices: Iterable[Object]) -> Mapping[str, list[str]]:
    """Return the addresses of the DNS name of each Service, without the cluster's domain."""
    known = list(slices)
    found: dict[str, list[str]] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        name = f"{metadata['name']}.{metadata['namespace']}.svc"
        if (spec.get("clusterIP") or _HEADLESS) != _HEADLESS:
            found[name] = [spec["clusterIP"]]
        else:
            ports = [port.get("name") or "" for port in spec.get("ports") or []][:1]
            listed = [
                one
                for port in ports
                for one in endpoints_of(known, metadata["namespace"], metadata["name"], port)
            ]
            found[name] = [one.partition(":")[0] for one in listed]
    return found
