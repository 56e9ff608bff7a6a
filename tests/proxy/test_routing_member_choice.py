# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mailproxy.enums import GroupLogin
from mailproxy.protocols.types import UpstreamServer
from mailproxy.routing.group_choice import GroupChoice
from mailproxy.routing.member_choice import MemberChoice
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.upstream_groups import (
    GroupFallback,
    GroupHash,
    GroupMembers,
    GroupServer,
    UpstreamGroup,
)
from mailproxy_config.upstream_members import Member, MemberList, MemberState

KEYS = [b"user%d@example.org" % number for number in range(3_000)]
NAME = GroupServer(address="dovecot.mail.svc", host="dovecot.mail.svc")


def member(number: int, state: MemberState = MemberState.READY, **fields: Any) -> Member:
    values = {"addresses": (f"192.0.2.{number}",), "ports": {"143": 10143}, **fields}
    return Member(id=f"dovecot-{number}", state=state, **values)


class Chosen:
    """A choice with the lists that it reads."""

    def __init__(
        self,
        *members: Member,
        hashed: bool = False,
        fallback: GroupFallback = GroupFallback.NONE,
        tries: int = 1,
        file: str = "/members.json",
        networks: Sequence[str] = (),
    ) -> None:
        self.lists: dict[str, MemberList] = {}
        if members:
            self.replace(*members)
        self.counters = WorkerMetrics().group_logins("dovecot")
        group = UpstreamGroup(
            name="dovecot",
            servers=(NAME,),
            members=GroupMembers(service="mail/dovecot", fallback=fallback, file=file),
            hash=GroupHash.USER if hashed else GroupHash.NONE,
        )
        assert group.members is not None
        self.choice = MemberChoice(
            group,
            group.members,
            port=143,
            tries=tries,
            networks=networks,
            lists=self.lists,
            counters=self.counters,
        )

    def replace(self, *members: Member, service: str = "mail/dovecot") -> None:
        self.lists["dovecot"] = MemberList(service=service, members=members)

    def hosts(self, key: bytes = b"bob@example.org") -> list[str]:
        return [server.host for server in self.choice.servers(key)]

    def counts(self) -> dict[str, int]:
        return {str(result): cell.value for result, cell in self.counters.items() if cell.value}


def test_ready_members_get_logins_in_turn_and_others_none() -> None:
    found = Chosen(
        member(1), member(2), member(3, MemberState.DRAINING), member(4, MemberState.GONE), member(5)
    )
    counts = Counter(found.hosts()[0] for _ in range(9))
    assert counts == {"192.0.2.1": 3, "192.0.2.2": 3, "192.0.2.5": 3}
    assert {server.port for server in found.choice.servers(b"bob")} == {10143}
    assert found.counts()["owner"] >= 9


def test_login_may_be_sent_to_as_many_members_as_tries() -> None:
    found = Chosen(*(member(number) for number in range(1, 6)), tries=3)
    for _ in range(5):
        assert len(set(found.hosts())) == len(found.hosts()) == 3


def test_second_family_of_a_member_is_tried_last() -> None:
    both = {"addresses": ("192.0.2.1", "2001:db8::1")}
    assert Chosen(member(1, **both)).hosts() == ["192.0.2.1"]
    assert Chosen(member(1, **both), tries=2).hosts() == ["192.0.2.1", "2001:db8::1"]
    found = Chosen(member(1, **both), member(2), tries=3).hosts()
    assert sorted(found[:2]) == ["192.0.2.1", "192.0.2.2"]
    assert found[2] == "2001:db8::1"


def test_hash_is_that_of_servers_with_the_identifiers_as_addresses() -> None:
    found = Chosen(*(member(number) for number in range(5)), hashed=True)
    servers = tuple(GroupServer(address=f"dovecot-{number}", host=f"192.0.2.{number}") for number in range(5))
    named = GroupChoice(UpstreamGroup(name="dovecot", servers=servers, hash=GroupHash.USER), 143, 1)
    for key in KEYS[:300]:
        assert found.hosts(key) == [named.servers(key)[0].host]


