# SPDX-License-Identifier: Apache-2.0
"""One worker process, as the supervisor sees it: messages to and from it, its signs of life, its end.

A worker is forked from the fork server, never from this process, so that it
shares neither a loop nor a thread nor a lock with us.  It inherits standard
output and error and one end of a ``Channel``; everything else comes through
that.
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
from mailproxy.supervisor import ipc_messages
from mailproxy.supervisor.child_process import ChildProcess, Heartbeat
from mailproxy.supervisor.ipc import Channel, ChannelError, Message
from mailproxy.telemetry.metrics import Snapshot
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import LogLevel

RELOAD_SECONDS: Final = 600.0
"""What a worker gets at a reload for putting a configuration to work; a start takes as long as it takes."""

_LAST_WORDS_SECONDS: Final = 1.0
_EXIT_SECONDS: Final = 5.0

# Signals that somebody else sends; the others are the kernel's answer to a bug.
_SENT: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})

AnswerT = TypeVar("AnswerT")
Reporter = Callable[[int, Snapshot], None]
"""Called with a worker's key and its snapshot."""

_keys = count(1)


class LogCallback(Protocol):
    """The supervisor's log."""

    def __call__(self, level: LogLevel, name: str, /, **fields: object) -> None:
        """Write that something happened."""


class WorkerGone(Exception):
    """The worker left, or did not answer in time and was killed, before it did what it was asked."""


class WorkerProcess:
    """One worker process.

    Args:
        pid: The process, a child of ours.
        sock: Our end of its channel.
        reported: Called with every snapshot of its metrics.

    Attributes:
        key: Tells it from every other worker of this supervisor's life.
        running: The serial number of the configuration that it runs, or ``None``.
        left: Set as soon as it takes no new sessions: it leaves, or is gone.
        exited: Set when the process has ended and its last snapshot was read.
        is_draining: Whether we told it to leave.
        heartbeat: Its signs of life: each of its messages is one.
    """

    def __init__(self, pid: int, sock: socket.socket, reported: Reporter) -> None:
        self.key = next(_keys)
        self.running: int | None = None
        self.left = asyncio.Event()
        self.exited = asyncio.Event()
        self.is_draining = False
        self.heartbeat = Heartbeat(pid)
        self._child = ChildProcess(pid)
        self._was_hung = False
        self._reported = reported
        self._is_silent = asyncio.Event()
        self._last_resort: asyncio.TimerHandle | None = None
        self._applied: dict[int, asyncio.Future[ipc_messages.Ready | ipc_messages.Refused]] = {}
        self._reports: dict[int, asyncio.Future[None]] = {}
        self._channel = Channel(sock, received=self._received, closed=self._closed)
        self._channel.start(asyncio.get_running_loop())

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.pid

    @property
    def is_loading(self) -> bool:
        """Whether it has been given a configuration and has not answered yet."""
        return bool(self._applied)

    @property
    def reason(self) -> RestartReason:
        """Why it ended, once it has."""
        if self._was_hung:
            return RestartReason.UNRESPONSIVE
        code = self._child.exit_code
        if code is None or code == 0:
            return RestartReason.REQUESTED
        return RestartReason.KILLED if -code in _SENT else RestartReason.CRASH

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, ``None`` while it lives."""
        return self._child.exit_code

    async def configure(
        self,
        message: ipc_messages.Configure,
        sockets: Sequence[socket.socket],
        *,
        seconds: float | None = None,
    ) -> None:
        """Have it run a configuration, with these listening sockets.

        Args:
            message: The configuration.
            sockets: The sockets that ``message`` names.
            seconds: What it gets for that; ``None`` for as long as it takes.

        Raises:
            ConfigError: It refuses, and runs what it ran before.
            WorkerGone: It ended, or has not answered in time and was killed.
        """
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ask(self._applied, message.serial, message, sockets)
        except TimeoutError:
            self.kill()
            raise WorkerGone from None
        if isinstance(answer, ipc_messages.Refused):
            raise ConfigError(answer.problems)
        self.running = message.serial

    async def report(self, number: int, seconds: float) -> None:
        """Have it send a snapshot of its metrics; when this returns, ``reported`` was called.

        Raises:
            WorkerGone: It ended, or has not answered within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._ask(self._reports, number, ipc_messages.Report(number), ())
        except TimeoutError:
            raise WorkerGone from None

    def set_ticket_keys(self, message: ipc_messages.TicketKeys) -> None:
        """Have it encrypt TLS session tickets with other keys."""
        self._send(message)

    def drain(self, delay: float, timeout: float) -> None:
        """Have it go on for ``delay`` seconds, then drain within ``timeout`` seconds, and exit."""
        self.is_draining = True
        self._send(ipc_messages.Drain(delay, timeout))
        self._kill_after(delay + timeout + _EXIT_SECONDS)

    def reopen_logs(self) -> None:
        """Have it open its log files anew."""
        self._send(ipc_messages.Reopen())

    def stop(self) -> None:
        """Have it end at once, without goodbyes."""
        self.is_draining = True
        self._send(ipc_messages.Stop())

    def kill(self) -> None:
        """End it by force."""
        self._child.kill()

    @property
    def was_hung(self) -> bool:
        """Whether it was ended by force because it hangs."""
        return self._was_hung

    def kill_hung(self) -> None:
        """End it by force because it hangs; ``reason`` says so."""
        self._was_hung = True
        self.kill()

    async def watch(self) -> None:
        """Wait for its end; the owner of the worker keeps this running from its start."""
        try:
            await self._end()
        finally:
            if self._last_resort is not None:
                self._last_resort.cancel()
            self._channel.close()
            self._fail_all()
            self.left.set()
            self.exited.set()

    async def _end(self) -> None:
        await self._child.over.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._is_silent.wait()

    async def _ask(
        self,
        waiting: dict[int, asyncio.Future[AnswerT]],
        number: int,
        message: ipc_messages.ToWorker,
        sockets: Sequence[socket.socket],
    ) -> AnswerT:
        """Send a message and wait for the answer with the same number, which is put into ``waiting``."""
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        waiting[number] = answer
        try:
            self._send(message, sockets)
            return await answer
        finally:
            del waiting[number]

    def _send(self, message: ipc_messages.ToWorker, sockets: Sequence[socket.socket] = ()) -> None:
        try:
            self._channel.send(ipc_messages.encode(message), [sock.fileno() for sock in sockets])
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
            case ipc_messages.Reported(number, snapshot):
                self._reported(self.key, snapshot)
                _answer(self._reports.get(number), None)
            case ipc_messages.Ready(serial) | ipc_messages.Refused(serial, _):
                _answer(self._applied.get(serial), message)
            case ipc_messages.Leaving() | ipc_messages.Drained():
                self.left.set()

    def _closed(self, error: ChannelError | None) -> None:
        """Its end of the channel is closed: it is about to exit, or must be made to."""
        self._is_silent.set()
        self._fail_all()
        if error is not None:
            self.kill()
        else:
            self._kill_after(_EXIT_SECONDS)

    def _kill_after(self, seconds: float) -> None:
        if self._last_resort is not None:
            self._last_resort.cancel()
        self._last_resort = asyncio.get_running_loop().call_later(seconds, self.kill)

    def _fail_all(self) -> None:
        waiting: list[asyncio.Future[Any]] = [*self._applied.values(), *self._reports.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(WorkerGone())


def _answer(future: asyncio.Future[AnswerT] | None, answer: AnswerT) -> None:
    if future is not None and not future.done():
        future.set_result(answer)
