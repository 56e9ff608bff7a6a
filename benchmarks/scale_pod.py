# SPDX-License-Identifier: Apache-2.0
"""The processes of a rehearsal of scale: pods, stub servers, clients; their memory, CPU time and log."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.scale_clients import Pairs


def _free_base() -> int:
    """Return the first of twenty free ports, below those of outgoing connections."""
    for base in range(11000, 12000, 20):
        with suppress(OSError), socket.create_server(("127.0.0.1", base)):
            return base
    raise RuntimeError("no free ports from 11000 to 12000")


_BASE: Final = _free_base()
AUTH_PORT: Final = _BASE
IMAP_PORTS: Final = (_BASE + 1, _BASE + 2, _BASE + 3, _BASE + 4)
PORT: Final = _BASE + 5
TLS_PORT: Final = _BASE + 6
ADMIN_PORT: Final = _BASE + 10
_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass
class Memory:
    """Bytes of a pod: PSS of the supervisor, of the fork server, and of each worker."""

    supervisor: int
    fork_server: int
    workers: list[int]

    @property
    def total(self) -> int:
        """All of them."""
        return self.supervisor + self.fork_server + sum(self.workers)


@dataclass
class Settings:
    """What differs between pods."""

    workers: int = 2
    connections: int = 9000
    drain_seconds: int = 5
    address: str = "127.0.0.1"
    files: int = 0
    """The limit of open files of each of its processes; 0 for the highest possible."""
    mail: dict[str, Any] = field(default_factory=dict)
    listen: dict[str, Any] = field(default_factory=dict)


class Pod:
    """A running proxy."""

    def __init__(self, folder: Path, settings: Settings, number: int = 0) -> None:
        self.settings = settings
        self.admin = ADMIN_PORT + number
        self.file = folder / f"pod{number}.json"
        self.log_file = folder / f"pod{number}.log"
        self.write()
        command = [sys.executable, "-m", "mailproxy", "run", "-f", str(self.file)]
        command += ["--admin", f"127.0.0.1:{self.admin}"]
        if settings.files:
            command = ["sh", "-c", f'ulimit -n {settings.files}; exec "$@"', "sh", *command]
        # A pipe and a reader, as a container runtime has: a reader that is late is part of the rehearsal.
        with open(self.log_file, "wb") as log:
            self._reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
        assert self._reader.stdin is not None
        with self._reader.stdin as pipe:
            self.process = subprocess.Popen(command, stderr=pipe, cwd=_ROOT)
        self.wait_for_event("listening")
        children = _children(self.process.pid)
        self.workers = [pid for pid in children if "mailproxy-work" in _name(pid)]
        self._others = [pid for pid in children if pid not in self.workers]
        assert len(self.workers) == settings.workers

    def write(self, **mail: object) -> None:
        """Write the configuration."""
        settings, folder = self.settings, self.file.parent
        listen: dict[str, Any] = {"address": settings.address, **settings.listen}
        pair = [{"certificateFile": f"{folder}/tls.crt", "keyFile": f"{folder}/tls.key"}]
        manifest = {
            "apiVersion": "mailproxy.dev/v1alpha1",
            "kind": "MailProxy",
            "metadata": {"name": "scale"},
            "spec": {
                "workers": settings.workers,
                "workerConnections": settings.connections,
                "drain": {"delay": "0s", "timeout": f"{settings.drain_seconds}s"},
                "mail": {
                    "authHttp": f"http://127.0.0.1:{AUTH_PORT}/auth",
                    "serverName": "mail.example.com",
                    **settings.mail,
                    **mail,
                },
                "servers": [
                    {"name": "imap", "protocol": "imap", "listen": [{**listen, "port": PORT}]},
                    {
                        "name": "imaps",
                        "protocol": "imap",
                        "listen": [{**listen, "port": TLS_PORT, "ssl": True}],
                        "sslCertificate": pair,
                    },
                ],
            },
        }
        self.file.write_text(json.dumps(manifest))

    # -- what it uses

    def memory(self) -> Memory:
        """Return its memory."""
        others = sum(map(_pss, self._others))
        return Memory(_pss(self.process.pid), others, [_pss(pid) for pid in self.workers])

    def cpu(self) -> tuple[float, float]:
        """Return the seconds of processor time of its workers, and of its other processes."""
        return sum(map(_cpu, self.workers)), sum(map(_cpu, [self.process.pid, *self._others]))

    def wake_ups(self) -> int:
        """Return how often its processes have given up the processor in order to wait."""
        found = 0
        for pid in (self.process.pid, *self._others, *self.workers):
            for task in Path(f"/proc/{pid}/task").iterdir():
                status = (task / "status").read_text()
                found += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return found

    def sessions(self) -> list[int]:
        """Return the descriptors of each worker."""
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers]

    def scrape(self) -> tuple[float, bytes]:
        """Return the seconds that a scrape of the metrics takes, and the metrics."""
        started = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=30) as response:
            data = response.read()
        return time.monotonic() - started, data

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = self.scrape()[1].decode().splitlines()
        found = [line for line in lines if re.match(rf"{name}[{{ ]", line)]
        return sum(float(line.split()[-1]) for line in found if all(label in line for label in wanted))

    # -- its log

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        lines = self.log_file.read_bytes().splitlines()
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def count_events(self) -> Counter[str]:
        """Return how often each event is in its log; ``session`` are the lines of sessions."""
        return Counter(str(line.get("event") or line.get("msg") or "session") for line in self.events())

    def wait_for_event(self, name: str, count: int = 1, seconds: float = 30.0) -> None:
        """Wait until an event is in the log ``count`` times."""
        wanted, ends_at = f'"{name}"'.encode(), time.monotonic() + seconds
        while self.log_file.read_bytes().count(wanted) < count:
            if self.process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(self.log_file.read_text()[-2000:])
            time.sleep(0.01)

    # -- signals

    def reload(self) -> float:
        """Reload; return the seconds until all workers run the configuration."""
        before = self.log_file.read_bytes().count(b'"configuration_loaded"')
        started = time.monotonic()
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_event("configuration_loaded", before + 1)
        return time.monotonic() - started

    def drain(self) -> None:
        """Send SIGTERM."""
        self._drained_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self._waiting = threading.Thread(target=self._wait)
        self._waiting.start()

    def _wait(self) -> None:
        self.process.wait(120)
        self._ended_at = time.monotonic()

    def wait(self) -> float:
        """Wait for its exit and the rest of its log; return the seconds from SIGTERM to the exit."""
        self._waiting.join()
        self._reader.wait(20)
        return self._ended_at - self._drained_at

    def stop(self) -> None:
        """End it, if it runs."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.1)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Clients:
    """A process of clients."""

    def __init__(self, source: str) -> None:
        command = [sys.executable, "-m", "benchmarks.scale_clients", source]
        self.process = subprocess.Popen(
            command, text=True, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, do: str, target: dict[str, Any], **how: object) -> None:
        """Start a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "target": target, "with": how}) + "\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for its end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, do: str, target: dict[str, Any], **how: object) -> dict[str, Any]:
        """Start a command, and wait for its end."""
        self.start(do, target, **how)
        return self.result()


@dataclass
class Stage:
    """Everything that runs beside the pods."""

    folder: Path
    auth: subprocess.Popen[str]
    clients: list[Clients]
    probe: Clients
    pods: list[Pod] = field(default_factory=list)

    def pod(self, settings: Settings) -> Pod:
        """Start a pod."""
        self.pods.append(Pod(self.folder, settings, len(self.pods)))
        return self.pods[-1]

    def auth_counts(self) -> dict[str, int]:
        """Return what the authentication service has counted since the last call."""
        assert self.auth.stdin is not None
        assert self.auth.stdout is not None
        self.auth.stdin.write("\n")
        self.auth.stdin.flush()
        counts: dict[str, int] = json.loads(self.auth.stdout.readline())
        return counts

    def all(self, do: str, target: dict[str, Any], **how: Sequence[object] | object) -> dict[str, Any]:
        """Run a command in all processes of clients at a time; a list has one value for each process."""
        for number, process in enumerate(self.clients):
            own = {key: value[number] if isinstance(value, list) else value for key, value in how.items()}
            process.start(do, target, **own)
        return merge([process.result() for process in self.clients])


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up the reports of several processes."""
    found: dict[str, Any] = {}
    for report in reports:
        for key, value in report.items():
            if isinstance(value, dict):
                found[key] = dict(Counter(found.get(key, {})) + Counter(value))
            else:
                found[key] = found[key] + value if key in found else value
    return found


