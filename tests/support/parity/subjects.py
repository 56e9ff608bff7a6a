# SPDX-License-Identifier: Apache-2.0
"""The two that are compared: nginx, and the proxy; each a process of its own with the same configuration."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.processes import PYTHONPATH

_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
_VERSION: Final = re.compile(r"nginx version: \S*/([0-9.]+)")
_SOCKETS: Final = "NGINX"
"""Where nginx itself looks for sockets that another nginx left to it."""
_START_SECONDS: Final = 30.0


class CannotStart(Exception):
    """A subject ended at once; its words are why."""


@dataclass(frozen=True)
class Nginx:
    """An nginx that has the mail module.

    Attributes:
        path: The program.
        version: Such as ``(1, 22, 1)``.
        load: What its configuration must begin with.
    """

    path: str
    version: tuple[int, ...]
    load: str

    @property
    def name(self) -> str:
        """How to speak of it."""
        return "nginx " + ".".join(map(str, self.version))


def find_nginx() -> Nginx | str:
    """Find nginx: the program that ``NGINX`` names, else the installed one; or say why there is none."""
    path = os.environ.get("NGINX") or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None or not os.path.exists(path):
        return f"needs nginx with its mail module{': ' + path if path else ''}"
    told = subprocess.run([path, "-V"], capture_output=True, text=True, check=False).stderr
    version = _VERSION.search(told)
    if version is None:
        return f"needs nginx: {path} does not say its version"
    load = ""
    if "--with-mail=dynamic" in told:
        if not _MODULE.exists():
            return f"needs nginx's mail module, {_MODULE}"
        load = f"load_module {_MODULE};\n"
    elif "--with-mail" not in told:
        return f"needs nginx with its mail module, which {path} does not have"
    return Nginx(path, tuple(map(int, version[1].split("."))), load)


class Process:
    """A subject that runs until it is stopped."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
        self._words = folder / "words"
        with self._words.open("wb") as words:
            inherited = {name: value for name, value in os.environ.items() if name != _SOCKETS}
            self._process = subprocess.Popen(
                command, stdout=words, stderr=words, env={**inherited, **(environment or {})}
            )

    def wait_for(self, path: Path, sign: str) -> None:
        """Wait until a file says that it is ready.

        Raises:
            CannotStart: It ended instead.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not (path.exists() and sign in path.read_text(errors="replace")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(self._words.read_text(errors="replace"))
            time.sleep(0.02)

    @property
    def words(self) -> Path:
        """Where it writes what it says."""
        return self._words

    def stop(self) -> None:
        """End it, and wait for that."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(10)


def start_nginx(nginx: Nginx, text: str, folder: Path) -> Process:
    """Run nginx.

    Raises:
        CannotStart: It did not like it.
    """
    file = folder / "nginx.conf"
    file.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    process = Process(
        [nginx.path, "-p", str(folder), "-e", str(folder / "early.log"), "-c", str(file)], folder
    )
    process.wait_for(folder / "nginx.pid", "\n")
    return process


def start_proxy(text: str, folder: Path) -> Process:
    """Run the proxy.

    Raises:
        CannotStart: It did not like it.
    """
    file = folder / "nginx.conf"
    file.write_text(text)
    command = [sys.executable, "-m", "mailproxy", "run", "-f", str(file), "--workers", "1"]
    process = Process([*command, "--admin", "127.0.0.1:0"], folder, {"PYTHONPATH": PYTHONPATH})
    process.wait_for(process.words, '"event":"listening"')
    return process
