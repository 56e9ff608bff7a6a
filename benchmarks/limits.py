# SPDX-License-Identifier: Apache-2.0
"""The cost of limits: of a login within them, of one that is refused, of one entry, and of the longest pause.

    python -m benchmarks.limits [--rounds N] [--seconds S] [--clients N] [--zones]

The proxy is compared with itself: a listener with limits, and one without.  ``benchmarks/LIMITS.md`` has
the results.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import Scene
from benchmarks.processes import (
    LOAD_CPU,
    PORTS,
    LoadProcess,
    Proxy,
    pinned,
    raise_open_files_limit,
    start_with_conf,
    stop,
    wait_for,
)
from mailproxy.limits.table import LimitTable
from mailproxy.limits.zones import no_results
from mailproxy.net import shared_memory
from mailproxy.net.shared_memory import SharedMemory

_AUTH, _IMAP, *_OTHERS = (PORTS.base + 80 + index for index in range(5))
_ZONES: Final = """
limit_conn_zone $remote_user zone=user:1m; limit_conn_zone $remote_addr zone=addr:1m;
limit_req_zone $remote_addr zone=rate:1m rate=100000r/s; limit_req_zone $remote_user zone=slow:1m rate=1r/m;
limit_req_zone $remote_addr zone=held:1m rate=1r/m; limit_conn_zone $remote_addr zone=one:32k;
"""
_CONN: Final = "limit_conn user 60000;"
_REQ: Final = "limit_req zone=rate burst=60000 nodelay;"
_PREAUTH: Final = "limit_preauth 60000;"
VARIANTS: Final = {
    "no limits": "",
    "limit_conn by user": _CONN,
    "limit_req by address": _REQ,
    "limit_preauth": _PREAUTH,
    "all three": _CONN + _REQ + _PREAUTH,
    "refused by limit_req": "limit_req zone=slow;",
    "refused by limit_conn": "limit_conn one 1;",
}
_REFUSED: Final = tuple(name for name in VARIANTS if name.startswith("refused"))
_ATTEMPTS: Final = 400
KEYS: Final = 100_000
"""Keys in a zone."""
_LOGIN: Final = b"a LOGIN user@example.com secret\r\n"


def port_of(name: str) -> int:
    """Return the port of a variant."""
    return PORTS.proxy("mailproxy", "imap") + list(VARIANTS).index(name)


def configuration(folder: Path) -> str:
    """Return the ``nginx.conf``, with a listener for each variant."""
    servers = "\n".join(
        f"server {{ listen 127.0.0.1:{port_of(name)}; protocol imap; {limits} }}"
        for name, limits in VARIANTS.items()
    )
    return (
        f"error_log {folder}/mailproxy.error alert;\nevents {{ worker_connections 40000; }}\n"
        f"mail {{ auth_http 127.0.0.1:{_AUTH}/auth; {_ZONES}\n{servers}\n}}\n"
    )


def attempts(name: str) -> float:
    """Log in repeatedly, one client after the other, and return the number of logins."""
    for _ in range(_ATTEMPTS):
        with socket.create_connection(("127.0.0.1", port_of(name))) as client:
            client.recv(1024)
            client.sendall(_LOGIN)
            client.recv(1024)
    return _ATTEMPTS


def in_turns(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure in turns; a first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def show(found: dict[str, list[float]], base: str) -> None:
    """Print CPU per login, and the ratio to the one without limits in the same round."""
    for name, values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, found[base], strict=True))
        print(f"  {name:28} {statistics.median(values):8.1f} µs   x {ratio:.3f}", flush=True)


def measure_logins(options: argparse.Namespace) -> None:
    """Print the cost of logins within limits, and of those that are refused."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        raise_open_files_limit()
        words = map(str, (_AUTH, _IMAP, *_OTHERS))
        stubs = pinned(LOAD_CPU, sys.executable, "-m", "benchmarks.stub_servers", *words)
        stack.callback(stop, stubs)
        wait_for(_IMAP, stubs)
        load = LoadProcess()
        stack.callback(load.stop)
        proxy = start_with_conf(folder, sys.executable, configuration(folder), port_of(list(VARIANTS)[-1]))
        stack.callback(proxy.stop)

        def cpu(name: str) -> float:
            before = proxy.cpu()
            scene = Scene("imap", port_of(name))
            report = load.do("saturate", scene, conns=options.clients, seconds=options.seconds)
            return (proxy.cpu() - before) / max(report["done"], 1) * 1e6

        print("logins, many clients at a time")
        names = [name for name in VARIANTS if name not in _REFUSED]
        show(in_turns(options.rounds, {name: lambda name=name: cpu(name) for name in names}), "no limits")  # type: ignore[misc]
        print("logins and refusals, one client at a time")
        with socket.create_connection(("127.0.0.1", port_of("refused by limit_conn"))) as held:
            held.recv(1024)
            held.sendall(_LOGIN)
            held.recv(1024)
            show(_refusals(proxy, options.rounds), "no limits")


