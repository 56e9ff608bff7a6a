# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.instructions``: user-mode instructions of a worker per login, counted by callgrind.

Times depend on the machine and on what else it does; the number of instructions hardly does, so small
savings show.  System calls do not count: their instructions are the kernel's.

One client logs in again and again, one login at a time, so that each event is polled for alone: this is
the dearest case.  What the worker does by time is not counted, as callgrind slows down everything else.
The configuration is that of ``python -m benchmarks``, with one worker.  ``--source`` counts for another
checkout, and ``--functions`` shows where the instructions are.  ``benchmarks/INSTRUCTIONS.md`` has results.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from benchmarks import processes, procfs
from benchmarks.processes import PEERS, PORTS, MissingProgram

PROTOCOLS: Final = ("imap", "pop3", "smtp")
WARM_UP: Final = 30
"""Logins before the count: they fill caches, and let the interpreter specialize its bytecode."""
BATCH: Final = 64
"""Logins of one count; the worker formats the log lines of so many sessions together."""
_START_SECONDS: Final = 300
_WITHOUT_TIMERS: Final = """
import mailproxy.app, mailproxy.worker
from mailproxy.supervisor import child_process
mailproxy.app._LAG_INTERVAL = mailproxy.app._IDLE_LAG_INTERVAL = mailproxy.worker.REPORT_SECONDS = 3600.0
child_process.LATE_SECONDS = child_process.HUNG_SECONDS = child_process.HUNG_CPU_SECONDS = 3600.0
child_process.HUNG_LIMIT_SECONDS = 3600.0
"""
_ROOT: Final = Path(__file__).resolve().parent.parent
_SUMMARY: Final = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)
_COMMANDS: Final[dict[str, tuple[bytes, ...]]] = {
    "imap": (b"a LOGIN user@example.com secret\r\n",),
    "pop3": (b"USER user@example.com\r\n", b"PASS secret\r\n"),
    "smtp": (b"EHLO me.example.com\r\n", b"AUTH PLAIN AHVzZXJAZXhhbXBsZS5jb20Ac2VjcmV0\r\n"),
}
_ACCEPTED: Final = {"imap": b"a OK", "pop3": b"+OK", "smtp": b"235"}


def log_in(protocol: str) -> None:
    """Log in once, and close the connection."""
    with socket.create_connection(("127.0.0.1", PORTS.proxy("mailproxy", protocol)), _START_SECONDS) as sock:
        replies = sock.makefile("rb")
        reply = _reply(replies)
        for command in _COMMANDS[protocol]:
            sock.sendall(command)
            reply = _reply(replies)
        if not reply.startswith(_ACCEPTED[protocol]):
            raise RuntimeError(f"the login was refused: {reply!r}")


def _reply(replies: BinaryIO) -> bytes:
    """Return the last line of a reply."""
    line = replies.readline()
    while line[3:4] == b"-":
        line = replies.readline()
    return line


class Worker:
    """The worker under callgrind; its counts are dumped into files."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid = pid
        self._folder = folder

    def count(self) -> None:
        """Begin to count; before that the worker runs a few times faster."""
        self._control("--instr=on")

    def dump(self, name: str) -> str:
        """Return what was counted since the last dump, in callgrind's format."""
        self._control(f"--dump={name}")
        for _ in range(_START_SECONDS * 10):
            for path in self._folder.glob(f"callgrind.{self._pid}.*"):
                text = path.read_text(encoding="utf-8", errors="replace")
                if name in text.partition("\npositions:")[0] and _SUMMARY.search(text):
                    return text
            time.sleep(0.1)
        raise RuntimeError("callgrind has written no dump")

    def _control(self, option: str) -> None:
        command = ["callgrind_control", option, str(self._pid)]
        subprocess.run(command, check=True, capture_output=True)


