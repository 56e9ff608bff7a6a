# SPDX-License-Identifier: Apache-2.0
"""Who else listens on this machine, as the kernel lists it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from mailproxy.net.listen_plan import SocketPlan

_TABLES: Final = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_LISTEN: Final = "0A"


def somebody_else_listens(planned: SocketPlan) -> bool:
    """Tell whether another process listens where the plan wants to.

    Where the kernel does not tell, the answer is yes.
    """
    families = [planned.family]
    if planned.family == socket.AF_INET6 and not planned.ipv6only:
        families.append(socket.AF_INET)
    try:
        ours = set(_our_sockets())
        return any(
            inode not in ours
            for family in families
            for address, inode in _listeners(family, planned.port)
            if _overlap(socket.inet_pton(planned.family, planned.address), address)
        )
    except (OSError, ValueError):
        return True


def _overlap(one: bytes, other: bytes) -> bool:
    return one == other or not any(one) or not any(other)


def _our_sockets() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the folder's own descriptor is closed by now
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:["):
                yield int(target[8:-1])


def _listeners(family: socket.AddressFamily, port: int) -> Iterator[tuple[bytes, int]]:
    """Packed address and inode of everything that listens on a port (proc(5))."""
    for line in _TABLES[family].read_text("ascii").splitlines()[1:]:
        fields = line.split()
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == _LISTEN and int(hexadecimal, 16) == port:
            words = bytes.fromhex(address)
            # Each group of four bytes is printed as a number of this machine.
            size = len(words) // 4
            yield struct.pack(f"={size}I", *struct.unpack(f">{size}I", words)), int(fields[9])
