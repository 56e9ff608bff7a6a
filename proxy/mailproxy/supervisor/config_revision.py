# SPDX-License-Identifier: Apache-2.0
"""A configuration together with all that it needs to run: what every worker is told, and its sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mailproxy.supervisor.ipc_messages import Configure
from mailproxy.supervisor.key_rotation import KeyRotation, rotated_timeouts
from mailproxy.supervisor.listening_sockets import Sockets
from mailproxy_config.errors import Problem
from mailproxy_config.model import ProxyConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConfigRevision:
    """What the workers are to run.

    Attributes:
        serial: Tells it from every other deployment of this supervisor's life.
        config: The configuration.
        text: The same, as canonical JSON.
        hash: Of that text.
        generation: Of the resource it came from, 0 without one.
        loaded_at: When it was loaded, as a Unix time.
        hostname: This machine's name.
        names: What host names in the configuration resolved to.
        workers: How many workers there are to be.
        notices: What is accepted but worth telling.
        located: Gives a worker's problem the place in the file that it comes from.
        sockets: What to listen on: for each key, one socket for each worker
            and perhaps some for all of them, or just one for all.
        ticket_keys: The keys that all workers seal TLS session tickets with.
    """

    serial: int
    config: ProxyConfig
    text: str = field(repr=False)
    hash: str
    generation: int
    loaded_at: float
    hostname: str
    names: Mapping[str, tuple[str, ...]]
    workers: int
    notices: tuple[Problem, ...] = ()
    located: Callable[[Problem], Problem] = field(default=lambda problem: problem)
    sockets: Sockets
    ticket_keys: KeyRotation

    def order(self) -> Configure:
        """Make the message for a worker, with the current ticket keys."""
        return Configure(
            serial=self.serial,
            config=self.text,
            hash=self.hash,
            generation=self.generation,
            loaded_at=self.loaded_at,
            hostname=self.hostname,
            names=self.names,
            sockets=tuple(key for key, sockets in self._shares(0) for _ in sockets),
            ticket_keys=self.ticket_keys.of(rotated_timeouts(self.config)),
        )

    def sockets_of(self, place: int) -> list[socket.socket]:
        """Give the listening sockets of the worker at a place (from 0), in the order of ``order``."""
        return [sock for _, sockets in self._shares(place) for sock in sockets]

    def _shares(self, place: int) -> Iterator[tuple[str, list[socket.socket]]]:
        """Give a worker's sockets by key: its own, and those that there are beyond the number of workers."""
        for key, sockets in self.sockets.by_key.items():
            yield key, [sockets[place % min(len(sockets), self.workers)], *sockets[self.workers :]]