def instructions(worker: Worker, protocol: str, logins: int) -> tuple[float, str]:
    """Count one protocol's logins; returns instructions per login, and callgrind's dump of ``BATCH`` logins.

    The result is the median of batches, so that what the worker does every few seconds, such as
    reporting its metrics, is not part of it.
    """
    for _ in range(WARM_UP):
        log_in(protocol)
    worker.dump(f"before-{protocol}")
    dumps = []
    for batch in range(max(logins // BATCH, 1)):
        for _ in range(BATCH):
            log_in(protocol)
        dumps.append(worker.dump(f"{protocol}-{batch}-"))
    text = sorted(dumps, key=total)[len(dumps) // 2]
    return total(text) / BATCH, text


def total(text: str) -> int:
    """Return the instructions of a dump."""
    found = _SUMMARY.search(text)
    assert found is not None
    return int(found[1])


def by_function(text: str) -> Counter[str]:
    """Return the instructions of each C function itself, without those that it calls."""
    names: dict[str, str] = {}
    costs: Counter[str] = Counter()
    current, is_call = "", False
    for line in text.splitlines():
        if line.startswith("fn="):
            number, _, name = line[3:].partition(" ")
            current = names.setdefault(number, name) if name else names[number]
        elif line.startswith("cfn="):
            number, _, name = line[4:].partition(" ")
            if name:
                names.setdefault(number, name)
        elif line.startswith("calls="):
            is_call = True
        elif line[:1].isdigit() or line[:1] in "+-*":
            fields = line.split()
            if not is_call and len(fields) > 1:
                costs[current] += int(fields[1])
            is_call = False
    return costs


@contextmanager
def worker_under_callgrind(source: Path, python: str) -> Iterator[Worker]:
    """Start stub servers and the proxy of a checkout, all of its processes under callgrind.

    Raises:
        MissingProgram: valgrind is not installed.
    """
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise MissingProgram(f"{program} (Debian: valgrind)")
    processes.raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-instructions-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        processes.make_certificates(folder)
        (folder / "mailproxy.conf").write_text(processes.nginx_conf(folder, "mailproxy", 1))
        ports = (str(PORTS.peer(peer)) for peer in PEERS)
        servers = subprocess.Popen([python, "-m", "benchmarks.stub_servers", *ports], cwd=_ROOT)
        with open(folder / "log", "w", encoding="utf-8") as log:
            proxy = subprocess.Popen(
                [
                    "valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no",
                    f"--callgrind-out-file={folder}/callgrind.%p",
                    python, "-m", "mailproxy", "run", "-f", str(folder / "mailproxy.conf"),
                    "--workers", "1", "--admin", f"127.0.0.1:{PORTS.base + 60}",
                ],
                env=_environment(source, folder), stderr=log,
            )  # fmt: skip
        try:
            processes.wait_for(PORTS.proxy("mailproxy", "smtps"), proxy, folder / "log", _START_SECONDS)
            worker = Worker(_worker(proxy.pid), folder)
            worker.count()
            yield worker
        finally:
            started = [proxy.pid, *procfs.children(proxy.pid)]
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            proxy.wait()
            servers.kill()
            servers.wait()


def _environment(source: Path, folder: Path) -> dict[str, str]:
    """Return an environment with the modules of a checkout; hashes are the same in every run.

    The timers of the worker are off: for the lag of the event loop, and for reporting metrics.
    """
    (folder / "sitecustomize.py").write_text(_WITHOUT_TIMERS)
    modules = {"PYTHONPATH": os.pathsep.join([str(folder), str(source / "proxy"), *sys.path[1:]])}
    without_debuginfod = {key: value for key, value in os.environ.items() if key != "DEBUGINFOD_URLS"}
    return without_debuginfod | modules | {"PYTHONHASHSEED": "0"}


def _worker(supervisor: int) -> int:
    """Return the process that serves the clients: the last one that was started."""
    for _ in range(_START_SECONDS * 10):
        with suppress(OSError, RuntimeError):
            log_in("imap")
            return procfs.children(supervisor)[-1]
        time.sleep(0.1)
    raise RuntimeError("the proxy does not accept logins")


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, help="one protocol; all by default")
    parser.add_argument("--logins", type=int, default=320, help="logins per protocol (%(default)s)")
    parser.add_argument("--source", type=Path, default=_ROOT, help="another checkout to count")
    parser.add_argument("--python", default=sys.executable, help="another interpreter, with the dependencies")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="show the N dearest C functions"
    )
    parser.add_argument("--port", type=int, default=24000, help="the first port that is used (%(default)s)")
    options = parser.parse_args(argv)
    PORTS.base = options.port
    try:
        with worker_under_callgrind(options.source, options.python) as worker:
            for protocol in (options.protocol,) if options.protocol else PROTOCOLS:
                count, text = instructions(worker, protocol, options.logins)
                print(f"{protocol}: {count:,.0f} instructions per login", flush=True)
                for name, cost in by_function(text).most_common(options.functions):
                    print(f"  {cost / BATCH:10,.0f}  {name}")
    except MissingProgram as missing:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
