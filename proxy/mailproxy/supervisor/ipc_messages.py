# SPDX-License-Identifier: Apache-2.0
"""What the supervisor and a worker say to each other, as values.

``encode`` and ``decode`` translate to the JSON objects that a ``Channel``
carries.  Sockets that belong to a ``Configure`` travel beside it, in the order
of its ``sockets``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from mailproxy.supervisor.ipc import ChannelError
from mailproxy.supervisor.key_rotation import Keys
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Run this configuration from now on, with these listening sockets.

    Attributes:
        serial: Comes back in the answer; two messages may carry one hash.
        config: The canonical JSON text of the effective configuration.
        hash: The configuration's hash.
        generation: Of the resource it came from, 0 without one.
        loaded_at: When it was loaded, as a Unix time.
        hostname: This machine's name, the default of ``server_name``.
        names: What the host names of ``listen`` lines were resolved to.
        sockets: For each socket that comes with this message, its key.
        ticket_keys: What all workers encrypt TLS session tickets with; see ``TicketKeys``.
    """

    serial: int
    config: str = field(repr=False)
    hash: str
    generation: int
    loaded_at: float
    hostname: str
    names: Mapping[str, tuple[str, ...]]
    sockets: tuple[str, ...]
    ticket_keys: Keys = field(repr=False)


@dataclass(frozen=True, slots=True)
class Drain:
    """Go on for ``delay`` seconds, then accept no more, and leave within ``timeout`` seconds."""

    delay: float
    timeout: float


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """Encrypt and decrypt TLS session tickets with these keys from now on."""

    keys: Keys = field(repr=False)


@dataclass(frozen=True, slots=True)
class Report:
    """Send a snapshot of your metrics, with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Open your log files anew."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave at once."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The configuration of that serial number runs."""

    serial: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The configuration of that serial number does not run; the one before it still does."""

    serial: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Reported:
    """A worker's metrics; ``number`` is 0 for those that nobody asked for."""

    number: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Leaving:
    """The worker was told by somebody else to drain, and has begun to."""


@dataclass(frozen=True, slots=True)
class Drained:
    """No session is left; the worker exits."""


ToWorker = Configure | TicketKeys | Drain | Report | Reopen | Stop
ToSupervisor = Ready | Refused | Reported | Leaving | Drained


_NAMES: Final[Mapping[type, str]] = {
    Configure: "configure",
    TicketKeys: "ticket_keys",
    Drain: "drain",
    Report: "snapshot",
    Reopen: "reopen",
    Stop: "stop",
    Ready: "ready",
    Refused: "refused",
    Reported: "snapshot",
    Leaving: "leaving",
    Drained: "drained",
}


def encode(message: ToWorker | ToSupervisor) -> dict[str, object]:
    """Write a message as the JSON object for the channel."""
    fields: dict[str, object] = {}
    match message:
        case Configure():
            fields = _encode_configure(message)
        case TicketKeys(keys):
            fields = {"keys": _encode_keys(keys)}
        case Drain(delay, timeout):
            fields = {"delay": delay, "timeout": timeout}
        case Report(number):
            fields = {"number": number}
        case Reported(number, snapshot):
            fields = {"number": number, "snapshot": snapshot}
        case Ready(serial):
            fields = {"serial": serial}
        case Refused(serial, problems):
            found = [[problem.path, problem.reason] for problem in problems]
            fields = {"serial": serial, "problems": found}
    return {"type": _NAMES[type(message)], **fields}


def decode_for_worker(data: Mapping[str, object]) -> ToWorker:
    """Read what the supervisor said.

    Raises:
        ChannelError: It is none of the messages that go this way.
    """
    try:
        match data["type"]:
            case "configure":
                return _decode_configure(data)
            case "ticket_keys":
                return TicketKeys(_decode_keys(data["keys"]))
            case "drain":
                return Drain(cast(float, data["delay"]), cast(float, data["timeout"]))
            case "snapshot":
                return Report(cast(int, data["number"]))
            case "reopen":
                return Reopen()
            case "stop":
                return Stop()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ChannelError("a message from the supervisor is damaged") from error
    raise ChannelError("an unknown message from the supervisor")


def decode_for_supervisor(data: Mapping[str, object]) -> ToSupervisor:
    """Read what a worker said.

    Raises:
        ChannelError: It is none of the messages that go this way.
    """
    try:
        match data["type"]:
            case "snapshot":
                return Reported(cast(int, data["number"]), cast(Snapshot, data["snapshot"]))
            case "ready":
                return Ready(cast(int, data["serial"]))
            case "refused":
                problems = cast(list[list[str]], data["problems"])
                return Refused(cast(int, data["serial"]), tuple(Problem(path, why) for path, why in problems))
            case "leaving":
                return Leaving()
            case "drained":
                return Drained()
    except (KeyError, TypeError, ValueError) as error:
        raise ChannelError("a message from a worker is damaged") from error
    raise ChannelError("an unknown message from a worker")


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
        ticket_keys=_decode_keys(data["ticket_keys"]),
    )


def _encode_keys(keys: Keys) -> dict[str, list[str]]:
    return {str(seconds): [key.hex() for key in ring] for seconds, ring in keys.items()}


def _decode_keys(data: object) -> Keys:
    rings = cast(dict[str, list[str]], data)
    return {int(seconds): tuple(map(bytes.fromhex, ring)) for seconds, ring in dict(rings).items()}
