# SPDX-License-Identifier: Apache-2.0
"""The file of a UNIX socket, which outlives the process that made it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path


def remove_if_dead(path: str) -> None:
    """Remove the file of a UNIX socket that nobody accepts on; without one there is nothing to do.

    Raises:
        OSError: ``EADDRINUSE`` if somebody listens there, ``ENOTSOCK`` if it is
            some other file, or whatever the file system says.
    """
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    if _somebody_listens(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    return error not in (errno.ECONNREFUSED, errno.ENOENT)