def test_members_from_one_to_five_to_four_take_equal_parts_and_move_no_others() -> None:
    found = Chosen(member(0), hashed=True)
    owners: dict[int, list[str]] = {}
    for count in (1, 5, 4):
        found.replace(*(member(number) for number in range(count)))
        owners[count] = [found.hosts(key)[0] for key in KEYS]
        assert all(abs(each / len(KEYS) - 1 / count) < 0.02 for each in Counter(owners[count]).values())
    moved = [old for old, new in zip(owners[5], owners[4], strict=True) if old != new]
    assert set(moved) == {"192.0.2.4"}
    assert abs(len(moved) / len(KEYS) - 1 / 5) < 0.02


def test_changed_addresses_move_nobody() -> None:
    found = Chosen(*(member(number) for number in range(5)), hashed=True)
    before = [found.hosts(key)[0] for key in KEYS[:300]]
    found.replace(*(member(number, addresses=(f"198.51.100.{number}",)) for number in range(5)))
    after = [found.hosts(key)[0] for key in KEYS[:300]]
    assert [host.rpartition(".")[2] for host in after] == [host.rpartition(".")[2] for host in before]
    assert all(host.startswith("198.51.100.") for host in after)


def test_logins_of_a_member_that_is_not_ready_get_no_other() -> None:
    states = (MemberState.DRAINING, MemberState.GONE)
    for state in states:
        found = Chosen(*(member(number) for number in range(5)), hashed=True, tries=3)
        owner = int(found.hosts()[0].rpartition(".")[2])
        others = [key for key in KEYS[:300] if found.hosts(key)[0] != f"192.0.2.{owner}"]
        before = [found.hosts(key) for key in others]
        found.replace(*(member(each, state if each == owner else MemberState.READY) for each in range(5)))
        assert found.hosts() == []
        assert [found.hosts(key) for key in others] == before
        error = found.choice.no_server()
        assert 'upstream "dovecot": the member of this login is not ready (4 of 5)' in str(error)
        assert found.counts()["unavailable"] == 1


def test_fallback_sends_logins_of_a_member_that_is_not_ready_to_the_next_by_score() -> None:
    found = Chosen(
        *(member(number) for number in range(5)), hashed=True, fallback=GroupFallback.NEXT, tries=16
    )
    order = found.hosts()
    assert len(order) == 5
    gone = int(order[0].rpartition(".")[2])
    found.replace(
        *(member(each, MemberState.GONE if each == gone else MemberState.READY) for each in range(5))
    )
    assert found.hosts() == order[1:]
    assert found.counts() == {"owner": 1, "fallback": 1}
    found.replace(*(member(each) for each in range(5) if each != gone))
    assert found.hosts() == order[1:]  # a member that is removed has the same effect


def test_service_without_ready_member_gets_no_login() -> None:
    for hashed in (False, True):
        found = Chosen(member(1, MemberState.GONE), hashed=hashed, fallback=GroupFallback.NEXT)
        assert found.hosts() == []
        assert "no member is ready (0 of 1)" in str(found.choice.no_server())
        found.replace()
        assert found.hosts() == []


def test_name_of_service_is_used_without_a_list_but_not_with_hash() -> None:
    found = Chosen()
    assert found.choice.servers(b"bob") == (UpstreamServer("dovecot.mail.svc", 143),)
    found.replace(member(1))
    assert found.hosts() == ["192.0.2.1"]
    found.replace(member(1), service="mail/another")
    assert found.hosts() == ["dovecot.mail.svc"]
    del found.lists["dovecot"]
    assert found.hosts() == ["dovecot.mail.svc"]
    assert Chosen(hashed=True).hosts() == []
    assert Chosen(hashed=True, file="").hosts() == ["dovecot.mail.svc"]


def test_member_without_the_port_gets_no_login() -> None:
    found = Chosen(member(1, ports={"993": 993}), member(2))
    assert {found.hosts()[0] for _ in range(4)} == {"192.0.2.2"}


def test_loopback_and_link_local_members_get_logins_only_where_permitted() -> None:
    addresses = (
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0.0.0.0",
        "::ffff:224.0.0.1",
    )
    bad = [member(number, addresses=(address,)) for number, address in enumerate(addresses)]
    assert Chosen(*bad).hosts() == []
    found = Chosen(*bad, networks=["127.0.0.0/8"])
    assert {found.hosts()[0] for _ in range(5)} == {"127.0.0.1", "::ffff:127.0.0.1"}


def test_login_results_are_counted_once() -> None:
    found = Chosen(member(1), hashed=True)
    for _ in range(3):
        found.hosts()
    assert found.counters[GroupLogin.OWNER].value == 3
