# SPDX-License-Identifier: Apache-2.0
"""Why an address cannot be listened on, in words that lead to a way out."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from mailproxy.net.listen_plan import SocketPlan
from mailproxy_config.errors import Problem
from mailproxy_config.load import FileKind, Loaded

_PORT_START: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")

_DENIED: Final = (errno.EACCES, errno.EPERM)
_IN_A_MANIFEST: Final = "; on Kubernetes portStrategy Direct sets that sysctl, and HighPort needs neither"
_HINTS: Final = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another address or port",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address",
    errno.EAFNOSUPPORT: "this kernel has no such address family; leave the IPv6 addresses out",
    errno.EPROTONOSUPPORT: "this kernel has no Multipath TCP (net.mptcp.enabled); leave multipath out",
    errno.ENOPROTOOPT: "this kernel does not know an option of this listener",
    errno.EINVAL: "this kernel does not take a value of this listener",
    errno.ENOENT: "the folder of the socket does not exist",
    errno.ENOTSOCK: "a file that is not a socket stands there; remove it",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


class CannotListen(Exception):
    """An address cannot be listened on.

    Attributes:
        key: The address, as in ``SocketPlan``.
        reason: The operating system's words.
        hint: What can be done about it; may be empty.
        problem: All of it, with its place in the configuration once ``locate`` was called.
    """

    def __init__(self, planned: SocketPlan, error: OSError) -> None:
        self.key = planned.key
        self.reason = os.strerror(error.errno) if error.errno else str(error)
        self.hint = hint(planned, error)
        super().__init__(
            f"cannot listen on {self.key}: {self.reason}" + (f" ({self.hint})" if self.hint else "")
        )
        self.problem = Problem("", str(self))
        self._route = planned.default
        self._is_privileged = not planned.is_unix and error.errno in _DENIED

    def locate(self, loaded: Loaded) -> None:
        """Give the problem its place, and say what a manifest can do about it that an nginx.conf cannot."""
        path = f"servers[{self._route.server}].listen[{self._route.listen}]"
        more = _IN_A_MANIFEST if self._is_privileged and loaded.kind is not FileKind.NGINX else ""
        self.problem = loaded.located(Problem(path, f"{self}{more}"))


def hint(planned: SocketPlan, error: OSError, *, port_start: Path = _PORT_START) -> str:
    """Say what can be done about a failure to listen."""
    if error.errno not in _DENIED:
        return _HINTS.get(error.errno or 0, "")
    if planned.is_unix:
        return "the folder of the socket cannot be written to"
    first = _first_free_port(port_start)
    return (
        f"ports below {first} are privileged here: give the process the capability CAP_NET_BIND_SERVICE "
        "(systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE), or set the sysctl "
        f"net.ipv4.ip_unprivileged_port_start to {planned.port} or less"
    )


def _first_free_port(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 1024
