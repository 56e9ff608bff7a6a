# SPDX-License-Identifier: Apache-2.0
"""Loads a configuration and opens all that it needs, before it is sent to any worker.

The file is read and checked, host names are resolved, sockets are opened.
What can fail fails here, without an effect on the running configuration.  A
``ConfigRevision`` is then either committed or discarded.
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
from typing import TYPE_CHECKING, TypeVar

from mailproxy.net.bind_errors import ListenError
from mailproxy.net.listen_plan import plan_sockets, resolve_names
from mailproxy.routing.table_files import TableFile
from mailproxy.supervisor import cpus
from mailproxy.supervisor.config_check import check_config, read_config, referenced_files, sort_problems
from mailproxy.supervisor.ipc_messages import Configure
from mailproxy.supervisor.key_rotation import KeyRotation, rotated_timeouts
from mailproxy.supervisor.listening_sockets import ListeningSockets, SocketSet
from mailproxy.supervisor.options import RunOptions
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import Loaded
from mailproxy_config.model import ErrorLog, ProxyConfig, SyslogServer
from mailproxy_config.rendered import dump

if TYPE_CHECKING:
    from mailproxy.tls.context import ServerTls


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConfigRevision:
    """One loaded configuration with all that workers need to run it.

    Attributes:
        serial: Unique among all revisions that this supervisor has loaded.
        config: The configuration.
        text: The same, as canonical JSON.
        hash: Of that text.
        generation: Of the resource it came from, 0 without one.
        loaded_at: When it was loaded, as a Unix time.
        hostname: This machine's name.
        names: What host names in the configuration resolved to.
        workers: The number of workers.
        notices: Warnings about the configuration.
        certificates: Certificates that clients choose by name and that are not used.
        tables: The tables of routes, by the paths of their files.
        refused_lines: Lines of tables of which an earlier version is used.
        users: The lists of users, by the paths of their files.
        refused_users: Lines of lists of users of which an earlier version is used.
        locate: Replaces the path in a worker's problem by the line of the file.
        sockets: The listening sockets: for each key, one for each worker and
            perhaps some for all of them, or just one for all.
        ticket_keys: The keys that all workers encrypt TLS session tickets with.
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
    certificates: tuple[Problem, ...] = ()
    tables: Mapping[str, TableFile] = field(default_factory=dict)
    refused_lines: tuple[Problem, ...] = ()
    users: Mapping[str, TableFile] = field(default_factory=dict)
    refused_users: tuple[Problem, ...] = ()
    locate: Callable[[Problem], Problem] = field(default=lambda problem: problem)
    sockets: SocketSet
    ticket_keys: KeyRotation

    @property
    def kept_tables(self) -> int:
        """The number of tables of which an earlier version is used."""
        return _count_files(self.refused_lines, self.tables)

    @property
    def kept_user_files(self) -> int:
        """The number of lists of users of which an earlier version is used."""
        return _count_files(self.refused_users, self.users)

    def configure_message(self) -> Configure:
        """Return the message for a worker, with the current ticket keys."""
        return Configure(
            serial=self.serial,
            config=self.text,
            hash=self.hash,
            generation=self.generation,
            loaded_at=self.loaded_at,
            hostname=self.hostname,
            names=self.names,
            sockets=tuple(key for key, sockets in self._assigned(0) for _ in sockets),
            tables=tuple(self.tables),
            users=tuple(self.users),
            ticket_keys=self.ticket_keys.of(rotated_timeouts(self.config)),
        )

    def sockets_for(self, slot: int) -> list[socket.socket]:
        """Return the listening sockets for a slot (from 0), in the order of ``configure_message``."""
        return [sock for _, sockets in self._assigned(slot) for sock in sockets]

    def descriptors_for(self, slot: int) -> list[socket.socket | TableFile]:
        """Return the sockets for a slot, tables and lists, in the order of ``configure_message``."""
        return [*self.sockets_for(slot), *self.tables.values(), *self.users.values()]

    def _assigned(self, slot: int) -> Iterator[tuple[str, list[socket.socket]]]:
        """Yield a worker's sockets by key: its own, and those beyond the number of workers."""
        for key, sockets in self.sockets.by_key.items():
            yield key, [sockets[slot % min(len(sockets), self.workers)], *sockets[self.workers :]]


