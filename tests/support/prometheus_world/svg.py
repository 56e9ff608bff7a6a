# SPDX-License-Identifier: Apache-2.0
"""Draws the panels of a dashboard as SVG, laid out as the dashboard lays them out.

This is not Grafana: the results of the queries are drawn in a similar style.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

CELL_X, CELL_Y = 56, 30
PALETTE: Final = (
    "#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#e02f44", "#8ab8ff", "#37872d",
    "#ffb357", "#a352cc", "#c4162a", "#96d98d", "#1f60c4", "#fade2a", "#fa6400", "#8f3bb8",
)  # fmt: skip
NAMED: Final = {
    "green": "#73bf69", "dark-green": "#37872d", "light-green": "#96d98d",
    "red": "#f2495c", "dark-red": "#c4162a", "semi-dark-red": "#e02f44", "light-red": "#ff7383",
    "super-light-red": "#ffa6b0", "orange": "#ff9830", "dark-orange": "#fa6400", "light-orange": "#ffb357",
    "yellow": "#fade2a", "dark-yellow": "#e0b400", "light-yellow": "#ffee52",
    "super-light-yellow": "#fff899", "blue": "#5794f2", "dark-blue": "#1f60c4", "light-blue": "#8ab8ff",
    "super-light-blue": "#c0d8ff", "purple": "#b877d9", "dark-purple": "#8f3bb8",
    "light-purple": "#ca95e5", "super-light-purple": "#deb6f2",
}  # fmt: skip
"""Grafana's colours in its dark theme, by their names."""
_TEXT, _DIM, _LINE, _PANEL, _PAGE = "#d8d9da", "#8e8e93", "#2c3235", "#181b1f", "#111217"
_TIMES: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3), ("µs", 1e-6))
_SIZES: Final = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))
_NAME: Final = 26
"""Maximum number of letters of a name in a legend."""

Json = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One series: its name, and its points of time and value."""

    name: str
    points: Points


def number(value: float, unit: str, decimals: int | None = None) -> str:
    """Format a value in Grafana's units."""
    if unit.startswith("suffix:"):
        return f"{_plain(value, decimals)} {unit.removeprefix('suffix:')}"
    match unit:
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "s":
            return _scaled(value, _TIMES)
        case "bytes" | "Bps":
            text = _scaled(value, _SIZES)
            return text + ("/s" if unit == "Bps" else "")
        case "reqps":
            return f"{_plain(value, decimals)} req/s"
    return _plain(value, decimals)


def _plain(value: float, decimals: int | None) -> str:
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    for name, size in units:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"0 {units[-1][0] if value else next(name for name, size in units if size == 1)}"


