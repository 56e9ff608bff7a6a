# SPDX-License-Identifier: Apache-2.0
"""The alerts: Prometheus reads them, and each fires on the data it is for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_operator.render import planned
from mailproxy_operator.render.prometheus_rule import ALERTS, prometheus_rule
from mailproxy_operator.resource import Resource
from mailproxy_operator.settings import Platform
from support.needs import Needs
from support.operator_bodies import body

JOB = 'job="mail/edge"'

# alert -> series (name and labels, then values as promtool expands them) on which it fires after 80 minutes
SERIES: dict[str, list[tuple[str, str]]] = {
    "MailProxyLoginFailures": [
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="timeout"}}', "0+60x90"),
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="success"}}', "0+60x90"),
    ],
    "MailProxyLoginsDenied": [
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="denied"}}', "0+600x90"),
        (f'mailproxy_logins_total{{{JOB}, protocol="imap", result="success"}}', "0+6x90"),
    ],
    "MailProxyAuthSlow": [
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="1"}}', "0+1x90"),
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="5"}}', "0+60x90"),
        (f'mailproxy_auth_request_duration_seconds_bucket{{{JOB}, protocol="imap", le="+Inf"}}', "0+60x90"),
    ],
    "MailProxyAuthErrors": [(f'mailproxy_auth_errors_total{{{JOB}, reason="connect"}}', "0+60x90")],
    "MailProxyDnsTimeouts": [(f'mailproxy_dns_timeouts_total{{{JOB}, purpose="ptr"}}', "0+60x90")],
    "MailProxyUpstreamErrors": [
        (f'mailproxy_upstream_errors_total{{{JOB}, protocol="imap", stage="login"}}', "0+60x90"),
        (
            f'mailproxy_upstream_connect_duration_seconds_count{{{JOB}, protocol="imap", result="ok"}}',
            "0+60x90",
        ),
    ],
    "MailProxyCertificateExpires": [
        (f'mailproxy_tls_certificate_expiry_timestamp_seconds{{{JOB}, server="imap"}}', "86400x90")
    ],
    "MailProxyReloadFailed": [(f'mailproxy_config_last_reload_successful{{{JOB}, pod="a"}}', "0x90")],
    "MailProxyConfigSkew": [
        (f'mailproxy_config_info{{{JOB}, hash="a"}}', "1x90"),
        (f'mailproxy_config_info{{{JOB}, hash="b"}}', "1x90"),
    ],
    "MailProxyConnectionsNearLimit": [
        (f'mailproxy_connections_active{{{JOB}, pod="a", server="imap"}}', "90x90"),
        (f'mailproxy_connections_limit{{{JOB}, pod="a"}}', "100x90"),
    ],
    "MailProxyEventLoopSlow": [
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="0.1"}}', "0+1x90"),
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="1"}}', "0+60x90"),
        (f'mailproxy_event_loop_lag_seconds_bucket{{{JOB}, pod="a", le="+Inf"}}', "0+60x90"),
    ],
    "MailProxyWorkerCrashes": [
        (f'mailproxy_worker_restarts_total{{{JOB}, pod="a", reason="crash"}}', "0+1x90")
    ],
    "MailProxyInternalErrors": [
        (f'mailproxy_connections_closed_total{{{JOB}, pod="a", reason="internal_error"}}', "0+1x90")
    ],
    "MailProxyDown": [(f'up{{{JOB}, pod="a"}}', "0x90")],
}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    resource = body(monitoring={"prometheusRule": {"enabled": True, "labels": {"release": "x"}}})
    manifest = prometheus_rule(planned(Resource.read(resource), Platform()))
    assert manifest is not None
    assert manifest["metadata"]["labels"]["release"] == "x"
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(manifest["spec"]))
    return file


def test_every_alert_is_about_this_resource_alone() -> None:
    assert {alert.name for alert in ALERTS} == SERIES.keys()
    assert all("JOB" in alert.expression and alert.summary for alert in ALERTS)


@pytest.mark.interop
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_fires_on_the_data_it_is_for(needs: Needs, rules: Path, alert: Any) -> None:
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
    # Nothing is expected, so promtool tells what fires instead.
    assert done.returncode == 1, done.stdout + done.stderr
    assert f'alertname="{alert.name}"' in done.stdout + done.stderr, done.stdout + done.stderr
