# SPDX-License-Identifier: Apache-2.0
"""Measurements that run only if they are named: they take long, or are needed seldom."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.measurements import LOGIN_PROXIES, MICROSECONDS, Measure, log_in
from benchmarks.processes import Bench, Proxy, raise_open_files_limit
from benchmarks.rows import OURS, Figures, Pace, Row, measure_rounds, row_of


def crowd(run: Bench, pace: Pace) -> Iterator[Row]:
    """Ten thousand idle sessions: their memory, the CPU that they take, and the cost of a login meanwhile."""
    many = _many()
    for scene in ("imap", "imaps"):
        names = run.start(LOGIN_PROXIES)
        found = {name: _crowd_of(run, run.proxies[name], scene, pace, many) for name in names}
        for key, unit, scale in (
            (f"per session, {many:,} idle", "kB", 1e-3),
            (f"CPU of a worker with {many:,} idle", "% of a core", 100),
            ("login beside 100 idle", "µs", MICROSECONDS),
            ("login beside 1,000 idle", "µs", MICROSECONDS),
            (f"login beside {many:,} idle", "µs", MICROSECONDS),
            ("memory of a worker after all have left", "MB", 1e-6),
        ):
            yield row_of(found, key, f"{key}, {scene.upper()}", unit, scale=scale)


def _many() -> int:
    """Ten thousand sessions, or as many as there are descriptors for: each takes two of a worker."""
    return min(10_000, (raise_open_files_limit() // 2 - 600) // 100 * 100)


def _crowd_of(run: Bench, proxy: Proxy, scene: str, pace: Pace, many: int) -> dict[str, list[float]]:
    where = run.scene(proxy, scene)
    login = log_in(run, "imap", "saturate", {"user": "other"}, conns=16, seconds=pace.seconds)
    found: Figures = {}
    login(proxy)
    for count in (100, 1000):
        run.load.do("hold", where, keep=True, count=count)
        found[f"login beside {count:,} idle"] = login(proxy)["cpu"]
    before_them = proxy.rss()
    run.load.do("hold", where, keep=True, count=many)
    time.sleep(0.3)
    found[f"per session, {many:,} idle"] = (proxy.rss() - before_them) / (many - 1000)
    found[f"login beside {many:,} idle"] = login(proxy)["cpu"]
    time.sleep(2)  # until that burst is in the log and in the metrics
    before = proxy.cpu()
    time.sleep(3)
    found[f"CPU of a worker with {many:,} idle"] = (proxy.cpu() - before) / 3
    run.load.do("leave", where, keep=True)
    time.sleep(1.5)
    found["memory of a worker after all have left"] = float(proxy.rss())
    return {key: [value] for key, value in found.items()}


def rest(run: Bench, _pace: Pace) -> Iterator[Row]:
    """CPU at rest, without sessions: of the processes that count, and of the first process."""
    names = run.start(LOGIN_PROXIES)
    time.sleep(1)
    proxies = [run.proxies[name] for name in names]
    before = [(proxy.cpu(), proxy.supervisor_cpu()) for proxy in proxies]
    time.sleep(6)
    workers, above = {}, {}
    for proxy, (worker, supervisor) in zip(proxies, before, strict=True):
        workers[proxy.name] = (proxy.cpu() - worker) / 6 * 100
        above[proxy.name] = (proxy.supervisor_cpu() - supervisor) / 6 * 100
    yield Row("CPU of the workers at rest", "% of a core", workers)
    yield Row("CPU of the supervisor", "% of a core", above)


def price(run: Bench, pace: Pace) -> Iterator[Row]:
    """The cost of the session log and the histograms: a login without, and with."""
    for work, without in (
        ("session log", {"options": ("--log-level", "crit")}),
        ("histograms", {"path": "benchmarks/without_histograms"}),
    ):
        found: dict[str, list[float]] = {"without": [], "with": []}
        measure = log_in(run, "imap", "saturate", conns=pace.clients, seconds=pace.seconds)
        for _ in range(pace.rounds):
            for name, how in (("without", without), ("with", {})):
                proxy = run.restart(OURS, **how)
                measure(proxy)
                found[name].append(measure(proxy)["cpu"])
        ratios = [b / a for a, b in zip(found["without"], found["with"], strict=True)]
        values = {name: statistics.median(values) * MICROSECONDS for name, values in found.items()}
        yield Row(f"login without {work}, and with", "µs", values, {"without": ratios}, "1.1")


def churn(run: Bench, _pace: Pace) -> Iterator[Row]:
    """Memory while sessions come and go: after 5,000 logins, and after 30,000."""
    names = run.start(LOGIN_PROXIES)
    found: dict[int, dict[str, float]] = {5_000: {}, 30_000: {}}
    for name in names:
        proxy, done = run.proxies[name], 0.0
        for count, memory in found.items():
            while done < count:
                done += run.load.do("saturate", run.scene(proxy, "imap"), conns=100, seconds=0.4)["done"]
            memory[name] = proxy.rss() / 1e6
    for count, memory in found.items():
        yield Row(f"memory after {count:,} logins", "MB", memory)


def workers(run: Bench, pace: Pace) -> Iterator[Row]:
    """Two workers of each program, on all processors (which the load needs too)."""
    names = run.start(LOGIN_PROXIES, workers=2)
    for scene, target in (("imap", "1.0"), ("imaps", "0.9")):
        measure = log_in(run, scene, "saturate", conns=64, seconds=pace.seconds)
        found = measure_rounds(run, pace.rounds, names, measure)
        work = f"login, {scene.upper()}, two workers each"
        yield row_of(found, "cpu", work, "µs", scale=MICROSECONDS, target=target)


BY_NAME: Final[dict[str, Measure]] = {
    "crowd": crowd,
    "rest": rest,
    "price": price,
    "churn": churn,
    "workers": workers,
}
