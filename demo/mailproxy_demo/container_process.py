# SPDX-License-Identifier: Apache-2.0
"""A container as a local process: started, probed, restarted with growing pauses."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from mailproxy_demo import pdeathsig

BACK_OFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
HEALTHY_AFTER_SECONDS = 30.0
PROBE_SECONDS = 0.2
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=2)
KEPT_LINES = 12


@dataclass(slots=True)
class ProcessState:
    """The state of a container, as a pod's status has it."""

    is_running: bool = False
    is_ready: bool = False
    restarts: int = 0
    exit_code: int | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


class ContainerProcess:
    """The process of one container, restarted until it is stopped.

    Args:
        command: Program and arguments.
        admin: The base URL of the proxy's admin endpoint.
        changed: Called whenever ``state`` has changed.
        log: Receives each line that the process writes.
    """

    def __init__(
        self, command: Sequence[str], admin: str, *, changed: Callable[[], None], log: Callable[[str], None]
    ) -> None:
        self.state = ProcessState()
        self._command = command
        self._admin = admin
        self._changed = changed
        self._log = log
        self._process: Process | None = None
        self._is_stopped = False
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the process running.  Returns after ``stop``, when the process has ended."""
        failures = 0
        while not self._is_stopped:
            started = asyncio.get_running_loop().time()
            await self._run_once()
            if self._is_stopped:
                return
            duration = asyncio.get_running_loop().time() - started
            failures = 0 if duration > HEALTHY_AFTER_SECONDS else failures + 1
            pause = BACK_OFF_SECONDS[min(max(failures - 1, 0), len(BACK_OFF_SECONDS) - 1)]
            self.state.restarts += 1
            self._changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, which drains the proxy, and SIGKILL after the grace period.

        A second call while the proxy drains sends a second SIGTERM, which ends it at once.

        Args:
            grace: The grace period, in seconds.
        """
        self._is_stopped = True
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run_once(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            # A demo that is killed cannot stop the proxy; the kernel does.
            sys.executable, "-SE", pdeathsig.__file__, str(os.getpid()), *self._command,
            stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True, limit=65536,
        )  # fmt: skip
        self.state.is_running = True
        self._changed()
        try:
            async with asyncio.TaskGroup() as tasks:
                probing = tasks.create_task(self._probe())
                await self._forward_output(self._process)
                self.state.exit_code = await self._process.wait()
                probing.cancel()
        finally:
            self._signal(signal.SIGKILL)
            self.state.is_running = self.state.is_ready = False
            self._changed()

    async def _forward_output(self, process: Process) -> None:
        if process.stdout is None:
            return
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # the line is longer than the limit; the rest of it follows
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.state.last_lines.append(text)
            self._log(text)

    async def _probe(self) -> None:
        async with aiohttp.ClientSession(timeout=PROBE_TIMEOUT) as session:
            while True:
                is_ready = await self._is_ready(session)
                if is_ready != self.state.is_ready:
                    self.state.is_ready = is_ready
                    self.state.exit_code = None
                    self._changed()
                await asyncio.sleep(PROBE_SECONDS * (10 if is_ready else 1))

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self._admin}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False


def proxy_command(command: Sequence[str]) -> list[str]:
    """Translate the command of the proxy's container: ``mailproxy`` is run from this installation."""
    return [sys.executable, "-m", *command] if command[0] == "mailproxy" else list(command)
