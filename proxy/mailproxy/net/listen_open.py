# SPDX-License-Identifier: Apache-2.0
"""Opens and closes listening sockets.

Every worker has its own socket for each address, and the kernel distributes
connections among them (SO_REUSEPORT); all workers share one UNIX socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from mailproxy.net.bind_errors import ListenError
from mailproxy.net.listen_plan import SocketPlan
from mailproxy.net.socket_options import set_options

_MPTCP: Final = 262
"""``IPPROTO_MPTCP`` of linux/in.h; C libraries before glibc 2.32 and musl 1.2.3 have no name for it."""
ATTEMPTS: Final = 5
"""How often binding to an address in use is tried, as in nginx."""
PAUSE_SECONDS: Final = 0.5


def open_sockets(
    planned: SocketPlan,
    count: int,
    *,
    inherited: Sequence[socket.socket] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> list[socket.socket]:
    """Listen on one address.

    Blocks up to two seconds while another process uses the address.

    Args:
        planned: What to open.
        count: How many workers there are.
        inherited: Open sockets of this address; they get the options of the
            plan and are used first.  Those beyond ``count`` are not changed.
        sleep: Waits between two attempts.

    Returns:
        ``count`` sockets, or one for a UNIX path: listening, non-blocking,
        close-on-exec.

    Raises:
        ListenError: The address cannot be listened on; every socket opened here was closed.
    """
    wanted = 1 if planned.is_unix else count
    kept = list(inherited[:wanted])
    try:
        for sock in kept:
            set_options(planned, sock)
            sock.listen(planned.backlog)
        missing = wanted - len(kept)
        return kept + (_opened(planned, missing, sleep) if missing > 0 else [])
    except OSError as error:
        raise ListenError(planned, error) from error


def close_sockets(planned: SocketPlan, sockets: Sequence[socket.socket]) -> None:
    """Stop listening on one address for good.

    The file of a UNIX socket is removed too, unless some process still listens
    on it; so the process that closes it last, the supervisor, calls this.
    """
    for sock in sockets:
        sock.close()
    if planned.is_unix:
        with suppress(OSError):
            remove_stale_socket(planned.address)


def _opened(planned: SocketPlan, count: int, sleep: Callable[[float], None]) -> list[socket.socket]:
    for _ in range(ATTEMPTS - 1):
        try:
            return _bound(planned, count)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        sleep(PAUSE_SECONDS)
    return _bound(planned, count)


def _bound(planned: SocketPlan, count: int) -> list[socket.socket]:
    with ExitStack() as opened:
        if planned.is_unix:
            remove_stale_socket(planned.address)
        else:
            _check_not_in_use(planned)
        sockets = [opened.enter_context(_made(planned)) for _ in range(count)]
        for sock in sockets:
            _bind(planned, sock)
        for sock in sockets:
            sock.listen(planned.backlog)
        opened.pop_all()
        return sockets


def _made(planned: SocketPlan, *, is_shared: bool = True) -> socket.socket:
    """Make a socket with every option it must have before it is bound."""
    protocol = _MPTCP if planned.multipath else 0
    sock = socket.socket(planned.family, socket.SOCK_STREAM, protocol)
    try:
        sock.setblocking(False)
        if not planned.is_unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_shared))
        if planned.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(planned.ipv6only))
        set_options(planned, sock)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(planned: SocketPlan, sock: socket.socket) -> None:
    if planned.is_unix:
        sock.bind(planned.address)
        os.chmod(planned.address, 0o666)  # noqa: S103 - the directory's mode decides who may connect, as in nginx
    else:
        sock.bind((planned.address, planned.port))


def _check_not_in_use(planned: SocketPlan) -> None:
    """Raise EADDRINUSE where another process listens.

    With SO_REUSEPORT, bind(2) would join the listeners of any process of the
    same user, and take half of its clients.  Without it, bind(2) fails if any
    process listens; that is ignored if all those sockets belong to this
    process (another address of the port, or a socket that is being replaced).
    """
    with _made(planned, is_shared=False) as probe:
        try:
            _bind(planned, probe)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or is_used_by_other_process(planned):
                raise


SOCKET_TABLES: Final = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_LISTEN: Final = "0A"


def is_used_by_other_process(planned: SocketPlan) -> bool:
    """Return whether another process listens on the address; true where ``/proc`` cannot be read."""
    families = [planned.family]
    if planned.family == socket.AF_INET6 and not planned.ipv6only:
        families.append(socket.AF_INET)
    try:
        ours = set(_our_sockets())
        return any(
            inode not in ours
            for family in families
            for address, inode in find_listeners(family, planned.port)
            if _overlap(socket.inet_pton(planned.family, planned.address), address)
        )
    except (OSError, ValueError):
        return True


def _overlap(one: bytes, other: bytes) -> bool:
    return one == other or not any(one) or not any(other)


def _our_sockets() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the directory itself is closed by now
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:["):
                yield int(target[8:-1])


def find_listeners(family: socket.AddressFamily, port: int) -> Iterator[tuple[bytes, int]]:
    """Yield packed address and inode of every listening socket of a port (proc(5))."""
    for line in SOCKET_TABLES[family].read_text("ascii").splitlines()[1:]:
        fields = line.split()
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == _LISTEN and int(hexadecimal, 16) == port:
            words = bytes.fromhex(address)
            # Each group of four bytes is printed as a number in native byte order.
            size = len(words) // 4
            yield struct.pack(f"={size}I", *struct.unpack(f">{size}I", words)), int(fields[9])


def remove_stale_socket(path: str) -> None:
    """Remove the file of a UNIX socket on which no process listens; does nothing where there is no file.

    Raises:
        OSError: ``EADDRINUSE`` if a process listens on it, ``ENOTSOCK`` if it is
            another kind of file, or an error of the file system.
    """
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    if _is_listened_on(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


def _is_listened_on(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    return error not in (errno.ECONNREFUSED, errno.ENOENT)
