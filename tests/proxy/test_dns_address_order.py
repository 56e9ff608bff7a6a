# SPDX-License-Identifier: Apache-2.0
"""The order of a name's addresses: RFC 6724, families in turn."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.dns.address_order import IpAddress, ordered, source_of


def order(sources: dict[str, str | None]) -> list[str]:
    """Sort destinations, given with the source address that the kernel would use."""
    known = {ip_address(address): source for address, source in sources.items()}

    def find_source(address: IpAddress) -> IpAddress | None:
        source = known[address]
        return ip_address(source) if source else None

    return [str(found.address) for found in ordered(list(known), find_source)]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        # The examples of RFC 6724 section 10.2 that depend on rules 1, 2, 5, 6 and 8.
        ({"2001:db8::1": "2001:db8::2", "192.0.2.1": "169.254.13.78"}, ["2001:db8::1", "192.0.2.1"]),
        ({"2001:db8::1": "fe80::1", "192.0.2.1": "192.0.2.7"}, ["192.0.2.1", "2001:db8::1"]),
        ({"2001:db8::1": "2001:db8::2", "10.1.2.3": "10.1.2.4"}, ["2001:db8::1", "10.1.2.3"]),
        ({"2001:db8::1": "2001:db8::2", "fe80::1": "fe80::2"}, ["fe80::1", "2001:db8::1"]),
        ({"2002:c633::1": "2002:c633::2", "2001:db8::1": "2002:c633::2"}, ["2002:c633::1", "2001:db8::1"]),
        # rule 1: no IPv6 in this pod, no IPv4 in this pod
        ({"2001:db8::1": None, "192.0.2.1": "192.0.2.9"}, ["192.0.2.1", "2001:db8::1"]),
        ({"192.0.2.1": None, "2001:db8::1": "2001:db8::9"}, ["2001:db8::1", "192.0.2.1"]),
        ({"192.0.2.1": None, "192.0.2.2": None}, ["192.0.2.1", "192.0.2.2"]),
        # rule 6: unique local addresses have a lower precedence than IPv4
        ({"fd00::1": "fd00::9", "192.0.2.1": "192.0.2.9"}, ["192.0.2.1", "fd00::1"]),
        # rule 10: otherwise the order of the reply
        ({"192.0.2.2": "192.0.2.9", "192.0.2.1": "192.0.2.9"}, ["192.0.2.2", "192.0.2.1"]),
        ({}, []),
    ],
)  # fmt: skip
def test_order_is_that_of_rfc_6724(sources: dict[str, str | None], expected: list[str]) -> None:
    assert order(sources) == expected


def test_families_are_tried_in_turn() -> None:
    sources: dict[str, str | None] = {f"192.0.2.{number}": "192.0.2.9" for number in (1, 2)}
    sources |= {f"2001:db8::{number}": "2001:db8::9" for number in (1, 2, 3, 4)}
    expected = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3", "2001:db8::4"]
    assert order(sources) == expected


@given(
    st.lists(st.ip_addresses(), max_size=12, unique=True),
    st.lists(st.none() | st.ip_addresses(), min_size=12),
)
def test_every_address_is_kept(addresses: list[IpAddress], sources: list[IpAddress | None]) -> None:
    known = dict(zip(addresses, sources, strict=False))
    found = [each.address for each in ordered(addresses, known.__getitem__)]
    assert sorted(map(str, found)) == sorted(map(str, addresses))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_an_own_address(address: str) -> None:
    assert ordered([ip_address(address)])[0].is_own


@pytest.mark.parametrize("destination", ["192.0.2.1", "2001:db8::1", "127.0.0.1"])
def test_source_of_an_own_address_is_that_address(destination: str) -> None:
    own = source_of(ip_address(destination))
    if own is not None:  # there is a route to this family
        assert source_of(own) == own
        assert ordered([own])[0].is_own


def test_address_without_a_route_has_no_source() -> None:
    assert source_of(ip_address("255.255.255.255")) is None


def test_address_of_another_machine_is_not_own() -> None:
    assert not ordered([ip_address("192.0.2.1")])[0].is_own
