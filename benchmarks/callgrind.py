# SPDX-License-Identifier: Apache-2.0
"""A worker whose instructions in user mode are counted by callgrind.

The number of instructions depends neither on the machine nor on its load.  Instructions of system calls do
not count, as they are the kernel's.  The timers of the worker are off: callgrind makes everything else slow,
so that what is done by time would have too large a share.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from benchmarks import procfs
from benchmarks.processes import MissingProgram

ROOT: Final = Path(__file__).resolve().parent.parent
"""This checkout."""
START_SECONDS: Final = 300
"""The longest time for a step of a program that callgrind slows down."""
BATCH: Final = 64
"""Logins of one count; the worker formats the log lines of so many sessions together."""
_WITHOUT_TIMERS: Final = """
import mailproxy.app, mailproxy.worker
from mailproxy.supervisor import child_process
mailproxy.app._LAG_INTERVAL = mailproxy.app._IDLE_LAG_INTERVAL = mailproxy.worker.REPORT_SECONDS = 3600.0
child_process.LATE_SECONDS = child_process.HUNG_SECONDS = child_process.HUNG_CPU_SECONDS = 3600.0
child_process.HUNG_LIMIT_SECONDS = 3600.0
"""
_SUMMARY: Final = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


class CountedWorker:
    """A worker under callgrind.

    Args:
        pid: Its process.
        folder: Where callgrind writes its files.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid = pid
        self._folder = folder
        self._dumps = 0

    def count(self) -> None:
        """Begin to count; before that the worker runs a few times faster."""
        self._control("--instr=on")

    def dump(self) -> str:
        """Return what was counted since the last dump, in callgrind's format."""
        self._dumps += 1
        name = f"number-{self._dumps}-of-{self._pid}"
        self._control(f"--dump={name}")
        for _ in range(START_SECONDS * 20):
            for path in self._folder.glob(f"callgrind.{self._pid}.*"):
                text = path.read_text(encoding="utf-8", errors="replace")
                if name in text.partition("\npositions:")[0] and _SUMMARY.search(text):
                    path.unlink()
                    return text
            time.sleep(0.05)
        raise RuntimeError("callgrind has written no dump")

    def _control(self, option: str) -> None:
        command = ["callgrind_control", option, str(self._pid)]
        subprocess.run(command, check=True, capture_output=True)


def start_proxy(
    folder: Path, log: IO[str], admin: int, source: Path = ROOT, python: str = sys.executable
) -> subprocess.Popen[bytes]:
    """Start a proxy with one worker, all of its processes under callgrind.

    Args:
        folder: Has the configuration ``mailproxy.conf``; callgrind writes its files there.
        log: Gets the standard error.
        admin: Port of the admin endpoint.
        source: The checkout whose modules run.
        python: The interpreter.

    Raises:
        MissingProgram: valgrind is not installed.
    """
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise MissingProgram(f"{program} (Debian: valgrind)")
    (folder / "sitecustomize.py").write_text(_WITHOUT_TIMERS)
    environment = {key: value for key, value in os.environ.items() if key != "DEBUGINFOD_URLS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(source / "proxy")])
    environment["PYTHONHASHSEED"] = "0"  # hashes are the same in every run
    return subprocess.Popen(
        [
            "valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no",
            f"--callgrind-out-file={folder}/callgrind.%p",
            python, "-m", "mailproxy", "run", "-f", str(folder / "mailproxy.conf"),
            "--workers", "1", "--admin", f"127.0.0.1:{admin}",
        ],
        env=environment, stderr=log,
    )  # fmt: skip


def end_proxy(proxy: subprocess.Popen[bytes]) -> None:
    """Kill a proxy and its worker."""
    children: tuple[int, ...] = ()
    with suppress(OSError):
        children = procfs.children(proxy.pid)
    for pid in (proxy.pid, *children):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    proxy.wait()


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
        if line.startswith(("fn=", "cfn=")):
            number, _, name = line.partition("=")[2].partition(" ")
            name = names.setdefault(number, name) if name else names[number]
            current = name if line.startswith("fn=") else current
        elif line.startswith("calls="):
            is_call = True
        elif line[:1].isdigit() or line[:1] in {"+", "-", "*"}:
            fields = line.split()
            if not is_call and len(fields) > 1:
                costs[current] += int(fields[1])
            is_call = False
    return costs


def print_functions(text: str, most: int) -> None:
    """Print the dearest C functions of a dump of ``BATCH`` logins."""
    for name, cost in by_function(text).most_common(most):
        print(f"  {cost / BATCH:10,.0f}  {name}")
