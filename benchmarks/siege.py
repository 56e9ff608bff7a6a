# SPDX-License-Identifier: Apache-2.0
"""Honest logins beside clients that hold connections and do not continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.measurements import LOGIN_PROXIES, MICROSECONDS, measured
from benchmarks.processes import Bench, LoadProcess, Proxy
from benchmarks.rows import Figures, Pace, Row, measure_rounds, row_of

_HALF_HELLO: Final = "\x16\x03\x01\x02\x00\x01"
_LITERAL: Final = "a LOGIN {1000+}\r\nxx"
_RATE: Final = 100
_STALLED: Final = (("imap", "silent", ""), ("imaps", "half", _HALF_HELLO), ("imap", "literal", _LITERAL))
_EACH: Final = 1000
_SLOW, _SLOW_BYTES = 200, 200
_RELAYS: Final = 50


def siege(run: Bench, pace: Pace) -> Iterator[Row]:
    """Logins at 100/s beside attackers.

    1,000 clients that send nothing, 1,000 incomplete handshakes, 1,000 incomplete
    literals, 200 clients that send one byte per second, 50 relays whose client
    does not read; and the same logins without them.
    """
    names = run.start(LOGIN_PROXIES)
    seconds, rounds = max(pace.seconds * 2.5, 1.0), min(pace.rounds, 3)

    def calm(proxy: Proxy) -> Figures:
        where = run.scene(proxy, "imap")
        return measured(run, proxy, lambda: run.load.do("pace", where, rate=_RATE, seconds=seconds))

    found = measure_rounds(run, rounds, names, calm, warm=0)
    yield row_of(found, "cpu", f"login without attackers, IMAP at {_RATE}/s", "µs", scale=MICROSECONDS)
    yield row_of(found, "p99", f"login p99 without attackers, IMAP at {_RATE}/s", "ms")
    with _attackers(run, names) as slow:

        def besieged(proxy: Proxy) -> Figures:
            where = run.scene(proxy, "imap", user="slow")
            slow.begin("drip", where, keep=True, count=_SLOW, rate=_SLOW_BYTES, seconds=seconds)
            figures = calm(proxy)
            slow.end()
            return figures

        found = measure_rounds(run, rounds, names, besieged)
        yield row_of(found, "cpu", f"login under siege, IMAP at {_RATE}/s", "µs", scale=MICROSECONDS)
        yield row_of(found, "p99", f"login p99 under siege, IMAP at {_RATE}/s", "ms")
        memory = {name: {"memory": [float(run.proxies[name].rss())]} for name in names}
        yield row_of(memory, "memory", "memory under siege", "MB", scale=1e-6)


@contextmanager
def _attackers(run: Bench, names: list[str]) -> Iterator[LoadProcess]:
    """Open the connections that do not continue, at each proxy; returns the process for the slow clients."""
    attackers = LoadProcess()
    try:
        for name in names:
            proxy = run.proxies[name]
            for scene, user, data in _STALLED:
                where = run.scene(proxy, scene, user=user)
                attackers.do("stall", where, keep=True, count=_EACH, data=data)
            attackers.do("hold", run.scene(proxy, "imap", user="deaf"), keep=True, count=_RELAYS)
            attackers.do("ask_and_ignore", run.scene(proxy, "imap", user="deaf"), keep=True)
        yield attackers
    finally:
        attackers.stop()
