# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of one worker process: messages to and from it, its heartbeat, its exit.

A worker is forked from the fork server, never from the supervisor, so that it
shares neither event loop nor thread nor lock with it.  It inherits standard
output and error and one end of a ``Channel``, and receives everything else
through that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, Protocol, TypeVar

from mailproxy.enums import RestartReason
from mailproxy.routing.table_files import TableFile
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.child_process import ChildProcess, Heartbeat
from mailproxy.supervisor.ipc import Channel, ChannelError, Message
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel

RELOAD_SECONDS: Final = 600.0
"""Time a worker has to apply a configuration at a reload; at a start there is no limit."""

_LAST_SNAPSHOT_SECONDS: Final = 1.0
_EXIT_SECONDS: Final = 5.0

# Signals that other processes send; the kernel sends the others because of a bug.
_SENT_SIGNALS: Final = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
)

ReplyT = TypeVar("ReplyT")
SnapshotCallback = Callable[[int, Snapshot], None]
"""Called with a worker's key and its snapshot."""

_keys = count(1)


class LogCallback(Protocol):
    """The supervisor's log."""

    def __call__(self, level: LogLevel, name: str, /, **fields: object) -> None:
        """Write an event."""


class WorkerExited(Exception):
    """The worker exited, or was killed because it did not reply in time, before it did what was requested."""


