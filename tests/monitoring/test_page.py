# SPDX-License-Identifier: Apache-2.0
"""docs/monitoring.md lists every alert and recording rule, and the pictures show every panel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mailproxy_monitoring.rules import OPERATOR_ALERTS, RECORDS

from mailproxy_operator.render.prometheus_rule import ALERTS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "monitoring.md").read_text()


def test_page_lists_every_alert_with_its_severity() -> None:
    listed = re.findall(r"^\| (MailProxy\w+) \|.*\| (\w+) \|$", PAGE, re.MULTILINE)
    assert listed == [(alert.name, alert.severity) for alert in (*ALERTS, *OPERATOR_ALERTS)]


def test_page_lists_every_recording_rule() -> None:
    assert re.findall(r"^\| `(\w+:\w+:\w+)` \|", PAGE, re.MULTILINE) == list(RECORDS)


@pytest.mark.parametrize("name", ["proxies", "operator"])
def test_pictures_show_every_panel(name: str) -> None:
    from mailproxy_monitoring.generated_files import DASHBOARDS

    picture = (DOCS / f"pictures/dashboard-{name}.svg").read_text()
    shown = set(re.findall(r"<g transform[^>]*><rect[^>]*/><text[^>]*>([^<]+)</text>", picture))
    assert shown == {panel.title for panel in DASHBOARDS[name].panels}
    assert "No data" not in picture


def test_overview_picture_shows_the_first_row() -> None:
    picture = (DOCS / "pictures/dashboard-overview.svg").read_text()
    from mailproxy_monitoring.generated_files import DASHBOARDS

    first, *_ = DASHBOARDS["proxies"].rows
    assert all(f">{panel.title}</text>" in picture for panel in first.panels)
