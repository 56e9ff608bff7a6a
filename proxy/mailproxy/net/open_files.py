# SPDX-License-Identifier: Apache-2.0
"""The limit of open files of a process (``RLIMIT_NOFILE``), and how many clients it has room for.

A logged-in session has two descriptors, one to the client and one to the
upstream.  If clients took all descriptors, those that were accepted could not
log in, and the others would wait without a reply.  So a worker refuses clients
above what fits, as it does above ``worker_connections``.
"""

from __future__ import annotations

import errno
import resource
from typing import Final

from mailproxy.net.pipes import MAX_PIPES

PER_CLIENT: Final = 2
PER_LISTENER: Final = 2
"""A listening socket, and the descriptor that is reserved for it at a reload."""
PER_PIPE: Final = 2
OTHERS: Final = 64
"""Idle connections to the authentication service, logs, files that a reload opens, the event loop."""

HINTS: Final = {
    errno.EMFILE: "raise the limit of open files (ulimit -Hn), lower workerConnections or add workers",
    errno.ENFILE: "raise the sysctl fs.file-max of the node",
    errno.ENOBUFS: "the kernel has no memory for sockets: raise the memory limit or net.ipv4.tcp_mem",
    errno.ENOMEM: "the kernel has no memory for sockets: raise the memory limit or net.ipv4.tcp_mem",
}
"""How to fix a failed accept(2), by error number."""


def open_files_limit() -> int:
    """Return the limit of this process; ``RLIM_INFINITY`` for none."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def needed_files(clients: int, listeners: int) -> int:
    """Return the limit that a worker needs.

    Args:
        clients: The number of clients, all of them logged in.
        listeners: The number of its listening sockets.
    """
    return PER_CLIENT * clients + PER_LISTENER * listeners + OTHERS


def most_clients(limit: int, listeners: int) -> int:
    """Return the number of clients that a limit has room for; at least one.

    Args:
        limit: As ``open_files_limit`` returns it.
        listeners: The number of listening sockets.
    """
    if limit == resource.RLIM_INFINITY:
        return 2**31
    return max((limit - PER_LISTENER * listeners - OTHERS) // PER_CLIENT, 1)


def fit(limit: int, clients: int, listeners: int) -> tuple[int, int]:
    """Return how many clients and pipes a limit has room for: clients first, pipes only make copying faster.

    Args:
        limit: As ``open_files_limit`` returns it.
        clients: How many clients there shall be: ``worker_connections``.
        listeners: The number of listening sockets.
    """
    clients = min(clients, most_clients(limit, listeners))
    if limit == resource.RLIM_INFINITY:
        return clients, MAX_PIPES
    spare = limit - needed_files(clients, listeners)
    return clients, min(max(spare // PER_PIPE, 0), MAX_PIPES)
