# SPDX-License-Identifier: Apache-2.0
"""The messages between the supervisor and a worker, as values.

``encode`` and ``decode`` translate to the JSON objects that a ``Channel``
carries.  The sockets of a ``Configure`` are sent with it, in the order of its
``sockets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from mailproxy.supervisor.ipc import ChannelError
from mailproxy.supervisor.key_rotation import Keys
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import Problem
from mailproxy_config.upstream_members import MemberList, encode_list, restore_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Run this configuration from now on, with these listening sockets.

    Attributes:
        serial: Repeated in the reply; two messages may have the same hash.
        config: The canonical JSON text of the effective configuration.
        hash: The configuration's hash.
        generation: Of the resource it came from, 0 without one.
        loaded_at: When it was loaded, as a Unix time.
        hostname: This machine's name, the default of ``server_name``.
        names: What the host names of ``listen`` lines were resolved to.
        sockets: The key of each socket that is sent with this message.
        tables: The path of each table of routes; their files follow the sockets.
        users: The path of each list of users; their files follow the tables.
        ticket_keys: The keys that all workers encrypt TLS session tickets with; see ``TicketKeys``.
    """

    serial: int
    config: str = field(repr=False)
    hash: str
    generation: int
    loaded_at: float
    hostname: str
    names: Mapping[str, tuple[str, ...]]
    sockets: tuple[str, ...]
    tables: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    ticket_keys: Keys = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop accepting after ``delay`` seconds, close all sessions within ``timeout`` seconds, and exit."""

    delay: float
    timeout: float


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """Encrypt and decrypt TLS session tickets with these keys from now on."""

    keys: Keys = field(repr=False)


@dataclass(frozen=True, slots=True)
class Members:
    """Use these lists of members of Services from now on, by group; ``None`` for a group without a list."""

    lists: Mapping[str, MemberList | None]


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """Send a snapshot of the metrics, with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Reopen the log files."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Close all sessions, and exit."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The worker runs the configuration with this serial number."""

    serial: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The worker rejected the configuration with this serial number, and runs the previous one."""

    serial: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """A worker's metrics; ``number`` is that of the request, or 0 for a regular report."""

    number: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Draining:
    """The worker drains because of a signal from another process."""


@dataclass(frozen=True, slots=True)
class Drained:
    """All sessions are closed; the worker exits."""


ToWorker = Configure | TicketKeys | Members | Drain | RequestSnapshot | ReopenLogs | Stop
ToSupervisor = Applied | Rejected | SnapshotReport | Draining | Drained


_NAMES: Final[Mapping[type, str]] = {
    Configure: "configure",
    TicketKeys: "ticket_keys",
    Members: "members",
    Drain: "drain",
    RequestSnapshot: "snapshot",
    ReopenLogs: "reopen",
    Stop: "stop",
    Applied: "ready",
    Rejected: "refused",
    SnapshotReport: "snapshot",
    Draining: "leaving",
    Drained: "drained",
}


def encode(message: ToWorker | ToSupervisor) -> dict[str, object]:
    """Return a message as the JSON object for the channel."""
    fields: dict[str, object] = {}
    match message:
        case Configure() | TicketKeys() | Members():
            fields = _encode_settings(message)
        case Drain(delay, timeout):
            fields = {"delay": delay, "timeout": timeout}
        case RequestSnapshot(number):
            fields = {"number": number}
        case SnapshotReport(number, snapshot):
            fields = {"number": number, "snapshot": snapshot}
        case Applied(serial):
            fields = {"serial": serial}
        case Rejected(serial, problems):
            found = [[problem.path, problem.reason] for problem in problems]
            fields = {"serial": serial, "problems": found}
    return {"type": _NAMES[type(message)], **fields}


def decode_for_worker(data: Mapping[str, object]) -> ToWorker:
    """Decode a message from the supervisor.

    Raises:
        ChannelError: It is not a valid message to a worker.
    """
    try:
        match data["type"]:
            case "configure" | "ticket_keys" | "members":
                return _decode_settings(data)
            case "drain":
                return Drain(cast(float, data["delay"]), cast(float, data["timeout"]))
            case "snapshot":
                return RequestSnapshot(cast(int, data["number"]))
            case "reopen":
                return ReopenLogs()
            case "stop":
                return Stop()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ChannelError("a message from the supervisor is damaged") from error
    raise ChannelError("an unknown message from the supervisor")


def decode_for_supervisor(data: Mapping[str, object]) -> ToSupervisor:
    """Decode a message from a worker.

    Raises:
        ChannelError: It is not a valid message to the supervisor.
    """
    try:
        match data["type"]:
            case "snapshot":
                return SnapshotReport(cast(int, data["number"]), cast(Snapshot, data["snapshot"]))
            case "ready":
                return Applied(cast(int, data["serial"]))
            case "refused":
                problems = cast(list[list[str]], data["problems"])
                return Rejected(
                    cast(int, data["serial"]), tuple(Problem(path, why) for path, why in problems)
                )
            case "leaving":
                return Draining()
            case "drained":
                return Drained()
    except (KeyError, TypeError, ValueError) as error:
        raise ChannelError("a message from a worker is damaged") from error
    raise ChannelError("an unknown message from a worker")


def _encode_settings(message: Configure | TicketKeys | Members) -> dict[str, object]:
    match message:
        case Configure():
            return _encode_configure(message)
        case TicketKeys(keys):
            return {"keys": _encode_keys(keys)}
        case Members(lists):
            encoded = {name: None if each is None else encode_list(each) for name, each in lists.items()}
            return {"lists": encoded}


def _decode_settings(data: Mapping[str, object]) -> Configure | TicketKeys | Members:
    if data["type"] == "configure":
        return _decode_configure(data)
    if data["type"] == "ticket_keys":
        return TicketKeys(_decode_keys(data["keys"]))
    lists = cast(dict[str, object], data["lists"])
    return Members({name: None if each is None else restore_list(each) for name, each in lists.items()})


def _encode_configure(message: Configure) -> dict[str, object]:
    return {
        "serial": message.serial,
        "config": message.config,
        "hash": message.hash,
        "generation": message.generation,
        "loaded_at": message.loaded_at,
        "hostname": message.hostname,
        "names": {name: list(addresses) for name, addresses in message.names.items()},
        "sockets": list(message.sockets),
        "tables": list(message.tables),
        "users": list(message.users),
        "ticket_keys": _encode_keys(message.ticket_keys),
    }


def _decode_configure(data: Mapping[str, object]) -> Configure:
    names = cast(dict[str, list[str]], data["names"])
    return Configure(
        serial=cast(int, data["serial"]),
        config=cast(str, data["config"]),
        hash=cast(str, data["hash"]),
        generation=cast(int, data["generation"]),
        loaded_at=cast(float, data["loaded_at"]),
        hostname=cast(str, data["hostname"]),
        names={name: tuple(addresses) for name, addresses in dict(names).items()},
        sockets=tuple(cast(list[str], data["sockets"])),
        tables=tuple(cast(list[str], data["tables"])),
        users=tuple(cast(list[str], data["users"])),
        ticket_keys=_decode_keys(data["ticket_keys"]),
    )


def _encode_keys(keys: Keys) -> dict[str, list[str]]:
    return {str(seconds): [key.hex() for key in ring] for seconds, ring in keys.items()}


def _decode_keys(data: object) -> Keys:
    rings = cast(dict[str, list[str]], data)
    return {int(seconds): tuple(map(bytes.fromhex, ring)) for seconds, ring in dict(rings).items()}
