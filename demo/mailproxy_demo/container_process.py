# SPDX-License-Identifier: Apache-2.0
"""A container as a local process: started, watched, started again with growing pauses."""

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

from mailproxy_demo import pdeathsig as tether

BACK_OFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
HEALTHY_AFTER_SECONDS = 30.0
PROBE_SECONDS = 0.2
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=2)
KEPT_LINES = 12


@dataclass(slots=True)
class ProcessState:
    """What a pod's status would say about the container."""

    is_running: bool = False
    is_ready: bool = False
    restarts: int = 0
    exit_code: int | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


class LocalProcess:
    """One container's process, kept running until it is stopped.

    Args:
        command: Program and arguments.
        admin: The base URL of its admin endpoint.
        changed: Called whenever ``state`` has changed.
        log: Called with every line it writes.
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
        self._is_wanted = True
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the process running; returns after ``stop``, when it has ended."""
        failures = 0
        while self._is_wanted:
            begun = asyncio.get_running_loop().time()
            await self._run_once()
            if not self._is_wanted:
                return
            lasted = asyncio.get_running_loop().time() - begun
            failures = 0 if lasted > HEALTHY_AFTER_SECONDS else failures + 1
            pause = BACK_OFF_SECONDS[min(max(failures - 1, 0), len(BACK_OFF_SECONDS) - 1)]
            self.state.restarts += 1
            self._changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def stop(self, grace: float) -> None:
        """Ask the process to drain; after the grace period it is ended.

        Called again while it drains, it asks again, which the proxy takes for "at once".
        """
        self._is_wanted = False
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
            *_tied(self._command), stdin=asyncio.subprocess.DEVNULL, stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True, limit=65536,
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
            except ValueError:  # a line beyond the limit: the rest of it follows
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.state.last_lines.append(text)
            self._log(text)

    async def _probe(self) -> None:
        async with aiohttp.ClientSession(timeout=PROBE_TIMEOUT) as session:
            while True:
                is_ready = await self._answers(session)
                if is_ready != self.state.is_ready:
                    self.state.is_ready = is_ready
                    self.state.exit_code = None
                    self._changed()
                await asyncio.sleep(PROBE_SECONDS * (10 if is_ready else 1))

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self._admin}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False


def _tied(command: Sequence[str]) -> list[str]:
    """Have a program end when we do: what is killed cannot stop what it has begun."""
    return [sys.executable, "-SE", tether.__file__, str(os.getpid()), *command]


def proxy_command(words: Sequence[str]) -> list[str]:
    """Turn a container's command into one for this machine.

    The container runs ``mailproxy ...``; here the same program is run from
    the installation that runs us.
    """
    return [sys.executable, "-m", *words] if words[0] == "mailproxy" else list(words)
