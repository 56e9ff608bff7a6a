# SPDX-License-Identifier: Apache-2.0
"""A worker process: the fork server runs ``preload`` in itself, and ``main`` in each worker.

It handles the supervisor's messages: apply a configuration, report metrics,
drain, stop.  When the supervisor has exited it drains and exits too, since no
other process would stop it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from mailproxy import app
from mailproxy.loop.worker_loop import make_loop
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.routing.route_table import RouteTable
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.ipc import Channel, ChannelError, Message
from mailproxy.telemetry.log import LibraryLogHandler, Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.tls.openssl import load_openssl
from mailproxy.users.user_list import UserList
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import load
from mailproxy_config.model import DrainConfig, LogLevel, ProxyConfig

FILE_DESCRIPTORS: Final = 16
"""Descriptors beyond those for listening sockets: a reload opens so many files at a time."""


class DescriptorReserve:
    """Descriptors kept free for a reload, which must not fail because clients use all others.

    ``release`` makes room, ``fill`` reserves it again.
    """

    def __init__(self) -> None:
        self._wanted = FILE_DESCRIPTORS
        self._held: list[int] = []

    @property
    def size(self) -> int:
        """The number of reserved descriptors."""
        return len(self._held)

    def keep(self, sockets: int) -> None:
        """Reserve enough for ``sockets`` listening sockets and some files, as far as the limit allows."""
        self._wanted = sockets + FILE_DESCRIPTORS
        while len(self._held) > self._wanted:
            os.close(self._held.pop())
        self.fill()

    def fill(self) -> None:
        """Reserve what was released, as far as the limit allows; call it again later for the rest."""
        try:
            while len(self._held) < self._wanted:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return

    def release(self, count: int | None = None) -> None:
        """Make room for ``count`` descriptors; for as many as possible where it is ``None``."""
        for _ in range(len(self._held) if count is None else min(count, len(self._held))):
            os.close(self._held.pop())


REPORT_SECONDS: Final = 5.0
"""Interval of regular reports of metrics; what a killed worker counted since the last one is lost."""

_LAST_FLUSH_SECONDS: Final = 1.0


_Command = (
    tuple[ipc_messages.Configure, list[socket.socket], list[int]]
    | ipc_messages.TicketKeys
    | ipc_messages.Members
    | ipc_messages.Drain
)


class WorkerService:
    """Handles the supervisor's messages, from the start of a worker process to its end.

    Args:
        application: The application.
        metrics: Its metrics.
        log: Its log.
    """

    def __init__(self, application: app.App, *, metrics: WorkerMetrics, log: Log) -> None:
        self._app = application
        self._metrics = metrics
        self._log = log
        self._drain = DrainConfig()
        self._commands: asyncio.Queue[_Command] = asyncio.Queue()
        self._channel: Channel
        self._command_task: asyncio.Task[None]
        self._reserve = DescriptorReserve()
        self._is_frozen = False
        self._is_draining = False
        self._is_last_command = False

    async def run(self, control: socket.socket) -> None:
        """Handle messages until the supervisor stops this worker, or has exited.

        Args:
            control: The worker's end of the channel; it is closed at the end.
        """
        loop = asyncio.get_running_loop()
        self._channel = Channel(
            control, received=self._received, closed=self._closed, reserve_room=self._reserve.release
        )
        self._channel.start(loop)
        for signum in (signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(signum, self._on_stop_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_regularly())
                self._command_task = tasks.create_task(self._run_commands())
                await asyncio.wait({self._command_task})
                reporting.cancel()
        finally:
            self._report()
            self._channel.flush(_LAST_FLUSH_SECONDS)
            self._channel.close()

    async def _run_commands(self) -> None:
        """Execute commands one after the other; the last one is ``Drain``."""
        while True:
            match await self._commands.get():
                case ipc_messages.Drain(delay, timeout):
                    self._use_queued_members()
                    await asyncio.sleep(delay)
                    self._log.event(LogLevel.INFO, "worker_draining", sessions=self._app.sessions)
                    await self._app.drain(timeout)
                    self._send(ipc_messages.Drained())
                    return
                case ipc_messages.TicketKeys(keys):
                    self._app.set_ticket_keys(keys)
                case ipc_messages.Members(lists):
                    self._app.set_members(lists)
                case order, sockets, descriptors:
                    await self._configure(order, sockets, descriptors)

    def _use_queued_members(self) -> None:
        """Use lists of members that came after the last command, and those that come during the drain."""
        self._is_last_command = True
        for command in [self._commands.get_nowait() for _ in range(self._commands.qsize())]:
            if isinstance(command, ipc_messages.Members):
                self._app.set_members(command.lists)
            else:
                self._commands.put_nowait(command)  # keeps its sockets open

    async def _configure(
        self, order: ipc_messages.Configure, sockets: list[socket.socket], descriptors: list[int]
    ) -> None:
        try:
            tables, users = _map_files(order, descriptors)
            _require_all(order, sockets, len(tables) + len(users))
            config = _config_of(order, sockets)
            self._reserve.release()
            await self._open_logs(config, sockets)
            given: dict[str, list[socket.socket]] = {}
            for key, sock in zip(order.sockets, sockets, strict=True):
                given.setdefault(key, []).append(sock)
            self._reserve.release()  # what was reserved again meanwhile
            await self._app.apply(
                config,
                given,
                names=order.names,
                ticket_keys=order.ticket_keys,
                tables=tables,
                users=users,
            )
        except ConfigError as error:
            self._reserve.fill()
            self._send(ipc_messages.Rejected(order.serial, error.problems))
            return
        self._reserve.keep(len(sockets))
        self._adopt(config)
        self._metrics.config_loaded(order.hash, order.generation, order.loaded_at)
        self._send(ipc_messages.Applied(order.serial))

    async def _open_logs(self, config: ProxyConfig, sockets: Sequence[socket.socket]) -> None:
        """Open the configuration's logs, files in a thread; closes the sockets on failure."""
        try:
            if config.error_logs:
                await asyncio.to_thread(self._log.open, config)
            else:
                self._log.open(config)
        except ConfigError:
            for sock in sockets:
                sock.close()
            raise

    def _adopt(self, config: ProxyConfig) -> None:
        self._drain = config.drain
        self._log.adopt(config)
        if not self._is_frozen:
            gc.collect()
            gc.freeze()
            self._is_frozen = True

    def _received(self, data: Message, descriptors: list[int]) -> None:
        try:
            order = ipc_messages.decode_for_worker(data)
        except ChannelError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            self._closed(error)
            return
        match order:
            case ipc_messages.Configure(sockets=keys):
                sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[: len(keys)]]
                self._commands.put_nowait((order, sockets, descriptors[len(keys) :]))
            case ipc_messages.Drain() | ipc_messages.TicketKeys() | ipc_messages.Members():
                self._enqueue(order)
            case ipc_messages.RequestSnapshot(number):
                self._report(number)
            case ipc_messages.ReopenLogs():
                self._log.reopen()
            case ipc_messages.Stop():
                self._app.stop()
                self._command_task.cancel()

    def _enqueue(self, order: ipc_messages.Drain | ipc_messages.TicketKeys | ipc_messages.Members) -> None:
        """Execute an order after those before it: a configuration has keys, too."""
        if self._is_last_command and isinstance(order, ipc_messages.Members):
            self._app.set_members(order.lists)
        else:
            self._commands.put_nowait(order)

    def _closed(self, error: ChannelError | None) -> None:
        """Drain, since the supervisor has exited."""
        self._log.event(LogLevel.WARN, "supervisor_gone", reason=str(error) if error else None)
        self._commands.put_nowait(ipc_messages.Drain(0.0, self._drain.timeout))

    def _on_stop_signal(self) -> None:
        """Drain on a signal to this worker alone (``SIGTERM``, ``SIGQUIT``); the supervisor replaces it."""
        if self._is_draining:
            return
        self._is_draining = True
        self._send(ipc_messages.Draining())
        self._commands.put_nowait(ipc_messages.Drain(0.0, self._drain.timeout))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._reserve.fill()
            self._report()

    def _report(self, number: int = 0) -> None:
        self._send(ipc_messages.SnapshotReport(number, self._metrics.snapshot()))

    def _send(self, message: ipc_messages.ToSupervisor) -> None:
        try:
            self._channel.send(ipc_messages.encode(message))
        except ChannelError:
            return  # the supervisor has exited, and ``_closed`` handles that


