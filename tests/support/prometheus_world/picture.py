# SPDX-License-Identifier: Apache-2.0
"""Draws the dashboards' pictures in ``docs/pictures``: ``python -m support.prometheus_world.picture``.

For some minutes clients connect to a proxy in waves, failures begin and end,
and a Prometheus scrapes; an operator runs at the same time, with failures of
its own.  Then every query of both dashboards is evaluated and drawn.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from support.needs import find_program, reason
from support.prometheus_world.operating import operating
from support.prometheus_world.places import Places, places
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
SECONDS: Final = 600.0
INTERVAL: Final = 2.0
NOTE: Final = (
    "Drawn by our own script from what Prometheus {version} answered to the dashboard's queries"
    " ({minutes:.0f} minutes, scraped every {interval:.0f} s); not a screenshot of Grafana."
)
_TROUBLE: Final = {
    guess_passwords: 0.45,
    meet_broken_neighbours: 0.6,
    break_the_protocol: 0.25,
    fail_at_tls: 0.7,
}


def rhythm(visit: Visit, elapsed: float) -> float:
    """Vary the traffic over time, with failures at some times."""
    if visit in _TROUBLE:
        share = _TROUBLE[visit]
        is_time = share - 0.15 < elapsed / SECONDS < share + 0.1
        return 0.3 if is_time else 3.0
    return 0.5 + 0.35 * math.sin(elapsed / SECONDS * 4 * math.pi)


def draw(seconds: float, folder: Path) -> None:
    """Run the traffic, and draw the dashboards."""
    path = find_program("prometheus")
    assert path is not None, reason(["prometheus"])
    taken = Ports()
    operator_port = taken.take()
    with places(folder) as found:
        scrapes = [
            as_pods("mail/edge", "mail", {f"edge-{n}": one.admin for n, one in enumerate(found.proxies)}),
            as_pods("mailproxy-operator", "mailproxy-system", {"operator-0": f"127.0.0.1:{operator_port}"}),
        ]
        (folder / "watcher").mkdir()
        watcher = watch(path, folder / "watcher", taken.take(), scrapes, interval=f"{INTERVAL:.0f}s")
        try:
            asyncio.run(_live(found, operator_port, seconds))
            end = time.time() - INTERVAL
            PICTURES.mkdir(exist_ok=True)
            for name in ("proxies", "operator"):
                dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text())
                (PICTURES / f"{name}.svg").write_text(_picture(watcher, dashboard, end, seconds))
            glance = _first_row(json.loads((DASHBOARDS / "proxies.json").read_text()))
            (PICTURES / "glance.svg").write_text(_picture(watcher, glance, end, seconds))
        finally:
            watcher.running.stop()


async def _live(found: Places, operator_port: int, seconds: float) -> None:
    def meet_clients() -> None:
        with traffic(found, rhythm):
            time.sleep(seconds)

    async with operating(operator_port, pause=lambda count: 1.0 + 4.0 * (count % 7)):
        await asyncio.to_thread(meet_clients)


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
