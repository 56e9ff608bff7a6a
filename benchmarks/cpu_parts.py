# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.cpu_parts``: the CPU time of a login in the kernel, in C libraries, in the program.

``perf`` samples the workers while clients log in; CPU per login comes from the scheduler, as everywhere.
The program is the interpreter for the proxy, and the executable with its own modules for the others.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measurements import LOGIN_PROXIES, MICROSECONDS
from benchmarks.processes import Bench, MissingProgram, Proxy, bench
from benchmarks.rows import CLIENTS

KERNEL, LIBRARIES, PROGRAM = PARTS = ("kernel", "TLS and C libraries", "program")
_OF_PROGRAM: Final = ("python", "nginx", "ngx_", "dovecot", "imap-login", "pop3-login", "submission-login")
"""What the file of a program, or of a module of it, has in its name."""
_HERTZ: Final = 4999


@dataclass(frozen=True)
class Work:
    """What the clients do: as fast as possible, or so many logins per second."""

    label: str
    scene: str
    rate: int = 0


WORKS: Final = (
    Work("IMAP plain", "imap"),
    Work("POP3 plain", "pop3"),
    Work("SMTP plain with AUTH", "smtp"),
    Work("IMAPS, TLS 1.3", "imaps"),
    Work("IMAP plain at 200/s", "imap", 200),
    Work("IMAPS, TLS 1.3, at 100/s", "imaps", 100),
)


def part_of(file: str) -> str:
    """Return the part that a file with code belongs to: a name as ``perf`` has it."""
    if file.startswith("["):
        return KERNEL
    return PROGRAM if any(word in file for word in _OF_PROGRAM) else LIBRARIES


def shares(report: str) -> dict[str, float]:
    """Return the share of each part, which together are 1.

    Args:
        report: What ``perf report`` prints: on each line a percentage and the name of a file.

    Raises:
        ValueError: There is no such line.
    """
    found = dict.fromkeys(PARTS, 0.0)
    for line in report.splitlines():
        share, _, file = line.strip().partition(" ")
        if share.endswith("%") and file:
            found[part_of(file.strip())] += float(share[:-1])
    if not (total := sum(found.values())):
        raise ValueError("perf has no samples")
    return {part: share / total for part, share in found.items()}


def measure(run: Bench, proxy: Proxy, work: Work, seconds: float) -> dict[str, float]:
    """Return the seconds of CPU time per login, by part."""
    where = run.scene(proxy, work.scene)
    load = run.load
    command = "pace" if work.rate else "saturate"
    how: dict[str, Any] = {"rate": work.rate} if work.rate else {"conns": CLIENTS}
    load.do(command, where, **how, seconds=min(seconds, 0.5))
    with _perf(run.folder / "perf.data", proxy) as perf:
        cpu = proxy.cpu()
        report = load.do(command, where, **how, seconds=seconds)
        cpu = proxy.cpu() - cpu
    each = cpu / report["done"]
    return {part: share * each for part, share in shares(perf()).items()}


@contextmanager
def _perf(file: Path, proxy: Proxy) -> Iterator[Callable[[], str]]:
    """Sample the counted processes of a proxy; yields what returns the report afterwards."""
    pids = ",".join(map(str, proxy.counted()))
    record = subprocess.Popen(
        ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_HERTZ), "-p", pids, "-o", str(file)]
    )
    time.sleep(0.5)  # until it samples

    def report() -> str:
        words = ["perf", "report", "-i", str(file), "--stdio", "--sort", "dso", "-F", "overhead,dso"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    try:
        yield report
    finally:
        record.terminate()
        record.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_parts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one run")
    parser.add_argument(
        "--python", default=sys.executable, help="the proxy's interpreter, with its dependencies"
    )
    options = parser.parse_args(argv)
    try:
        if shutil.which("perf") is None:
            raise MissingProgram("not installed: perf (Debian: linux-perf)")
        with bench(options.python) as run:
            names = run.start(LOGIN_PROXIES)
            print(f"| login | {' | '.join((*PARTS, 'total'))} |\n|---|{'---|' * 4}")
            for work in WORKS:
                for name in names:
                    proxy = run.proxies[name]
                    found = [measure(run, proxy, work, options.seconds) for _ in range(options.rounds)]
                    parts = [statistics.median(each[part] for each in found) for part in PARTS]
                    cells = " | ".join(f"{value * MICROSECONDS:.0f}" for value in (*parts, sum(parts)))
                    print(f"| {work.label}, {name} | {cells} |", flush=True)
    except MissingProgram as missing:
        print(missing, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
