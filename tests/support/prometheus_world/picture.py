# SPDX-License-Identifier: Apache-2.0
"""Draws the dashboards' pictures in ``docs/pictures``: ``python -m support.prometheus_world.picture``.

For some minutes clients connect to a proxy in waves, failures begin and end,
and a Prometheus scrapes.  Then every query of the dashboard is evaluated and
drawn.  The same follows with an operator, and with failures of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from support.needs import find_program, reason
from support.prometheus_world.operating import operating
from support.prometheus_world.places import places
from support.prometheus_world.svg import Line, page
from support.prometheus_world.traffic import (
    Visit,
    break_the_protocol,
    fail_at_tls,
    guess_passwords,
    meet_broken_neighbours,
    traffic,
)
from support.prometheus_world.watcher import VARIABLES, Watcher, as_pods, substituted, watch
from support.servers.programs import Ports

ROOT: Final = Path(__file__).parents[3]
DASHBOARDS: Final = ROOT / "deploy/monitoring/dashboards"
PICTURES: Final = ROOT / "docs/pictures"
SECONDS: Final = 300.0
"""Time that each dashboard shows."""
INTERVAL: Final = 2.0
NOTE: Final = (
    "Drawn by a script from the responses of Prometheus {version} to the dashboard's queries"
    " ({minutes:.0f} minutes, scraped every {interval:.0f} s); not a screenshot of Grafana."
)
_FAULTS: Final[Mapping[Visit, tuple[float, float]]] = {
    break_the_protocol: (0.1, 0.3),
    guess_passwords: (0.3, 0.5),
    meet_broken_neighbours: (0.45, 0.65),
    fail_at_tls: (0.55, 0.75),
}
"""Begin and end of each kind of failure, as shares of the whole time."""
_OPERATOR_FAULTS: Final = (0.2, 0.6)


def rhythm(seconds: float) -> Callable[[Visit, float], float]:
    """Return the pauses of clients: waves of traffic, with many failures at some times and few at the end."""

    def pause(visit: Visit, elapsed: float) -> float:
        share = elapsed / seconds
        if visit in _FAULTS:
            begin, end = _FAULTS[visit]
            return 0.4 if begin < share < end else 60.0
        return 0.5 + 0.35 * math.sin(share * 4 * math.pi)

    return pause


def draw(seconds: float, folder: Path) -> None:
    """Draw both dashboards, one after the other: the traffic would slow down an operator in this process."""
    path = find_program("prometheus")
    assert path is not None, reason(["prometheus"])
    for name in ("proxies", "operator"):
        (folder / name).mkdir()
    _draw_proxies(path, folder / "proxies", seconds)
    _draw_operator(path, folder / "operator", seconds)


def _draw_proxies(path: str, folder: Path, seconds: float) -> None:
    with places(folder) as found:
        pods = {f"edge-{number}": one.admin for number, one in enumerate(found.proxies)}
        with _watched(path, folder, as_pods("mail/edge", "mail", pods)) as watcher:
            with traffic(found, rhythm(seconds)):
                time.sleep(seconds)
                end = time.time()
            dashboard = json.loads((DASHBOARDS / "proxies.json").read_text())
            _write("proxies", _picture(watcher, dashboard, end, seconds))
            _write("overview", _picture(watcher, _first_row(dashboard), end, seconds))


def _draw_operator(path: str, folder: Path, seconds: float) -> None:
    port = Ports().take()
    pods = as_pods("mailproxy-operator", "mailproxy-system", {"operator-0": f"127.0.0.1:{port}"})
    with _watched(path, folder, pods) as watcher:
        end = asyncio.run(_operate(port, seconds))
        dashboard = json.loads((DASHBOARDS / "operator.json").read_text())
        _write("operator", _picture(watcher, dashboard, end, seconds))


async def _operate(port: int, seconds: float) -> float:
    """Run an operator, with faults in the middle of the time; return when it was stopped."""
    begin, last = (time.monotonic() + share * seconds for share in _OPERATOR_FAULTS)
    async with operating(
        port,
        pause=lambda count: 1.0 + 2.0 * (count % 7),
        has_faults=lambda: begin < time.monotonic() < last,
    ):
        await asyncio.sleep(seconds)
        return time.time()


@contextmanager
def _watched(path: str, folder: Path, scrape: dict[str, Any]) -> Iterator[Watcher]:
    (folder / "watcher").mkdir()
    watcher = watch(path, folder / "watcher", Ports().take(), [scrape], interval=f"{INTERVAL:.0f}s")
    try:
        yield watcher
    finally:
        watcher.running.stop()


def _write(name: str, svg: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / f"dashboard-{name}.svg").write_text(svg)


def _picture(watcher: Watcher, dashboard: dict[str, Any], end: float, seconds: float) -> str:
    window = {**VARIABLES, "$__rate_interval": "20s", "$__range": f"{seconds:.0f}s"}
    start, step = end - seconds + 30, max(INTERVAL, seconds / 200)
    answers = {
        panel["id"]: [
            line
            for target in panel["targets"]
            for line in _lines(
                watcher.over(substituted(target["expr"], window), start, end, step), target["legendFormat"]
            )
        ]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }
    version = watcher.ask("status/buildinfo")["version"]
    note = NOTE.format(version=version, minutes=seconds / 60, interval=INTERVAL)
    return page(dashboard, answers, note=note)


def _first_row(dashboard: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard with its first row only."""
    _, second, *_ = (panel["gridPos"]["y"] for panel in dashboard["panels"] if panel["type"] == "row")
    panels = [panel for panel in dashboard["panels"] if panel["gridPos"]["y"] < second]
    return {**dashboard, "panels": panels}


def _lines(series: Sequence[dict[str, Any]], legend: str) -> list[Line]:
    """Return the series of one query, without those that are always 0, unless all are."""
    found = []
    for one in series:
        labels = one["metric"]
        name = re.sub(r"{{(\w+)}}", lambda match, labels=labels: labels.get(match[1], ""), legend)  # type: ignore[misc]
        points = [(when, float(value)) for when, value in one["values"] if math.isfinite(float(value))]
        if points:
            found.append(Line(name.strip(), points))
    moving = [line for line in found if any(value for _, value in line.points)]
    return sorted(moving if moving and "{{" in legend else found, key=lambda line: line.name)


if __name__ == "__main__":
    asked = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with tempfile.TemporaryDirectory(prefix="mailproxy-picture-") as made:
        draw(asked, Path(made))
