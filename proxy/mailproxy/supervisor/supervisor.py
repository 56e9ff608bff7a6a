# SPDX-License-Identifier: Apache-2.0
"""``mailproxy run``: the supervisor from its start to its end.

It carries no mail.  It reads the configuration, opens the listening sockets,
starts workers and sends them both.  After that it reacts to signals, changed
files, workers that exit, and requests to the admin endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import resource
import signal
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from mailproxy.file_watcher import FileWatcher
from mailproxy.limits.table import LimitTable
from mailproxy.net import open_files, shared_memory
from mailproxy.net.bind_errors import ListenError
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.supervisor import admin_endpoint, fork_server, ipc_messages
from mailproxy.supervisor.config_check import format_problem, sort_problems
from mailproxy.supervisor.config_loader import ConfigLoader, ConfigRevision, in_thread
from mailproxy.supervisor.fork_server import ForkServer
from mailproxy.supervisor.launcher import WorkerLauncher
from mailproxy.supervisor.member_lists import MemberLists, MembersRead
from mailproxy.supervisor.options import RunOptions
from mailproxy.supervisor.status import Status
from mailproxy.supervisor.termination_log import write_termination_log
from mailproxy.supervisor.worker_pool import StartupError, WorkerPool
from mailproxy.telemetry.log import LibraryLogHandler, Log
from mailproxy_config.addresses import format_host_port
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel
from mailproxy_config.standard_streams import ExitCode

WATCH_SECONDS: Final = 1.0
"""Interval between two checks of the files."""

_CHANGING_SECONDS: Final = 0.2
_MAX_DESCRIPTORS: Final = 1024 * 1024
_MAX_PROBLEM_LINES: Final = 100
"""Log lines about the problems of one configuration, and about its notices."""
_SWITCH_INTERVAL_SECONDS: Final = 0.001
"""The longest time that the thread which loads a configuration may block the admin endpoint.

