# SPDX-License-Identifier: Apache-2.0
"""The standard measurements.  Each yields rows; all proxies take turns within every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from benchmarks.processes import ALL, Bench, Proxy
from benchmarks.rows import Figures, Found, Pace, Row, measure_rounds, row_of

GIB: Final = 1 << 30
LOGIN_PROXIES: Final = ("nginx", "dovecot", "mailproxy")
"""Those that log in; HAProxy relays only."""
MICROSECONDS: Final = 1e6
PLAIN_PACE: Final = 1500
TLS_PACE: Final = 250
EXCHANGE_PACE: Final = 5000

Measure = Callable[[Bench, Pace], Iterator[Row]]


def measured(
    run: Bench, proxy: Proxy, order: Callable[[], dict[str, float]], unit: str = "done"
) -> dict[str, float]:
    """Run an order of the clients; returns its report, with CPU per unit and how busy the processors were."""
    cpu, load, started = proxy.cpu(), run.load_cpu(), time.monotonic()
    report = order()
    cpu, load, took = proxy.cpu() - cpu, run.load_cpu() - load, time.monotonic() - started
    busy = {"proxy busy": cpu / took, "load busy": load / took}
    return {**report, **busy, "cpu": cpu / max(report[unit], 1)}


def log_in(
    run: Bench, scene: str, command: str, options: dict[str, object] | None = None, **how: object
) -> Callable[[Proxy], Figures]:
    """Return the measurement of a command of the clients (``saturate``, ``cycle``, ``pace``).

    Args:
        run: What runs.
        scene: The listener.
        command: A method of ``ClientGroup``.
        options: Of the scene.
        how: The arguments of the command.
    """

    def measure(proxy: Proxy) -> Figures:
        where = run.scene(proxy, scene, **(options or {}))
        return measured(run, proxy, lambda: run.load.do(command, where, keep=False, **how))

    return measure


def _able(scene: str, options: dict[str, object], names: list[str]) -> list[str]:
    """Return the proxies that have a listener for this; Dovecot has one certificate and one upstream."""
    special = scene == "rsa" or options.get("user") == "bare"
    return [name for name in names if not (special and name == "dovecot")]


SATURATED: Final[tuple[tuple[str, str, dict[str, object], str], ...]] = (
    # what, listener, options of the scene, target of the CPU
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
    names = run.start(LOGIN_PROXIES)
    for work, scene, options, target in SATURATED:
        able = _able(scene, options, names)
        how: dict[str, object] = {"conns": pace.clients, "seconds": pace.seconds}
        found = measure_rounds(run, pace.rounds, able, log_in(run, scene, "saturate", options, **how))
        yield row_of(found, "cpu", f"login, {work}", "µs", scale=MICROSECONDS, target=target)


def rates(run: Bench, pace: Pace) -> Iterator[Row]:
    """Logins per second as fast as possible, and how long one takes, with 16 clients and with 200."""
    names = run.start(LOGIN_PROXIES)
    for scene, conns, target in (
        ("imap", 16, ""),
        ("imap", 200, ""),
        ("imaps", 16, ">= 5"),
        ("imaps", 200, ""),
    ):
        measure = log_in(run, scene, "saturate", conns=conns, seconds=pace.seconds)
        found = measure_rounds(run, min(pace.rounds, 3), names, measure)
        label = f"{scene.upper()}, {conns} clients"
        yield row_of(found, "per_second", f"logins per second, {label}", "/s", target=target)
        yield from _latencies(found, label)


def paced(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per login at the same rate for all, 16 clients: 1,500 per second plain, 250 per second with TLS."""
    names = run.start(LOGIN_PROXIES)
    for scene in ("imap", "pop3", "smtp", "imaps", "pop3s", "smtps"):
        rate = TLS_PACE if scene.endswith("s") else PLAIN_PACE
        measure = log_in(run, scene, "cycle", conns=16, rate=rate, seconds=pace.seconds)
        found = measure_rounds(run, pace.rounds, names, measure)
        work = f"login, {scene.upper()} at {rate:,}/s"
        yield row_of(found, "cpu", work, "µs", scale=MICROSECONDS, target="1.25")


OPEN: Final = (
    *(("imap", rate) for rate in (50, 100, 200, 400, 800)),
    ("pop3", 200),
    ("smtp", 200),
    *(("imaps", rate) for rate in (50, 100, 200, 400, 800)),
)


