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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from benchmarks import processes, procfs
from benchmarks.callgrind import (
    BATCH,
    ROOT,
    START_SECONDS,
    CountedWorker,
    end_proxy,
    print_functions,
    start_proxy,
    total,
)
from benchmarks.processes import PEERS, PORTS, MissingProgram

PROTOCOLS: Final = ("imap", "pop3", "smtp")
WARM_UP: Final = 30
"""Logins before the count: they fill caches, and let the interpreter specialize its bytecode."""
_COMMANDS: Final[dict[str, tuple[bytes, ...]]] = {
    "imap": (b"a LOGIN user@example.com secret\r\n",),
    "pop3": (b"USER user@example.com\r\n", b"PASS secret\r\n"),
    "smtp": (b"EHLO me.example.com\r\n", b"AUTH PLAIN AHVzZXJAZXhhbXBsZS5jb20Ac2VjcmV0\r\n"),
}
_ACCEPTED: Final = {"imap": b"a OK", "pop3": b"+OK", "smtp": b"235"}


def log_in(protocol: str) -> None:
    """Log in once, and close the connection."""
    with socket.create_connection(("127.0.0.1", PORTS.proxy("mailproxy", protocol)), START_SECONDS) as sock:
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


def instructions(worker: CountedWorker, protocol: str, logins: int) -> tuple[float, str]:
    """Count one protocol's logins; returns instructions per login, and callgrind's dump of ``BATCH`` logins.

    The result is the median of batches, so that what the worker does every few seconds, such as
    reporting its metrics, is not part of it.
    """
    for _ in range(WARM_UP):
        log_in(protocol)
    worker.dump()
    dumps = []
    for _ in range(max(logins // BATCH, 1)):
        for _ in range(BATCH):
            log_in(protocol)
        dumps.append(worker.dump())
    text = sorted(dumps, key=total)[len(dumps) // 2]
    return total(text) / BATCH, text


@contextmanager
def worker_under_callgrind(source: Path, python: str) -> Iterator[CountedWorker]:
    """Start stub servers and the proxy of a checkout, all of its processes under callgrind.

    Raises:
        MissingProgram: valgrind is not installed.
    """
    processes.raise_open_files_limit()
    with tempfile.TemporaryDirectory(prefix="mailproxy-instructions-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        processes.make_certificates(folder)
        (folder / "mailproxy.conf").write_text(processes.nginx_conf(folder, "mailproxy", 1))
        ports = (str(PORTS.peer(peer)) for peer in PEERS)
        servers = subprocess.Popen([sys.executable, "-m", "benchmarks.stub_servers", *ports], cwd=ROOT)
        try:
            with open(folder / "log", "w", encoding="utf-8") as log:
                proxy = start_proxy(folder, log, PORTS.base + 60, source, python)
            try:
                processes.wait_for(PORTS.proxy("mailproxy", "smtps"), proxy, folder / "log", START_SECONDS)
                worker = CountedWorker(_worker(proxy.pid), folder)
                worker.count()
                yield worker
            finally:
                end_proxy(proxy)
        finally:
            servers.kill()
            servers.wait()


def _worker(supervisor: int) -> int:
    """Return the process that serves the clients: the last one that was started."""
    for _ in range(START_SECONDS * 10):
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
    parser.add_argument("--source", type=Path, default=ROOT, help="another checkout to count")
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
                print_functions(text, options.functions)
    except MissingProgram as missing:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
