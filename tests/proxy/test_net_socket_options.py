# SPDX-License-Identifier: Apache-2.0
"""Options of sockets, as the kernel reports them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailproxy.net.listen_open import close_sockets, open_sockets
from mailproxy.net.listen_plan import ListenRef, SocketPlan
from mailproxy.net.socket_options import ClampedOption, clamped_options
from mailproxy_config.model import KeepAlive

_SOL, _TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP


def planned(**values: object) -> SocketPlan:
    defaults: dict[str, object] = {
        "key": "127.0.0.1:0",
        "family": socket.AF_INET,
        "address": "127.0.0.1",
        "port": 0,
        "default": ListenRef(0, 0),
    }
    return SocketPlan(**{**defaults, **values})  # type: ignore[arg-type] # a table of values


class Opened:
    """Opens sockets for a test and closes them after it."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __call__(self, plan: SocketPlan) -> socket.socket:
        (sock,) = open_sockets(plan, 1)
        self.sockets.append(sock)
        return sock


@pytest.fixture
def opened() -> Iterator[Opened]:
    sockets = Opened()
    yield sockets
    close_sockets(planned(), sockets.sockets)


def accepted(listening: socket.socket) -> socket.socket:
    """Accept a connection; what clients get is what counts."""
    listening.setblocking(True)
    with socket.create_connection(listening.getsockname()):
        sock, _ = listening.accept()
    return sock


def system(name: str) -> int:
    return int(Path("/proc/sys/net/ipv4", name).read_text())


def test_plain_listener_has_system_defaults(opened: Opened) -> None:
    sock = opened(planned())
    with accepted(sock) as client:
        assert client.getsockopt(_TCP, socket.TCP_NODELAY) == 1
        assert client.getsockopt(_SOL, socket.SO_KEEPALIVE) == 0
        assert client.getsockopt(_TCP, socket.TCP_KEEPIDLE) == system("tcp_keepalive_time")
    assert sock.getsockopt(_SOL, socket.SO_REUSEADDR) == 1
    assert clamped_options(planned(), sock) == ()


@pytest.mark.parametrize(
    ("keepalive", "is_on", "idle", "interval", "count"),
    [
        (KeepAlive(), 1, None, None, None),
        (KeepAlive(enabled=False), 0, None, None, None),
        (KeepAlive(idle=1800, count=10), 1, 1800, None, 10),  # 30m::10
        (KeepAlive(idle=10), 1, 10, None, None),
        (KeepAlive(interval=5), 1, None, 5, None),
        (KeepAlive(idle=1800, interval=75, count=10), 1, 1800, 75, 10),
        (KeepAlive(idle=32767, interval=32767, count=127), 1, 32767, 32767, 127),
    ],
)
def test_so_keepalive_reaches_the_client_s_socket(
    opened: Opened,
    keepalive: KeepAlive,
    is_on: int,
    idle: int | None,
    interval: int | None,
    count: int | None,
) -> None:
    sock = opened(planned(keepalive=keepalive))
    with accepted(sock) as client:
        found = [
            client.getsockopt(_SOL, socket.SO_KEEPALIVE),
            client.getsockopt(_TCP, socket.TCP_KEEPIDLE),
            client.getsockopt(_TCP, socket.TCP_KEEPINTVL),
            client.getsockopt(_TCP, socket.TCP_KEEPCNT),
        ]
    assert found == [
        is_on,
        idle or system("tcp_keepalive_time"),
        interval or system("tcp_keepalive_intvl"),
        count or system("tcp_keepalive_probes"),
    ]
    assert clamped_options(planned(keepalive=keepalive), sock) == ()


def core(name: str) -> int | None:
    """A node-wide limit; inside a network namespace of its own the kernel may not show it."""
    path = Path("/proc/sys/net/core", name)
    return int(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("option", "number", "limit"),
    [("rcvbuf", socket.SO_RCVBUF, "rmem_max"), ("sndbuf", socket.SO_SNDBUF, "wmem_max")],
)
def test_buffers_are_set_and_clamps_are_reported(
    opened: Opened, option: str, number: int, limit: str
) -> None:
    fits = planned(**{option: 65536})
    sock = opened(fits)
    assert sock.getsockopt(_SOL, number) == 131072
    assert clamped_options(fits, sock) == ()

    small = planned(**{option: 1})
    assert clamped_options(small, opened(small)) == ()  # raised to the minimum

    huge = planned(**{option: 2**30})
    sock = opened(huge)
    (clamp,) = clamped_options(huge, sock)
    granted = sock.getsockopt(_SOL, number) // 2
    assert clamp == ClampedOption(option, 2**30, granted)
    assert granted == (core(limit) or granted)


def backlog_of(sock: socket.socket) -> int:
    """Return the backlog that the kernel uses; for a listening socket, ``tcpi_sacked`` contains it."""
    return int.from_bytes(sock.getsockopt(_TCP, socket.TCP_INFO, 32)[28:32], "little")


def test_backlog_is_clamped_to_somaxconn(opened: Opened) -> None:
    longest = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert backlog_of(opened(planned(backlog=7))) == 7
    plan = planned(backlog=longest + 1)
    sock = opened(plan)
    assert backlog_of(sock) == longest
    assert clamped_options(plan, sock) == (ClampedOption("backlog", longest + 1, longest),)


def test_unreadable_somaxconn_reports_no_clamp(opened: Opened, tmp_path: Path) -> None:
    plan = planned(backlog=2**20)
    assert clamped_options(plan, opened(plan), somaxconn=tmp_path / "absent") == ()


def test_options_change_in_place(opened: Opened) -> None:
    sock = opened(planned(rcvbuf=65536, keepalive=KeepAlive(idle=10)))
    again = open_sockets(planned(backlog=9, rcvbuf=32768, keepalive=KeepAlive(idle=20)), 1, inherited=[sock])
    assert again == [sock]
    assert backlog_of(sock) == 9
    with accepted(sock) as client:
        assert client.getsockopt(_SOL, socket.SO_RCVBUF) == 65536
        assert client.getsockopt(_TCP, socket.TCP_KEEPIDLE) == 20
