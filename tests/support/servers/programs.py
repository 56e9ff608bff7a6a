# SPDX-License-Identifier: Apache-2.0
"""Programs that tests start, each in its own process group, which is terminated with it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 60.0
"""Timeout in seconds for every condition that a test waits for."""

_PORTS: Final[tuple[int, ...]] = (*range(12000, 24000), *range(24100, 32000))
"""All ports except the fixed ports of the benchmarks, which one test runs."""
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_SHARE: Final[tuple[int, ...]] = _PORTS[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
_GIVEN: Final[set[int]] = set()
"""All ports that this process has returned: between that and a server's start, a port looks free."""


class Ports:
    """Allocates free ports of 127.0.0.1.

    They are below the kernel's range for outgoing connections, so that no
    outgoing connection takes a port before its server has started.
    Each process that runs tests has its own part of the range.
    """

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def take(self) -> int:
        """Return a port; no port is returned twice in a process."""
        while True:
            port = self._random.choice(_SHARE)
            if port not in _GIVEN and _is_free(port):
                _GIVEN.add(port)
                return port

    def take_all(self, *names: str) -> dict[str, int]:
        """Return a port for each name."""
        return {name: self.take() for name in names}


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def eventually(condition: Callable[[], T], description: str, *, timeout: float = TIMEOUT_SECONDS) -> T:
    """Poll a function until its result is true, and return the result.

    Raises:
        AssertionError: The result was not true within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < end, f"timed out waiting for {description}"
        time.sleep(0.02)
    return result


def accepts_connections(port: int) -> bool:
    """Return whether a port of 127.0.0.1 accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Running:
    """A program in the foreground, with its output in a file."""

    def __init__(self, args: Sequence[str], *, output: Path, env: Mapping[str, str] | None = None) -> None:
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                args,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the program, which leads the process group of all its children."""
        return self.process.pid

    def output_text(self) -> str:
        """Return its output."""
        return self.output.read_text(errors="replace")

    def wait_for_ports(self, *ports: int) -> None:
        """Wait until it accepts connections on all these ports."""
        for port in ports:
            self.eventually(lambda port=port: accepts_connections(port), f"port {port}")  # type: ignore[misc]

    def eventually(self, condition: Callable[[], T], description: str) -> T:
        """Poll like the function ``eventually``, but fail at once if the program has exited."""

        def alive_and_found() -> T:
            assert self.process.poll() is None, f"{self.process.args!r} ended:\n{self.output_text()}"
            return condition()

        try:
            return eventually(alive_and_found, description)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output_text()}") from None

    def wait_for_exit(self, timeout: float = TIMEOUT_SECONDS) -> int:
        """Wait until the program has exited; return its exit code."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = TIMEOUT_SECONDS) -> None:
        """Send SIGTERM, then kill the remaining processes of its process group.

        The group is killed before the process is reaped, because after that
        another process may get the same process id.
        """
        if self.process.returncode is not None:
            return
        os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            eventually(self.has_exited, "its end", timeout=timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_SECONDS)

    def has_exited(self) -> bool:
        """Return whether the program has exited."""
        state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return state is not None


def run_program(args: Sequence[str], *, stdin: str = "", timeout: float = TIMEOUT_SECONDS) -> str:
    """Run a program, and return its output for any exit code."""
    done = subprocess.run(
        args,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.stdout