def open_loop(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU and latency at fixed rates: clients arrive by a schedule, and latency counts from that time."""
    names = run.start(LOGIN_PROXIES)
    for scene, rate in OPEN:
        seconds = max(pace.seconds * 2.5, 50 / rate)
        measure = log_in(run, scene, "pace", rate=rate, seconds=seconds, grace=1.0)
        warm = log_in(run, scene, "pace", rate=rate, seconds=0.2, grace=1.0)
        for name in names:
            warm(run.proxies[name])
        found = measure_rounds(run, min(pace.rounds, 3), names, measure, warm=0)
        label = f"{scene.upper()} at {rate}/s"
        target = {200: "1.25", 100: "1.25" if scene == "imaps" else ""}.get(rate, "")
        yield row_of(found, "cpu", f"login, {label}", "µs", scale=MICROSECONDS, target=target)
        yield from _latencies(found, label)


def _latencies(found: Found, label: str) -> Iterator[Row]:
    for key in ("p50", "p99"):
        row = row_of(found, key, f"login {key}, {label}", "ms")
        row.busy = {}
        yield row


def exchanges(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per small IMAP exchange (NOOP), with 32 sessions: 5,000 per second, and as fast as possible."""
    names = run.start(ALL)
    for scene in ("imap", "imaps"):
        for rate, work in ((EXCHANGE_PACE, f" at {EXCHANGE_PACE:,}/s"), (0, "")):

            def measure(proxy: Proxy, scene: str = scene, rate: int = rate) -> Figures:
                where = run.scene(proxy, scene)
                run.load.do("hold", where, keep=True, count=32)
                order = {"conns": 32, "seconds": pace.seconds, "rate": rate}
                return measured(run, proxy, lambda: run.load.do("exchange", where, keep=True, **order))

            found = measure_rounds(run, pace.rounds, names, measure)
            label = f"NOOP exchange, {scene.upper()}{work}"
            yield row_of(found, "cpu", label, "µs", scale=MICROSECONDS, target="1.15")


BULK: Final = (
    ("to the client, plain", "imap", "fetch", "0.35"),
    ("to the upstream, plain", "imap", "store", "0.35"),
    ("to the client, TLS", "imaps", "fetch", "0.6"),
    ("to the upstream, TLS", "imaps", "store", "0.85"),
)


def bulk_of(run: Bench, scene: str, command: str, streams: int, seconds: float) -> Callable[[Proxy], Figures]:
    """Return the measurement of bulk data with some streams."""

    def measure(proxy: Proxy) -> Figures:
        where = run.scene(proxy, scene)
        run.load.do("hold", where, keep=True, count=streams)
        order = {"streams": streams, "seconds": seconds}
        return measured(run, proxy, lambda: run.load.do(command, where, keep=True, **order), unit="bytes")

    return measure


def bulk(run: Bench, pace: Pace) -> Iterator[Row]:
    """CPU per GiB relayed, and how fast, with one stream and with sixteen."""
    names = run.start(ALL)
    for streams in (1, 16):
        for work, scene, command, target in BULK:
            measure = bulk_of(run, scene, command, streams, pace.seconds)
            found = measure_rounds(run, min(pace.rounds, 3), names, measure)
            label = f"{work}, {streams} stream{'s' if streams > 1 else ''}"
            yield row_of(found, "cpu", f"CPU per GiB {label}", "s", scale=GIB, target=target)
            rate = row_of(found, "per_second", f"relayed {label}", "GiB/s", scale=1 / GIB)
            rate.busy = {}
            yield rate


def memory(run: Bench, _pace: Pace) -> Iterator[Row]:
    """Memory without sessions, and per idle session: 4,000 of them."""
    for scene, target in (("imap", "0.2"), ("imaps", "0.65")):
        names = run.start(ALL)
        found: Found = {name: _hold(run, run.proxies[name], scene) for name in names}
        label = scene.upper()
        yield row_of(found, "base", f"memory without sessions, {label}", "MB", scale=1e-6)
        yield row_of(found, "session", f"per idle session, {label}", "kB", scale=1e-3, target=target)


def _hold(run: Bench, proxy: Proxy, scene: str) -> dict[str, list[float]]:
    base, each = memory_of(run, proxy, scene)
    return {"base": [base], "session": [each]}


def memory_of(run: Bench, proxy: Proxy, scene: str) -> tuple[float, float]:
    """Return the bytes of a proxy without sessions, and per idle session."""
    where, base, found = run.scene(proxy, scene), proxy.rss(), []
    for count in (500, 4000):
        run.load.do("hold", where, keep=True, count=count)
        time.sleep(0.3)
        found.append(proxy.rss())
    run.load.do("leave", where, keep=True)
    return base, (found[1] - found[0]) / 3500


STANDARD: Final[dict[str, Measure]] = {
    "logins": logins,
    "paced": paced,
    "open": open_loop,
    "rates": rates,
    "exchanges": exchanges,
    "bulk": bulk,
    "memory": memory,
}
