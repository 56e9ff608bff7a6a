# SPDX-License-Identifier: Apache-2.0
"""A whole proxy in separate processes: supervisor, workers, admin endpoint, log."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from mailproxy.supervisor import fork_server
from support.servers.programs import Ports
from support.worker_processes import PYTHONPATH

TIMEOUT_SECONDS: Final = 60.0
"""Timeout in seconds of what a test waits for."""

COMMAND: Final = ("-m", "mailproxy", "run", "--admin", "127.0.0.1:0", "-f")
STAND_IN: Final = (str(Path(__file__).with_name("standin_proxy.py")),)


def wait_until(
    condition: Callable[[], Any], description: str = "a condition"
) -> Any:  # the type of the condition's value
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {TIMEOUT_SECONDS:.0f} seconds for {description}")
        time.sleep(0.02)
    return found


def free_port() -> int:
    """Return a free port, which no outgoing connection takes."""
    return Ports().take()


def is_alive(pid: int) -> bool:
    """Return whether a process runs and is not a zombie."""
    with suppress(OSError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    return False


def process_name(pid: int) -> str:
    """Return the name of a process; empty where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class ProxyProcess:
    """Run ``mailproxy run`` with a file until the end of the block.

    Args:
        file: The configuration.
        command: What the interpreter is to run, before the file.
        options: More arguments, after the file.
    """

    def __init__(self, file: Path, *, command: Sequence[str] = STAND_IN, options: Sequence[str] = ()) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *command, str(file), *options],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait(TIMEOUT_SECONDS)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(TIMEOUT_SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            with suppress(ValueError):
                self.events.append(json.loads(line))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return all log events with a name, so far."""
        return [found for found in self.events if found.get("event") == event]

    def wait_for_event(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the n-th event with a name."""
        wait_until(
            lambda: len(self.logged(event)) >= count or self.process.poll() is not None,
            f"event {event} number {count}; {self.lines}",
        )
        assert len(self.logged(event)) >= count, self.lines
        return self.logged(event)[count - 1]

    def get(self, path: str) -> tuple[int, str]:
        """Request a path of the admin endpoint."""
        admin = self.wait_for_event("listening")["admin"]
        try:
            with urllib.request.urlopen(f"http://{admin}{path}", timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def config(self) -> dict[str, Any]:
        """Return the content of ``/config``."""
        found: dict[str, Any] = json.loads(self.get("/config")[1])
        return found

    def metric(self, name: str) -> float:
        """Return the sum of all series that start with a text."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name)]
        return sum(float(line.split()[-1]) for line in lines)

    def workers(self) -> list[int]:
        """Return the process IDs of its workers."""
        return [pid for pid in self._children() if process_name(pid) == fork_server.WORKER_NAME]

    def fork_servers(self) -> list[int]:
        """Return the process IDs of its fork servers: one, except while it is replaced."""
        return [pid for pid in self._children() if process_name(pid) == fork_server.NAME]

    def _children(self) -> list[int]:
        pid = self.process.pid
        with suppress(OSError):
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(signum)

    def exit_code(self) -> int:
        """Wait until it has exited."""
        return self.process.wait(TIMEOUT_SECONDS)


class Client:
    """One client of the proxy."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self._file = self._sock.makefile("rb")
        self.greeting = self.read_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sock.close()

    def send_line(self, text: str) -> None:
        """Send a line."""
        self._sock.sendall(text.encode() + b"\r\n")

    def read_line(self) -> str:
        """Read a line; empty at the end of the connection or after a reset."""
        try:
            return self._file.readline().decode().rstrip("\r\n")
        except ConnectionError:
            return ""

    def exchange(self, text: str) -> str:
        """Send a line and read one."""
        self.send_line(text)
        return self.read_line()
