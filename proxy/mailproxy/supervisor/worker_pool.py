# SPDX-License-Identifier: Apache-2.0
"""The workers: as many as wanted, each on the configuration that is wanted.

Every place in the pool has listening sockets of its own, which the supervisor
keeps open: when a worker dies, clients that the kernel has queued there wait
for the replacement instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mailproxy.enums import RestartReason
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.child_process import LOOK_SECONDS
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.supervisor.launcher import Backoff
from mailproxy.supervisor.worker_process import (
    RELOAD_SECONDS,
    LogCallback,
    Reporter,
    WorkerGone,
    WorkerProcess,
)
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel

MAX_STARTUP_FAILURES: Final = 5
"""So many workers may exit before the first start is complete; then it has failed."""

FORCE_SECONDS: Final = 2.0
"""What a worker gets to end at once, before it is made to."""

_GRACE_SECONDS: Final = 10.0


class CannotStart(Exception):
    """Workers end before they are ready."""


class Launch(Protocol):
    """What starts workers; ``Launcher`` is one."""

    async def start(self, reported: Reporter) -> WorkerProcess:
        """Start a worker process; raises ``OSError`` where there can be none."""

    def close(self) -> None:
        """Start no more; a ``start`` that waits raises ``OSError``."""


@dataclass(eq=False, slots=True)
class WorkerSlot:
    """A worker's place: what is kept when the worker is replaced."""

    number: int
    worker: WorkerProcess | None = None
    is_wanted: bool = True


