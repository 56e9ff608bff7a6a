# SPDX-License-Identifier: Apache-2.0
"""The JSON of a Grafana dashboard, from a list of rows and panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mailproxy_operator.render.prometheus_rule import RUNBOOKS

SCHEMA_VERSION: Final = 42
WIDTH: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COUNT: Final = "locale"
"""Grafana's unit for whole numbers, with separators of thousands."""
CONNECTIONS_PER_SECOND: Final = "suffix:conn/s"
LOGINS_PER_SECOND: Final = "suffix:logins/s"
EVENTS_PER_SECOND: Final = "suffix:/s"
_DOCS: Final = RUNBOOKS.rpartition("/")[0]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        queries: PromQL, each with the name of its series.
        description: What a reader should conclude, shown with the panel.
        kind: Grafana's name of the visualization: ``timeseries``, ``stat``, ``bargauge`` or ``heatmap``.
        unit: Grafana's name of the unit: ``locale`` (counts), ``reqps``, ``s``, ``percentunit``, ``Bps``,
            ``bytes``, or ``suffix:`` and a text.
        steps: Where colours change: value and colour, from low to high.
        decimals: Number of decimal places; counts have none.
        maximum: The highest possible value, which is the end of the axis.
        colours: Fixed colours, by the names of series.
        alerts: The alerts about what the panel shows; the panel has links to their runbooks.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    description: str
    kind: str = "timeseries"
    unit: str = COUNT
    stacked: bool = False
    width: int = 8
    height: int = 7
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    decimals: int | None = None
    maximum: float | None = None
    colours: Mapping[str, str] = field(default_factory=dict)
    alerts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row: a title and its panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A dashboard variable, whose values come from a query."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class DashboardLink:
    """A link to another dashboard: its title and ``uid``."""

    title: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard.

    Attributes:
        others: Dashboards that it links to.
    """

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    others: tuple[DashboardLink, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def dashboard_json(dashboard: Dashboard) -> Json:
    """Return the JSON that Grafana imports."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["mailproxy", "mail"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "annotations": {"list": []},
        "links": [*(_dashboard_link(one) for one in dashboard.others), *_pages()],
        "templating": {"list": [_source_variable(), *(_variable(one) for one in dashboard.variables)]},
        "panels": _placed(dashboard.rows),
    }


def _dashboard_link(other: DashboardLink) -> Json:
    """Return a link that keeps the time range and the data source.

    The other variables are left out: the namespace and job of a proxy are not those of the operator.
    """
    return _link(other.title, f"/d/{other.uid}?var-datasource=${{datasource}}", "dashboard", keep_time=True)


def _pages() -> list[Json]:
    """Return links to the documentation."""
    return [
        _link("Finding the failing part", f"{_DOCS}/monitoring.md#finding-the-failing-part", "doc"),
        _link("Runbooks", RUNBOOKS, "doc"),
    ]


def _link(title: str, url: str, icon: str, *, keep_time: bool = False) -> Json:
    return {
        "type": "link",
        "title": title,
        "url": url,
        "icon": icon,
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": keep_time,
        "targetBlank": not keep_time,
    }


def _runbook(alert: str) -> Json:
    return _link(f"Runbook of {alert}", f"{RUNBOOKS}#{alert.lower()}", "doc")


def _source_variable() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "regex": "",
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "Prometheus", "qryType": 1},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        # Also matches series without this label.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
    }


def _placed(rows: Sequence[Row]) -> list[Json]:
    """Lay out rows from top to bottom, and panels from left to right."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(_row(row, len(placed) + 1, y))
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            placed.append(
                _panel(panel, len(placed) + 1, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            )
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _row(row: Row, number: int, y: int) -> Json:
    place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": place,
        "panels": [],
    }


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.kind],
        "links": [_runbook(alert) for alert in panel.alerts],
    }


def _target(panel: Panel, index: int) -> Json:
    expression, legend = panel.queries[index]
    is_now = panel.kind in {"stat", "bargauge"}
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": expression,
        "legendFormat": legend,
        "editorMode": "code",
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        "instant": panel.kind == "bargauge",
        "range": panel.kind != "bargauge",
        **({"intervalFactor": 1} if is_now else {}),
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [],
    }
    if panel.decimals is not None or panel.unit == COUNT:
        defaults["decimals"] = panel.decimals or 0
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 10,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
        }
    return defaults


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in panel.colours.items()
    ]


_REDUCED: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, Json]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _REDUCED,
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        "textMode": "auto",
        "wideLayout": True,
    },
    "bargauge": {
        "displayMode": "basic",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "maxVizHeight": 300,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "orientation": "horizontal",
        "reduceOptions": _REDUCED,
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "auto",
        "sizing": "auto",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "steps": 64,
            "exponent": 0.5,
            "fill": "dark-orange",
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    },
}
