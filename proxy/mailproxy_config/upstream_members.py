# SPDX-License-Identifier: Apache-2.0
"""The members of the Services that groups of upstreams are: the document that the operator hands to proxies.

It is a file of its own, beside the configuration: when members change, no server gets another configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final

MEMBERS_KEY: Final = "members.json"
"""The name of the file."""
MAX_MEMBERS: Final = 1000
"""Members of one group."""
MAX_DOCUMENT_BYTES: Final = 1_000_000
"""The largest document: a ConfigMap has at most 1048576 bytes, its names included."""

_MAX_GROUPS: Final = 64
_MAX_ADDRESSES: Final = 4
_MAX_PORTS: Final = 16
_MAX_PORT: Final = 65535
_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SERVICE: Final = re.compile(r"[a-z0-9][-a-z0-9]{0,62}/[a-z0-9][-a-z0-9]{0,62}")
_ID: Final = re.compile(r"[A-Za-z0-9:][A-Za-z0-9:._-]{0,252}")
_PORT_KEY: Final = re.compile(r"[a-z0-9][-a-z0-9]{0,14}")


class MemberState(StrEnum):
    """Whether a member gets logins.

    A member that is ``DRAINING`` is a pod that terminates; one that is ``GONE`` has vanished or is not
    ready, and is kept for ``memberGrace``.
    """

    READY = "Ready"
    DRAINING = "Draining"
    GONE = "Gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a group.

    Attributes:
        id: What ``hash`` chooses it by: the host name of the endpoint, or the uid of the pod.  It stays when
            the address changes.  Only endpoints that were written by hand may have their address here.
        addresses: IP addresses of both families, the preferred one first.
        ports: Its ports, by the port of the Service (a number or a name).
        state: Whether it gets logins.
        until: Of a member that is ``GONE``: when it is removed, as a Unix time in seconds; 0 otherwise.
    """

    id: str
    addresses: tuple[str, ...]
    ports: Mapping[str, int] = field(default_factory=dict)
    state: MemberState = MemberState.READY
    until: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberList:
    """The members of one group, sorted by identifier; ``service`` is ``NAMESPACE/NAME``."""

    service: str
    members: tuple[Member, ...] = ()

    def count(self, state: MemberState) -> int:
        """Return the number of members in a state."""
        return sum(member.state is state for member in self.members)


@dataclass(frozen=True, slots=True)
class MemberDocument:
    """All lists of one proxy, by the name of the group; each change has the next generation."""

    generation: int = 0
    upstreams: Mapping[str, MemberList] = field(default_factory=dict)


class InvalidMembers(ValueError):
    """The document is not valid; the message has the path of the error."""


def is_identifier(text: str) -> bool:
    """Return whether a member may have this identifier."""
    return _ID.fullmatch(text) is not None


def dump_members(document: MemberDocument) -> str:
    """Return the text of a document; equal documents have equal texts."""
    return json.dumps(
        {
            "generation": document.generation,
            "upstreams": {name: encode_list(found) for name, found in document.upstreams.items()},
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def encode_list(found: MemberList) -> dict[str, Any]:
    """Return a list as JSON."""
    return {"service": found.service, "members": [_encode(member) for member in found.members]}


def _encode(member: Member) -> dict[str, Any]:
    written: dict[str, Any] = {
        "id": member.id,
        "addresses": list(member.addresses),
        "ports": dict(member.ports),
        "state": str(member.state),
    }
    return {**written, "until": member.until} if member.until else written


def parse_members(text: bytes) -> MemberDocument:
    """Read a document.

    Raises:
        InvalidMembers: It is not complete and valid.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InvalidMembers(f"has {len(text)} bytes, more than {MAX_DOCUMENT_BYTES}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMembers(f"is not JSON: {str(error)[:100]}") from None
    fields = _object(document, "", required={"generation", "upstreams"})
    upstreams = fields["upstreams"]
    if not isinstance(upstreams, dict) or len(upstreams) > _MAX_GROUPS:
        raise InvalidMembers(f"upstreams: must be an object with at most {_MAX_GROUPS} names")
    return MemberDocument(
        _number(fields["generation"], "generation", maximum=2**53),
        {_text(name, "upstreams", _GROUP): _decode_list(value, name) for name, value in upstreams.items()},
    )


def _decode_list(value: object, group: str) -> MemberList:
    path = f"upstreams.{group}"
    fields = _object(value, path, required={"service", "members"})
    members = fields["members"]
    if not isinstance(members, list) or len(members) > MAX_MEMBERS:
        raise InvalidMembers(f"{path}.members: must be a list with at most {MAX_MEMBERS} items")
    read = tuple(_decode(each, f"{path}.members[{index}]") for index, each in enumerate(members))
    if len({member.id for member in read}) < len(read):
        raise InvalidMembers(f"{path}.members: two have the same id")
    return MemberList(service=_text(fields["service"], f"{path}.service", _SERVICE), members=read)


def restore_list(value: Any) -> MemberList:  # noqa: ANN401 - JSON
    """Return the list that ``encode_list`` has encoded; from a process of this proxy, so it is not checked.

    Raises:
        KeyError, TypeError, ValueError: It is not such a list.
    """
    members = tuple(
        Member(
            id=each["id"],
            addresses=tuple(each["addresses"]),
            ports=each["ports"],
            state=MemberState(each["state"]),
            until=each.get("until", 0),
        )
        for each in value["members"]
    )
    return MemberList(service=value["service"], members=members)


def _decode(value: object, path: str) -> Member:
    fields = _object(value, path, required={"id", "addresses", "ports", "state"}, optional={"until"})
    addresses, ports = fields["addresses"], fields["ports"]
    if not isinstance(addresses, list) or not 1 <= len(addresses) <= _MAX_ADDRESSES:
        raise InvalidMembers(f"{path}.addresses: must be a list with 1 to {_MAX_ADDRESSES} items")
    if not isinstance(ports, dict) or len(ports) > _MAX_PORTS:
        raise InvalidMembers(f"{path}.ports: must be an object with at most {_MAX_PORTS} names")
    if fields["state"] not in tuple(map(str, MemberState)):
        raise InvalidMembers(f"{path}.state: must be one of {', '.join(MemberState)}")
    return Member(
        id=_text(fields["id"], f"{path}.id", _ID),
        addresses=tuple(_address(each, f"{path}.addresses") for each in addresses),
        ports={
            _text(name, f"{path}.ports", _PORT_KEY): _number(
                port, f"{path}.ports.{name}", minimum=1, maximum=_MAX_PORT
            )
            for name, port in ports.items()
        },
        state=MemberState(fields["state"]),
        until=_number(fields.get("until", 0), f"{path}.until", maximum=2**53),
    )


def _object(
    value: object, path: str, *, required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> dict[str, Any]:
    where = path or "document"
    if not isinstance(value, dict):
        raise InvalidMembers(f"{where}: must be an object")
    if not required <= value.keys() <= required | optional:
        raise InvalidMembers(f"{where}: must have {', '.join(sorted(required))}, and nothing else")
    return value


def _text(value: object, path: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidMembers(f"{path}: {str(value)[:80]!r} is not a valid name")
    return value


def _number(value: object, path: str, *, minimum: int = 0, maximum: int) -> int:
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidMembers(f"{path}: must be a whole number from {minimum} to {maximum}")
    return value


def _address(value: object, path: str) -> str:
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        return str(ip_address(value))
    except ValueError:
        raise InvalidMembers(f"{path}: {str(value)[:80]!r} is not an IP address") from None
