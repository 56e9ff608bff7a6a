# SPDX-License-Identifier: Apache-2.0
"""Listeners become ports: one per number, sorted, named after their protocol."""

from __future__ import annotations

import pytest

from mailproxy_config.model import ListenConfig
from mailproxy_operator.render.ports import Listener, Port, ports, privileged


def listener(
    protocol: str, port: int | None, address: str = "*", *, server: str = "", offset: int = 0
) -> Listener:
    listen = ListenConfig(address=address, port=port)
    return Listener(server or protocol, protocol, listen, None if port is None else port + offset)


def test_ports_are_sorted_by_number_and_collapse_addresses() -> None:
    found = [
        listener("imap", 993),
        listener("imap", 143, "[::]"),
        listener("imap", 143),
        listener("smtp", 25),
        listener("imap", None, "unix:/run/mailproxy/imap.sock"),
    ]
    assert ports(found) == (
        Port(25, 25, "smtp-25", "smtp"),
        Port(143, 143, "imap-143", "imap"),
        Port(993, 993, "imap-993", "imap"),
    )


def test_high_port_has_name_of_client_port() -> None:
    assert ports([listener("imap", 143, offset=10_000)]) == (Port(143, 10_143, "imap-143", "imap"),)


def test_two_protocols_on_one_port_number_use_name_of_first() -> None:
    found = [listener("imap", 4000, "192.0.2.1"), listener("pop3", 4000, "192.0.2.2")]
    assert [port.name for port in ports(found)] == ["imap-4000"]


def test_port_names_fit_length_limit() -> None:
    assert max(len(port.name) for port in ports([listener("smtp", 65535), listener("pop3", 1)])) <= 15


@pytest.mark.parametrize(("numbers", "smallest"), [((143, 25, 993), 25), ((1024, 2025), None), ((), None)])
def test_smallest_privileged_port(numbers: tuple[int, ...], smallest: int | None) -> None:
    assert privileged(ports([listener("smtp", number) for number in numbers])) == smallest
