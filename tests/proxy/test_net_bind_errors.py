# SPDX-License-Identifier: Apache-2.0
"""Errors of listening sockets."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from mailproxy.net.bind_errors import ListenError, hint
from mailproxy.net.listen_plan import ListenRef, SocketPlan

TCP = SocketPlan(key="*:25", family=socket.AF_INET, address="0.0.0.0", port=25, default=ListenRef(0, 0))
UNIX = SocketPlan(key="unix:/run/a", family=socket.AF_UNIX, address="/run/a", port=0, default=ListenRef(0, 0))


@pytest.mark.parametrize(
    ("planned", "number", "words"),
    [
        (TCP, errno.EADDRINUSE, "another process listens there"),
        (TCP, errno.EADDRNOTAVAIL, "no interface"),
        (TCP, errno.EAFNOSUPPORT, "IPv6"),
        (TCP, errno.EPROTONOSUPPORT, "Multipath TCP"),
        (TCP, errno.EACCES, "net.ipv4.ip_unprivileged_port_start to 25 or less"),
        (UNIX, errno.EACCES, "cannot be written to"),
        (UNIX, errno.ENOENT, "does not exist"),
        (TCP, errno.EIO, ""),
    ],
)
def test_errors_have_a_hint(planned: SocketPlan, number: int, words: str) -> None:
    error = OSError(number, os.strerror(number))
    error_with_hint = ListenError(planned, error)
    assert words in hint(planned, error)
    assert str(error_with_hint).startswith(f"cannot listen on {planned.key}: {os.strerror(number)}")
    assert bool(words) is ("(" in str(error_with_hint))


def test_error_without_errno_keeps_its_message() -> None:
    assert ListenError(UNIX, OSError("AF_UNIX path too long")).reason == "AF_UNIX path too long"


def test_first_unprivileged_port_is_read_from_proc(tmp_path: Path) -> None:
    start = tmp_path / "start"
    error = PermissionError(errno.EACCES, "")
    assert "below 1024" in hint(TCP, error, port_start=start)
    start.write_text("80\n")
    assert "below 80" in hint(TCP, error, port_start=start)
