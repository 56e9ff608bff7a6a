# SPDX-License-Identifier: Apache-2.0
"""``mailproxy run``: the supervisor from its start to its end.

It carries no mail.  It reads the configuration, opens the listening sockets,
starts workers and hands them both; after that it waits for what happens: a
signal, a changed file, a dead worker, a question at the admin endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import signal
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from mailproxy import admin
from mailproxy.file_watcher import FileWatcher
from mailproxy.supervisor import fork_server, ipc_messages
from mailproxy.supervisor.config_loader import CannotListen, PreparedConfig, in_thread
from mailproxy.supervisor.config_revision import ConfigRevision
from mailproxy.supervisor.fork_server import ForkServer
from mailproxy.supervisor.launcher import Launcher
from mailproxy.supervisor.options import Settings
from mailproxy.supervisor.status import Status
from mailproxy.supervisor.verdict import in_order, printable
from mailproxy.supervisor.worker_pool import CannotStart, WorkerPool
from mailproxy.telemetry.log import Bridge, Log
from mailproxy_config.addresses import format_host_port
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel

LOOK_SECONDS: Final = 1.0
"""How often the files are looked at."""

_RESTLESS_SECONDS: Final = 0.2
_MOST_DESCRIPTORS: Final = 1024 * 1024
_SPARE_DESCRIPTORS: Final = 64
_MOST_LINES: Final = 100
"""Log lines about the problems of one configuration, and about its notices."""
_SWITCH_SECONDS: Final = 0.001
"""How long the thread that loads a configuration may hold up the admin endpoint at a time.

Loading is a second or two of Python code at most (see ``limits``), and runs in a
thread: a process of its own would cost as much memory as a worker.
"""
_WRONG_INPUT: Final = 1
_CANNOT_START: Final = 3

_logger = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Run the proxy until a signal ends it.

    Returns:
        The exit code: 0 after a drain, 1 for a configuration that does not
        load, 3 where something prevents the start.
    """
    raise_descriptor_limit()
    try:
        fork_server.become_subreaper()
        server = fork_server.fork(settings.worker_module)  # while there is neither a thread nor a loop
    except OSError as error:
        sys.stderr.write(f"mailproxy: cannot start a process for workers: {error.strerror or error}\n")
        return _CANNOT_START
    sys.setswitchinterval(_SWITCH_SECONDS)
    level = settings.log_level
    log = Log(2, settings.log_format, level or LogLevel.NOTICE, is_fixed=level is not None)
    logging.basicConfig(handlers=[Bridge(log)], level=logging.WARNING)
    try:
        return asyncio.run(Supervisor(settings, log, server).run())
    finally:
        server.control.close()  # a start that is refused has given it to no launcher
        log.close()


