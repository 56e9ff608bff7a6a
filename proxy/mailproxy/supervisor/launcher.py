# SPDX-License-Identifier: Apache-2.0
"""Starts workers through the fork server, and replaces the fork server when it ends or hangs."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mailproxy.supervisor import fork_server
from mailproxy.supervisor.child_process import LOOK_SECONDS, ChildProcess, Heartbeat
from mailproxy.supervisor.fork_server import ForkServer
from mailproxy.supervisor.ipc import channel_pair
from mailproxy.supervisor.worker_process import LogCallback, Reporter, WorkerProcess
from mailproxy_config.model import LogLevel

WINDOW_SECONDS: Final = 10.0
FREE: Final = 3
INTERVAL_SECONDS: Final = 1.0


class Backoff:
    """Counts deaths.

    The first three within ten seconds cost nothing; after that, replacements
    start at least one second apart.
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=FREE + 1)
        self._next = 0.0

    def pause(self, now: float) -> float:
        """Count a death, and say how many seconds to wait before its replacement starts.

        Args:
            now: Monotonic time in seconds.
        """
        self._deaths.append(now)
        recent = sum(1 for death in self._deaths if now - death < WINDOW_SECONDS)
        start = now if recent <= FREE else max(now, self._next)
        self._next = start + INTERVAL_SECONDS
        return start - now


class WorkerLauncher:
    """The fork server as the supervisor sees it.

    Args:
        tasks: Owns what runs until ``close``.
        server: The fork server.
        arguments: The command line of each worker.
        another: Starts another fork server.
        tell: Where to log.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        server: ForkServer,
        arguments: Sequence[str],
        *,
        another: Callable[[], ForkServer],
        tell: LogCallback,
    ) -> None:
        self._tasks = tasks
        self._arguments = arguments
        self._another = another
        self._tell = tell
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._backoff = Backoff()
        self._adopt(server)
        tasks.create_task(self._keep())

    @property
    def pid(self) -> int:
        """The fork server's process number."""
        return self._child.pid

    async def start(self, reported: Reporter) -> WorkerProcess:
        """Start a worker process.

        Args:
            reported: Called with every snapshot of its metrics.

        Raises:
            OSError: The system gives us no process or no sockets, or the fork server has ended.
        """
        ours, theirs = channel_pair()
        try:
            with theirs:
                pid = await self._fork(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return WorkerProcess(pid, ours, reported)

    def close(self) -> None:
        """End the fork server; a worker that is being started is not."""
        self._is_closed = True
        self._child.kill()

    def _adopt(self, server: ForkServer) -> None:
        server.control.setblocking(False)
        self._control: socket.socket = server.control
        self._child = ChildProcess(server.pid)

    async def _keep(self) -> None:
        """Replace the fork server whenever it ends; workers that it has forked go on."""
        while True:
            await self._child.over.wait()
            async with self._turn:  # who waits for a reply sees the end of the connection first
                self._control.close()
            if self._is_closed:
                return
            self._tell(
                LogLevel.ALERT, "fork_server_exited", pid=self._child.pid, exit_code=self._child.exit_code
            )
            await asyncio.sleep(self._backoff.pause(time.monotonic()))
            if self._is_closed:
                return
            try:
                self._adopt(self._another())
            except OSError as error:
                self._tell(LogLevel.ERROR, "fork_server_not_started", reason=error.strerror or "")

    async def _fork(self, descriptor: int) -> int:
        async with self._turn:
            control, child = self._control, self._child
            try:
                socket.send_fds(control, [fork_server.encode_request(self._arguments)], [descriptor])
            except OSError as error:
                raise _ended() from error
            reply = self._tasks.create_task(self._reply(control))
            heartbeat = Heartbeat(child.pid)
            while not (await asyncio.wait({reply}, timeout=LOOK_SECONDS))[0]:
                heartbeat.look()
                if child.over.is_set():  # and somebody still holds its end of the connection
                    reply.cancel()
                    raise _ended()
                if heartbeat.is_hung(is_loading=True):
                    self._tell(LogLevel.ALERT, "fork_server_hangs", pid=child.pid)
                    child.kill()
            return fork_server.decode_reply(reply.result())

    async def _reply(self, control: socket.socket) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(control, fork_server.MAX_REQUEST_SIZE)
        except OSError:
            return b""


def _ended() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the fork server has ended")
