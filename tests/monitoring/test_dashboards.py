# SPDX-License-Identifier: Apache-2.0
"""Titles, colours, units and links of the dashboards' panels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from mailproxy_monitoring.generated_files import DASHBOARDS
from mailproxy_monitoring.grafana import COUNT, Panel, dashboard_json
from mailproxy_monitoring.rules import OPERATOR_ALERTS

from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy_operator.metrics import Metrics
from mailproxy_operator.render.prometheus_rule import ALERTS, RUNBOOKS

DOCS: Final = Path(__file__).parents[2] / "docs"
PANELS: Final = [
    pytest.param(panel, id=f"{name}-{row.title}-{panel.title}")
    for name, dashboard in DASHBOARDS.items()
    for row in dashboard.rows
    for panel in row.panels
]
SUCCESSES: Final = {"success", "ok", "true", "injected", "2xx"}
FAILURES: Final = {
    "error",
    "failure",
    "false",
    "unavailable",
    "upstream_failed",
    "invalid_response",
    "internal_error",
    "crash",
    "5xx",
}
OTHER_MEANINGS: Final = {"TLS failures by reason": {"injected"}}
"""Values that are no success in these panels: there, bytes in clear text were injected."""
REDS: Final = {"red", "dark-red", "semi-dark-red", "light-red"}


def _values(metric: str, label: str) -> tuple[str, ...]:
    """The closed set of a label's values; empty if the set is open."""
    for family in ALL_METRICS:
        if metric in {family.name, f"{family.name}_count"}:
            return next((one.values for one in family.labels if one.name == label), None) or ()
    for found in Metrics().registry.collect():
        samples = [one for one in found.samples if one.name == metric and label in one.labels]
        if samples:
            return tuple(one.labels[label] for one in samples)
    return ()


def _closed_series(panel: Panel) -> Iterator[str]:
    """The names of the series that a panel can show, where they are label values of a closed set."""
    for query, legend in panel.queries:
        found = re.fullmatch(r"([^{]*)\{\{(\w+)\}\}", legend)
        if found and panel.kind != "heatmap":
            prefix, label = found.groups()
            for metric in set(re.findall(r"mailproxy_\w+", query)):
                yield from (f"{prefix}{value}" for value in _values(metric, label))


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_a_description(panel: Panel) -> None:
    assert panel.description.endswith(".")
    assert panel.description.rstrip(".") != panel.title


@pytest.mark.parametrize("panel", PANELS)
def test_counted_things_are_shown_as_whole_numbers(panel: Panel) -> None:
    """``increase`` extrapolates, which results in fractions of a login; heat maps show no numbers."""
    if panel.unit == COUNT:
        assert _json(panel)["fieldConfig"]["defaults"]["decimals"] == 0
    for query, _ in panel.queries:
        if panel.kind != "heatmap" and "increase" in query:
            assert "round (sum by" in query
            assert panel.unit == COUNT


@pytest.mark.parametrize("panel", PANELS)
def test_every_value_of_a_closed_label_has_a_fixed_colour(panel: Panel) -> None:
    assert set(_closed_series(panel)) <= panel.colours.keys()
    overrides = {
        one["matcher"]["options"]: one["properties"][0]["value"]
        for one in _json(panel)["fieldConfig"]["overrides"]
    }
    assert overrides == {
        name: {"mode": "fixed", "fixedColor": colour} for name, colour in panel.colours.items()
    }
    assert len(set(panel.colours.values())) == len(panel.colours), "two series have the same colour"


def test_closed_labels_are_found_in_both_programs() -> None:
    found = {dashboard.uid: sum(bool([*_closed_series(panel)]) for panel in dashboard.panels)
             for dashboard in DASHBOARDS.values()}  # fmt: skip
    assert found["mailproxy-proxies"] > 20
    assert found["mailproxy-operator"] >= 4


@pytest.mark.parametrize("panel", PANELS)
def test_success_is_green_and_failure_is_red(panel: Panel) -> None:
    for name in (SUCCESSES & panel.colours.keys()) - OTHER_MEANINGS.get(panel.title, set()):
        assert panel.colours[name] == "green"
    for name in FAILURES & panel.colours.keys():
        assert panel.colours[name] in REDS, name


@pytest.mark.parametrize("name", DASHBOARDS)
def test_titles_of_panels_are_unique(name: str) -> None:
    titles = [panel.title for panel in DASHBOARDS[name].panels]
    assert len(set(titles)) == len(titles)


def test_every_alert_has_a_panel_with_a_link_to_its_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (DOCS / "alerts.md").read_text(), re.MULTILINE)
    linked = {
        link["url"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard_json(dashboard)["panels"]
        for link in panel.get("links", [])
    }
    assert linked == {f"{RUNBOOKS}#{one.name.lower()}" for one in (*ALERTS, *OPERATOR_ALERTS)}
    assert {url.partition("#")[2] for url in linked} == {one.lower() for one in headings}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_link_to_each_other(name: str) -> None:
    [other] = [one for one in DASHBOARDS.values() if one is not DASHBOARDS[name]]
    links = dashboard_json(DASHBOARDS[name])["links"]
    [link] = [one for one in links if one["icon"] == "dashboard"]
    assert link["title"] == other.title
    assert link["url"] == f"/d/{other.uid}?var-datasource=${{datasource}}"
    assert link["keepTime"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_links_to_pages_have_existing_targets(name: str) -> None:
    pages = [one["url"] for one in dashboard_json(DASHBOARDS[name])["links"] if one["icon"] == "doc"]
    assert len(pages) == 2
    for url in pages:
        page, _, anchor = url.rpartition("/")[2].partition("#")
        headings = re.findall(r"^#+ (.+)$", (DOCS / page).read_text(), re.MULTILINE)
        assert not anchor or anchor in {one.lower().replace(" ", "-") for one in headings}


def test_monitoring_page_names_existing_rows_and_panels() -> None:
    page = (DOCS / "monitoring.md").read_text()
    table = page.partition("## Finding the failing part")[2].partition("## Alerts")[0]
    rows = [row for dashboard in DASHBOARDS.values() for row in dashboard.rows]
    titles = {row.title for row in rows} | {panel.title for row in rows for panel in row.panels}
    named = set(re.findall(r"\*([A-Z][^*]+)\*", table))
    assert len(named) > 5
    assert named <= titles


def _json(panel: Panel) -> dict[str, Any]:
    for dashboard in DASHBOARDS.values():
        for one, made in zip(
            dashboard.panels,
            (made for made in dashboard_json(dashboard)["panels"] if made["type"] != "row"),
            strict=True,
        ):
            if one is panel:
                found: dict[str, Any] = made
                return found
    raise AssertionError(panel.title)