class Supervisor:
    """The one process that starts, feeds, replaces and ends the others."""

    def __init__(self, settings: Settings, log: Log, server: ForkServer) -> None:
        self._settings = settings
        self._log = log
        self._server = server
        self._status = Status()
        self._watch = FileWatcher([settings.file])
        self._preparation = PreparedConfig(settings)
        self._reload_wanted = asyncio.Event()
        self._ending = asyncio.Event()
        self._keys_changed = asyncio.Event()
        self._is_watched = False
        self._listening: tuple[str, ...] = ()
        self._pool: WorkerPool | None = None
        self._main: asyncio.Task[object] | None = None

    async def run(self) -> int:
        """Do all of it; returns the exit code."""
        self._main = asyncio.current_task()
        self._handle_signals()
        try:
            return await self._begin()
        except asyncio.CancelledError:
            if self._ending.is_set():  # told to leave before there was anything to drain
                return 0
            raise
        finally:
            self._preparation.close()

    async def _begin(self) -> int:
        try:
            deployment = await self._prepared()
        except ConfigError as error:
            return self._fail(_WRONG_INPUT, error.problems)
        except CannotListen as error:
            return self._fail(_CANNOT_START, [error.problem])
        self._preparation.commit(deployment)
        return await self._answer(deployment)

    async def _answer(self, deployment: ConfigRevision) -> int:
        """Serve the admin endpoint as long as anything runs."""
        address, port = self._settings.admin_address, self._settings.admin_port
        try:
            endpoint = await admin.serve(address, port, self._status)
        except OSError as error:
            reason = f"cannot listen on {address}:{port} (--admin): {error.strerror or error}"
            return self._fail(_CANNOT_START, [Problem("", reason)])
        try:
            async with asyncio.TaskGroup() as tasks:
                return await self._live(tasks, deployment, endpoint)
        finally:
            await endpoint.close()

    async def _live(
        self, tasks: asyncio.TaskGroup, deployment: ConfigRevision, endpoint: admin.Running
    ) -> int:
        launcher = Launcher(
            tasks,
            self._server,
            self._worker_arguments(),
            another=functools.partial(fork_server.execute, self._settings.worker_module),
            tell=self._tell,
        )
        try:
            return await self._serve(tasks, launcher, deployment, endpoint)
        finally:
            launcher.close()

    async def _serve(
        self,
        tasks: asyncio.TaskGroup,
        launcher: Launcher,
        deployment: ConfigRevision,
        endpoint: admin.Running,
    ) -> int:
        pool = WorkerPool(
            tasks, launcher, reported=self._status.reported, gone=self._status.gone, tell=self._tell
        )
        self._pool = self._status.pool = pool
        try:
            await pool.start(deployment)
        except (ConfigError, CannotStart) as error:
            await pool.stopped()
            return self._could_not_start(error, deployment)
        self._accepted(deployment)
        self._tell_where(deployment, endpoint)
        self._status.is_started = True
        waiting = [
            tasks.create_task(self._look_at_files()),
            tasks.create_task(self._reload_when_wanted(pool)),
            tasks.create_task(self._rotate_ticket_keys(pool)),
        ]
        await self._ending.wait()
        for task in waiting:
            task.cancel()
        await self._drain(pool)
        return 0

    def _could_not_start(self, error: ConfigError | CannotStart, deployment: ConfigRevision) -> int:
        if self._ending.is_set():
            return 0
        if isinstance(error, ConfigError):
            return self._fail(_WRONG_INPUT, in_order(map(deployment.located, error.problems)))
        return self._fail(_CANNOT_START, [Problem("", str(error))])

    # -- configuration

    async def _prepared(self) -> ConfigRevision:
        """Load the file and get ready for it; watch whatever it refers to, whether it is good or not."""
        try:
            deployment = await self._preparation.prepare()
        finally:
            self._watch.watch(self._preparation.files)
        try:
            await in_thread(functools.partial(self._log.open, deployment.config))
        except ConfigError as error:
            self._preparation.discard(deployment)
            raise ConfigError(in_order(map(deployment.located, error.problems))) from error
        return deployment

    async def _look_at_files(self) -> None:
        while True:
            await asyncio.sleep(_RESTLESS_SECONDS if self._watch.is_restless else LOOK_SECONDS)
            self._log.flush()
            for path in self._watch.changed():
                self._tell(LogLevel.NOTICE, "file_changed", path=path)
                self._reload_wanted.set()

    async def _reload_when_wanted(self, pool: WorkerPool) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            try:
                deployment = await self._prepared()
            except ConfigError as error:
                self._refused(error.problems)
            except CannotListen as error:
                self._refused([error.problem])
            except Exception as error:  # an odd file may find a bug of ours, but must not end what runs
                _logger.exception("cannot load the configuration")
                self._refused([Problem("", f"internal error ({type(error).__name__})")])
            else:
                await self._change_to(pool, deployment)

    async def _change_to(self, pool: WorkerPool, deployment: ConfigRevision) -> None:
        try:
            await pool.change_to(deployment)
        except ConfigError as error:
            self._preparation.discard(deployment)
            self._refused(in_order(map(deployment.located, error.problems)))
        else:
            self._accepted(deployment)

    def _accepted(self, deployment: ConfigRevision) -> None:
        before = self._listening
        self._listening = tuple(deployment.sockets.by_key)
        self._preparation.commit(deployment)
        self._keys_changed.set()
        self._status.loaded(deployment)
        self._log.adopt(deployment.config, notices=True)
        self._tell_about(deployment)
        if before and set(before) != set(self._listening):
            self._tell_change(before, self._listening)

    async def _rotate_ticket_keys(self, pool: WorkerPool) -> None:
        keys = self._preparation.ticket_keys
        while True:
            self._keys_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(keys.wait()):
                    await self._keys_changed.wait()
            if keys.rotate():
                pool.set_ticket_keys(ipc_messages.TicketKeys(keys.all()))

    def _refused(self, problems: Sequence[Problem]) -> None:
        """Log why a reload was refused, and what runs on."""
        self._status.refused(tuple(problems))
        for problem in problems[:_MOST_LINES]:
            self._tell(LogLevel.ERROR, "configuration_refused", path=problem.path, reason=problem.reason)
        kept = self._pool.wanted if self._pool is not None else None
        self._tell(
            LogLevel.ERROR,
            "configuration_kept",
            reason="the new configuration is refused, the one before stays in use",
            problems=len(problems),
            hash=kept.hash if kept else None,
            generation=kept.generation if kept else None,
        )

    # -- the end

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            loop.add_signal_handler(signum, self._end, signum)

    def _reload(self) -> None:
        self._tell(LogLevel.NOTICE, "reload_requested", signal="SIGHUP")
        self._reload_wanted.set()

    def _reopen_logs(self) -> None:
        """Open the log files anew, in every process."""
        self._log.reopen()
        if self._pool is not None:
            self._pool.reopen_logs()
        self._tell(LogLevel.NOTICE, "logs_reopened")

    def _end(self, signum: signal.Signals) -> None:
        """Drain at the first signal; leave at once at the second, or when nothing has begun yet."""
        if self._pool is not None and (self._ending.is_set() or not self._status.is_started):
            self._tell(LogLevel.NOTICE, "stopping", signal=signum.name)
            self._pool.stop()
        elif self._pool is None and self._main is not None:
            self._main.cancel()
        else:
            self._tell(LogLevel.NOTICE, "draining", signal=signum.name)
        self._is_watched = signum is signal.SIGINT
        self._status.is_draining = True
        self._ending.set()

    async def _drain(self, pool: WorkerPool) -> None:
        drain = pool.wanted.config.drain
        # The delay is for load balancers that have yet to hear of it; nobody at a terminal waits for those.
        delay = 0.0 if self._is_watched else drain.delay
        asyncio.get_running_loop().call_later(delay, self._preparation.close)
        await pool.drain(delay, drain.timeout)
        self._tell(LogLevel.NOTICE, "drained")

    # -- telling

    def _tell(self, level: LogLevel, name: str, /, **fields: object) -> None:
        self._log.event(level, name, **fields)
        self._log.flush()

    def _tell_about(self, deployment: ConfigRevision) -> None:
        self._tell(
            LogLevel.NOTICE,
            "configuration_loaded",
            hash=deployment.hash,
            generation=deployment.generation,
            workers=deployment.workers,
        )
        for notice in deployment.notices[:_MOST_LINES]:
            self._tell(LogLevel.NOTICE, "configuration_notice", path=notice.path, reason=notice.reason)
        needed = 2 * deployment.config.worker_connections + _SPARE_DESCRIPTORS
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and limit < needed:
            self._tell(LogLevel.WARN, "open_files_limit_is_low", limit=limit, needed=needed)
        for key, clamp in deployment.sockets.clamps():
            fields = {"option": clamp.option, "wanted": clamp.wanted, "got": clamp.got}
            self._tell(LogLevel.WARN, "socket_option_clamped", listener=key, **fields)

    def _tell_where(self, deployment: ConfigRevision, endpoint: admin.Running) -> None:
        self._tell(
            LogLevel.NOTICE,
            "listening",
            admin=format_host_port(endpoint.address, endpoint.port),
            listeners=", ".join(deployment.sockets.by_key),
            workers=deployment.workers,
        )

    def _tell_change(self, before: Collection[str], now: Collection[str]) -> None:
        opened = ", ".join(key for key in now if key not in before)
        closed = ", ".join(key for key in before if key not in now)
        self._tell(LogLevel.NOTICE, "listeners_changed", opened=opened or None, closed=closed or None)

    def _fail(self, code: int, problems: Iterable[Problem]) -> int:
        for problem in problems:
            sys.stderr.write(f"mailproxy: {printable(problem)}\n")
        return code

    def _worker_arguments(self) -> tuple[str, ...]:
        settings = self._settings
        level = ("--log-level", settings.log_level) if settings.log_level else ()
        return ("--log-format", settings.log_format, *level)


def raise_descriptor_limit() -> None:
    """Have as many open files as the system lets us: workers inherit this, and a session needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
