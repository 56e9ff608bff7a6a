# SPDX-License-Identifier: Apache-2.0
"""The pool of workers: starts them, replaces those that end or hang, and applies one configuration to all.

Every slot of the pool has its own listening sockets, which the supervisor
keeps open.  When a worker ends, connections that the kernel has queued there
wait for its replacement instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mailproxy.enums import RestartReason
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.child_process import CHECK_SECONDS
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.supervisor.launcher import Backoff, WorkerLauncher
from mailproxy.supervisor.worker_process import (
    RELOAD_SECONDS,
    LogCallback,
    SnapshotCallback,
    WorkerExited,
    WorkerProcess,
)
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel
from mailproxy_config.upstream_members import MemberList

MAX_STARTUP_FAILURES: Final = 5
"""Workers that may exit before all are ready for the first time; after that many the start has failed."""

FORCE_SECONDS: Final = 2.0
"""Time between the message ``Stop`` and SIGKILL."""

_GRACE_SECONDS: Final = 10.0


class StartupError(Exception):
    """Workers exit before they are ready."""


@dataclass(eq=False, slots=True)
class WorkerSlot:
    """One position in the pool: it keeps its number, and so its sockets, when its worker is replaced."""

    number: int
    worker: WorkerProcess | None = None
    is_wanted: bool = True


class WorkerPool:
    """All workers.

    Args:
        tasks: The task group of the pool's tasks.
        launcher: Starts worker processes.
        on_snapshot: Called with every snapshot of a worker's metrics.
        on_exit: Called with the key of a worker that has exited, after its last snapshot.
        log_event: Writes to the log.

    Attributes:
        restarts: How many workers were replaced, by reason.
        wanted: The configuration that all workers must run.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        launcher: WorkerLauncher,
        *,
        on_snapshot: SnapshotCallback,
        on_exit: Callable[[int], None],
        log_event: LogCallback,
    ) -> None:
        self.restarts = dict.fromkeys(RestartReason, 0)
        self._tasks = tasks
        self._launcher = launcher
        self._on_snapshot = on_snapshot
        self._on_exit = on_exit
        self._log_event = log_event
        self._backoff = Backoff()
        self._slots: list[WorkerSlot] = []
        self.workers: set[WorkerProcess] = set()
        self.wanted: ConfigRevision
        self._ending = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._startup_failures = 0
        self._unresponsive: set[WorkerProcess] = set()
        self._members: dict[str, MemberList] = {}
        self._heartbeat_task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> int:
        """The number of worker processes, draining ones included."""
        return len(self.workers)

    @property
    def serving(self) -> int:
        """The number of workers that have a configuration and accept new sessions."""
        return len(self._serving_slots())

    @property
    def unresponsive(self) -> Mapping[int, float]:
        """Silent workers that should accept sessions: seconds since the last message by process ID."""
        workers = [slot.worker for slot in self._slots]
        return {
            worker.pid: worker.heartbeat.silent_seconds for worker in self._unresponsive if worker in workers
        }

    @property
    def is_settled(self) -> bool:
        """Whether every slot has a worker that runs ``wanted``."""
        return all(
            slot.worker is not None and slot.worker.running == self.wanted.serial for slot in self._slots
        )

    async def start(self, revision: ConfigRevision) -> None:
        """Start the workers; returns when all of them are ready.

        Raises:
            ConfigError: A worker rejected the configuration.
            StartupError: Workers exit before they are ready.
        """
        self.wanted = revision
        self._heartbeat_task = self._tasks.create_task(self._check_heartbeats())
        self._resize()
        try:
            await self._started
        except (ConfigError, StartupError):
            self._ending.set()
            raise

    async def change_to(self, revision: ConfigRevision) -> None:
        """Apply another configuration to all workers, or to none of them.

        One worker applies it first.  When this returns, all workers that were
        ready run it.  Workers of new slots start in the background, and
        surplus workers drain with the previous configuration.

        Raises:
            ConfigError: A worker rejected it or exited; all workers run the previous one.
        """
        kept = [slot for slot in self._serving_slots() if slot.number < revision.workers]
        if kept:
            try:
                await self._apply(kept[0], revision, RELOAD_SECONDS)
            except WorkerExited:
                raise ConfigError([Problem("", "a worker ended while it applied this")]) from None
        tried = await asyncio.gather(
            *(self._apply(slot, revision, RELOAD_SECONDS) for slot in kept[1:]), return_exceptions=True
        )
        for failure in tried:
            if isinstance(failure, BaseException) and not isinstance(failure, WorkerExited):
                await self._apply_wanted()
                raise failure
        self.wanted = revision
        self._resize()
        await self._apply_wanted()

    async def report(self, number: int, seconds: float) -> None:
        """Request a snapshot of its metrics from every worker, and wait for at most ``seconds``."""
        await asyncio.gather(
            *(worker.report(number, seconds) for worker in self.workers), return_exceptions=True
        )

    def reopen_logs(self) -> None:
        """Reopen the log files in all workers."""
        for worker in self.workers:
            worker.reopen_logs()

    def set_ticket_keys(self, message: ipc_messages.TicketKeys) -> None:
        """Replace the keys of TLS session tickets in all workers."""
        for worker in tuple(self.workers):
            worker.set_ticket_keys(message)

    def set_members(self, changed: Mapping[str, MemberList | None]) -> None:
        """Replace lists of members of Services in all workers, and in those that start later."""
        found = {**self._members, **changed}
        self._members = {name: each for name, each in found.items() if each is not None}
        for worker in tuple(self.workers):
            worker.set_members(ipc_messages.Members(changed))

    async def drain(self, delay: float, timeout: float) -> None:  # noqa: ASYNC109 - what relays get
        """Drain all workers; returns when the last one has exited.

        Args:
            delay: Seconds for which they still accept connections.
            timeout: Seconds after that until open sessions are closed.
        """
        self._ending.set()
        for worker in self.workers:
            worker.drain(delay, timeout)
        await self._wait_for_all(delay + timeout + _GRACE_SECONDS)

    def stop(self) -> None:
        """Stop all workers without draining; ``start`` and ``drain`` return soon after."""
        self._ending.set()
        if not self._started.done():
            self._started.set_exception(StartupError("stopped during the start"))
        for worker in self.workers:
            worker.stop()
        self._launcher.close()
        asyncio.get_running_loop().call_later(FORCE_SECONDS, self._kill_all)

    async def stop_and_wait(self) -> None:
        """Stop all workers without draining; returns when the last one has exited."""
        self.stop()
        await self._wait_for_all(FORCE_SECONDS + _GRACE_SECONDS)

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.kill()

    async def _wait_for_all(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.workers:
                    await next(iter(self.workers)).exited.wait()
                    await asyncio.sleep(0)
        self._kill_all()
        if self._heartbeat_task is not None:
            self._heartbeat_task.cancel()

    # -- applying a configuration

    def _serving_slots(self) -> list[WorkerSlot]:
        return [slot for slot in self._slots if slot.worker is not None and slot.worker.running is not None]

    async def _apply(self, slot: WorkerSlot, revision: ConfigRevision, seconds: float | None = None) -> None:
        if slot.worker is None:
            raise WorkerExited
        descriptors = revision.descriptors_for(slot.number)
        await slot.worker.configure(revision.configure_message(), descriptors, seconds=seconds)

    async def _apply_wanted(self) -> None:
        """Apply ``wanted`` to the workers that run another configuration; one that rejects it is replaced."""
        for slot in self._serving_slots():
            worker = slot.worker
            if worker is None or worker.running == self.wanted.serial:
                continue
            try:
                await self._apply(slot, self.wanted, RELOAD_SECONDS)
            except ConfigError as error:
                self._log_rejection(error)
                worker.kill()
            except WorkerExited:
                continue

    def _resize(self) -> None:
        while len(self._slots) < self.wanted.workers:
            slot = WorkerSlot(len(self._slots))
            self._slots.append(slot)
            self._tasks.create_task(self._supervise(slot))
        while len(self._slots) > self.wanted.workers:
            slot = self._slots.pop()
            slot.is_wanted = False
            if slot.worker is not None:
                slot.worker.drain(0.0, self.wanted.config.drain.timeout)

    # -- one slot

    async def _supervise(self, slot: WorkerSlot) -> None:
        """Run a worker in a slot, and start a replacement whenever it ends, until the slot is removed."""
        while self._is_wanted(slot):
            reason = await self._run_once(slot)
            if not self._is_wanted(slot):
                return
            pause = self._backoff.pause(time.monotonic())
            self._log_event(LogLevel.NOTICE, "worker_replaced", reason=str(reason), pause_seconds=pause)
            self.restarts[reason] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()

    def _is_wanted(self, slot: WorkerSlot) -> bool:
        return slot.is_wanted and not self._ending.is_set()

    async def _run_once(self, slot: WorkerSlot) -> RestartReason:
        """Start a worker, and wait until it accepts no more sessions."""
        try:
            worker = await self._launcher.start(self._on_snapshot)
        except OSError as error:
            if not self._ending.is_set():
                self._log_event(LogLevel.ERROR, "worker_not_started", reason=error.strerror or "")
            return RestartReason.CRASH
        self.workers.add(worker)
        self._tasks.create_task(self._wait_for_exit(worker))
        slot.worker = worker
        if self._members:  # before the configuration: its first login already needs them
            worker.set_members(ipc_messages.Members(self._members))
        is_up = await self._configure_new(slot, worker)
        if is_up:
            await worker.stopped_accepting.wait()
        else:
            worker.stop()
            await worker.exited.wait()
        slot.worker = None
        reason = worker.reason if is_up or worker.exit_code else RestartReason.CRASH
        if reason is not RestartReason.UNRESPONSIVE:  # a hung worker does not show that starts fail
            self._count_startup_failure()
        return reason

    async def _configure_new(self, slot: WorkerSlot, worker: WorkerProcess) -> bool:
        """Configure a new worker; ``wanted`` may change meanwhile, then it is configured again."""
        while worker.running != self.wanted.serial:
            if not self._is_wanted(slot):
                return False
            try:
                await self._apply(slot, self.wanted)
            except ConfigError as error:
                self._rejected_at_start(error)
                return False
            except WorkerExited:
                return False
        self._log_event(LogLevel.INFO, "worker_ready", pid=worker.pid, hash=self.wanted.hash)
        if self.is_settled and not self._started.done():
            self._started.set_result(None)
        return True

    def _rejected_at_start(self, error: ConfigError) -> None:
        if self._started.done():
            self._log_rejection(error)
        else:
            self._started.set_exception(error)

    def _count_startup_failure(self) -> None:
        self._startup_failures += 1
        if self._startup_failures == MAX_STARTUP_FAILURES and not self._started.done():
            self._started.set_exception(
                StartupError(f"{MAX_STARTUP_FAILURES} workers ended before they were ready")
            )

    def _log_rejection(self, error: ConfigError) -> None:
        for problem in error.problems:
            self._log_event(
                LogLevel.ERROR, "worker_refused_configuration", path=problem.path, reason=problem.reason
            )

    # -- heartbeats

    async def _check_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for worker in tuple(self.workers):
                self.check_heartbeat(worker)

    def check_heartbeat(self, worker: WorkerProcess) -> None:
        """Log that a worker sends no messages, and kill one that hangs: its slot gets another."""
        heartbeat = worker.heartbeat
        heartbeat.check()
        fields = {"pid": worker.pid, "silent_seconds": heartbeat.silent_seconds}
        if heartbeat.is_hung(is_loading=worker.is_loading):
            if not worker.was_hung:  # one that SIGKILL has not ended yet is killed again, but logged once
                self._log_event(LogLevel.ALERT, "worker_hangs", **fields)
            worker.kill_hung()
        elif heartbeat.is_late and worker not in self._unresponsive:
            self._unresponsive.add(worker)
            self._log_event(LogLevel.WARN, "worker_does_not_report", **fields)
        elif not heartbeat.is_late and worker in self._unresponsive:
            self._unresponsive.discard(worker)
            self._log_event(LogLevel.NOTICE, "worker_reports_again", pid=worker.pid)

    async def _wait_for_exit(self, worker: WorkerProcess) -> None:
        await worker.wait_for_exit()
        self.workers.discard(worker)
        self._unresponsive.discard(worker)
        self._on_exit(worker.key)
        expected = worker.is_draining or worker.exit_code == 0
        level = LogLevel.INFO if expected else LogLevel.ALERT
        self._log_event(level, "worker_exited", pid=worker.pid, exit_code=worker.exit_code)