class WorkerProcess:
    """One worker process.

    Args:
        pid: The process ID; the process is a child of this one.
        sock: The supervisor's end of its channel.
        on_snapshot: Called with every snapshot of its metrics.

    Attributes:
        key: Unique among all workers that this supervisor has started.
        running: The serial number of the configuration that it runs, or ``None``.
        stopped_accepting: Set as soon as it accepts no new sessions: it drains, or has exited.
        exited: Set when the process has exited and its last snapshot was read.
        is_draining: Whether the supervisor has drained or stopped it.
        heartbeat: When it last sent a message.
    """

    def __init__(self, pid: int, sock: socket.socket, on_snapshot: SnapshotCallback) -> None:
        self.key = next(_keys)
        self.running: int | None = None
        self.stopped_accepting = asyncio.Event()
        self.exited = asyncio.Event()
        self.is_draining = False
        self.heartbeat = Heartbeat(pid)
        self._child = ChildProcess(pid)
        self._was_hung = False
        self._on_snapshot = on_snapshot
        self._channel_closed = asyncio.Event()
        self._kill_timer: asyncio.TimerHandle | None = None
        self._applied: dict[int, asyncio.Future[ipc_messages.Applied | ipc_messages.Rejected]] = {}
        self._reports: dict[int, asyncio.Future[None]] = {}
        self.channel = Channel(sock, received=self._received, closed=self._closed)
        self.channel.start(asyncio.get_running_loop())

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._child.pid

    @property
    def is_loading(self) -> bool:
        """Whether it is applying a configuration."""
        return bool(self._applied)

    @property
    def reason(self) -> RestartReason:
        """Why it exited."""
        if self._was_hung:
            return RestartReason.UNRESPONSIVE
        code = self._child.exit_code
        if code is None or code == 0:
            return RestartReason.REQUESTED
        return RestartReason.KILLED if -code in _SENT_SIGNALS else RestartReason.CRASH

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, ``None`` while the process runs."""
        return self._child.exit_code

    async def configure(
        self,
        message: ipc_messages.Configure,
        sockets: Sequence[socket.socket | TableFile],
        *,
        seconds: float | None = None,
    ) -> None:
        """Send it a configuration with its listening sockets, and wait until it is applied.

        Args:
            message: The configuration.
            sockets: The sockets and tables that ``message`` names.
            seconds: The timeout; ``None`` for none.

        Raises:
            ConfigError: It rejected the configuration and runs the previous one.
            WorkerExited: It exited, or did not reply in time and was killed.
        """
        try:
            async with asyncio.timeout(seconds):
                answer = await self._request(self._applied, message.serial, message, sockets)
        except TimeoutError:
            self.kill()
            raise WorkerExited from None
        if isinstance(answer, ipc_messages.Rejected):
            raise ConfigError(answer.problems)
        self.running = message.serial

    async def report(self, number: int, seconds: float) -> None:
        """Request a snapshot of its metrics; when this returns, ``on_snapshot`` was called.

        Raises:
            WorkerExited: It exited, or did not reply within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._request(self._reports, number, ipc_messages.RequestSnapshot(number), ())
        except TimeoutError:
            raise WorkerExited from None

    def set_ticket_keys(self, message: ipc_messages.TicketKeys) -> None:
        """Replace its keys of TLS session tickets."""
        self._send(message)

    def set_members(self, message: ipc_messages.Members) -> None:
        """Replace lists of members of Services."""
        self._send(message)

    def drain(self, delay: float, timeout: float) -> None:
        """Let it accept for ``delay`` seconds more, then close its sessions within ``timeout`` and exit."""
        self.is_draining = True
        self._send(ipc_messages.Drain(delay, timeout))
        self._kill_after(delay + timeout + _EXIT_SECONDS)

    def reopen_logs(self) -> None:
        """Make it reopen its log files."""
        self._send(ipc_messages.ReopenLogs())

    def stop(self) -> None:
        """Make it close all sessions without a reply, and exit."""
        self.is_draining = True
        self._send(ipc_messages.Stop())

    def kill(self) -> None:
        """Send SIGKILL."""
        self._child.kill()

    @property
    def was_hung(self) -> bool:
        """Whether it was killed because it hangs."""
        return self._was_hung

    def kill_hung(self) -> None:
        """Send SIGKILL because it hangs; ``reason`` becomes ``UNRESPONSIVE``."""
        self._was_hung = True
        self.kill()

    async def wait_for_exit(self) -> None:
        """Wait until the process has exited; the pool runs this from the worker's start."""
        try:
            await self._child.exited.wait()
            with contextlib.suppress(TimeoutError):  # its last snapshot may still be in the channel
                async with asyncio.timeout(_LAST_SNAPSHOT_SECONDS):
                    await self._channel_closed.wait()
        finally:
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self.channel.close()
            self._fail_pending()
            self.stopped_accepting.set()
            self.exited.set()

    async def _request(
        self,
        waiting: dict[int, asyncio.Future[ReplyT]],
        number: int,
        message: ipc_messages.ToWorker,
        sockets: Sequence[socket.socket | TableFile],
    ) -> ReplyT:
        """Send a message, and wait for the reply with the same number."""
        reply: asyncio.Future[ReplyT] = asyncio.get_running_loop().create_future()
        waiting[number] = reply
        try:
            self._send(message, sockets)
            return await reply
        finally:
            del waiting[number]

    def _send(
        self, message: ipc_messages.ToWorker, sockets: Sequence[socket.socket | TableFile] = ()
    ) -> None:
        try:
            self.channel.send(ipc_messages.encode(message), [sock.fileno() for sock in sockets])
        except ChannelError as error:
            self._closed(error)
        except OSError as error:
            reason = f"cannot pass the listening sockets to a worker: {error.strerror}"
            raise ConfigError([Problem("", reason)]) from error

    def _received(self, data: Message, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self.heartbeat.beat()
        try:
            message = ipc_messages.decode_for_supervisor(data)
        except ChannelError as error:
            self._closed(error)
            return
        match message:
            case ipc_messages.SnapshotReport(number, snapshot):
                self._on_snapshot(self.key, snapshot)
                _resolve(self._reports.get(number), None)
            case ipc_messages.Applied(serial) | ipc_messages.Rejected(serial, _):
                _resolve(self._applied.get(serial), message)
            case ipc_messages.Draining() | ipc_messages.Drained():
                self.stopped_accepting.set()

    def _closed(self, error: ChannelError | None) -> None:
        """Its end of the channel is closed: it is about to exit, and is killed if it does not."""
        self._channel_closed.set()
        self._fail_pending()
        if error is not None:
            self.kill()
        else:
            self._kill_after(_EXIT_SECONDS)

    def _kill_after(self, seconds: float) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = asyncio.get_running_loop().call_later(seconds, self.kill)

    def _fail_pending(self) -> None:
        waiting: list[asyncio.Future[Any]] = [*self._applied.values(), *self._reports.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(WorkerExited())


def _resolve(future: asyncio.Future[ReplyT] | None, reply: ReplyT) -> None:
    if future is not None and not future.done():
        future.set_result(reply)