Loading is a second or two of Python code at most (see ``limits``), and runs in a
thread: a separate process would cost as much memory as a worker.
"""

_logger = logging.getLogger(__name__)


def run(options: RunOptions) -> int:
    """Run the proxy until a signal ends it.

    Returns:
        The exit code: ``OK`` after a drain, ``INVALID_INPUT`` for a configuration
        that does not load, ``CANNOT_START`` for an address in use, for example.
    """
    raise_descriptor_limit()
    try:
        fork_server.become_subreaper()
        server = fork_server.fork(options.worker_module)  # before there is a thread or an event loop
        memory = shared_memory.create()
    except OSError as error:
        sys.stderr.write(f"mailproxy: cannot start a process for workers: {error.strerror or error}\n")
        return ExitCode.CANNOT_START
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    level = options.log_level
    log = Log(2, options.log_format, level or LogLevel.NOTICE, is_fixed=level is not None)
    logging.basicConfig(handlers=[LibraryLogHandler(log)], level=logging.WARNING)
    try:
        return asyncio.run(Supervisor(options, log, server, memory).run())
    finally:
        server.control.close()  # where no launcher was started
        log.close()


class Supervisor:
    """The process that starts, configures, replaces and stops the workers."""

    def __init__(self, options: RunOptions, log: Log, server: ForkServer, memory: int) -> None:
        self._options = options
        self._log = log
        self._server = server
        self._memory = memory
        self._members = MemberLists()
        shared = SharedMemory(memory)
        self._status = Status(UpstreamHealth(shared), LimitTable(shared), self._members)
        self._file_watcher = FileWatcher([options.file])
        self._config_loader = ConfigLoader(options)
        self._reload_requested = asyncio.Event()
        self._shutdown_requested = asyncio.Event()
        self._ticket_keys_changed = asyncio.Event()
        self._skips_drain_delay = False
        self._listening: tuple[str, ...] = ()
        self._pool: WorkerPool | None = None
        self._main: asyncio.Task[object] | None = None

    async def run(self) -> int:
        """Run until the end; returns the exit code."""
        self._main = asyncio.current_task()
        self._handle_signals()
        try:
            return await self._start()
        except asyncio.CancelledError:
            if self._shutdown_requested.is_set():  # a signal came before there was anything to drain
                return 0
            raise
        finally:
            self._config_loader.close()

    async def _start(self) -> int:
        try:
            revision = await self._load()
        except ConfigError as error:
            return self._fail(ExitCode.INVALID_INPUT, error.problems)
        except ListenError as error:
            return self._fail(ExitCode.CANNOT_START, [error.problem])
        self._config_loader.commit(revision)
        return await self._run_admin_endpoint(revision)

    async def _run_admin_endpoint(self, revision: ConfigRevision) -> int:
        address, port = self._options.admin_address, self._options.admin_port
        try:
            endpoint = await admin_endpoint.serve(address, port, self._status)
        except OSError as error:
            reason = f"cannot listen on {address}:{port} (--admin): {error.strerror or error}"
            return self._fail(ExitCode.CANNOT_START, [Problem("", reason)])
        try:
            async with asyncio.TaskGroup() as tasks:
                return await self._run_launcher(tasks, revision, endpoint)
        finally:
            await endpoint.close()

    async def _run_launcher(
        self, tasks: asyncio.TaskGroup, revision: ConfigRevision, endpoint: admin_endpoint.AdminEndpoint
    ) -> int:
        launcher = WorkerLauncher(
            tasks,
            self._server,
            self._worker_arguments(),
            spawn=functools.partial(fork_server.spawn, self._options.worker_module),
            memory=self._memory,
            log_event=self._log_event,
        )
        try:
            return await self._run_workers(tasks, launcher, revision, endpoint)
        finally:
            launcher.close()

    async def _run_workers(
        self,
        tasks: asyncio.TaskGroup,
        launcher: WorkerLauncher,
        revision: ConfigRevision,
        endpoint: admin_endpoint.AdminEndpoint,
    ) -> int:
        pool = WorkerPool(
            tasks,
            launcher,
            on_snapshot=self._status.on_snapshot,
            on_exit=self._status.on_exit,
            log_event=self._log_event,
        )
        self._pool = self._status.pool = pool
        self._use_members(pool, self._members.use(revision.config))
        try:
            await pool.start(revision)
        except (ConfigError, StartupError) as error:
            await pool.stop_and_wait()
            return self._report_failed_start(error, revision)
        self._commit(revision)
        self._log_listening(revision, endpoint)
        self._status.is_started = True
        waiting = [
            tasks.create_task(self._watch_files(pool)),
            tasks.create_task(self._reload_on_request(pool)),
            tasks.create_task(self._rotate_ticket_keys(pool)),
        ]
        await self._shutdown_requested.wait()
        for task in waiting:
            task.cancel()
        watching = tasks.create_task(self._watch_members(pool))
        await self._drain(pool)
        watching.cancel()
        return 0

    def _report_failed_start(self, error: ConfigError | StartupError, revision: ConfigRevision) -> int:
        if self._shutdown_requested.is_set():
            return 0
        if isinstance(error, ConfigError):
            return self._fail(ExitCode.INVALID_INPUT, sort_problems(map(revision.locate, error.problems)))
        return self._fail(ExitCode.CANNOT_START, [Problem("", str(error))])

    # -- configuration

    async def _load(self) -> ConfigRevision:
        """Load the file and open what it needs; watch the files that it refers to, even if it is invalid."""
        try:
            revision = await self._config_loader.prepare()
        finally:
            self._file_watcher.watch(self._config_loader.files)
        try:
            await in_thread(functools.partial(self._log.open, revision.config))
        except ConfigError as error:
            self._config_loader.discard(revision)
            raise ConfigError(sort_problems(map(revision.locate, error.problems))) from error
        return revision

    async def _watch_files(self, pool: WorkerPool) -> None:
        while True:
            is_changing = self._file_watcher.is_changing or self._members.is_changing
            await asyncio.sleep(_CHANGING_SECONDS if is_changing else WATCH_SECONDS)
            self._log.flush()
            self._use_members(pool, self._members.poll())
            for path in self._file_watcher.changed():
                self._log_event(LogLevel.NOTICE, "file_changed", path=path)
                self._reload_requested.set()

    async def _watch_members(self, pool: WorkerPool) -> None:
        """Watch the members of Services during a drain: clients that are connected may still log in."""
        while True:
            await asyncio.sleep(_CHANGING_SECONDS if self._members.is_changing else WATCH_SECONDS)
            self._use_members(pool, self._members.poll())

    def _use_members(self, pool: WorkerPool, read: MembersRead) -> None:
        """Send changed members of Services to the workers."""
        if read.changed:
            pool.set_members(read.changed)
        for path, generation in read.loaded:
            self._log_event(LogLevel.NOTICE, "members_loaded", path=path, generation=generation)
        for problem in read.kept:
            self._log_event(LogLevel.ERROR, "members_kept", path=problem.path, reason=problem.reason)

    async def _reload_on_request(self, pool: WorkerPool) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            try:
                revision = await self._load()
            except ConfigError as error:
                self._reject(error.problems)
            except ListenError as error:
                self._reject([error.problem])
            except Exception as error:  # a bug in this program must not end a running proxy
                _logger.exception("cannot load the configuration")
                self._reject([Problem("", f"internal error ({type(error).__name__})")])
            else:
                await self._apply(pool, revision)

    async def _apply(self, pool: WorkerPool, revision: ConfigRevision) -> None:
        self._use_members(pool, self._members.use(pool.wanted.config, revision.config))
        try:
            await pool.change_to(revision)
        except ConfigError as error:
            self._config_loader.discard(revision)
            self._reject(sort_problems(map(revision.locate, error.problems)))
        else:
            self._commit(revision)
        self._use_members(pool, self._members.use(pool.wanted.config))

    def _commit(self, revision: ConfigRevision) -> None:
        before = self._listening
        self._listening = tuple(revision.sockets.by_key)
        self._config_loader.commit(revision)
        self._ticket_keys_changed.set()
        self._status.loaded(revision)
        self._log.adopt(revision.config, notices=True)
        self._log_configuration(revision)
        if before and set(before) != set(self._listening):
            self._log_listener_changes(before, self._listening)

    async def _rotate_ticket_keys(self, pool: WorkerPool) -> None:
        keys = self._config_loader.ticket_keys
        while True:
            self._ticket_keys_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(keys.wait()):
                    await self._ticket_keys_changed.wait()
            if keys.rotate():
                pool.set_ticket_keys(ipc_messages.TicketKeys(keys.all()))

    def _reject(self, problems: Sequence[Problem]) -> None:
        """Log why a configuration was rejected at a reload, and which one stays in use."""
        self._status.refused(tuple(problems))
        for problem in problems[:_MAX_PROBLEM_LINES]:
            self._log_event(LogLevel.ERROR, "configuration_refused", **_fields(problem))
        kept = self._pool.wanted if self._pool is not None else None
        self._log_event(
            LogLevel.ERROR,
            "configuration_kept",
            reason="the new configuration is refused, the one before stays in use",
            problems=len(problems),
            hash=kept.hash if kept else None,
            generation=kept.generation if kept else None,
        )

    # -- signals and shutdown

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        loop.add_signal_handler(signal.SIGUSR1, self._on_reopen_signal)
        for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_stop_signal, signum)

    def _on_reload_signal(self) -> None:
        self._log_event(LogLevel.NOTICE, "reload_requested", signal="SIGHUP")
        self._reload_requested.set()

    def _on_reopen_signal(self) -> None:
        """Reopen the log files in all processes."""
        self._log.reopen()
        if self._pool is not None:
            self._pool.reopen_logs()
        self._log_event(LogLevel.NOTICE, "logs_reopened")

    def _on_stop_signal(self, signum: signal.Signals) -> None:
        """Drain at the first signal; stop without draining at the second, or before the start is complete."""
        if self._pool is not None and (self._shutdown_requested.is_set() or not self._status.is_started):
            self._log_event(LogLevel.NOTICE, "stopping", signal=signum.name)
            self._pool.stop()
        elif self._pool is None and self._main is not None:
            self._main.cancel()
        else:
            self._log_event(LogLevel.NOTICE, "draining", signal=signum.name)
        self._skips_drain_delay = signum is signal.SIGINT
        self._status.is_draining = True
        self._shutdown_requested.set()

    async def _drain(self, pool: WorkerPool) -> None:
        drain = pool.wanted.config.drain
        # The delay gives load balancers time to remove this address; it is left out for Ctrl-C in a terminal.
        delay = 0.0 if self._skips_drain_delay else drain.delay
        asyncio.get_running_loop().call_later(delay, self._config_loader.close)
        await pool.drain(delay, drain.timeout)
        self._log_event(LogLevel.NOTICE, "drained")

    # -- log

    def _log_event(self, level: LogLevel, name: str, /, **fields: object) -> None:
        self._log.event(level, name, **fields)
        self._log.flush()

    def _log_configuration(self, revision: ConfigRevision) -> None:
        self._log_event(
            LogLevel.NOTICE,
            "configuration_loaded",
            hash=revision.hash,
            generation=revision.generation,
            workers=revision.workers,
        )
        for notice in revision.notices[:_MAX_PROBLEM_LINES]:
            self._log_event(LogLevel.NOTICE, "configuration_notice", path=notice.path, reason=notice.reason)
        for problem in revision.certificates[:_MAX_PROBLEM_LINES]:
            self._log_event(LogLevel.ERROR, "certificate_not_used", **_fields(problem))
        for problem in revision.refused_lines[:_MAX_PROBLEM_LINES]:
            self._log_event(LogLevel.ERROR, "route_table_kept", **_fields(problem))
        for problem in revision.refused_users[:_MAX_PROBLEM_LINES]:
            self._log_event(LogLevel.ERROR, "user_file_kept", **_fields(problem))
        self._log_low_limit(revision.config.worker_connections, len(revision.sockets.by_key))
        for key, clamp in revision.sockets.clamped_options():
            fields = {"option": clamp.option, "wanted": clamp.wanted, "got": clamp.got}
            self._log_event(LogLevel.WARN, "socket_option_clamped", listener=key, **fields)

    def _log_low_limit(self, wanted: int, listeners: int) -> None:
        """Log that ``worker_connections`` clients need more descriptors than a worker may have."""
        limit = open_files.open_files_limit()
        clients = open_files.most_clients(limit, listeners)
        if clients < wanted:
            self._log_event(
                LogLevel.WARN,
                "open_files_limit_is_low",
                limit=limit,
                needed=open_files.needed_files(wanted, listeners),
                clients=clients,
                hint=open_files.HINTS[errno.EMFILE],
            )

    def _log_listening(self, revision: ConfigRevision, endpoint: admin_endpoint.AdminEndpoint) -> None:
        self._log_event(
            LogLevel.NOTICE,
            "listening",
            admin=format_host_port(endpoint.address, endpoint.port),
            listeners=", ".join(revision.sockets.by_key),
            workers=revision.workers,
        )

    def _log_listener_changes(self, before: Collection[str], now: Collection[str]) -> None:
        opened = ", ".join(key for key in now if key not in before)
        closed = ", ".join(key for key in before if key not in now)
        self._log_event(LogLevel.NOTICE, "listeners_changed", opened=opened or None, closed=closed or None)

    def _fail(self, code: ExitCode, problems: Iterable[Problem]) -> int:
        """Print why the proxy does not start."""
        problems = tuple(problems)
        write_termination_log(problems)
        for problem in problems:
            sys.stderr.write(f"mailproxy: {format_problem(problem)}\n")
        return code

    def _worker_arguments(self) -> tuple[str, ...]:
        options = self._options
        level = ("--log-level", options.log_level) if options.log_level else ()
        return ("--log-format", options.log_format, *level)


def _fields(problem: Problem) -> dict[str, object]:
    """Return the fields of an event of the log about a problem."""
    return {"path": problem.path, "line": problem.line or None, "reason": problem.reason}


def raise_descriptor_limit() -> None:
    """Raise the limit of open files to the hard limit: workers inherit it, and a session needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
