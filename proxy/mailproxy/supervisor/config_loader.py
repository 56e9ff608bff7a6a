# SPDX-License-Identifier: Apache-2.0
"""Gets everything ready for a configuration before any worker hears of it.

The file is read and judged, names are resolved, files are looked for, sockets
are opened.  Whatever can fail, fails here, and what runs is not touched.  A
deployment that was prepared is either committed or discarded.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypeVar

from mailproxy.net.bind_errors import CannotListen
from mailproxy.net.listen_plan import plan_sockets, resolve_names
from mailproxy.supervisor import cpus
from mailproxy.supervisor.config_check import check_config, read_config, referenced_files, sort_problems
from mailproxy.supervisor.ipc_messages import Configure
from mailproxy.supervisor.key_rotation import KeyRotation, rotated_timeouts
from mailproxy.supervisor.listening_sockets import ListeningSockets, SocketSet
from mailproxy.supervisor.options import RunOptions
from mailproxy_config.dump import dump
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import Loaded
from mailproxy_config.model import ErrorLog, ProxyConfig, SyslogServer


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
    sockets: SocketSet
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


ResultT = TypeVar("ResultT")


class ConfigLoader:
    """Makes deployments out of the configuration file, and owns the sockets that they share.

    Attributes:
        files: What to watch: the file, and all that the running configuration
            and the one that was last tried refer to.
        ticket_keys: What TLS session tickets are sealed with.
    """

    def __init__(self, settings: RunOptions) -> None:
        self.files: frozenset[Path] = frozenset([settings.file])
        self._settings = settings
        self._running_files: frozenset[Path] = frozenset()
        self._listeners = ListeningSockets()
        self._serials = count(1)
        self._hostname = socket.gethostname()
        self.ticket_keys = KeyRotation()

    async def prepare(self) -> ConfigRevision:
        """Read the file and get ready for what it says.

        Raises:
            ConfigError: It does not load, or refers to files that do not.
            CannotListen: An address cannot be listened on.
        """
        return await in_thread(self._prepare)

    def commit(self, deployment: ConfigRevision) -> None:
        """Close whatever this deployment does not need; it runs."""
        self._listeners.commit(deployment.sockets)
        self.ticket_keys.keep(rotated_timeouts(deployment.config))
        self._running_files = referenced_files(deployment.config)
        self.files = self._running_files | {self._settings.file}

    def discard(self, deployment: ConfigRevision) -> None:
        """Close whatever only this deployment needs; it does not run."""
        self._listeners.discard(deployment.sockets)

    def close(self) -> None:
        """Stop listening; see ``Listeners.close``."""
        self._listeners.close()

    def _prepare(self) -> ConfigRevision:
        path = self._settings.file
        verdict = check_config(read_config(path), source=str(path), hostname=self._hostname)
        if verdict.loaded is not None:
            self.files = self._running_files | referenced_files(verdict.loaded.config) | {path}
        loaded = verdict.runnable()
        try:
            return self._deployment(loaded, verdict.notices)
        except ConfigError as error:
            raise ConfigError(sort_problems(map(loaded.located, error.problems))) from None
        except CannotListen as error:
            error.locate(loaded)
            raise

    def _deployment(self, loaded: Loaded, notices: tuple[Problem, ...]) -> ConfigRevision:
        config = loaded.config
        names = resolve_names(config)
        config = with_addresses(config)
        workers = self._workers(config)
        return ConfigRevision(
            serial=next(self._serials),
            config=config,
            text=dump(config, generation=loaded.generation).decode(),
            hash=loaded.hash,
            generation=loaded.generation,
            loaded_at=time.time(),
            hostname=self._hostname,
            names=names,
            workers=workers,
            notices=notices,
            located=loaded.located,
            sockets=self._listeners.prepare(plan_sockets(config, names), workers),
            ticket_keys=self.ticket_keys,
        )

    def _workers(self, config: ProxyConfig) -> int:
        wanted = self._settings.workers or config.workers
        return cpus.usable() if wanted is None or wanted == "auto" else max(1, wanted)


async def in_thread(work: Callable[[], ResultT]) -> ResultT:
    """Do blocking work in a thread of its own.

    Unlike the loop's own threads, this one does not keep the process from
    ending when nobody waits for it any more: a name server that is out of
    reach may hold it up for long.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        try:
            outcome: tuple[ResultT | None, Exception | None] = work(), None
        except Exception as error:  # raised again where it is waited for
            outcome = None, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="preparing", daemon=True).start()
    return await done


def with_addresses(config: ProxyConfig) -> ProxyConfig:
    """The same configuration with an address wherever a syslog server is given by its name.

    This waits for name servers.

    Raises:
        ConfigError: A name is not known.
    """
    if not config.error_logs:
        return config
    found: dict[SyslogServer, SyslogServer] = {}
    servers = (replace(each, error_logs=_located(each.error_logs, found)) for each in config.servers)
    return replace(config, error_logs=_located(config.error_logs, found), servers=tuple(servers))


def _located(logs: Iterable[ErrorLog], found: dict[SyslogServer, SyslogServer]) -> tuple[ErrorLog, ...]:
    return tuple(
        log if log.syslog is None else replace(log, syslog=_with_address(log.syslog, found)) for log in logs
    )


def _with_address(server: SyslogServer, found: dict[SyslogServer, SyslogServer]) -> SyslogServer:
    if server.unix_path is not None:
        return server
    if server not in found:
        try:
            known = socket.getaddrinfo(server.address, server.port, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            reason = f'host not found in syslog server "{server.address}"'
            raise ConfigError([Problem("error_log", reason)]) from error
        found[server] = replace(server, address=str(known[0][4][0]))
    return found[server]
