# SPDX-License-Identifier: Apache-2.0
"""Files of UNIX sockets."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from mailproxy.net.listen_open import remove_stale_socket


def test_the_dead_are_removed_and_the_absent_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
    remove_stale_socket(str(path))
    assert not path.exists()
    remove_stale_socket(str(path))


def test_who_is_too_busy_to_accept_is_not_dead(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(str(path))
        sock.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is what counts
            remove_stale_socket(str(path))
    assert refused.value.errno == errno.EADDRINUSE
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is what counts
        remove_stale_socket(str(path))
    assert refused.value.errno == errno.ENOTSOCK
    assert path.is_symlink() or path.exists()
