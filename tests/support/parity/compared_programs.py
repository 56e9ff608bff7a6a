# SPDX-License-Identifier: Apache-2.0
"""The two programs that are compared, nginx and the proxy; each is a process with the same configuration."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.needs import MAIL_MODULE, find_program, reason
from support.worker_processes import PYTHONPATH

_VERSION: Final = re.compile(r"nginx version: \S*/([0-9.]+)")
_SOCKETS: Final = "NGINX"
"""The variable in which nginx looks for the listening sockets of an earlier nginx process."""
_START_SECONDS: Final = 600.0


class CannotStart(Exception):
    """A program exited at its start; the message is its output."""


@dataclass(frozen=True)
class Nginx:
    """An nginx that has the mail module.

    Attributes:
        path: The path of the program.
        version: The version, such as ``(1, 22, 1)``.
        load: The first line of its configuration, if it must load the module.
    """

    path: str
    version: tuple[int, ...]
    load: str

    @property
    def name(self) -> str:
        """The name and version, as text."""
        return "nginx " + ".".join(map(str, self.version))


def find_nginx() -> Nginx | str:
    """Find nginx: the program in ``NGINX``, else the installed one; return the reason if there is none."""
    path = os.environ.get("NGINX") or find_program("nginx")
    if path is None:
        return reason(["nginx", MAIL_MODULE])
    if not os.path.exists(path):
        return f"needs nginx, and $NGINX names {path}, which does not exist"
    version_output = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stderr
    version = _VERSION.search(version_output)
    if version is None:
        return f"needs nginx: {path} does not say its version"
    load = ""
    if "--with-mail=dynamic" in version_output:
        module = find_program(MAIL_MODULE)
        if module is None:
            return reason([MAIL_MODULE])
        load = f"load_module {module};\n"
    elif "--with-mail" not in version_output:
        return f"needs nginx with its mail module, which {path} does not have"
    return Nginx(path, tuple(map(int, version[1].split("."))), load)


def require_nginx() -> Nginx:
    """Find nginx with its mail module, or skip the test."""
    found = find_nginx()
    if isinstance(found, str):
        pytest.skip(found)
    return found


class Process:
    """A program that runs until it is stopped.

    Args:
        command: Its command line.
        folder: The folder for its output.
        ready: A file in the folder, and the text it contains once the program is ready.
        environment: Additional environment variables.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        ready: tuple[str, str],
        environment: dict[str, str] | None = None,
    ) -> None:
        self._output = folder / "words"
        self._ready = folder / ready[0], ready[1]
        with self._output.open("wb") as output:
            inherited = {name: value for name, value in os.environ.items() if name != _SOCKETS}
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**inherited, **(environment or {})}
            )

    def wait_until_ready(self) -> None:
        """Wait until the file contains the text.

        Raises:
            CannotStart: The program exited, or was not ready within the timeout.
        """
        path, marker = self._ready
        deadline = time.monotonic() + _START_SECONDS
        while not (path.exists() and marker in path.read_text(errors="replace")):
            if self._process.poll() is not None:
                raise CannotStart(self._output.read_text(errors="replace"))
            if time.monotonic() > deadline:
                raise CannotStart(f"not ready within {_START_SECONDS:.0f} s")
            time.sleep(0.02)

    def ask_to_stop(self) -> None:
        """Send SIGINT, after which both programs exit at once; ``stop`` waits for the exit."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Wait until the program exits after ``ask_to_stop``; send SIGTERM if it takes too long."""
        if self._process.poll() is None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(10)


def start_nginx(nginx: Nginx, text: str, folder: Path) -> Process:
    """Start nginx."""
    file = folder / "nginx.conf"
    file.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    command = [nginx.path, "-p", str(folder), "-e", str(folder / "early.log"), "-c", str(file)]
    return Process(command, folder, ("nginx.pid", "\n"))


def start_proxy(text: str, folder: Path) -> Process:
    """Start the proxy."""
    file = folder / "nginx.conf"
    file.write_text(text)
    command = [sys.executable, "-m", "mailproxy", "run", "-f", str(file), "--workers", "1"]
    ready = "words", '"event":"listening"'
    return Process([*command, "--admin", "127.0.0.1:0"], folder, ready, {"PYTHONPATH": PYTHONPATH})
