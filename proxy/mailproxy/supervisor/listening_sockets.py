# SPDX-License-Identifier: Apache-2.0
"""The supervisor's listening sockets: opened at the start, changed by a reload.

The supervisor keeps every socket that its workers accept on open, so that the
address stays bound, and clients stay queued, while a worker is replaced.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mailproxy.net.bind_errors import ListenError
from mailproxy.net.listen_open import close_sockets, open_sockets
from mailproxy.net.listen_plan import SocketPlan, diff_plans
from mailproxy.net.socket_options import ClampedOption, clamped_options

MAX_SURPLUS_SOCKETS: Final = 512
"""Sockets kept beyond the number of workers, of all addresses together; every worker accepts on them."""


@dataclass(frozen=True, slots=True, eq=False)
class SocketSet:
    """Open sockets by key, with their plans."""

    plans: tuple[SocketPlan, ...] = ()
    by_key: Mapping[str, Sequence[socket.socket]] = field(default_factory=dict)

    def clamped_options(self) -> Iterator[tuple[str, ClampedOption]]:
        """Yield options that the kernel set to other values, with the key of their socket."""
        for planned in self.plans:
            for clamp in clamped_options(planned, self.by_key[planned.key][0]):
                yield planned.key, clamp


class ListeningSockets:
    """The open sockets.  ``prepare`` opens more; after that comes ``commit`` or ``discard``.

    When the number of workers decreases, surplus sockets stay open and all
    workers accept on them: closing them would reset the clients in their queues.
    """

    def __init__(self) -> None:
        self._current = SocketSet()

    def prepare(self, plans: Sequence[SocketPlan], count: int) -> SocketSet:
        """Open the sockets of these plans that are not open yet; blocks for seconds where a port is in use.

        Args:
            plans: The sockets of the new configuration.
            count: The number of workers.

        Raises:
            ListenError: A socket cannot be opened; nothing has changed.
        """
        by_key: dict[str, Sequence[socket.socket]] = {}
        change = diff_plans(self._current.plans, plans)
        most = count + MAX_SURPLUS_SOCKETS // max(len(plans), 1)
        try:
            for planned in change.stays:
                inherited = self._current.by_key[planned.key]
                wanted = max(count, min(len(inherited), most))
                by_key[planned.key] = open_sockets(planned, wanted, inherited=inherited)
            for planned in change.opens:
                by_key[planned.key] = open_sockets(planned, count)
        except ListenError:
            self.discard(SocketSet(tuple(plans), by_key))
            raise
        return SocketSet(tuple(plans), by_key)

    def commit(self, sockets: SocketSet) -> None:
        """Make these the open sockets, and close all others."""
        before, self._current = self._current, sockets
        _close_beyond(before, sockets)

    def discard(self, sockets: SocketSet) -> None:
        """Close the sockets that only this set has, and restore the options of the others."""
        _close_beyond(sockets, self._current)
        for planned in self._current.plans:
            inherited = self._current.by_key[planned.key]
            with suppress(ListenError):
                open_sockets(planned, len(inherited), inherited=inherited)

    def close(self) -> None:
        """Close all sockets; a second call, after the workers have exited, removes files of UNIX sockets."""
        for planned in self._current.plans:
            close_sockets(planned, self._current.by_key[planned.key])


def _close_beyond(sockets: SocketSet, kept: SocketSet) -> None:
    """Close the sockets that are in ``sockets`` and not in ``kept``."""
    staying = {id(sock) for group in kept.by_key.values() for sock in group}
    for planned in sockets.plans:
        group = [sock for sock in sockets.by_key.get(planned.key, ()) if id(sock) not in staying]
        if planned.key in kept.by_key:
            for sock in group:
                sock.close()
        else:
            close_sockets(planned, group)
