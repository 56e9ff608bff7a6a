# SPDX-License-Identifier: Apache-2.0
"""Rows of results: how they come from rounds, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.processes import PACKAGES, Bench, Proxy

OURS: Final = "mailproxy"
LOAD_LIMIT: Final = 0.7
"""The share of its processor above which the load makes events arrive in groups."""
MARK: Final = "!"
CLIENTS: Final = 16
"""Clients that log in repeatedly."""

Figures = dict[str, float]
Found = dict[str, dict[str, list[float]]]
"""The figures of each round, by proxy and key."""


@dataclass
class Row:
    """One value of several proxies, and the ratios of the proxy's to each other's.

    Attributes:
        values: Medians, by proxy, in the order of the columns.
        ratios: The proxy's value / the other's in the same round, by the other.
        target: What the ratio to the first column should be at most (``>=`` for rates).
        busy: By proxy, the share of its processor that it used, and the share that the load
            (clients, upstreams, authentication service) used of the other.
    """

    work: str
    unit: str
    values: dict[str, float]
    ratios: dict[str, list[float]] = field(default_factory=dict)
    target: str = ""
    busy: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ratio(self, other: str) -> float | None:
        """The median, or nothing if the other has no value."""
        return statistics.median(self.ratios[other]) if self.ratios.get(other) else None


@dataclass
class Pace:
    """How long to measure: rounds, and seconds within each.

    Attributes:
        clients: With how many, where they log in repeatedly.
    """

    rounds: int = 5
    seconds: float = 0.4
    clients: int = CLIENTS


def measure_rounds(
    run: Bench, rounds: int, names: Iterable[str], measure: Callable[[Proxy], Figures], warm: int = 1
) -> Found:
    """Measure the proxies in turns; ``warm`` rounds do not count."""
    found: Found = {name: {} for name in names}
    for number in range(rounds + warm):
        for name, by_key in found.items():
            figures = measure(run.proxies[name])
            if number >= warm:
                for key, value in figures.items():
                    by_key.setdefault(key, []).append(value)
    return found


def row_of(found: Found, key: str, work: str, unit: str, *, scale: float = 1, target: str = "") -> Row:
    """Return the row of one key; values are multiplied by ``scale``."""
    values = {name: statistics.median(figures[key]) * scale for name, figures in found.items()}
    ours = found[OURS][key]
    ratios = {
        name: [b / a for a, b in zip(figures[key], ours, strict=True) if a]
        for name, figures in found.items()
        if name != OURS
    }
    busy = {}
    if "load busy" in found[OURS]:
        for name, figures in found.items():
            busy[name] = (statistics.median(figures["proxy busy"]), statistics.median(figures["load busy"]))
    return Row(work, unit, values, ratios, target, busy)


def columns_of(rows: Sequence[Row], missing: Iterable[str] = ()) -> list[str]:
    """Return the names of the columns: those that are missing, and those of all rows in their order."""
    found = list(dict.fromkeys(name for row in rows for name in row.values))
    absent = [name for name in missing if name not in found]
    return [*absent, *found]


def table(rows: Sequence[Row], columns: Sequence[str], absent: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        rows: All of the same columns.
        columns: The last one is compared with each of the others.
        absent: What to write into the column of a program that does not run.
    """
    others, is_busy = columns[:-1], any(row.busy for row in rows)
    heads = [
        "work",
        "unit",
        *columns,
        *(f"ratio to {name} (min-max)" for name in others if name != "haproxy"),
    ]
    heads += ["target"] * any(row.target for row in rows) + ["busy: proxy / load"] * is_busy
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row.work, row.unit]
        cells += [_value(row, name, absent or {}) for name in columns]
        cells += [_ratio(row, name, bold=name == columns[0]) for name in others if name != "haproxy"]
        cells += [row.target] * any(each.target for each in rows)
        cells += [", ".join(f"{name} {_busy(row, name)}" for name in row.busy)] * is_busy
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def line(row: Row) -> str:
    """Return the line for the terminal."""
    figures = "  ".join(f"{name} {value:9.2f}" for name, value in row.values.items())
    ratios = "".join(f"  to {name} {_ratio(row, name)}" for name in row.ratios if row.ratios[name])
    target = f"  target {row.target}" if row.target else ""
    busy = "".join(f"  {name} {_busy(row, name)} busy" for name in row.busy)
    return f"{row.work:58} {figures} {row.unit}{ratios}{target}{busy}"


def _value(row: Row, name: str, absent: Mapping[str, str]) -> str:
    if name in row.values:
        return f"{row.values[name]:.2f}"
    return absent.get(name, "-")


def _ratio(row: Row, name: str, *, bold: bool = False) -> str:
    ratio = row.ratio(name)
    if ratio is None:
        return "-"
    values = row.ratios[name]
    median = f"**{ratio:.2f}**" if bold else f"{ratio:.2f}"
    return f"{median} ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else median


def _busy(row: Row, name: str) -> str:
    proxy, load = row.busy[name]
    return f"{proxy:.0%} / {load:.0%}{MARK if load > LOAD_LIMIT else ''}"


def absent_cells(missing: Mapping[str, str]) -> dict[str, str]:
    """Return what the tables have in the columns of programs that do not run: their packages."""
    return {name: f"install {PACKAGES[name]}" for name in missing}
