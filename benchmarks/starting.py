# SPDX-License-Identifier: Apache-2.0
"""The cost of a start: time until ready, CPU time, memory of each process, and CPU time while idle.

    python -m benchmarks.starting [--workers N] [--servers N] [--idle SECONDS] [--runs N]

Starts ``mailproxy run`` on loopback, waits until it listens, and reads ``/proc``.
``benchmarks/STARTING.md`` has the results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds until ready, CPU seconds, PSS in KiB by kind of process, idle CPU seconds."""

    seconds: float
    cpu: float
    memory: dict[str, float]
    idle_cpu: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.starting")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--idle", type=float, default=0.0, help="seconds to stay idle after the start")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    starts = [_measured(options.workers, options.servers, options.idle) for _ in range(options.runs)]
    print(f"workers {options.workers}, servers {options.servers}, median of {options.runs} starts")
    print(f"until ready      {statistics.median(start.seconds for start in starts):7.2f} s")
    print(f"CPU until ready  {statistics.median(start.cpu for start in starts):7.2f} s")
    for name in starts[0].memory:
        print(f"PSS {name:12} {statistics.median(start.memory[name] for start in starts) / 1024:7.1f} MiB")
    if options.idle:
        idle = statistics.median(start.idle_cpu for start in starts)
        print(f"CPU while idle   {idle:7.2f} s in {options.idle:.0f} s")


def _measured(workers: int, servers: int, idle: float) -> Start:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mailproxy.json"
        file.write_text(json.dumps(_manifest(workers, servers)))
        begun = time.monotonic()
        with _running(file) as process:
            seconds = time.monotonic() - begun
            cpu = _cpu(process.pid)
            memory = _memory(process.pid)
            time.sleep(idle)
            return Start(seconds, cpu, memory, _cpu(process.pid) - cpu)


def _manifest(workers: int, servers: int) -> dict[str, object]:
    return {
        "apiVersion": "mailproxy.dev/v1alpha1",
        "kind": "MailProxy",
        "metadata": {"name": "edge"},
        "spec": {
            "workers": workers,
            "mail": {"authHttp": "http://127.0.0.1:9/auth", "serverName": "mail.example.com"},
            "servers": [
                {
                    "name": f"imap-{number}",
                    "protocol": "imap",
                    "listen": [{"address": "127.0.0.1", "port": _free_port()}],
                }
                for number in range(servers)
            ],
        },
    }


@contextmanager
def _running(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the proxy; the block begins when all its workers are ready."""
    command = [sys.executable, "-m", "mailproxy", "run", "--admin", "127.0.0.1:0", "-f", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if '"listening"' in line:
                break
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stderr.close()


def _descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in children for one in _descendants(child))]


def _cpu(pid: int) -> float:
    """CPU seconds of a process, its ended children, and its descendants."""
    total = 0
    for one in _descendants(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def _memory(pid: int) -> dict[str, float]:
    """PSS in KiB: of the supervisor, of each kind of child (the mean over those alike), and of all."""
    by_name: dict[str, list[float]] = {}
    for one in _descendants(pid):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        assert found is not None
        by_name.setdefault(_name(one, pid), []).append(float(found[1]))
    means = {name: statistics.mean(values) for name, values in sorted(by_name.items())}
    return {**means, "total": sum(sum(values) for values in by_name.values())}


def _name(pid: int, supervisor: int) -> str:
    if pid == supervisor:
        return "supervisor"
    descriptors = Path(f"/proc/{pid}/fd")
    polls = any("eventpoll" in os.readlink(entry) for entry in descriptors.iterdir())
    return "worker" if polls else "fork server"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