def page(dashboard: Json, answers: Mapping[int, list[Line]], *, note: str) -> str:
    """Draw a dashboard.

    Args:
        dashboard: The dashboard's JSON.
        answers: The series of each panel, by the panel's number.
        note: Text at the bottom of the page.
    """
    height = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in dashboard["panels"])
    width, total = 24 * CELL_X, height * CELL_Y + 80
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}"'
        f' height="{total}" font-family="Inter, Helvetica, Arial, sans-serif">',
        f'<rect width="100%" height="100%" fill="{_PAGE}"/>',
        _text(12, 30, dashboard["title"], size=20, weight=500),
        _text(12, total - 12, note, size=11, fill=_DIM),
    ]
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * CELL_X, place["y"] * CELL_Y + 44
        if panel["type"] == "row":
            parts.append(_text(x + 8, y + 20, f"▾ {panel['title']}", size=14, weight=500))
            continue
        w, h = place["w"] * CELL_X - 8, place["h"] * CELL_Y - 8
        drawn = _DRAWN[panel["type"]](panel, answers.get(panel["id"], []), w, h)
        frame = f'<rect width="{w}" height="{h}" rx="2" fill="{_PANEL}" stroke="{_LINE}"/>'
        title = _text(8, 18, panel["title"], size=12, weight=500)
        parts.append(f'<g transform="translate({x + 4},{y})">{frame}{title}{drawn}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: float = 10,
    fill: str = _TEXT,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


def _box(x: float, y: float, w: float, h: float, fill: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"'
        f' opacity="{opacity:.2f}"/>'
    )


def _area(points: str, fill: str, opacity: float) -> str:
    return f'<polygon points="{points}" fill="{fill}" opacity="{opacity}"/>'


def _formatted(panel: Json, value: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    return number(value, str(defaults["unit"]), defaults.get("decimals"))


def _colours(panel: Json, names: Sequence[str]) -> list[str]:
    """Return the fixed colour of each series, or the next one of the palette."""
    fixed = {
        one["matcher"]["options"]: one["properties"][0]["value"]["fixedColor"]
        for one in panel["fieldConfig"]["overrides"]
    }
    rest = iter(PALETTE * (1 + len(names) // len(PALETTE)))
    return [NAMED.get(fixed[name], fixed[name]) if name in fixed else next(rest) for name in names]


def _nothing(w: float, h: float) -> str:
    return _text(w / 2, h / 2 + 6, "No data", size=14, fill=_DIM, anchor="middle")


def _colour(panel: Json, value: float) -> str:
    found = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            found = step["color"]
    return NAMED.get(found, found)


def _stat(panel: Json, lines: list[Line], w: float, h: float) -> str:
    if not lines:
        return _nothing(w, h)
    parts = []
    for index, line in enumerate(lines):
        value = line.points[-1][1]
        middle = w * (2 * index + 1) / (2 * len(lines))
        parts.append(_spark(line.points, index * w / len(lines), w / len(lines), h, _colour(panel, value)))
        size = 30 if len(lines) == 1 else 24
        parts.append(_text(middle, h / 2 + 10, _formatted(panel, value), size=size,
                           fill=_colour(panel, value), weight=600, anchor="middle"))  # fmt: skip
        parts.append(_text(middle, h / 2 + 28, line.name, size=10, fill=_DIM, anchor="middle"))
    return "".join(parts)


def _spark(points: Points, x: float, w: float, h: float, colour: str) -> str:
    top = max((value for _, value in points), default=0) or 1
    first, last = points[0][0], points[-1][0]
    span = last - first or 1
    path = " ".join(
        f"{x + (time - first) / span * w:.0f},{h - 1 - value / top * h * 0.3:.0f}" for time, value in points
    )
    return _area(f"{x:.1f},{h - 1:.1f} {path} {x + w:.1f},{h - 1:.1f}", colour, 0.18)


def _bars(panel: Json, lines: list[Line], w: float, h: float) -> str:
    if not lines:
        return _nothing(w, h)
    shown = sorted(lines, key=lambda line: -line.points[-1][1])[:8]
    top, step = shown[0].points[-1][1] or 1, (h - 34) / max(len(shown), 4)
    parts = []
    colours = _colours(panel, [line.name for line in shown])
    for index, (line, colour) in enumerate(zip(shown, colours, strict=True)):
        value, y = line.points[-1][1], 28 + index * step
        length = max(2.0, value / top * (w - 230))
        parts.append(_text(146, y + step / 2 + 3, line.name, size=11, anchor="end"))
        parts.append(_box(154, y + 2, length, step - 5, colour, 0.75))
        parts.append(_text(160 + length, y + step / 2 + 3, _formatted(panel, value), size=11, fill=colour))
    return "".join(parts)


@dataclass(frozen=True)
class _Axes:
    """The scale of times and values in a panel."""

    left: float
    top: float
    right: float
    bottom: float
    first: float
    last: float
    high: float

    def x(self, time: float) -> float:
        return self.left + (time - self.first) / ((self.last - self.first) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - value / self.high * (self.bottom - self.top)

    def drawn(self, panel: Json) -> str:
        parts = []
        for value in _marks(self.high, is_whole=panel["fieldConfig"]["defaults"].get("decimals") == 0):
            y = self.y(value)
            parts.append(
                f'<line x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_LINE}"/>'
            )
            parts.append(
                _text(self.left - 5, y + 3, _formatted(panel, value), size=9, fill=_DIM, anchor="end")
            )
        return "".join(parts) + self.times()

    def times(self) -> str:
        seconds = self.last - self.first
        marks = [self.first + seconds * share for share in (0.05, 0.35, 0.65, 0.95)]
        return "".join(
            _text(
                self.x(mark),
                self.bottom + 12,
                f"-{(self.last - mark) / 60:.1f} min",
                size=9,
                fill=_DIM,
                anchor="middle",
            )
            for mark in marks
        )


def _marks(high: float, *, is_whole: bool) -> list[float]:
    """Return the values of an axis that have a line: five, or fewer if only whole numbers are possible."""
    if is_whole and high <= 4:
        return [float(value) for value in range(math.floor(high) + 1)]
    return [high * share for share in ((0, 0.5, 1) if is_whole and high % 4 else (0, 0.25, 0.5, 0.75, 1))]


def _axes(lines: Sequence[Line], w: float, h: float, high: float) -> _Axes:
    times = [time for line in lines for time, _ in line.points]
    return _Axes(54, 28, w - 10, h - 52, min(times), max(times), _round_up(high))


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 1.5, 2, 3, 4, 5, 8, 10) if step * size >= value * 0.999)


def _series(panel: Json, lines: list[Line], w: float, h: float) -> str:
    if not lines:
        return _nothing(w, h)
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    times = sorted({time for line in lines for time, _ in line.points})
    floor = dict.fromkeys(times, 0.0)
    tops: list[Points] = []
    floors: list[Points] = []
    for line in lines:
        known = dict(line.points)
        floors.append([(time, floor[time]) for time in times if time in known])
        tops.append([(time, value + (floor[time] if stacked else 0)) for time, value in line.points])
        if stacked:
            floor.update({time: floor[time] + value for time, value in line.points})
    axes = _axes(lines, w, h, max(value for top in tops for _, value in top))
    parts = [axes.drawn(panel)]
    names = [line.name for line in lines]
    colours = _colours(panel, names)
    for top, bottom, colour in zip(tops, floors, colours, strict=True):
        upper = [f"{axes.x(time):.0f},{axes.y(value):.0f}" for time, value in top]
        lower = [f"{axes.x(time):.0f},{axes.y(value):.0f}" for time, value in reversed(bottom)]
        opacity = 0.45 if stacked else 0.1
        parts.append(_area(" ".join([*upper, *lower]), colour, opacity))
        parts.append(
            f'<polyline points="{" ".join(upper)}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        )
    return "".join(parts) + _legend(names, colours, w, h)


def _legend(names: Sequence[str], colours: Sequence[str], w: float, h: float) -> str:
    parts, x, y = [], 12.0, h - 22
    for index, whole in enumerate(names):
        name = whole if len(whole) <= _NAME else whole[: _NAME - 1] + "…"
        length = 24 + 6.1 * len(name)
        if x + length > w - 30:
            x, y = 12.0, y + 13
            if y > h - 6:
                parts.append(_text(w - 8, h - 8, f"+{len(names) - index}", size=10, fill=_DIM, anchor="end"))
                break
        parts.append(_box(x, y - 6, 10, 3, colours[index]))
        parts.append(_text(x + 14, y, name, size=10))
        x += length
    return "".join(parts)


def _heat(panel: Json, lines: list[Line], w: float, h: float) -> str:
    """Buckets are cumulative: the drawing shows the difference to the next lower bucket."""
    bounds = sorted((math.inf if line.name == "+Inf" else float(line.name), line) for line in lines)
    if not bounds:
        return _nothing(w, h)
    counts: list[dict[float, float]] = []
    below: dict[float, float] = {}
    for _, line in bounds:
        now = dict(line.points)
        counts.append({time: max(0.0, value - below.get(time, 0.0)) for time, value in now.items()})
        below = now
    used = [index for index, cells in enumerate(counts) if any(value > 1e-9 for value in cells.values())]
    shown = range(max(0, min(used, default=0) - 1), max(used, default=0) + 1)
    axes = _axes([line for _, line in bounds], w, h + 30, 1)
    columns = sorted(below)[:: max(1, len(below) // 60)]
    size_x = (axes.right - axes.left) / max(1, len(columns))
    size_y = (axes.bottom - axes.top) / max(1, len(shown))
    top = max((counts[index].get(time, 0) for index in shown for time in columns), default=0) or 1
    parts = [axes.times()]
    for row, index in enumerate(shown):
        y = axes.bottom - (row + 1) * size_y
        bound = bounds[index][0]
        name = "more" if math.isinf(bound) else number(bound, "s")
        parts.append(_text(axes.left - 5, y + size_y / 2 + 3, name, size=9, fill=_DIM, anchor="end"))
        for column, time in enumerate(columns):
            value = counts[index].get(time, 0)
            if value > 1e-9:
                share = (value / top) ** 0.5
                x = axes.left + column * size_x
                parts.append(_box(x, y, size_x - 0.6, size_y - 0.8, "#ff780a", 0.12 + 0.88 * share))
    return "".join(parts)


_DRAWN: Final = {"stat": _stat, "bargauge": _bars, "timeseries": _series, "heatmap": _heat}
