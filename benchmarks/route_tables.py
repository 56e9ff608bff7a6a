# SPDX-License-Identifier: Apache-2.0
"""Cost of a table of routes: to compile it, to take it over in a worker, and to look a login up.

python -m benchmarks.route_tables
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator

from mailproxy.app import App
from mailproxy.loop.worker_loop import make_loop
from mailproxy.routing.route_table import RouteTable
from mailproxy.routing.router import Router
from mailproxy.routing.table_compiler import compile_table
from mailproxy.routing.table_files import TableFile
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.load import load
from mailproxy_config.model import LogLevel
from mailproxy_config.upstream_groups import Route

SIZES = (1_000, 100_000, 1_000_000)
LOOKUPS = 20_000
ROUNDS = 5
GROUPS = frozenset({"old", "new"})
PATH = "/moves"
CONFIG = b"""
mail {
    auth_mode upstream;
    upstream old { server 127.0.0.1:1; }
    upstream new { server 127.0.0.1:2; }
    route table=/moves;
    route domain=* upstream=old;
    server { listen 127.0.0.1:1143; protocol imap; }
}
"""


def name(number: int) -> bytes:
    """A login name."""
    return b"user%07d@example.org" % number


def text(lines: int) -> bytes:
    """A table with so many lines; every tenth has a login."""
    return b"".join(
        b"%b new%b\n" % (name(number), b"" if number % 10 else b" moved%d" % number)
        for number in range(lines)
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of a call."""
    before = time.process_time()
    work()
    return time.process_time() - before


def lookup_microseconds(router: Router, names: list[bytes]) -> float:
    """CPU time of one look-up: the minimum of all rounds."""

    def look_up() -> None:
        for each in names:
            router.find(each)

    return min(cpu_seconds(look_up) for _ in range(ROUNDS)) / len(names) * 1e6


async def longest_pause(table: TableFile) -> float:
    """Milliseconds for which a worker's event loop does nothing else while it takes a configuration over.

    All of it counts: the table, and every other part of a reload that this configuration has.
    """
    config = load(CONFIG).config
    null = os.open(os.devnull, os.O_WRONLY)
    app = App(log=Log(null, LogFormat.JSON, LogLevel.EMERG), metrics=WorkerMetrics())
    pauses: list[float] = []
    try:
        for _ in range(ROUNDS + 1):
            before = time.perf_counter()
            tables = {PATH: RouteTable(table.fileno())}
            await app.apply(config, {}, names={}, ticket_keys={}, tables=tables)
            pauses.append((time.perf_counter() - before) * 1e3)
            await asyncio.sleep(0.01)
    finally:
        app.stop()
        await app.close()
        os.close(null)
    return min(pauses[1:])


def rows() -> Iterator[str]:
    """The rows of the table in TABLES.md."""
    for lines in SIZES:
        source = text(lines)
        compiled = bytearray()

        def build(source: bytes = source, into: bytearray = compiled) -> None:
            into[:] = compile_table(source, GROUPS)

        seconds = cpu_seconds(build)
        file = TableFile(compiled, b"", GROUPS)
        with asyncio.Runner(loop_factory=make_loop) as runner:
            pause = runner.run(longest_pause(file))
        router = Router(
            [Route(table=PATH), Route(domains=("*",), upstream="old")], {PATH: RouteTable(file.fileno())}
        )
        present = [name(random.randrange(lines)) for _ in range(LOOKUPS)]
        absent = [b"x" + each for each in present]
        hit, miss = (lookup_microseconds(router, each) for each in (present, absent))
        yield (
            f"| {lines:,} | {len(source) / 1e6:.1f} MB | {seconds:.2f} s | {len(compiled) / 1e6:.1f} MB "
            f"| {pause:.1f} ms | {hit:.1f} µs | {miss:.1f} µs |"
        )


def main() -> None:
    """Print the table."""
    print("| Lines | Text | Compile | Shared memory | Reload in a worker | Look-up | Look-up without entry |")
    print("|---|---|---|---|---|---|---|")
    for row in rows():
        print(row)


if __name__ == "__main__":
    main()