def _refusals(proxy: Proxy, rounds: int) -> dict[str, list[float]]:
    def cpu(name: str) -> float:
        before = proxy.cpu()
        count = attempts(name)
        time.sleep(0.02)  # the ends of the last sessions
        return (proxy.cpu() - before) / count * 1e6

    names = ("no limits", "all three", *_REFUSED)
    return in_turns(rounds, {name: lambda name=name: cpu(name) for name in names})  # type: ignore[misc]


def measure_zones() -> None:
    """Print the cost of single operations, the longest one, and the memory of 100,000 keys."""
    descriptor = shared_memory.create()
    table = LimitTable(SharedMemory(descriptor))
    table.begin()
    conn = table.open_conn("conn", "$remote_user", 5 << 20, no_results())
    req = table.open_req("req", "$remote_user", 5 << 20, no_results())
    assert conn is not None
    assert req is not None
    before = os.fstat(descriptor).st_blocks
    keys = [table.hash_key(b"user%d@example.com" % number) for number in range(KEYS)]
    others = [table.hash_key(b"other%d@example.com" % number) for number in range(KEYS)]
    slots: list[int] = []
    gc.collect()
    gc.disable()
    what: str
    work: Callable[[Any], object]
    items: Sequence[Any]
    for what, work, items in (
        ("count a session of a new key", lambda key: slots.append(conn.acquire(key, 20)[0]), keys),
        ("count a login of a new key", lambda key: req.charge(key, 1e-3, 20), keys),
    ):
        print(f"  {what:52} {_timed(work, items)}")
    size = (os.fstat(descriptor).st_blocks - before) * 512
    print(f"  memory of {KEYS:,} keys in both zones: {size / 1e6:.1f} MB; {table.entries()}")
    time.sleep(0.1)  # the time of all logins is over
    known = keys[-500:]
    for what, work, items in (
        (f"count a login of a new key, {KEYS:,} are over", lambda key: req.charge(key, 1e-3, 20), others),
        ("count a login of a known key", lambda key: req.charge(key, 1e-9, 20), others[-500:]),
        ("count a session of a known key", lambda key: slots.append(conn.acquire(key, 99)[0]), known),
        (f"end of a session, {KEYS:,} become free", conn.release, slots),
        ("count a session of a new key after that", lambda key: conn.acquire(key, 20), others),
    ):
        print(f"  {what:52} {_timed(work, items)}")
    gc.enable()


def _timed(work: Callable[[Any], object], items: Sequence[Any]) -> str:
    """Do something with each item; the processor time of this thread does not contain that of others."""
    times = []
    for item in items:
        started = time.thread_time_ns()
        work(item)
        times.append(time.thread_time_ns() - started)
    times.sort()
    last = times[-1 - len(times) // 1000]
    return (
        f"median {statistics.median(times) / 1e3:5.2f} µs, 99.9 % {last / 1e3:6.1f} µs, "
        f"longest {times[-1] / 1e3:6.1f} µs"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=0.4, help="of one measurement in a round")
    parser.add_argument("--clients", type=int, default=32, help="number of clients that log in repeatedly")
    parser.add_argument("--zones", action="store_true", help="measure the zones only")
    options = parser.parse_args(argv)
    print("load average", *(f"{each:.2f}" for each in os.getloadavg()))
    print("zones")
    measure_zones()
    if not options.zones:
        measure_logins(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
