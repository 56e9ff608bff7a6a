# SPDX-License-Identifier: Apache-2.0
"""Every query of the proxies' dashboard, with a Prometheus that scrapes a proxy under traffic."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from mailproxy_monitoring.generated_files import DASHBOARDS
from mailproxy_monitoring.grafana import Panel
from mailproxy_monitoring.proxies_dashboard import PROXIES
from mailproxy_monitoring.rules import RECORDS

from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy_operator.render.prometheus_rule import ALERTS
from support.prometheus_world.watcher import Watcher, substituted
from support.servers.programs import eventually

QUERIES = [
    pytest.param(panel, query, id=f"{row.title}-{panel.title}-{number}")
    for row in PROXIES.rows
    for panel in row.panels
    for number, (query, _) in enumerate(panel.queries)
]


def has_data(found: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in found)


@pytest.mark.interop
@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_query_returns_data(watcher: Watcher, panel: Panel, query: str) -> None:
    assert eventually(lambda: has_data(watcher.now(substituted(query))), f"{panel.title}: {query}")


@pytest.mark.interop
@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_legend_uses_labels_of_the_series(watcher: Watcher, panel: Panel, query: str) -> None:
    [legend] = [legend for one, legend in panel.queries if one == query]
    found = eventually(lambda: watcher.now(substituted(query)), query)
    assert set(re.findall(r"{{(\w+)}}", legend)) <= found[0]["metric"].keys()
    # Without a name per series they could not be told apart.
    assert len(found) == 1 or "{{" in legend


@pytest.mark.interop
@pytest.mark.parametrize("record", RECORDS)
def test_recording_rules_have_data(watcher: Watcher, record: str) -> None:
    assert eventually(lambda: has_data(watcher.now(record)), record)


@pytest.mark.interop
@pytest.mark.parametrize(
    ("label", "value"), [("namespace", "mail"), ("job", "mail/edge"), ("protocol", "imap")]
)
def test_dashboard_variables_have_values(watcher: Watcher, label: str, value: str) -> None:
    [variable] = [one for one in PROXIES.variables if one.name == label]
    [selector] = re.findall(r"label_values\((.+), \w+\)", variable.query)
    asked = {"match[]": substituted(selector)}
    assert value in eventually(lambda: watcher.ask(f"label/{label}/values", **asked), label)


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    """The exceptions are for queries by hand."""
    queries = [query for panel in PROXIES.panels for query, _ in panel.queries]
    shown = " ".join((*queries, *(alert.expression for alert in ALERTS)))
    unshown = {one.name for one in ALL_METRICS if one.name not in shown}
    assert unshown == {
        "mailproxy_config_generation",
        "mailproxy_dns_cache_entries",
        "mailproxy_policy_request_duration_seconds",
        "mailproxy_token_expiry_timestamp_seconds",
        "mailproxy_token_request_duration_seconds",
        "process_start_time_seconds",
    }


def test_no_query_has_a_user_or_an_address() -> None:
    panels = [panel for board in DASHBOARDS.values() for panel in board.panels]
    queries = " ".join(query for panel in panels for query, _ in panel.queries)
    assert not re.search(r"\b(user|client|address|host|sni|upstream_address)\b", queries)
