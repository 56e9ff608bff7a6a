# SPDX-License-Identifier: Apache-2.0
"""Messages are decoded as they were encoded, and other data is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mailproxy.supervisor import ipc_messages as m
from mailproxy.supervisor.ipc import ChannelError
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.errors import Problem

KEYS = {300: (bytes(range(80)), bytes(80)), 60: (bytes(range(1, 81)),)}
CONFIGURE = m.Configure(
    tables=("/etc/moves",),
    users=("/etc/users",),
    serial=3,
    config='{"secret": "s3cret"}',
    hash="abc",
    generation=7,
    loaded_at=1700000000.25,
    hostname="host.example.com",
    names={"mail.example.com": ("192.0.2.1", "2001:db8::1")},
    sockets=("0.0.0.0:143", "unix:/run/x"),
    ticket_keys=KEYS,
)
TO_WORKER: list[m.ToWorker] = [
    CONFIGURE,
    m.TicketKeys(KEYS),
    m.Drain(2.5, 300.0),
    m.RequestSnapshot(9),
    m.Stop(),
]
TO_SUPERVISOR: list[m.ToSupervisor] = [
    m.Applied(3),
    m.Rejected(3, (Problem("spec.servers[0]", "no"), Problem("", "nor that"))),
    m.Draining(),
    m.Drained(),
]


def over_the_wire(message: m.ToWorker | m.ToSupervisor) -> dict[str, Any]:
    carried: dict[str, Any] = json.loads(json.dumps(m.encode(message)))
    return carried


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_messages_to_a_worker_are_decoded(message: m.ToWorker) -> None:
    assert m.decode_for_worker(over_the_wire(message)) == message


@pytest.mark.parametrize("message", TO_SUPERVISOR, ids=lambda message: type(message).__name__)
def test_messages_to_the_supervisor_are_decoded(message: m.ToSupervisor) -> None:
    assert m.decode_for_supervisor(over_the_wire(message)) == message


def test_a_snapshot_arrives_with_its_number() -> None:
    metrics = WorkerMetrics()
    metrics.draining.value = 1
    match m.decode_for_supervisor(over_the_wire(m.SnapshotReport(5, metrics.snapshot()))):
        case m.SnapshotReport(number, snapshot):
            assert number == 5
            assert snapshot["number"] == 1
            assert snapshot["series"]["mailproxy_draining"] == [[[], 1]]  # type: ignore[comparison-overlap]
        case other:
            pytest.fail(f"{other} is no snapshot")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": "dance"},
        {"type": None},
        {"type": ["drain"]},
        {"type": "drain", "delay": 1},
        {"type": "configure"},
        {**m.encode(CONFIGURE), "ticket_keys": {"300": ["not hexadecimal"]}},
        {**m.encode(CONFIGURE), "names": 5, "sockets": 5},
        {"type": "ready"},
        {"type": "refused", "serial": 1, "problems": [["only a path"]]},
    ],
)
def test_other_messages_are_errors(data: dict[str, object]) -> None:
    with pytest.raises(ChannelError):
        m.decode_for_worker(data)
    with pytest.raises(ChannelError):
        m.decode_for_supervisor(data)


def test_repr_hides_configuration_and_keys() -> None:
    assert "s3cret" not in repr(CONFIGURE)
    for message in (CONFIGURE, m.TicketKeys(KEYS)):
        assert KEYS[300][0].hex() not in repr(message)
        assert repr(KEYS[300][0]) not in repr(message)
    assert "x00" not in repr(CONFIGURE)
