# SPDX-License-Identifier: Apache-2.0
"""``set_real_ip_from``: trusted peers, and the replacement of a client's address."""

from __future__ import annotations

import pytest

from mailproxy.protocols.real_ip import TrustedPeers, apply_real_ip
from mailproxy.protocols.types import Client, ProxyAddresses

PEERS = TrustedPeers(["10.0.0.0/8", "192.0.2.7", "192.0.2.130/25", "2001:db8::/32", "::1", "unix:"])


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.1", True),
        ("10.255.255.255", True),
        ("11.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("192.0.2.128", True),
        ("192.0.2.127", False),
        ("2001:db8:ffff::1", True),
        ("2001:db9::1", False),
        ("::1", True),
        ("::2", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("fe80::1%eth0", False),
        ("unix:", True),
        ("unix:/run/peer", True),
        ("", False),
        ("nonsense", False),
    ],
)
def test_peer_is_trusted_by_address_network_or_unix_socket(peer: str, trusted: bool) -> None:
    assert PEERS.trusts(peer) is trusted


def test_all_addresses_of_a_family_can_be_trusted() -> None:
    assert TrustedPeers(["0.0.0.0/0"]).trusts("::ffff:192.0.2.1")
    assert TrustedPeers(["::/0"]).trusts("2001:db8::1")
    assert not TrustedPeers(["::/0"]).trusts("::ffff:192.0.2.1")
    assert TrustedPeers(["fe80::/10"]).trusts("fe80::1%eth0")


def test_no_peer_is_trusted_without_entries() -> None:
    assert not TrustedPeers([])
    assert not TrustedPeers([]).trusts("10.0.0.1")
    assert TrustedPeers(["unix:"])
    assert not TrustedPeers(["10.0.0.0/8"]).trusts("unix:")


@pytest.mark.parametrize("entry", ["mail.example.com", "10.0.0.0/33", "unix:/run/x", "", "10.0.0"])
def test_invalid_entry_raises_value_error(entry: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        TrustedPeers([entry])


def proxied(source: bytes) -> ProxyAddresses:
    return ProxyAddresses(source, b"192.0.2.2", 56324, 25)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        (b"192.0.2.99", "192.0.2.99"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"0:0:0:0:0:ffff:102:304", "::ffff:1.2.3.4"),
    ],
)
def test_trusted_peer_replaces_address_and_port(source: bytes, address: str) -> None:
    client = Client("10.0.0.1", 1000, "10.0.0.2", 143, proxied=proxied(source))
    assert apply_real_ip(client, PEERS)
    assert (client.address, client.port) == (address, 56324)
    assert (client.local_address, client.local_port) == ("10.0.0.2", 143)


@pytest.mark.parametrize(
    ("peer", "addresses"),
    [
        ("11.0.0.1", proxied(b"192.0.2.99")),
        ("10.0.0.1", None),
        ("10.0.0.1", proxied(b"127...1")),
        ("10.0.0.1", proxied(b"")),
        ("10.0.0.1", proxied(b"\xff")),
    ],
)
def test_untrusted_or_missing_address_changes_nothing(peer: str, addresses: ProxyAddresses | None) -> None:
    client = Client(peer, 1000, proxied=addresses)
    assert not apply_real_ip(client, PEERS)
    assert (client.address, client.port) == (peer, 1000)


def test_without_entries_nothing_is_replaced() -> None:
    client = Client("10.0.0.1", 1000, proxied=proxied(b"192.0.2.99"))
    assert not apply_real_ip(client, TrustedPeers([]))
    assert client.address == "10.0.0.1"