def _count_files(lines: Iterable[Problem], files: Mapping[str, TableFile]) -> int:
    """Return in how many files these lines are; a path has the number of the line behind it."""
    paths = (line.path for line in lines)
    return len({path if path in files else path.rpartition(":")[0] for path in paths})


ResultT = TypeVar("ResultT")


class ConfigLoader:
    """Loads the configuration file, and owns the listening sockets of all revisions.

    Attributes:
        files: The files to watch: the configuration, and those that the
            running and the last loaded configuration refer to.
        ticket_keys: The keys of TLS session tickets.
    """

    def __init__(self, options: RunOptions) -> None:
        self.files: frozenset[Path] = frozenset([options.file])
        self._options = options
        self._running_files: frozenset[Path] = frozenset()
        self.listeners = ListeningSockets()
        self._serials = count(1)
        self._hostname = socket.gethostname()
        self.ticket_keys = KeyRotation()
        self._tls: Mapping[str, ServerTls] = {}
        self._tables: Mapping[str, TableFile] = {}
        self._users: Mapping[str, TableFile] = {}

    async def prepare(self) -> ConfigRevision:
        """Load the file, in a thread.

        Raises:
            ConfigError: It does not load, or refers to files that do not.
            ListenError: An address cannot be listened on.
        """
        return await in_thread(self._prepare)

    def commit(self, revision: ConfigRevision) -> None:
        """Make a revision the running one: close the sockets that it does not need."""
        self.listeners.commit(revision.sockets)
        self.ticket_keys.keep(rotated_timeouts(revision.config))
        self._running_files = referenced_files(revision.config)
        self.files = self._running_files | {self._options.file}

    def discard(self, revision: ConfigRevision) -> None:
        """Close the sockets that only this revision needs."""
        self.listeners.discard(revision.sockets)

    def close(self) -> None:
        """Stop listening; see ``Listeners.close``."""
        self.listeners.close()

    def _prepare(self) -> ConfigRevision:
        path = self._options.file
        text = read_config(path)
        result = check_config(
            text,
            source=str(path),
            hostname=self._hostname,
            previous=self._tls,
            tables=self._tables,
            users=self._users,
        )
        if result.loaded is not None:
            self.files = self._running_files | referenced_files(result.loaded.config) | {path}
        loaded = result.runnable()
        self._tls, self._tables, self._users = result.tls, result.tables.files, result.users.files
        try:
            return replace(
                self._build_revision(loaded, result.notices),
                certificates=result.certificates,
                tables=result.tables.files,
                refused_lines=result.tables.kept,
                users=result.users.files,
                refused_users=result.users.kept,
            )
        except ConfigError as error:
            raise ConfigError(sort_problems(map(loaded.located, error.problems))) from None
        except ListenError as error:
            error.locate(loaded)
            raise

    def _build_revision(self, loaded: Loaded, notices: tuple[Problem, ...]) -> ConfigRevision:
        config = loaded.config
        names = resolve_names(config)
        config = resolve_syslog_servers(config)
        workers = self._options.workers or config.workers
        if workers is None or workers == "auto":
            workers = cpus.usable()
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
            locate=loaded.located,
            sockets=self.listeners.prepare(plan_sockets(config, names), workers),
            ticket_keys=self.ticket_keys,
        )


async def in_thread(work: Callable[[], ResultT]) -> ResultT:
    """Run a blocking function in a new daemon thread.

    Unlike ``asyncio.to_thread``, it does not delay the exit of the process: a
    name server that does not answer may block it for long.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def resolve(result: ResultT | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # not None where there is no error

    def run() -> None:
        try:
            outcome: tuple[ResultT | None, Exception | None] = work(), None
        except Exception as error:  # raised again by the await below
            outcome = None, error
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(resolve, *outcome)

    threading.Thread(target=run, name="config-loader", daemon=True).start()
    return await done


def resolve_syslog_servers(config: ProxyConfig) -> ProxyConfig:
    """Replace the host names of syslog servers by addresses, once, as nginx does; blocks.

    Raises:
        ConfigError: A host name is not found.
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
