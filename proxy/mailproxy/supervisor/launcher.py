# SPDX-License-Identifier: Apache-2.0
"""Starts workers through the fork server, and replaces the fork server when it exits or hangs."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mailproxy.supervisor import fork_server
from mailproxy.supervisor.child_process import CHECK_SECONDS, ChildProcess, Heartbeat
from mailproxy.supervisor.fork_server import ForkServer
from mailproxy.supervisor.ipc import channel_pair
from mailproxy.supervisor.worker_process import LogCallback, SnapshotCallback, WorkerProcess
from mailproxy_config.model import LogLevel

WINDOW_SECONDS: Final = 10.0
FREE_RESTARTS: Final = 3
INTERVAL_SECONDS: Final = 1.0


class Backoff:
    """Delays replacements of processes that exit often.

    The first three exits within ten seconds cause no delay; after that,
    replacements start at least one second apart.
    """

    def __init__(self) -> None:
        self._exits: deque[float] = deque(maxlen=FREE_RESTARTS + 1)
        self._next = 0.0

    def pause(self, now: float) -> float:
        """Count an exit, and return the seconds to wait before its replacement starts.

        Args:
            now: Monotonic time in seconds.
        """
        self._exits.append(now)
        recent = sum(1 for exit_time in self._exits if now - exit_time < WINDOW_SECONDS)
        start = now if recent <= FREE_RESTARTS else max(now, self._next)
        self._next = start + INTERVAL_SECONDS
        return start - now


class WorkerLauncher:
    """The supervisor's side of the fork server.

    Args:
        tasks: The task group of tasks that run until ``close``.
        server: The fork server.
        arguments: The command line of each worker.
        spawn: Starts another fork server.
        memory: The descriptor of the memory that all workers share; open until ``close``.
        log_event: Writes to the log.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        server: ForkServer,
        arguments: Sequence[str],
        *,
        spawn: Callable[[], ForkServer],
        memory: int,
        log_event: LogCallback,
    ) -> None:
        self._tasks = tasks
        self._arguments = arguments
        self._spawn = spawn
        self._memory = memory
        self._log_event = log_event
        self._lock = asyncio.Lock()
        self._is_closed = False
        self._backoff = Backoff()
        self._adopt(server)
        tasks.create_task(self._supervise())

    @property
    def pid(self) -> int:
        """The fork server's process ID."""
        return self._child.pid

    async def start(self, on_snapshot: SnapshotCallback) -> WorkerProcess:
        """Start a worker process.

        Args:
            on_snapshot: Called with every snapshot of its metrics.

        Raises:
            OSError: No process or no sockets could be created, or the fork server has exited.
        """
        ours, theirs = channel_pair()
        try:
            with theirs:
                pid = await self._fork(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return WorkerProcess(pid, ours, on_snapshot)

    def close(self) -> None:
        """Kill the fork server; a ``start`` that waits raises ``OSError``."""
        self._is_closed = True
        self._child.kill()

    def _adopt(self, server: ForkServer) -> None:
        server.control.setblocking(False)
        self._control: socket.socket = server.control
        self._child = ChildProcess(server.pid)

    async def _supervise(self) -> None:
        """Replace the fork server whenever it exits; its workers go on running."""
        while True:
            await self._child.exited.wait()
            async with self._lock:  # a caller that waits for a reply reads the end of the connection first
                self._control.close()
            if self._is_closed:
                return
            self._log_event(
                LogLevel.ALERT, "fork_server_exited", pid=self._child.pid, exit_code=self._child.exit_code
            )
            await asyncio.sleep(self._backoff.pause(time.monotonic()))
            if self._is_closed:
                return
            try:
                self._adopt(self._spawn())
            except OSError as error:
                self._log_event(LogLevel.ERROR, "fork_server_not_started", reason=error.strerror or "")

    async def _fork(self, descriptor: int) -> int:
        async with self._lock:
            control, child = self._control, self._child
            try:
                request = fork_server.encode_request(self._arguments)
                socket.send_fds(control, [request], [descriptor, self._memory])
            except OSError as error:
                raise _ended() from error
            reply = self._tasks.create_task(self._reply(control))
            heartbeat = Heartbeat(child.pid)
            while not (await asyncio.wait({reply}, timeout=CHECK_SECONDS))[0]:
                heartbeat.check()
                if child.exited.is_set():  # and another process still holds its end of the connection
                    reply.cancel()
                    raise _ended()
                if heartbeat.is_hung(is_loading=True):
                    self._log_event(LogLevel.ALERT, "fork_server_hangs", pid=child.pid)
                    child.kill()
            return fork_server.decode_reply(reply.result())

    async def _reply(self, control: socket.socket) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(control, fork_server.MAX_REQUEST_SIZE)
        except OSError:
            return b""


def _ended() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the fork server has ended")