@contextmanager
def stage(folder: Path, processes: int, delay: float = 0.0) -> Iterator[Stage]:
    """Start stub servers and clients; everything, pods included, is ended at the end."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _certificate(folder)
    module = [sys.executable, "-m", "benchmarks.scale_stubs"]
    auth = subprocess.Popen(
        [*module, "auth", str(AUTH_PORT), str(delay), *map(str, IMAP_PORTS)],
        text=True, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    started = [subprocess.Popen([*module, "imap", str(port)], cwd=_ROOT) for port in IMAP_PORTS]
    clients = [Clients(f"127.1.0.{number + 1}") for number in range(processes)]
    probe = Clients("127.2.0.1")
    made = Stage(folder, auth, clients, probe)
    stubs: list[subprocess.Popen[Any]] = [auth, *started]
    try:
        time.sleep(0.5)
        if any(process.poll() is not None for process in stubs):
            raise RuntimeError("a stub server has not started")
        yield made
    finally:
        for pod in made.pods:
            pod.stop()
        for process in (*stubs, *(each.process for each in (*clients, probe))):
            process.kill()
            process.wait()


class Peak:
    """Samples the memory of a pod in a thread, and keeps the highest."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.bytes = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(0.25):
            with suppress(OSError):
                self.bytes = max(self.bytes, self._pod.memory().total)


def kernel_memory() -> int:
    """Return the bytes of the kernel's slabs, sockets included, and of data in sockets."""
    slab = re.search(r"^Slab:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    pages = re.search(r"^TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    assert slab is not None
    assert pages is not None
    return int(slab[1]) * 1024 + int(pages[1]) * resource.getpagesize()


def listen_overflows() -> int:
    """Return how many connections did not fit into a queue of connections to accept."""
    lines = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
    names, values = next(pair for pair in pairwise(lines) if pair[0][0] == "TcpExt:")
    return int(values[names.index("ListenOverflows")])


def latency(pairs: Pairs) -> str:
    """Return the median, the 99th percentile and the maximum in milliseconds."""
    times = sorted(took for _, took in pairs)
    if not times:
        return "none"
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return f"{p50 * 1e3:.1f} / {p99 * 1e3:.1f} / {times[-1] * 1e3:.1f}"


def _certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=mail.example.com"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()


def _pss(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _cpu(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
