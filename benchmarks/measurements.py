# SPDX-License-Identifier: Apache-2.0
"""The measurements.  Each yields rows; nginx and the proxy take turns within every round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from benchmarks.processes import Bench, Proxy, raise_open_files_limit

BOTH: Final = ("nginx", "mailproxy")
GIB: Final = 1 << 30
CLIENTS: Final = 32
"""Clients that log in repeatedly: enough that the proxy is never idle."""


@dataclass
class Row:
    """One value of both proxies, and their ratio.

    Attributes:
        unit: Of ``nginx`` and ``mailproxy``, which are medians.
        ratios: Proxy / nginx, one for each round.
        target: What the ratio should be at most (``>=`` for rates).
        busy: By proxy, the share of its processor that it took, and that the load took of the other;
            only of work that is done as fast as it can be.
    """

    work: str
    unit: str
    nginx: float
    mailproxy: float
    ratios: list[float] = field(default_factory=list)
    target: str = ""
    busy: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The median."""
        return statistics.median(self.ratios) if self.ratios else float("nan")


@dataclass
class Pace:
    """How long to measure: rounds, and seconds within each.

    Attributes:
        clients: With how many, where they log in over and over.
    """

    rounds: int = 5
    seconds: float = 0.4
    clients: int = CLIENTS


Figures = dict[str, float]
Measure = Callable[[Bench, Pace], Iterator[Row]]