def preload() -> None:
    """Load OpenSSL, once for all workers; the modules are imported by now."""
    load_openssl()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker process."""
    return run(argv, make_app=app.App, make_loop=make_loop)


def run(
    argv: Sequence[str] | None,
    *,
    make_app: Callable[..., app.App],
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> int:
    """Run a worker process with this application.

    Args:
        argv: Command line arguments; ``None`` for the process's own.
        make_app: Called with ``log``, ``metrics`` and ``memory``.
        make_loop: Creates the event loop.
    """
    options = _options(argv)
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    level = LogLevel(options.log_level) if options.log_level else None
    log = Log(2, LogFormat(options.log_format), level or LogLevel.NOTICE, is_fixed=level is not None)
    logging.basicConfig(handlers=[LibraryLogHandler(log)], level=logging.WARNING)
    metrics = WorkerMetrics()
    memory = SharedMemory(options.memory_fd)

    async def serve() -> None:
        application = make_app(log=log, metrics=metrics, memory=memory)
        service = WorkerService(application, metrics=metrics, log=log)
        await service.run(socket.socket(fileno=options.control_fd))

    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(serve())
    finally:
        log.close()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mailproxy.worker", description="Started by mailproxy run.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--memory-fd", type=int, required=True)
    parser.add_argument("--log-format", choices=list(LogFormat), default=LogFormat.JSON)
    parser.add_argument("--log-level", choices=list(LogLevel))
    return parser.parse_args(argv)


def _map_files(
    order: ipc_messages.Configure, descriptors: Sequence[int]
) -> tuple[dict[str, RouteTable], dict[str, UserList]]:
    """Map tables of routes and lists of users into memory, and close their descriptors."""
    count = len(order.tables)
    try:
        return (
            {path: RouteTable(each) for path, each in zip(order.tables, descriptors, strict=False)},
            {path: UserList(each) for path, each in zip(order.users, descriptors[count:], strict=False)},
        )
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("", f"cannot map a table into memory: {error}")]) from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _require_all(order: ipc_messages.Configure, sockets: Sequence[socket.socket], files: int) -> None:
    """Reject a configuration whose descriptors were lost because too many files are open."""
    if len(sockets) != len(order.sockets) or files != len(order.tables) + len(order.users):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        reason = f"a worker has too many open files to take the listening sockets (its limit is {limit})"
        raise ConfigError([Problem("", reason)])


def _config_of(order: ipc_messages.Configure, sockets: Sequence[socket.socket]) -> ProxyConfig:
    """Parse the configuration; closes the sockets on failure, since they have no other owner yet."""
    try:
        return load(order.config.encode(), source="configuration", hostname=order.hostname).config
    except ConfigError:
        for sock in sockets:
            sock.close()
        raise
