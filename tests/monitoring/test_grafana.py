# SPDX-License-Identifier: Apache-2.0
"""The dashboards match Grafana's schema: no unknown, missing or invalid field."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (MONITORING / "dashboards").glob("*.json")}
SCHEMA = json.loads((Path(__file__).parent / "grafana/dashboard.schema.json").read_text())

# The stored fields of a query to a data source of the type prometheus.
QUERY = {
    "type": "object",
    "required": ["refId", "expr"],
    "additionalProperties": False,
    "properties": {
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
        "datasource": {"const": {"type": "prometheus", "uid": "${datasource}"}},
        "expr": {"type": "string", "minLength": 1},
        "legendFormat": {"type": "string"},
        "editorMode": {"enum": ["code", "builder"]},
        "format": {"enum": ["time_series", "table", "heatmap"]},
        "instant": {"type": "boolean"},
        "range": {"type": "boolean"},
        "exemplar": {"type": "boolean"},
        "interval": {"type": "string"},
        "intervalFactor": {"type": "integer"},
        "hide": {"type": "boolean"},
    },
}


def _complaints(part: str, found: Any) -> list[str]:
    schema = {"$ref": f"#/definitions/{part}", "definitions": SCHEMA["definitions"]}
    return [f"{one.json_path}: {one.message[:200]}" for one in Draft7Validator(schema).iter_errors(found)]


def complaints(dashboard: dict[str, Any]) -> list[str]:
    """All deviations from Grafana's schema."""
    whole = copy.deepcopy(dashboard)
    for variable in whole["templating"]["list"]:
        variable.pop("definition", None)  # stored with a query variable, but not in the schema
    panels = whole.pop("panels")
    queries = [query for panel in panels for query in panel.get("targets", [])]
    return [
        *_complaints("dashboard", whole),
        *(one for panel in panels for one in _complaints(panel["type"], panel)),
        *(one.message for query in queries for one in Draft7Validator(QUERY).iter_errors(query)),
    ]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboard_matches_the_grafana_schema(name: str) -> None:
    assert complaints(DASHBOARDS[name]) == []


@pytest.mark.parametrize(
    ("path", "wrong", "expected"),
    [
        (["graphToltip"], 1, "graphToltip"),
        (["templating", "list", 0, "refresh"], 7, "refresh"),
        (["panels", 1, "fieldConfig", "defaults", "color", "mode"], "palette", "mode"),
        (["panels", 1, "options", "graphMode"], "sparkline", "graphMode"),
        (["panels", 1, "targets", 0, "expression"], "up", "expression"),
        (["panels", 0, "colapsed"], True, "colapsed"),
    ],
)
def test_schema_check_finds_mistakes(path: list[Any], wrong: object, expected: str) -> None:
    dashboard = copy.deepcopy(DASHBOARDS["proxies"])
    *way, last = path
    place = dashboard
    for step in way:
        place = place[step]
    place[last] = wrong
    [complaint] = complaints(dashboard)
    assert expected in complaint


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_dashboard_variable_exists_and_is_used(name: str) -> None:
    text = json.dumps(DASHBOARDS[name]["panels"])
    variables = {one["name"] for one in DASHBOARDS[name]["templating"]["list"]}
    built_in = {"__range", "__rate_interval", "__interval"}
    for variable in variables:
        assert f"${variable}" in text or f"${{{variable}}}" in text, f"{variable} changes nothing"
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert used <= variables | built_in
