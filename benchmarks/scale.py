# SPDX-License-Identifier: Apache-2.0
"""Rehearsals of scale: tens of thousands of sessions, bursts of logins, and what follows a drain.

    python -m benchmarks.scale idle --sessions 50000 --workers 8 --write
    python -m benchmarks.scale limit --write
    python -m benchmarks.scale burst --write
    python -m benchmarks.scale storm --write

Everything runs on loopback, on all processors.  ``--write`` replaces the part of
the same title in ``benchmarks/SCALE.md``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.scale_clients import Pairs
from benchmarks.scale_pod import (
    PORT,
    TLS_PORT,
    Peak,
    Pod,
    Settings,
    Stage,
    kernel_memory,
    latency,
    listen_overflows,
    stage,
)

Row = tuple[str, str]
_PAGE: Final = Path(__file__).with_name("SCALE.md")
_PROBES: Final = 20.0
"""Logins and commands per second of the clients whose latency is measured beside the others."""
_MIB: Final = 1024 * 1024
_LIMITS: Final[dict[str, Any]] = {
    "authPenalty": True,
    "authBlock": {"failures": 20, "window": "10m", "for": "15m", "max": "24h"},
    "limitPreauth": 10000,
    "limitConnZone": [
        {"zone": "per_user", "key": "$remote_user", "size": "8m"},
        {"zone": "per_address", "key": "$remote_addr", "size": "1m"},
    ],
    "limitConn": [{"zone": "per_user", "connections": 20}, {"zone": "per_address", "connections": 60000}],
    "limitReqZone": [{"zone": "rate", "key": "$remote_user", "size": "8m", "rate": "60r/m"}],
    "limitReq": [{"zone": "rate", "burst": 20, "nodelay": True}],
}
"""Limits that no client reaches: what counting costs."""


def idle(options: argparse.Namespace) -> Iterator[Row]:
    """Sessions that do nothing."""
    per_process = -(-options.sessions // options.processes)
    settings = Settings(options.workers, options.connections, drain_seconds=options.drain)
    settings.mail = _LIMITS if options.limits else {}
    with _stage(options) as run:
        pod, where = run.pod(settings), _target(options)
        probe_at = _target(options)
        run.probe.do("hold", probe_at, count=50, at_once=10, seconds=10.0)
        yield "login / NOOP before, p50 / p99 / max ms", _both(_probe(run, probe_at, 4.0))
        before, kernel, descriptors = pod.memory(), kernel_memory(), pod.sessions()
        started = time.monotonic()
        with Peak(pod) as peak:
            held = run.all("hold", where, count=per_process, at_once=16, seconds=75.0)
        took = time.monotonic() - started
        yield "opened", f"{len(held['logins']):,} in {took:.1f} s; failures {held['failures'] or 'none'}"
        time.sleep(2.0)
        yield from _idle_memory(pod, before, peak, kernel_memory() - kernel, len(held["logins"]))
        counts = [(now - then) // 2 for now, then in zip(pod.sessions(), descriptors, strict=True)]
        yield (
            "sessions of the workers",
            f"{min(counts):,} to {max(counts):,}, mean {statistics.mean(counts):,.0f}",
        )
        yield from _idle_cpu(pod)
        yield "login / NOOP beside them", _both(_probe(run, probe_at, 5.0))
        yield from _idle_scrape(pod)
        yield from _idle_reload(run, pod, probe_at)
        yield from _idle_drain(pod)


def _idle_memory(pod: Pod, before: Any, peak: Peak, kernel: int, sessions: int) -> Iterator[Row]:  # noqa: ANN401
    now = pod.memory()
    workers = sum(now.workers)
    grown = workers - sum(before.workers)
    yield "memory of the pod before", f"{before.total / _MIB:,.0f} MiB"
    yield "memory of the pod", f"{now.total / _MIB:,.0f} MiB (peak {peak.bytes / _MIB:,.0f})"
    yield "of the supervisor", f"{before.supervisor / _MIB:,.1f} MiB before, {now.supervisor / _MIB:,.1f} MiB"
    yield "of the workers", f"{workers / _MIB:,.0f} MiB; {grown / sessions:,.0f} bytes for each session"
    yield (
        "of the kernel",
        (
            f"{kernel / _MIB:,.0f} MiB for all four sockets of each session; "
            f"{kernel / sessions / 2:,.0f} bytes for the two of the proxy"
        ),
    )


def _idle_cpu(pod: Pod) -> Iterator[Row]:
    time.sleep(2.0)
    before, woken = pod.cpu(), pod.wake_ups()
    time.sleep(5.0)
    after = pod.cpu()
    workers, others = ((now - then) / 5.0 for now, then in zip(after, before, strict=True))
    count = len(pod.workers)
    yield "CPU at rest", f"{workers / count:.2%} of a processor for each worker, {others:.2%} for the rest"
    yield "wake-ups at rest", f"{(pod.wake_ups() - woken) / 5.0 / (count + 1):.1f} per second and process"


def _idle_scrape(pod: Pod) -> Iterator[Row]:
    scrapes = [pod.scrape() for _ in range(5)]
    times = ", ".join(f"{seconds * 1e3:.0f}" for seconds, _ in scrapes)
    yield "scrape of the metrics", f"{times} ms; {len(scrapes[-1][1]):,} bytes"


def _idle_reload(run: Stage, pod: Pod, where: dict[str, Any]) -> Iterator[Row]:
    pod.write(timeout="50s")
    run.probe.start("probe", where, rate=_PROBES, seconds=3.0, start=time.monotonic())
    time.sleep(1.0)
    yield "reload", f"{pod.reload():.2f} s"
    yield "login / NOOP during it", _both(run.probe.result())


def _idle_drain(pod: Pod) -> Iterator[Row]:
    with Peak(pod) as peak:
        pod.drain()
        late = pod.wait() - pod.settings.drain_seconds
    yield "drain", f"ended {late:.2f} s after drain.timeout (peak {peak.bytes / _MIB:,.0f} MiB)"
    yield "lines of the log", _lines(pod, sessions=True)


def limit(options: argparse.Namespace) -> Iterator[Row]:
    """More clients than ``workerConnections``, and than the limit of open files."""
    with _stage(options) as run:
        for title, settings in (
            ("workerConnections 1,000", Settings(2, 1000)),
            ("limit of open files 1,000", Settings(2, 1000, files=1000)),
        ):
            pod = run.pod(settings)
            where = _target(options)
            got = run.all("hold", where, count=3000 // options.processes, at_once=64, seconds=8.0)
            yield title, f"{len(got['logins']):,} of 3,000 logged in; others {got['failures']}"
            before = pod.cpu()[0]
            time.sleep(5.0)
            yield "CPU of a worker then", f"{(pod.cpu()[0] - before) / 10.0:.2%}"
            for name in ("conn_total",):
                found = pod.metric("mailproxy_limit_rejections_total", limit=name)
                yield f"limit_rejections {name}", f"{found:,.0f}"
            yield "lines of the log", _lines(pod)
            run.all("leave", where)
            time.sleep(2.0)
            again = run.all("hold", where, count=50, at_once=5, seconds=10.0)
            yield "afterwards", f"{len(again['logins'])} of {50 * options.processes} logged in"
            run.all("leave", where)
            pod.stop()


def _lines(pod: Pod, *, sessions: bool = False) -> str:
    counted = pod.count_events()
    if not sessions:
        counted.pop("session", None)
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counted.items()))


def burst(options: argparse.Namespace) -> Iterator[Row]:
    """Logins at a high rate, regardless of how fast they are served."""
    with _stage(options) as run:
        pod, where = run.pod(Settings(options.workers, options.connections)), _target(options)
        run.probe.do("hold", where, count=50, at_once=10, seconds=10.0)
        run.all("pace", where, rate=50.0, seconds=2.0, start=time.monotonic(), patience=5.0)
        run.auth_counts()
        begin = time.monotonic() + 5.0
        overflows, cpu = listen_overflows(), pod.cpu()[0]
        run.probe.start("probe", where, rate=_PROBES, seconds=30.0, start=begin - 5.0)
        time.sleep(4.8)
        with Peak(pod) as peak:
            rate = options.rate / options.processes
            got = run.all("pace", where, rate=rate, seconds=10.0, start=begin, patience=30.0)
            ended = time.monotonic()
        yield (
            "logins",
            (
                f"{len(got['logins']):,} of {options.rate * 10:,.0f}; failures {got['failures'] or 'none'}; "
                f"not finished after 30 s {got['missing']}"
            ),
        )
        yield "latency p50 / p99 / max ms", latency(got["logins"])
        yield "last login after the burst", f"{max(ended - begin - 10.0, 0.0):.2f} s"
        yield "CPU of the workers", f"{(pod.cpu()[0] - cpu) / max(ended - begin, 10.0):.0%}"
        counts = run.auth_counts()
        yield "authentication service", ", ".join(f"{key} {value:,}" for key, value in counts.items())
        yield "overflows of accept queues", f"{listen_overflows() - overflows:,}"
        yield "memory peak of the pod", f"{peak.bytes / _MIB:,.0f} MiB"
        yield from _others(run.probe.result(), begin, begin + 10.0)
        yield "lines of the log", _lines(pod)


def _others(found: dict[str, Any], begin: float, end: float) -> Iterator[Row]:
    """Return the latencies of others before, during and after something, and when they were normal again."""
    for title, key in (("login", "logins"), ("NOOP", "replies")):
        pairs: Pairs = found[key]
        parts = (
            [pair for pair in pairs if pair[0] < begin],
            [pair for pair in pairs if begin <= pair[0] < end],
            [pair for pair in pairs if pair[0] >= end + 1.0],
        )
        yield f"{title} of others before; during; from 1 s after", "; ".join(map(latency, parts))
    yield "others' failures", str(found["failures"] or "none")
    usual = max(3 * statistics.median(took for start, took in found["logins"] if start < begin), 0.01)
    slow = [start + took - end for start, took in found["logins"] if start + took > end and took > usual]
    yield f"last login of others slower than {usual * 1e3:.0f} ms", f"{max(slow, default=0.0):.1f} s after"


def storm(options: argparse.Namespace) -> Iterator[Row]:
    """All clients of a pod connect to another one, when its drain has ended."""
    with _stage(options) as run:
        settings = Settings(options.workers, options.connections, drain_seconds=options.drain)
        settings.listen = {"backlog": options.backlog} if options.backlog else {}
        if options.auth_connections:
            settings.mail = {"authHttpMaxConnections": options.auth_connections}
        old = run.pod(settings)
        count = options.sessions // options.processes
        held = run.all("hold", _target(options), count=count, at_once=16, seconds=40.0)
        yield "sessions of the old pod", f"{len(held['logins']):,}"
        settings.address = "127.0.0.2"
        new, where = run.pod(settings), _target(options, settings.address)
        run.probe.do("hold", where, count=50, at_once=10, seconds=10.0)
        run.auth_counts()
        overflows, before = listen_overflows(), new.memory().total
        begun = time.monotonic()
        run.probe.start("probe", where, rate=_PROBES, seconds=options.watch, start=begun)
        with Peak(new) as peak:
            old.drain()
            got = run.all("storm", where, jitter=options.jitter, seconds=options.watch)
        yield "old pod ended", f"{old.wait():.1f} s after SIGTERM, drain.timeout {options.drain} s"
        yield "lines of the log of the old pod", _lines(old, sessions=True)
        lost, back = sorted(got["lost"]), sorted(got["back"])
        yield "disconnected", f"{len(lost):,} within {lost[-1] - lost[0]:.1f} s"
        marks = ((0.5, "half"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "all"))
        times = (f"{name} {back[int((len(back) - 1) * part)] - lost[0]:.1f} s" for part, name in marks)
        yield "back", f"{len(back):,}, missing {got['missing']}: {', '.join(times)}"
        yield "most logins in one second", f"{_most(back):,}"
        yield "login of a returning client, p50 / p99 / max ms", latency(got["logins"])
        yield "failed attempts", str(got["failures"] or "none")
        yield "overflows of accept queues", f"{listen_overflows() - overflows:,}"
        yield (
            "memory of the new pod",
            (
                f"{before / _MIB:,.0f} MiB before, {new.memory().total / _MIB:,.0f} MiB after, "
                f"peak {peak.bytes / _MIB:,.0f} MiB"
            ),
        )
        counts = run.auth_counts()
        yield "authentication service", ", ".join(f"{key} {value:,}" for key, value in counts.items())
        yield from _others(run.probe.result(), lost[0], back[-1])
        yield "lines of the log of the new pod", _lines(new)


def _most(times: list[float]) -> int:
    """Return the most of these times within one second."""
    first, most = 0, 0
    for position, moment in enumerate(times):
        while times[first] < moment - 1.0:
            first += 1
        most = max(most, position - first + 1)
    return most


def _probe(run: Stage, where: dict[str, Any], seconds: float) -> dict[str, Any]:
    return run.probe.do("probe", where, rate=_PROBES, seconds=seconds, start=time.monotonic())


def _both(found: dict[str, Any]) -> str:
    return f"{latency(found['logins'])}; {latency(found['replies'])}"


def _target(options: argparse.Namespace, address: str = "127.0.0.1") -> dict[str, Any]:
    return {"address": address, "port": TLS_PORT if options.tls else PORT, "tls": options.tls}


def _stage(options: argparse.Namespace) -> Any:  # noqa: ANN401 - a context manager of Stage
    return stage(options.folder, options.processes, options.auth_delay)


MEASURES: Final[dict[str, Callable[[argparse.Namespace], Iterator[Row]]]] = {
    "idle": idle,
    "limit": limit,
    "burst": burst,
    "storm": storm,
}


def main() -> None:
    """Measure, print, and perhaps write the results."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--sessions", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--processes", type=int, default=2, help="of clients")
    parser.add_argument("--connections", type=int, default=9000, help="workerConnections")
    parser.add_argument("--rate", type=float, default=1000.0, help="logins per second of a burst")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds until a client connects again")
    parser.add_argument("--watch", type=float, default=30.0, help="seconds to wait for all clients")
    parser.add_argument("--drain", type=int, default=10, help="drain.timeout, in seconds")
    parser.add_argument("--limits", action="store_true", help="with limits and penalties")
    parser.add_argument("--auth-connections", type=int, default=0, help="authHttpMaxConnections")
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--auth-delay", type=float, default=0.0)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started, too
    command = " ".join(["python -m benchmarks.scale", *(word for word in sys.argv[1:] if word != "--write")])
    rows = []
    with tempfile.TemporaryDirectory(prefix="mailproxy-scale-") as name:
        options.folder = Path(name)
        for row in MEASURES[options.measure](options):
            rows.append(row)
            print(f"{row[0]:46}  {row[1]}", flush=True)
    if options.write:
        _write(command, rows)


def _write(command: str, rows: list[Row]) -> None:
    """Replace the part of this command on the page, or append it."""
    title = f"## `{command}`"
    lines = [title, "", time.strftime("%Y-%m-%d, %H:%M UTC.", time.gmtime()), "", "| | |", "|---|---|"]
    part = "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows), ""])
    page = _PAGE.read_text(encoding="utf-8") if _PAGE.exists() else "# Rehearsals of scale\n"
    parts = re.split(r"(?m)^(?=## )", page)
    found = [number for number, each in enumerate(parts) if each.startswith(title + "\n")]
    if found:
        parts[found[0]] = part + "\n"
    else:
        parts[-1] = parts[-1].rstrip("\n") + "\n\n"
        parts.append(part)
    _PAGE.write_text("".join(parts).rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
