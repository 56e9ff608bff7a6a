# SPDX-License-Identifier: Apache-2.0
"""Options of listening sockets: set, then read back, because the kernel cuts some of them silently.

Accepted sockets inherit all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailproxy.net.listen_plan import SocketPlan

_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")
_TCP: Final = socket.IPPROTO_TCP
_SOL: Final = socket.SOL_SOCKET


@dataclass(frozen=True, slots=True)
class ClampedOption:
    """Something the kernel did not grant in full.

    ``option`` is the ``listen`` parameter: ``backlog``, ``rcvbuf``, ``sndbuf``
    or ``so_keepalive``.
    """

    option: str
    wanted: int
    got: int


def set_options(planned: SocketPlan, sock: socket.socket) -> None:
    """Set whatever may be set at any time.

    Raises:
        OSError: The kernel refused a value.
    """
    for _, level, option, value in _wanted(planned):
        sock.setsockopt(level, option, value)
    if not planned.is_unix:
        # Replies go out in one write each; waiting for more would only delay them.
        sock.setsockopt(_TCP, socket.TCP_NODELAY, 1)


def clamped_options(
    planned: SocketPlan, sock: socket.socket, *, somaxconn: Path = _SOMAXCONN
) -> tuple[ClampedOption, ...]:
    """Compare what a listening socket has with what it should have.

    All sockets of a plan have the same; asking about one is enough.

    Args:
        planned: What it should have.
        sock: As ``open_sockets`` returned it.
        somaxconn: Where the kernel tells the longest backlog it allows.
    """
    found = []
    longest = _number(somaxconn)
    if longest is not None and longest < planned.backlog:
        found.append(ClampedOption("backlog", planned.backlog, longest))
    for name, level, option, value in _wanted(planned):
        got = sock.getsockopt(level, option)
        if option in (socket.SO_RCVBUF, socket.SO_SNDBUF) and level == _SOL:
            got //= 2  # the kernel doubles what it is told, for its own bookkeeping
            if got > value:
                continue  # raised to the least there can be
        if got != value:
            found.append(ClampedOption(name, value, got))
    return tuple(found)


def _wanted(planned: SocketPlan) -> Iterator[tuple[str, int, int, int]]:
    """Name, level, option and value of everything the plan asks for."""
    if planned.rcvbuf is not None:
        yield "rcvbuf", _SOL, socket.SO_RCVBUF, planned.rcvbuf
    if planned.sndbuf is not None:
        yield "sndbuf", _SOL, socket.SO_SNDBUF, planned.sndbuf
    keepalive = planned.keepalive
    if keepalive is None:
        return
    yield "so_keepalive", _SOL, socket.SO_KEEPALIVE, int(keepalive.enabled)
    for option, value in (
        (socket.TCP_KEEPIDLE, keepalive.idle),
        (socket.TCP_KEEPINTVL, keepalive.interval),
        (socket.TCP_KEEPCNT, keepalive.count),
    ):
        if value is not None:
            yield "so_keepalive", _TCP, option, value


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
