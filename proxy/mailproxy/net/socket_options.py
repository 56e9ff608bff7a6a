# SPDX-License-Identifier: Apache-2.0
"""Options of listening sockets: set, then read back, because the kernel limits some of them without an error.

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
    """An option that the kernel set to another value.

    ``option`` is the ``listen`` parameter: ``backlog``, ``rcvbuf``, ``sndbuf``
    or ``so_keepalive``.
    """

    option: str
    wanted: int
    got: int


def set_options(planned: SocketPlan, sock: socket.socket) -> None:
    """Set the options that may be set at any time.

    Raises:
        OSError: The kernel rejected a value.
    """
    for _, level, option, value in _wanted(planned):
        sock.setsockopt(level, option, value)
    if not planned.is_unix:
        # Each reply is sent with one write; waiting for more data would only delay it.
        sock.setsockopt(_TCP, socket.TCP_NODELAY, 1)


def clamped_options(
    planned: SocketPlan, sock: socket.socket, *, somaxconn: Path = _SOMAXCONN
) -> tuple[ClampedOption, ...]:
    """Compare the options of a listening socket with its plan.

    All sockets of a plan have the same options, so one is enough.

    Args:
        planned: The plan.
        sock: As ``open_sockets`` returned it.
        somaxconn: The file with the maximum backlog.
    """
    found = []
    longest = _number(somaxconn)
    if longest is not None and longest < planned.backlog:
        found.append(ClampedOption("backlog", planned.backlog, longest))
    for name, level, option, value in _wanted(planned):
        got = sock.getsockopt(level, option)
        if option in (socket.SO_RCVBUF, socket.SO_SNDBUF) and level == _SOL:
            got //= 2  # the kernel doubles the value, for its own data
            if got > value:
                continue  # raised to the minimum
        if got != value:
            found.append(ClampedOption(name, value, got))
    return tuple(found)


def _wanted(planned: SocketPlan) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, level, option and value of every option in the plan."""
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
