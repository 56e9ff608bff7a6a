# SPDX-License-Identifier: Apache-2.0
"""How long a client waits for the first byte: after a start, a reload, and the crash of a worker."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks.processes import PORTS, Bench, Proxy
from benchmarks.procfs import command, descendants

_WORKERS: Final = {
    "nginx": "worker process",
    "dovecot": "imap-login",
    "haproxy": "haproxy",
    "mailproxy": "mailproxy-work",
}
_RELOADS: Final = {"haproxy": signal.SIGUSR2}
"""The signal of a reload, where it is not ``SIGHUP``."""
_CONFIGURATIONS: Final = {"nginx": "nginx.conf", "mailproxy": "mailproxy.conf"}
_OBSERVED: Final = 1.0


def first_byte(port: int, timeout: float = 15.0) -> float:
    """Return the seconds until a greeting begins; a client that is refused or closed connects again.

    Raises:
        TimeoutError: There was no greeting within ``timeout`` seconds.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < timeout:
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=timeout - waited) as client,
        ):
            if client.recv(1):
                return time.monotonic() - started
        time.sleep(0.0005)
    raise TimeoutError(f"no greeting at {port} in {timeout} s")


def after_start(run: Bench, name: str) -> float:
    """Start a proxy; returns the seconds until its first byte."""
    if name in run.proxies:
        run.proxies.pop(name).stop()
    found: list[float] = []
    client = threading.Thread(target=lambda: found.append(first_byte(PORTS.proxy(name, "imap"))))
    client.start()
    run.restart(name)
    client.join()
    return found[0]


def after_reload(run: Bench, name: str) -> float:
    """Reload the configuration, with a change; returns the longest wait of a client in the next second."""
    process = run.proxies[name].process
    if name in _CONFIGURATIONS:
        file = run.folder / _CONFIGURATIONS[name]
        file.write_text(_changed(file.read_text()))
    return _longest_wait(name, lambda: process.send_signal(_RELOADS.get(name, signal.SIGHUP)))


def _changed(configuration: str) -> str:
    """Return the configuration with another timeout, each time a longer one."""
    before, mark, after = configuration.partition("  proxy_timeout ")
    if mark:
        seconds, _, rest = after.partition("s;")
        return f"{before}{mark}{int(seconds) + 1}s;{rest}"
    return configuration.replace("mail {\n", "mail {\n  proxy_timeout 40000s;\n")


def after_crash(run: Bench, name: str) -> float | None:
    """Kill the worker; returns the longest wait of a client in the next second.

    It is nothing if all processes of the program end.
    """
    proxy = run.proxies[name]
    worker = worker_of(proxy)
    waited = None
    with suppress(TimeoutError):
        waited = _longest_wait(name, lambda: os.kill(worker, signal.SIGKILL), timeout=3.0)
    return waited if proxy.process.poll() is None else None


def worker_of(proxy: Proxy) -> int:
    """Return the newest worker that serves IMAP."""
    below = [pid for pid in descendants(proxy.process.pid)[1:] if Path(f"/proc/{pid}/cmdline").read_bytes()]
    return max(pid for pid in below if _WORKERS[proxy.name] in command(pid))


def _longest_wait(name: str, cause: Callable[[], None], timeout: float = 15.0) -> float:
    port = PORTS.proxy(name, "imap")
    first_byte(port)
    cause()
    longest, end = 0.0, time.monotonic() + _OBSERVED
    while time.monotonic() < end:
        longest = max(longest, first_byte(port, timeout))
        time.sleep(0.002)
    return longest