class WorkerPool:
    """All workers.

    Args:
        tasks: Owns what runs as long as there are workers.
        launcher: Starts worker processes.
        reported: Called with every snapshot of a worker's metrics.
        gone: Called with the key of a worker that has ended, after its last snapshot.
        tell: Where to log.

    Attributes:
        restarts: How many workers were replaced, and why.
        wanted: What all workers are to run.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        launcher: Launch,
        *,
        reported: Reporter,
        gone: Callable[[int], None],
        tell: LogCallback,
    ) -> None:
        self.restarts = dict.fromkeys(RestartReason, 0)
        self._tasks = tasks
        self._launcher = launcher
        self._reported = reported
        self._gone = gone
        self._tell = tell
        self._backoff = Backoff()
        self._places: list[WorkerSlot] = []
        self._alive: set[WorkerProcess] = set()
        self.wanted: ConfigRevision
        self._ending = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futile = 0
        self._late: set[WorkerProcess] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def alive(self) -> int:
        """How many worker processes there are, those that leave included."""
        return len(self._alive)

    @property
    def serving(self) -> int:
        """How many workers have a configuration and take new sessions."""
        return sum(
            1 for place in self._places if place.worker is not None and place.worker.running is not None
        )

    @property
    def late(self) -> Mapping[int, float]:
        """Workers that should take new sessions but do not report: seconds of silence by process number."""
        places = [place.worker for place in self._places]
        return {worker.pid: worker.heartbeat.silence for worker in self._late if worker in places}

    @property
    def is_settled(self) -> bool:
        """Whether every place has a worker that runs the configuration that is wanted."""
        return all(
            place.worker is not None and place.worker.running == self.wanted.serial for place in self._places
        )

    async def start(self, deployment: ConfigRevision) -> None:
        """Start the workers; returns when all of them are ready.

        Raises:
            ConfigError: A worker refused the configuration.
            CannotStart: Workers end before they are ready.
        """
        self.wanted = deployment
        self._looking = self._tasks.create_task(self._look_at_heartbeats())
        self._resize()
        try:
            await self._started
        except (ConfigError, CannotStart):
            self._ending.set()
            raise

    async def change_to(self, deployment: ConfigRevision) -> None:
        """Have all workers run another configuration, or none of them.

        One worker tries it first.  When this returns, all workers that were
        ready run it; places that it adds have workers soon, and workers that
        it makes superfluous drain on what they ran before.

        Raises:
            ConfigError: A worker refused it or ended over it; all run the one before.
        """
        kept = [place for place in self._ready() if place.number < deployment.workers]
        if kept:
            await self._try_out(kept[0], deployment)
        tried = await asyncio.gather(
            *(self._apply(place, deployment, RELOAD_SECONDS) for place in kept[1:]), return_exceptions=True
        )
        for failure in tried:
            if isinstance(failure, BaseException) and not isinstance(failure, WorkerGone):
                await self._align()
                raise failure
        self.wanted = deployment
        self._resize()
        await self._align()

    async def report(self, number: int, seconds: float) -> None:
        """Ask every worker for a snapshot of its metrics, and wait for at most so many seconds."""
        await asyncio.gather(
            *(worker.report(number, seconds) for worker in self._alive), return_exceptions=True
        )

    def reopen_logs(self) -> None:
        """Have all workers open their log files anew."""
        for worker in self._alive:
            worker.reopen_logs()

    def set_ticket_keys(self, message: ipc_messages.TicketKeys) -> None:
        """Have all workers encrypt TLS session tickets with other keys."""
        for worker in tuple(self._alive):
            worker.set_ticket_keys(message)

    async def drain(self, delay: float, timeout: float) -> None:  # noqa: ASYNC109 - what relays get
        """Have all workers leave; returns when the last one is gone.

        Args:
            delay: Seconds that they go on accepting.
            timeout: Seconds that relays get after that.
        """
        self._ending.set()
        for worker in self._alive:
            worker.drain(delay, timeout)
        await self._all_gone(delay + timeout + _GRACE_SECONDS)

    def stop(self) -> None:
        """Have all workers end at once; who waits in ``start`` or ``drain`` need not wait much longer."""
        self._ending.set()
        if not self._started.done():
            self._started.set_exception(CannotStart("stopped during the start"))
        for worker in self._alive:
            worker.stop()
        self._launcher.close()
        asyncio.get_running_loop().call_later(FORCE_SECONDS, self._kill)

    async def stopped(self) -> None:
        """End all workers at once, and return when the last one is gone."""
        self.stop()
        await self._all_gone(FORCE_SECONDS + _GRACE_SECONDS)

    def _kill(self) -> None:
        for worker in self._alive:
            worker.kill()

    async def _all_gone(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._alive:
                    await next(iter(self._alive)).exited.wait()
                    await asyncio.sleep(0)
        self._kill()
        if self._looking is not None:
            self._looking.cancel()

    # -- one configuration for all

    def _ready(self) -> list[WorkerSlot]:
        return [
            place for place in self._places if place.worker is not None and place.worker.running is not None
        ]

    async def _try_out(self, place: WorkerSlot, deployment: ConfigRevision) -> None:
        """Have one worker run it, before the others are asked."""
        try:
            await self._apply(place, deployment, RELOAD_SECONDS)
        except WorkerGone:
            raise ConfigError([Problem("", "a worker ended while it applied this")]) from None

    async def _apply(
        self, place: WorkerSlot, deployment: ConfigRevision, seconds: float | None = None
    ) -> None:
        if place.worker is None:
            raise WorkerGone
        sockets = deployment.sockets_of(place.number)
        await place.worker.configure(deployment.order(), sockets, seconds=seconds)

    async def _align(self) -> None:
        """Have those workers that run something else run what is wanted, or be replaced."""
        for place in self._ready():
            worker = place.worker
            if worker is None or worker.running == self.wanted.serial:
                continue
            try:
                await self._apply(place, self.wanted, RELOAD_SECONDS)
            except ConfigError as error:
                self._tell_refusal(error)
                worker.kill()
            except WorkerGone:
                continue

    def _resize(self) -> None:
        while len(self._places) < self.wanted.workers:
            place = WorkerSlot(len(self._places))
            self._places.append(place)
            self._tasks.create_task(self._keep(place))
        while len(self._places) > self.wanted.workers:
            place = self._places.pop()
            place.is_wanted = False
            if place.worker is not None:
                place.worker.drain(0.0, self.wanted.config.drain.timeout)

    # -- the life of one place

    async def _keep(self, place: WorkerSlot) -> None:
        """See to it that there is a worker at a place as long as one is wanted there."""
        while self._wants(place):
            reason = await self._run_once(place)
            if not self._wants(place):
                return
            pause = self._backoff.pause(time.monotonic())
            self._tell(LogLevel.NOTICE, "worker_replaced", reason=str(reason), pause_seconds=pause)
            self.restarts[reason] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()

    def _wants(self, place: WorkerSlot) -> bool:
        return place.is_wanted and not self._ending.is_set()

    async def _run_once(self, place: WorkerSlot) -> RestartReason:
        """Start a worker, and wait until it takes no new sessions any more."""
        try:
            worker = await self._launcher.start(self._reported)
        except OSError as error:
            self._tell(LogLevel.ERROR, "worker_not_started", reason=error.strerror or "")
            return RestartReason.CRASH
        self._alive.add(worker)
        self._tasks.create_task(self._watch(worker))
        place.worker = worker
        is_up = await self._bring_up(place, worker)
        if is_up:
            await worker.left.wait()
        else:
            worker.stop()
            await worker.exited.wait()
        place.worker = None
        reason = worker.reason if is_up or worker.exit_code else RestartReason.CRASH
        if reason is not RestartReason.UNRESPONSIVE:  # a hung worker does not show that starts fail
            self._count_futile()
        return reason

    async def _bring_up(self, place: WorkerSlot, worker: WorkerProcess) -> bool:
        """Configure a new worker; another configuration may become wanted meanwhile."""
        while worker.running != self.wanted.serial:
            if not self._wants(place):
                return False
            try:
                await self._apply(place, self.wanted)
            except ConfigError as error:
                self._refused_at_start(error)
                return False
            except WorkerGone:
                return False
        self._tell(LogLevel.INFO, "worker_ready", pid=worker.pid, hash=self.wanted.hash)
        if self.is_settled and not self._started.done():
            self._started.set_result(None)
        return True

    def _refused_at_start(self, error: ConfigError) -> None:
        if self._started.done():
            self._tell_refusal(error)
        else:
            self._started.set_exception(error)

    def _count_futile(self) -> None:
        self._futile += 1
        if self._futile == MAX_STARTUP_FAILURES and not self._started.done():
            self._started.set_exception(
                CannotStart(f"{MAX_STARTUP_FAILURES} workers ended before they were ready")
            )

    def _tell_refusal(self, error: ConfigError) -> None:
        for problem in error.problems:
            self._tell(
                LogLevel.ERROR, "worker_refused_configuration", path=problem.path, reason=problem.reason
            )

    # -- signs of life

    async def _look_at_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for worker in tuple(self._alive):
                self._look_at(worker)

    def _look_at(self, worker: WorkerProcess) -> None:
        """Log that a worker does not report, and end one that hangs: its place gets another."""
        heartbeat = worker.heartbeat
        heartbeat.look()
        fields = {"pid": worker.pid, "silent_seconds": heartbeat.silence}
        if heartbeat.is_hung(is_loading=worker.is_loading):
            if not worker.was_hung:  # one that the kernel does not end yet is killed again, and logged once
                self._tell(LogLevel.ALERT, "worker_hangs", **fields)
            worker.kill_hung()
        elif heartbeat.is_late and worker not in self._late:
            self._late.add(worker)
            self._tell(LogLevel.WARN, "worker_does_not_report", **fields)
        elif not heartbeat.is_late and worker in self._late:
            self._late.discard(worker)
            self._tell(LogLevel.NOTICE, "worker_reports_again", pid=worker.pid)

    async def _watch(self, worker: WorkerProcess) -> None:
        await worker.watch()
        self._alive.discard(worker)
        self._late.discard(worker)
        self._gone(worker.key)
        expected = worker.is_draining or worker.exit_code == 0
        level = LogLevel.INFO if expected else LogLevel.ALERT
        self._tell(level, "worker_exited", pid=worker.pid, exit_code=worker.exit_code)
