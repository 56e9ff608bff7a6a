# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.pythons NAME=INTERPRETER ...``: the proxy's CPU time on several interpreters.

Each variant is one proxy with one worker.  All of them run during the whole measurement and take turns in
every round, so what disturbs the machine disturbs all.  ``NAME=INTERPRETER@FOLDER`` takes the modules from
another folder than ``proxy``: another revision, or compiled ones.  An interpreter needs the proxy's
dependencies; it may be a script that starts one in another root directory.  Clients and stub servers run
on the interpreter of the benchmark.  ``benchmarks/PYTHONS.md`` has the results.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.clients import Scene
from benchmarks.processes import (
    LISTENERS,
    PORTS,
    PROXY_CPU,
    Bench,
    MissingProgram,
    bench,
    nginx_conf,
    pinned,
    stop,
    wait_for,
)
from benchmarks.procfs import cpu_of

_ROOT: Final = Path(__file__).resolve().parent.parent
_OTHER_PORTS: Final = 200
"""Those of stub servers, and of the proxies of other benchmarks."""
_PORTS_OF_ONE: Final = 20
_WORKER: Final = "mailproxy-work"


@dataclass(frozen=True)
class Work:
    """A row of the table.

    Attributes:
        listener: As in ``processes.LISTENERS``.
        rate: Logins per second; 0 for as many as possible.
        exchanges: Whether 32 idle sessions exchange NOOP instead of logging in.
    """

    text: str
    listener: str
    rate: int = 0
    exchanges: bool = False

    def scene(self, port: int) -> Scene:
        """Return what the clients do at a port."""
        is_tls = self.listener.endswith("s")
        return Scene(self.listener.removesuffix("s"), port, "implicit" if is_tls else "none")


WORKS: Final = {
    "imap": Work("login, IMAP plain", "imap"),
    "pop3": Work("login, POP3 plain", "pop3"),
    "smtp": Work("login, SMTP plain, AUTH", "smtp"),
    "imaps": Work("login, IMAPS, TLS 1.3, ECDSA", "imaps"),
    "exchange": Work("NOOP exchange, IMAP", "imap", exchanges=True),
    "imap200": Work("login, IMAP at 200/s", "imap", rate=200),
    "imap800": Work("login, IMAP at 800/s", "imap", rate=800),
    "imaps100": Work("login, IMAPS at 100/s", "imaps", rate=100),
}


@dataclass
class Variant:
    """A proxy on one interpreter."""

    name: str
    interpreter: str
    modules: Path
    first_port: int
    process: subprocess.Popen[str] | None = None
    worker: int = 0

    @classmethod
    def parse(cls, text: str, first_port: int) -> Variant:
        """Parse ``NAME=INTERPRETER[@FOLDER]``."""
        name, _, rest = text.partition("=")
        interpreter, _, folder = rest.partition("@")
        if not name or not interpreter:
            raise argparse.ArgumentTypeError(f"not NAME=INTERPRETER[@FOLDER]: {text}")
        return cls(name, interpreter, Path(folder or _ROOT / "proxy"), first_port)

    def port(self, listener: str) -> int:
        """Return the port of a listener."""
        return self.first_port + LISTENERS.index(listener)

    def start(self, folder: Path) -> None:
        """Start the proxy and wait for its worker."""
        conf = nginx_conf(folder, "mailproxy", 1)
        for listener in LISTENERS:
            conf = conf.replace(f":{PORTS.proxy('mailproxy', listener)}", f":{self.port(listener)}")
        conf = conf.replace(f"{folder}/mailproxy.", f"{folder}/{self.name}.")
        file, log = folder / f"{self.name}.conf", folder / f"{self.name}.log"
        file.write_text(conf)
        with log.open("a", encoding="utf-8") as output:
            self.process = pinned(
                PROXY_CPU,
                self.interpreter, "-m", "mailproxy", "run", "-f", str(file), "--workers", "1",
                "--admin", f"127.0.0.1:{self.first_port + len(LISTENERS)}",
                stderr=output, env=os.environ | {"PYTHONPATH": str(self.modules)},
            )  # fmt: skip
        wait_for(self.port("smtps"), self.process, log)
        self.worker = _worker_of(self.process.pid)

    def about(self) -> str:
        """Return version, compiler and OpenSSL of the interpreter."""
        code = (
            "import platform, ssl;"
            "print(platform.python_version(), platform.python_compiler(), ssl.OPENSSL_VERSION, sep=', ')"
        )
        return subprocess.run(
            [self.interpreter, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()


def _worker_of(parent: int) -> int:
    for _ in range(200):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().startswith(_WORKER):
                time.sleep(0.5)  # until its start is over
                return int(child)
        time.sleep(0.05)
    raise RuntimeError(f"{parent} has not started a worker")


@contextmanager
def _running(run: Bench, variants: Sequence[Variant]) -> Iterator[None]:
    try:
        for variant in variants:
            variant.start(run.folder)
        yield
    finally:
        for variant in variants:
            if variant.process is not None:
                stop(variant.process)


def measure(run: Bench, work: Work, variant: Variant, seconds: float, clients: int) -> float:
    """Return the worker's CPU time of one login or exchange, user and system, in microseconds."""
    scene = work.scene(variant.port(work.listener))
    if work.exchanges:
        run.load.do("hold", scene, keep=True, count=32)
    before = cpu_of(variant.worker)
    if work.exchanges:
        report = run.load.do("exchange", scene, keep=True, conns=32, seconds=seconds)
    elif work.rate:
        report = run.load.do("pace", scene, rate=work.rate, seconds=seconds * 1.5)
    else:
        report = run.load.do("saturate", scene, conns=clients, seconds=seconds)
    return (cpu_of(variant.worker) - before) / max(report["done"], 1) * 1e6


def table(run: Bench, variants: Sequence[Variant], options: argparse.Namespace) -> Iterator[str]:
    """Measure, and return the lines of the table: medians, and ratios to the first variant."""
    first, *others = variants
    yield (
        f"| work | {first.name} | "
        + " | ".join(f"{each.name}: µs | ratio (min-max)" for each in others)
        + " |"
    )
    yield "|---|" + "---|" * (1 + 2 * len(others))
    for name in options.work:
        work, found = WORKS[name], {each.name: list[float]() for each in variants}
        for number in range(options.rounds + 1):
            for each in variants:
                value = measure(run, work, each, options.seconds, options.clients)
                if number:  # the first round warms up
                    found[each.name].append(value)
        cells = [f"{statistics.median(found[first.name]):.1f}"]
        for each in others:
            pairs = zip(found[first.name], found[each.name], strict=True)
            ratios = [ours / base for base, ours in pairs]
            cells.append(f"{statistics.median(found[each.name]):.1f}")
            cells.append(f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})")
        yield f"| {work.text} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pythons", description=__doc__)
    parser.add_argument("variants", nargs="+", metavar="NAME=INTERPRETER[@FOLDER]")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--clients", type=int, default=16, help="number of clients that log in repeatedly")
    parser.add_argument("--port", type=int, default=PORTS.base, help="the first port that is used")
    options = parser.parse_args(argv)
    PORTS.base = options.port
    ports = itertools.count(options.port + _OTHER_PORTS, _PORTS_OF_ONE)
    variants = [Variant.parse(text, port) for text, port in zip(options.variants, ports, strict=False)]
    try:
        with bench(sys.executable) as run, _running(run, variants):
            for each in variants:
                print(f"{each.name}: {each.about()}")
            print()
            for line in table(run, variants, options):
                print(line, flush=True)
    except MissingProgram as missing:
        print(f"not installed: {missing}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
