# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from mailproxy_config.upstream_members import (
    MAX_DOCUMENT_BYTES,
    MAX_MEMBERS,
    InvalidMembers,
    Member,
    MemberDocument,
    MemberList,
    MemberState,
    dump_members,
    parse_members,
)

MEMBERS = MemberList(
    service="mail/dovecot",
    members=(
        Member(id="dovecot-0", addresses=("192.0.2.1", "2001:db8::1"), ports={"143": 10143, "imap": 10143}),
        Member(id="dovecot-1", addresses=("192.0.2.2",), ports={"143": 10143}, state=MemberState.DRAINING),
        Member(
            id="dovecot-2", addresses=("192.0.2.3",), ports={}, state=MemberState.GONE, until=1_800_000_000
        ),
    ),
)


def document(**changes: Any) -> dict[str, Any]:
    """A valid document, with other values of its first member."""
    member = {"id": "a", "addresses": ["192.0.2.1"], "ports": {"143": 143}, "state": "Ready", **changes}
    return {"generation": 1, "upstreams": {"dovecot": {"service": "mail/dovecot", "members": [member]}}}


def test_document_is_read_as_it_was_written() -> None:
    written = MemberDocument(7, {"dovecot": MEMBERS, "empty": MemberList(service="mail/other")})
    assert parse_members(dump_members(written).encode()) == written
    assert MEMBERS.count(MemberState.READY) == MEMBERS.count(MemberState.GONE) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a b"}, "members[0].id: 'a b' is not a valid name"),
        ({"id": 1}, "members[0].id: '1' is not a valid name"),
        ({"addresses": []}, "members[0].addresses: must be a list with 1 to 4 items"),
        ({"addresses": ["dovecot"]}, "members[0].addresses: 'dovecot' is not an IP address"),
        ({"addresses": ["fe80::1%eth0"]}, "is not an IP address"),
        ({"addresses": [16843009]}, "is not an IP address"),
        ({"ports": {"143": 0}}, "members[0].ports.143: must be a whole number from 1 to 65535"),
        ({"ports": {"143": True}}, "members[0].ports.143: must be a whole number from 1 to 65535"),
        ({"ports": {"1 43": 143}}, "members[0].ports: '1 43' is not a valid name"),
        ({"ports": []}, "members[0].ports: must be an object with at most 16 names"),
        ({"state": "ready"}, "members[0].state: must be one of Ready, Draining, Gone"),
        ({"state": []}, "members[0].state: must be one of Ready, Draining, Gone"),
        ({"until": -1}, "members[0].until: must be a whole number"),
        ({"weight": 2}, "members[0]: must have addresses, id, ports, state, and nothing else"),
    ],
)
def test_invalid_member_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidMembers) as error:
        parse_members(json.dumps(document(**changes)).encode())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "document: must be an object"),
        (b'{"generation":1}', "document: must have generation, upstreams, and nothing else"),
        (b'{"generation":1.5,"upstreams":{}}', "generation: must be a whole number"),
        (b'{"generation":1,"upstreams":{"a b":{}}}', "'a b' is not a valid name"),
        (b'{"generation":1,"upstreams":{"a":{"service":"x","members":[]}}}', "upstreams.a.service"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "more than 1000000"),
    ],
)
def test_invalid_document_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidMembers, match=message):
        parse_members(text)


def test_duplicates_and_too_many_members_are_refused() -> None:
    found = document()
    [member] = found["upstreams"]["dovecot"]["members"]
    found["upstreams"]["dovecot"]["members"] = [member, member]
    with pytest.raises(InvalidMembers, match="two have the same id"):
        parse_members(json.dumps(found).encode())
    many = [{**member, "id": f"a{number}"} for number in range(MAX_MEMBERS + 1)]
    found["upstreams"]["dovecot"]["members"] = many[:-1]
    assert len(parse_members(json.dumps(found).encode()).upstreams["dovecot"].members) == MAX_MEMBERS
    found["upstreams"]["dovecot"]["members"] = many
    with pytest.raises(InvalidMembers, match="at most 1000 items"):
        parse_members(json.dumps(found).encode())
