# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailproxy.protocols.types import UpstreamServer
from mailproxy.routing.group_choice import GroupChoice, rendezvous_score
from mailproxy_config.model import Protocol, ProxySsl
from mailproxy_config.upstream_groups import GroupHash, GroupServer, UpstreamGroup, default_port

PAGE = Path(__file__).parents[2] / "docs/routes.md"
VECTOR = re.compile(
    r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \| `([0-9a-f]{16})` \| ([0-9]+) \| ([0-9.]+) \|$", re.M
)
VECTORS = VECTOR.findall(PAGE.read_text())
KEYS = [b"user%d@example.org" % number for number in range(5_000)]


def group(servers: Sequence[GroupServer], *, hashed: bool = False) -> UpstreamGroup:
    kind = GroupHash.USER if hashed else GroupHash.NONE
    return UpstreamGroup(name="dovecot", servers=tuple(servers), hash=kind)


def member(number: int, *, weight: int = 1, backup: bool = False) -> GroupServer:
    host = f"dovecot-{number}"
    return GroupServer(address=host, host=host, weight=weight, backup=backup)


def owners(count: int) -> list[str]:
    """The server of each of ``KEYS`` in a group of so many."""
    choice = GroupChoice(group([member(number) for number in range(count)], hashed=True), 143, 1)
    return [choice.servers(key)[0].host for key in KEYS]


def test_page_has_ten_vectors() -> None:
    assert len(VECTORS) == 10


@pytest.mark.parametrize(("name", "key", "server", "digest", "weight", "score"), VECTORS)
def test_score_is_that_of_published_vector(
    name: str, key: str, server: str, digest: str, weight: str, score: str
) -> None:
    found = rendezvous_score(name.encode(), key.encode(), server.encode(), int(weight))
    assert f"{found:.12g}" == score
    assert found == -int(weight) / math.log((int(digest, 16) + 0.5) / 2**64)


def test_fifth_server_takes_its_part_and_moves_nobody_else() -> None:
    one, four, five = owners(1), owners(4), owners(5)
    assert set(one) == {"dovecot-0"}
    for counts, share in ((Counter(four), 1 / 4), (Counter(five), 1 / 5)):
        assert all(abs(count / len(KEYS) - share) < 0.02 for count in counts.values())
    moved = [new for old, new in zip(four, five, strict=True) if old != new]
    assert set(moved) == {"dovecot-4"}
    assert abs(len(moved) / len(KEYS) - 1 / 5) < 0.02


def test_hash_follows_weights() -> None:
    servers = [member(0, weight=3), member(1)]
    choice = GroupChoice(group(servers, hashed=True), 143, 1)
    counts = Counter(choice.servers(key)[0].host for key in KEYS)
    assert abs(counts["dovecot-0"] / len(KEYS) - 3 / 4) < 0.02


def test_round_robin_follows_weights() -> None:
    choice = GroupChoice(group([member(0, weight=3), member(1), member(2, backup=True)]), 143, 1)
    found = [choice.servers(b"bob")[0].host for _ in range(8)]
    assert Counter(found) == {"dovecot-0": 6, "dovecot-1": 2}
    assert found[:4] != ["dovecot-0"] * 3 + ["dovecot-1"]  # smooth: not three in a row first


@pytest.mark.parametrize("hashed", [False, True])
def test_backups_are_tried_last(hashed: bool) -> None:
    servers = [member(0, backup=True), member(1), member(2), member(3, backup=True)]
    choice = GroupChoice(group(servers, hashed=hashed), 143, 16)
    for _ in range(3):
        found = [server.host for server in choice.servers(b"bob")]
        assert set(found[:2]) == {"dovecot-1", "dovecot-2"}
        assert set(found[2:]) == {"dovecot-0", "dovecot-3"}


def test_not_more_servers_than_tries() -> None:
    choice = GroupChoice(group([member(number) for number in range(5)]), 143, 3)
    assert len(set(choice.servers(b"bob"))) == 3


def test_server_without_port_has_that_of_protocol() -> None:
    socket = GroupServer(address="unix:/run/s", host="unix:/run/s")
    port = default_port(Protocol.SMTP, ProxySsl.STARTTLS)
    choice = GroupChoice(group([member(0), socket]), port, 2)
    assert set(choice.servers(b"bob")) == {UpstreamServer("dovecot-0", 587), UpstreamServer("unix:/run/s", 0)}
    assert default_port(Protocol.IMAP, ProxySsl.ENABLED) == 993
