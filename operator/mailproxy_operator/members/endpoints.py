# SPDX-License-Identifier: Apache-2.0
"""Reads EndpointSlices: one endpoint for each member of a Service, whatever the number of slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from mailproxy_config.upstream_members import is_identifier
from mailproxy_operator.api.kinds import Manifest

_FAMILIES = ("IPv4", "IPv6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A member of a Service.

    Attributes:
        id: Its host name (the name of the pod of a StatefulSet), or the uid of its pod.  An endpoint that
            has neither, or no valid one, was written by hand: its address, which only a person changes.
        uid: The uid of its pod; empty without one.
        addresses: One address of each family, the first family of the Service first.
        ports: The numbers of its TCP ports by their names in the Service.
        is_ready: Whether it gets logins.
        is_terminating: Whether its pod is being deleted.
    """

    id: str
    uid: str
    addresses: tuple[str, ...]
    ports: Mapping[str, int] = field(default_factory=dict)
    is_ready: bool = True
    is_terminating: bool = False

    @property
    def rank(self) -> tuple[bool, bool]:
        """Order by usefulness: the largest is used where an endpoint is in several slices."""
        return self.is_ready, not self.is_terminating


def endpoints(slices: Iterable[Manifest], families: Iterable[str] = ()) -> tuple[Endpoint, ...]:
    """Return the endpoints of a Service, sorted by identifier.

    An endpoint may be in several slices: in one of each family, and in two of a family while the controller
    moves it; the ready one counts.  If two pods have one host name, that is a pod and the one that replaces
    it; the ready one counts.

    Args:
        slices: All EndpointSlices of the Service.
        families: ``spec.ipFamilies`` of the Service.
    """
    by_id: dict[str, dict[str, list[Endpoint]]] = {}
    for one in slices:
        for found in _of_slice(one):
            by_id.setdefault(found.id, {}).setdefault(found.uid, []).append(found)
    wanted = [*families, *_FAMILIES]
    merged = (
        max((_merged(same, wanted) for same in pods.values()), key=lambda each: (each.rank, each.uid))
        for pods in by_id.values()
    )
    return tuple(sorted(merged, key=lambda each: each.id))


def _of_slice(one: Manifest) -> Iterator[Endpoint]:
    if one.get("addressType") not in _FAMILIES:
        return  # FQDN: nothing but people writes such slices
    ports = {
        str(port.get("name") or ""): int(port["port"])
        for port in one.get("ports") or ()
        if port.get("port") and port.get("protocol", "TCP") == "TCP"
    }
    for each in one.get("endpoints") or ():
        addresses = each.get("addresses") or ()
        if addresses and (address := _address(addresses[0])):
            yield _endpoint(each, address, ports)


def _address(text: object) -> str:
    try:
        return "" if "%" in str(text) else str(ip_address(str(text)))  # a zone is of one node
    except ValueError:
        return ""


def _endpoint(each: Mapping[str, Any], address: str, ports: Mapping[str, int]) -> Endpoint:
    conditions = each.get("conditions") or {}
    uid = str((each.get("targetRef") or {}).get("uid") or "")
    names = (str(each.get("hostname") or ""), uid)
    is_terminating = conditions.get("terminating") is True
    # With publishNotReadyAddresses, every endpoint is "ready", and "serving" has the state of the pod.
    is_ready = conditions.get("ready") is not False and conditions.get("serving") is not False
    return Endpoint(
        id=next(filter(is_identifier, names), address),
        uid=uid,
        addresses=(address,),
        ports=ports,
        is_ready=is_ready and not is_terminating,
        is_terminating=is_terminating,
    )


def _merged(same: list[Endpoint], families: list[str]) -> Endpoint:
    """Merge what slices have about one pod: the best entry of each family."""
    best = max(same, key=lambda each: each.rank)
    by_family: dict[str, Endpoint] = {}
    for each in same:
        family = f"IPv{ip_address(each.addresses[0]).version}"
        if family not in by_family or by_family[family].rank < each.rank:
            by_family[family] = each
    ordered = sorted(by_family, key=families.index)
    return replace(best, addresses=tuple(by_family[family].addresses[0] for family in ordered))
