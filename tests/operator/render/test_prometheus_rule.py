# SPDX-License-Identifier: Apache-2.0
"""The alerts: Prometheus accepts them, and each fires on the data it is for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.render import planned
from mailproxy_operator.render.prometheus_rule import ALERTS, prometheus_rule
from mailproxy_operator.settings import Platform
from support.alerts import SERIES
from support.needs import Needs
from support.operator_bodies import body


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    resource = body(monitoring={"prometheusRule": {"enabled": True, "labels": {"release": "x"}}})
    manifest = prometheus_rule(planned(Resource.read(resource), Platform()))
    assert manifest is not None
    assert manifest["metadata"]["labels"]["release"] == "x"
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(manifest["spec"]))
    return file


def test_every_alert_selects_only_its_resource() -> None:
    assert {alert.name for alert in ALERTS} == SERIES.keys()
    assert all("JOB" in alert.expression for alert in ALERTS)


def test_every_alert_names_its_resource_and_has_a_runbook(rules: Path) -> None:
    for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]:
        assert {"namespace": "mail", "mailproxy": "edge"}.items() <= rule["labels"].items()
        assert rule["annotations"]["summary"].startswith("mail/edge: ")
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/alerts.md#{rule['alert'].lower()}")


@pytest.mark.interop
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_fires_on_its_data(needs: Needs, rules: Path, alert: Any) -> None:
    series = [{"series": name, "values": values} for name, values in SERIES[alert.name]]
    expected = {"exp_alerts": [], "alertname": alert.name, "eval_time": "80m"}
    case = {
        "rule_files": [rules.name],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": [expected]}],
    }
    file = rules.with_name("test.yaml")
    file.write_text(yaml.safe_dump(case))
    command = [needs("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # No alert is expected, so promtool prints those that fire.
    assert done.returncode == 1, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert f'alertname="{alert.name}"' in output, output
    assert 'namespace="mail"' in output
    assert 'mailproxy="edge"' in output
