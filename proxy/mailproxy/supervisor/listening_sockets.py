# SPDX-License-Identifier: Apache-2.0
"""The supervisor's listening sockets: what is open, and what a reload makes of it.

The supervisor keeps every socket that its workers accept on, so that an
address stays ours, and clients stay queued, while a worker is replaced.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mailproxy.net.bind_errors import CannotListen
from mailproxy.net.listen_open import close_sockets, open_sockets
from mailproxy.net.listen_plan import SocketPlan, diff_plans
from mailproxy.net.socket_options import ClampedOption, clamped_options

MAX_SURPLUS_SOCKETS: Final = 512
"""Sockets that are kept beyond the number of workers, of all addresses together; every worker gets them."""


@dataclass(frozen=True, slots=True, eq=False)
class SocketSet:
    """Open sockets by key, with the plans that they were opened by."""

    plans: tuple[SocketPlan, ...] = ()
    by_key: Mapping[str, Sequence[socket.socket]] = field(default_factory=dict)

    def clamped_options(self) -> Iterator[tuple[str, ClampedOption]]:
        """Tell what the kernel did not grant, by key."""
        for planned in self.plans:
            for clamp in clamped_options(planned, self.by_key[planned.key][0]):
                yield planned.key, clamp


class ListeningSockets:
    """What is open.  ``prepare`` opens more; after that comes ``commit`` or ``discard``.

    A socket that a smaller number of workers leaves over stays open, and all
    of them accept on it: the kernel would reset the clients that are queued there.
    """

    def __init__(self) -> None:
        self._current = SocketSet()

    def prepare(self, plans: Sequence[SocketPlan], count: int) -> SocketSet:
        """Open whatever these plans need beyond what is open; blocks, for seconds where a port is taken.

        Args:
            plans: What is to be listened on.
            count: How many workers there are to be.

        Raises:
            CannotListen: And nothing has changed.
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
        except CannotListen:
            self.discard(SocketSet(tuple(plans), by_key))
            raise
        return SocketSet(tuple(plans), by_key)

    def commit(self, sockets: SocketSet) -> None:
        """Make this what is open, and close whatever is not part of it."""
        before, self._current = self._current, sockets
        _close_beyond(before, sockets)

    def discard(self, sockets: SocketSet) -> None:
        """Close whatever was opened for this, and bring back the options of what stays."""
        _close_beyond(sockets, self._current)
        for planned in self._current.plans:
            inherited = self._current.by_key[planned.key]
            with suppress(CannotListen):
                open_sockets(planned, len(inherited), inherited=inherited)

    def close(self) -> None:
        """Close everything.  Once the workers are gone, a second call removes the files of UNIX sockets."""
        for planned in self._current.plans:
            close_sockets(planned, self._current.by_key[planned.key])


def _close_beyond(sockets: SocketSet, kept: SocketSet) -> None:
    """Close what is in the one and not in the other."""
    staying = {id(sock) for group in kept.by_key.values() for sock in group}
    for planned in sockets.plans:
        group = [sock for sock in sockets.by_key.get(planned.key, ()) if id(sock) not in staying]
        if planned.key in kept.by_key:
            for sock in group:
                sock.close()
        else:
            close_sockets(planned, group)
