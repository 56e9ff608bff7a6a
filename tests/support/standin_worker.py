# SPDX-License-Identifier: Apache-2.0
"""A worker process with a stand-in application, for tests of processes rather than of mail.

The greeting is ``server NAME PID SERVER_NAME``, of the first server.  A client that has
not sent ``RELAY`` gets ``BYE`` when the proxy drains.  The name of a server selects a
fault: with ``refused`` the application rejects the configuration, with ``crash`` the
process exits, with ``hang`` it never becomes ready, with ``slow`` it takes a second.  A
server named ``random`` greets with a random number instead of its name.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import cast

from mailproxy.app import App
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import Counter, WorkerMetrics
from mailproxy.worker import run
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel, ProxyConfig, ServerConfig


class StandIn:
    """Greets clients, and echoes what they send."""

    def __init__(self, *, log: Log, metrics: WorkerMetrics, **_: object) -> None:
        self._log = log
        self._metrics = metrics
        self._servers: list[asyncio.Server] = []
        self._greeted: dict[asyncio.StreamWriter, bool] = {}
        self._greeting = b""
        self._accepted: Counter

    @property
    def sessions(self) -> int:
        return len(self._greeted)

    async def apply(
        self,
        config: ProxyConfig,
        sockets: Mapping[str, Sequence[socket.socket]],
        *,
        names: Mapping[str, tuple[str, ...]],
        ticket_keys: Mapping[int, tuple[bytes, ...]],
        tables: Mapping[str, object],
        users: Mapping[str, object],
    ) -> None:
        await self._misbehave({server.name for server in config.servers}, sockets)
        for server in self._servers:
            server.close()
        first = config.servers[0]
        self._metrics.keep_servers(server.name for server in config.servers)
        self._accepted = self._metrics.server(first.name, first.protocol).accepted
        self._greeting = f"server {first.name} {os.getpid()} {_shown(first)}\r\n".encode()
        self._servers = [
            await asyncio.start_server(self._serve, sock=sock)
            for sock in chain.from_iterable(sockets.values())
        ]

    async def _misbehave(self, names: set[str], sockets: Mapping[str, Sequence[socket.socket]]) -> None:
        if "crash" in names:
            os._exit(7)
        if "slow" in names:
            time.sleep(1.0)  # noqa: ASYNC251 - a worker that loads does not come to its event loop
        if "hang" in names:
            await asyncio.Event().wait()
        if "refused" in names:
            for sock in chain.from_iterable(sockets.values()):
                sock.close()
            raise ConfigError([Problem("spec.servers[0]", "no worker wants this")])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._greeted[writer] = False
        self._accepted.value += 1
        self._log.event(LogLevel.INFO, "greeted")
        try:
            writer.write(self._greeting)
            while line := await reader.readline():
                self._greeted[writer] = self._greeted[writer] or line == b"RELAY\r\n"
                writer.write(line)
        except ConnectionError:
            pass
        finally:
            del self._greeted[writer]
            writer.close()

    def set_ticket_keys(self, ticket_keys: Mapping[int, tuple[bytes, ...]]) -> None:
        pass

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109
        for server in self._servers:
            server.close()
        for writer, is_relaying in list(self._greeted.items()):
            if not is_relaying:
                writer.write(b"BYE\r\n")
                writer.close()
        ends_at = asyncio.get_running_loop().time() + timeout
        while self._greeted and asyncio.get_running_loop().time() < ends_at:
            await asyncio.sleep(0.01)
        self.stop()

    def stop(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._greeted):
            writer.transport.abort()


def _shown(server: ServerConfig) -> str:
    return str(random.getrandbits(64)) if server.name == "random" else server.server_name


def preload() -> None:
    """Load nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker process."""
    return run(argv, make_app=cast("Callable[..., App]", StandIn), make_loop=asyncio.SelectorEventLoop)