def _rounds(
    run: Bench, pace: Pace, measure: Callable[[Proxy], Figures], warm: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Measure both proxies in turns; ``warm`` rounds do not count."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in BOTH}
    for number in range(pace.rounds + warm):
        for name in BOTH:
            figures = measure(run.proxies[name])
            if number >= warm:
                for key, value in figures.items():
                    found[name].setdefault(key, []).append(value)
    return found


def _row(
    found: dict[str, dict[str, list[float]]], key: str, work: str, unit: str, *, scale: float, target: str
) -> Row:
    nginx, ours = found["nginx"][key], found["mailproxy"][key]
    ratios = [b / a for a, b in zip(nginx, ours, strict=True) if a]
    return Row(work, unit, statistics.median(nginx) * scale, statistics.median(ours) * scale, ratios, target)


def _busy(row: Row, found: dict[str, dict[str, list[float]]]) -> Row:
    for name, figures in found.items():
        proxy, load = (statistics.median(figures[key]) for key in ("proxy busy", "load busy"))
        row.busy[name] = (proxy, load)
    return row


def _start(run: Bench, workers: int = 1) -> None:
    for name in BOTH:
        run.restart(name, workers=workers)


def _logins(run: Bench, scene: str, conns: int, seconds: float, **how: object) -> Callable[[Proxy], Figures]:
    def measure(proxy: Proxy) -> Figures:
        where = run.scene(proxy, scene, **how)
        before, load, started = proxy.cpu(), run.load_cpu(), time.monotonic()
        report = run.load.do("saturate", where, conns=conns, seconds=seconds)
        cpu, load, took = proxy.cpu() - before, run.load_cpu() - load, time.monotonic() - started
        busy = {"proxy busy": cpu / took, "load busy": load / took}
        return {"cpu": cpu / max(report["done"], 1), **busy, **report}

    return measure


SATURATED: Final[tuple[tuple[str, str, dict[str, object], str], ...]] = (
    # what, listener, how, target
    ("IMAP plain, upstream with LITERAL+", "imap", {}, "1.0"),
    ("IMAP plain, upstream without LITERAL+", "imap", {"user": "bare"}, "1.0"),
    ("POP3 plain", "pop3", {}, "1.1"),
    ("SMTP plain, AUTH", "smtp", {}, "1.1"),
    ("IMAP, STARTTLS", "imap", {"tls": "starttls"}, "0.9"),
    ("IMAPS, TLS 1.3, ECDSA", "imaps", {}, "0.9"),
    ("IMAPS, TLS 1.3, RSA 2048", "rsa", {}, "0.9"),
    ("IMAPS, TLS 1.2, ECDSA", "imaps", {"version": "TLSv1.2"}, "0.9"),
    ("IMAPS, TLS 1.3, resumed", "imaps", {"resume": True}, "0.9"),
    ("POP3S, TLS 1.3, ECDSA", "pop3s", {}, "0.9"),
    ("SMTPS, TLS 1.3, ECDSA", "smtps", {}, "0.9"),
)


def logins(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per login, with clients (``--clients``) that log in repeatedly, as fast as possible."""
    _start(run)
    for work, scene, how, target in SATURATED:
        found = _rounds(run, pace, _logins(run, scene, pace.clients, pace.seconds, **how))
        yield _busy(_row(found, "cpu", f"login, {work}", "µs", scale=1e6, target=target), found)


def rates(run: Bench, pace: Pace) -> Iterator[Row]:
    """Logins per second and how long one takes, with few clients and with many."""
    _start(run)
    for scene, conns, target in (
        ("imap", 16, ""),
        ("imap", 200, ""),
        ("imaps", 16, ">= 5"),
        ("imaps", 200, ""),
    ):
        found = _rounds(run, pace, _logins(run, scene, conns, pace.seconds))
        label = f"{scene.upper()}, {conns} clients"
        row = _row(found, "per_second", f"logins per second, {label}", "/s", scale=1, target=target)
        yield _busy(row, found)
        yield _row(found, "p50", f"login p50, {label}", "ms", scale=1, target="")
        yield _row(found, "p99", f"login p99, {label}", "ms", scale=1, target="")


def paced(run: Bench, pace: Pace) -> Iterator[Row]:
    """The same at a fixed rate, with idle CPU."""
    _start(run)
    plans = (
        ("imap", 200, "1.2", "1.1"),
        ("imap", 800, "", ""),
        ("imaps", 100, "1.15", "0.12"),
        ("imaps", 400, "1.15", ""),
    )
    for scene, rate, cpu, p99 in plans:

        def measure(proxy: Proxy, scene: str = scene, rate: int = rate) -> Figures:
            before = proxy.cpu()
            report = run.load.do("pace", run.scene(proxy, scene), rate=rate, seconds=pace.seconds * 1.5)
            return {"cpu": (proxy.cpu() - before) / report["done"], **report}

        found = _rounds(run, pace, measure)
        label = f"{scene.upper()} at {rate}/s"
        yield _row(found, "cpu", f"login, {label}", "µs", scale=1e6, target=cpu)
        yield _row(found, "p50", f"login p50, {label}", "ms", scale=1, target="")
        yield _row(found, "p99", f"login p99, {label}", "ms", scale=1, target=p99)


def exchanges(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per small IMAP exchange (NOOP), with 32 sessions."""
    _start(run)
    for scene in ("imap", "imaps"):

        def measure(proxy: Proxy, scene: str = scene) -> Figures:
            where = run.scene(proxy, scene)
            run.load.do("hold", where, keep=True, count=32)
            before = proxy.cpu()
            report = run.load.do("exchange", where, keep=True, conns=32, seconds=pace.seconds)
            return {"cpu": (proxy.cpu() - before) / max(report["done"], 1), **report}

        found = _rounds(run, pace, measure)
        yield _row(found, "cpu", f"NOOP exchange, {scene.upper()}", "µs", scale=1e6, target="1.15")


BULK: Final = (
    ("to the client, plain", "imap", "fetch", "0.35"),
    ("to the upstream, plain", "imap", "store", "0.35"),
    ("to the client, TLS", "imaps", "fetch", "0.6"),
    ("to the upstream, TLS", "imaps", "store", "0.85"),
)


def bulk(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per GiB relayed, and how fast, with one stream and with sixteen."""
    _start(run)
    for streams in (1, 16):
        for work, scene, what, target in BULK:

            def measure(
                proxy: Proxy, scene: str = scene, what: str = what, streams: int = streams
            ) -> Figures:
                where = run.scene(proxy, scene)
                run.load.do("hold", where, keep=True, count=streams)
                before = proxy.cpu()
                report = run.load.do(what, where, keep=True, streams=streams, seconds=pace.seconds)
                return {"cpu": (proxy.cpu() - before) / report["bytes"], "rate": report["per_second"]}

            found = _rounds(run, pace, measure)
            label = f"{work}, {streams} stream{'s' if streams > 1 else ''}"
            yield _row(found, "cpu", f"CPU per GiB {label}", "s", scale=GIB, target=target)
            yield _row(found, "rate", f"relayed {label}", "GiB/s", scale=1 / GIB, target="")


def memory(run: Bench, pace: Pace) -> Iterator[Row]:
    """Memory per idle session, the CPU that they take, and the cost of a login meanwhile."""
    for scene, target in (("imap", "0.2"), ("imaps", "0.65")):
        found = {name: _hold(run, run.restart(name), scene, pace) for name in BOTH}
        for key, unit, scale in _memory_rows(_many()):
            nginx, ours = found["nginx"][key], found["mailproxy"][key]
            ratios = [ours / nginx] if nginx else []
            wanted = target if key.startswith("per session") else ""
            yield Row(f"{key}, {scene.upper()}", unit, nginx * scale, ours * scale, ratios, wanted)


def _many() -> int:
    """Ten thousand sessions, or as many as there are descriptors for: each takes two of a worker."""
    return min(10_000, (raise_open_files_limit() - 400) // 200 * 100)


def _memory_rows(many: int) -> tuple[tuple[str, str, float], ...]:
    return (
        ("memory of a worker without sessions", "MB", 1e-6),
        ("per session, 4,000 idle", "kB", 1e-3),
        (f"per session, {many:,} idle", "kB", 1e-3),
        (f"CPU of a worker with {many:,} idle", "% of a core", 100),
        ("login beside 100 idle", "µs", 1e6),
        ("login beside 1,000 idle", "µs", 1e6),
        (f"login beside {many:,} idle", "µs", 1e6),
        ("memory of a worker after all have left", "MB", 1e-6),
    )


def _hold(run: Bench, proxy: Proxy, scene: str, pace: Pace) -> Figures:
    where, plain = run.scene(proxy, scene), run.scene(proxy, "imap", user="other")
    found = {"memory of a worker without sessions": float(proxy.rss())}
    many = _many()

    def login() -> float:
        before = proxy.cpu()
        done = run.load.do("saturate", plain, conns=CLIENTS, seconds=pace.seconds)["done"]
        return (proxy.cpu() - before) / max(done, 1)

    login()
    for count in (100, 1000):
        run.load.do("hold", where, keep=True, count=count)
        found[f"login beside {count:,} idle"] = login()
    before_them = proxy.rss()
    for count in (4000, many):
        run.load.do("hold", where, keep=True, count=count)
        time.sleep(0.3)
        found[f"per session, {count:,} idle"] = (proxy.rss() - before_them) / (count - 1000)
    found[f"login beside {many:,} idle"] = login()
    time.sleep(2)  # until that burst is in the log and in the numbers
    before = proxy.cpu()
    time.sleep(3)
    found[f"CPU of a worker with {many:,} idle"] = (proxy.cpu() - before) / 3
    run.load.do("leave", where, keep=True)
    time.sleep(1.5)
    found["memory of a worker after all have left"] = float(proxy.rss())
    return found


def rest(run: Bench, _pace: Pace) -> Iterator[Row]:
    """CPU at rest, without sessions: of a worker, and of the supervisor."""
    _start(run)
    time.sleep(1)
    workers, above = {}, {}
    for name in BOTH:
        proxy = run.proxies[name]
        workers[name], above[name] = proxy.cpu(), proxy.supervisor_cpu()
    time.sleep(6)
    for name in BOTH:
        proxy = run.proxies[name]
        workers[name] = (proxy.cpu() - workers[name]) / 6
        above[name] = (proxy.supervisor_cpu() - above[name]) / 6
    yield Row("CPU of a worker at rest", "% of a core", workers["nginx"] * 100, workers["mailproxy"] * 100)
    yield Row("CPU of the process above it", "% of a core", above["nginx"] * 100, above["mailproxy"] * 100)


def price(run: Bench, pace: Pace) -> Iterator[Row]:
    """The cost of the session log and the histograms: without (in the column of nginx), and with."""
    run.restart("nginx")
    for work, without in (
        ("session log", {"options": ("--log-level", "crit")}),
        ("histograms", {"path": "benchmarks/without_histograms"}),
    ):
        found: dict[str, list[float]] = {"off": [], "on": []}
        for _ in range(pace.rounds):
            for name, how in (("off", without), ("on", {})):
                proxy = run.restart("mailproxy", **how)
                measure = _logins(run, "imap", pace.clients, pace.seconds)
                measure(proxy)
                found[name].append(measure(proxy)["cpu"])
        ratios = [on / off for off, on in zip(found["off"], found["on"], strict=True)]
        off, on = (statistics.median(found[name]) * 1e6 for name in ("off", "on"))
        yield Row(f"login without {work}, and with", "µs", off, on, ratios, "1.1")


def churn(run: Bench, pace: Pace) -> Iterator[Row]:
    """Memory while sessions come and go: after 5,000 logins, and after many more."""
    _start(run)
    first: Figures = {}
    last: Figures = {}
    for name in BOTH:
        proxy = run.proxies[name]
        done = 0.0
        while done < 5000:
            done += run.load.do("saturate", run.scene(proxy, "imap"), conns=100, seconds=pace.seconds)["done"]
        first[name] = proxy.rss()
        while done < 30000:
            done += run.load.do("saturate", run.scene(proxy, "imap"), conns=100, seconds=pace.seconds)["done"]
        last[name] = proxy.rss()
    yield Row("memory after 5,000 logins", "MB", first["nginx"] / 1e6, first["mailproxy"] / 1e6)
    yield Row("memory after 30,000 logins", "MB", last["nginx"] / 1e6, last["mailproxy"] / 1e6)


def siege(run: Bench, pace: Pace) -> Iterator[Row]:
    """Logins at 100/s with 1,000 each of silent clients, incomplete handshakes and incomplete literals."""
    _start(run)
    for name in BOTH:
        proxy = run.proxies[name]
        run.load.do("stall", run.scene(proxy, "imap", user="silent"), keep=True, count=1000)
        run.load.do(
            "stall",
            run.scene(proxy, "imaps", user="half"),
            keep=True,
            count=1000,
            data="\x16\x03\x01\x02\x00\x01",
        )
        run.load.do(
            "stall",
            run.scene(proxy, "imap", user="literal"),
            keep=True,
            count=1000,
            data="a LOGIN {1000+}\r\nxx",
        )

    def measure(proxy: Proxy) -> Figures:
        before = proxy.cpu()
        report = run.load.do("pace", run.scene(proxy, "imap"), rate=100, seconds=pace.seconds * 1.5)
        return {"cpu": (proxy.cpu() - before) / report["done"], **report}

    found = _rounds(run, pace, measure)
    yield _row(found, "cpu", "login under siege, IMAP at 100/s", "µs", scale=1e6, target="")
    yield _row(found, "p99", "login p99 under siege, IMAP at 100/s", "ms", scale=1, target="")
    memory = {name: run.proxies[name].rss() / 1e6 for name in BOTH}
    yield Row(
        "memory of a worker under siege",
        "MB",
        memory["nginx"],
        memory["mailproxy"],
        [memory["mailproxy"] / memory["nginx"]],
    )
    for name in BOTH:
        for scene, user in (("imap", "silent"), ("imaps", "half"), ("imap", "literal")):
            run.load.do("leave", run.scene(run.proxies[name], scene, user=user), keep=True)


def workers(run: Bench, pace: Pace) -> Iterator[Row]:
    """Two workers and two nginx workers, on all processors (which the load needs too)."""
    _start(run, workers=2)
    for scene, target in (("imap", "1.0"), ("imaps", "0.9")):
        found = _rounds(run, pace, _logins(run, scene, 64, pace.seconds))
        yield _row(found, "cpu", f"login, {scene.upper()}, two workers each", "µs", scale=1e6, target=target)


MEASURES: Final[dict[str, Measure]] = {
    "logins": logins,
    "rates": rates,
    "paced": paced,
    "exchanges": exchanges,
    "bulk": bulk,
    "memory": memory,
    "rest": rest,
    "price": price,
    "churn": churn,
    "siege": siege,
    "workers": workers,
}
