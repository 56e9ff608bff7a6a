# SPDX-License-Identifier: Apache-2.0
"""Rules, tried by promtool: what is recorded has the right value, alerts fire on the data they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from mailproxy_monitoring.rules import OPERATOR_ALERTS, RECORDS, chart_rules, plain_rules

from mailproxy_operator.render.prometheus_rule import ALERTS
from support.needs import Needs
from support.servers.programs import output_of

POD = 'namespace="mail", job="mail/edge", pod="edge-0", instance="a"'
IMAP = 'namespace="mail", job="mail/edge", protocol="imap"'
PASSED = "SUCCESS"

Series = list[tuple[str, str]]


def _buckets(metric: str, labels: str) -> Series:
    """A hundred observations a minute, half of them below a second, all of them below two."""
    return [
        (f'{metric}_bucket{{{labels}, le="1"}}', "0+50x20"),
        (f'{metric}_bucket{{{labels}, le="2"}}', "0+100x20"),
        (f'{metric}_bucket{{{labels}, le="+Inf"}}', "0+100x20"),
    ]


# record -> what there is, the labels of what is recorded, its value after ten minutes
RECORDED: dict[str, tuple[Series, str, float]] = {
    "namespace_job_protocol_result:mailproxy_logins:rate5m": (
        [
            (f'mailproxy_logins_total{{{IMAP}, result="success", method="plain", pod="a"}}', "0+60x20"),
            (f'mailproxy_logins_total{{{IMAP}, result="success", method="login", pod="b"}}', "0+30x20"),
        ],
        f'{IMAP}, result="success"',
        1.5,
    ),
    "namespace_job_protocol:mailproxy_logins_success:ratio_rate5m": (
        [
            (f'mailproxy_logins_total{{{IMAP}, result="success"}}', "0+30x20"),
            (f'mailproxy_logins_total{{{IMAP}, result="denied"}}', "0+90x20"),
            (f'mailproxy_logins_total{{{IMAP}, result="aborted"}}', "0+600x20"),
        ],
        IMAP,
        0.25,
    ),
    "namespace_job_protocol:mailproxy_login_duration_seconds:p99_rate5m": (
        _buckets("mailproxy_login_duration_seconds", f'{IMAP}, result="success"'),
        IMAP,
        1.98,
    ),
    "namespace_job_protocol:mailproxy_auth_request_duration_seconds:p99_rate5m": (
        _buckets("mailproxy_auth_request_duration_seconds", f'{IMAP}, outcome="ok"'),
        IMAP,
        1.98,
    ),
    "namespace_job_protocol_stage:mailproxy_upstream_errors:rate5m": (
        [
            (f'mailproxy_upstream_errors_total{{{IMAP}, stage="login", pod="a"}}', "0+60x20"),
            (f'mailproxy_upstream_errors_total{{{IMAP}, stage="login", pod="b"}}', "0+60x20"),
        ],
        f'{IMAP}, stage="login"',
        2.0,
    ),
    "namespace_job_pod_instance:mailproxy_connections:utilization": (
        [
            (f'mailproxy_connections_active{{{POD}, server="imap", protocol="imap"}}', "300x20"),
            (f'mailproxy_connections_active{{{POD}, server="pop3", protocol="pop3"}}', "200x20"),
            (f"mailproxy_connections_limit{{{POD}}}", "2000x20"),
        ],
        POD,
        0.25,
    ),
}

# alert -> data on which it fires after 90 minutes, data on which it does not
OPERATOR: dict[str, tuple[Series, Series]] = {
    "MailProxyOperatorNotReconciling": (
        [("mailproxy_operator_last_success_timestamp_seconds", "60x100")],
        [("mailproxy_operator_last_success_timestamp_seconds", "0+60x100")],
    ),
    "MailProxyOperatorErrors": (
        [
            ('mailproxy_operator_reconciles_total{result="ok"}', "0+60x100"),
            ('mailproxy_operator_reconciles_total{result="hopeless"}', "0+60x100"),
        ],
        [
            ('mailproxy_operator_reconciles_total{result="ok"}', "0+60x100"),
            ('mailproxy_operator_reconciles_total{result="retry"}', "0+60x100"),
            ('mailproxy_operator_reconciles_total{result="error"}', "0+6x100"),
        ],
    ),
    "MailProxyOperatorDown": (
        [('mailproxy_operator_leader{pod="a"}', "0x100"), ('mailproxy_operator_leader{pod="b"}', "0x100")],
        [('mailproxy_operator_leader{pod="a"}', "0x100"), ('mailproxy_operator_leader{pod="b"}', "1x100")],
    ),
    "MailProxyNotReady": (
        [('mailproxy_operator_resources{ready="unknown"}', "2x100")],
        [
            ('mailproxy_operator_resources{ready="unknown"}', "0x100"),
            ('mailproxy_operator_resources{ready="true"}', "5x100"),
        ],
    ),
    "MailProxySysctlForbidden": (
        [('mailproxy_operator_circuit_breakers_open{reason="sysctl_forbidden"}', "1x100")],
        [('mailproxy_operator_circuit_breakers_open{reason="sysctl_forbidden"}', "0x100")],
    ),
}


def _judged(needs: Needs, folder: Path, rules: dict[str, Any], test: dict[str, Any]) -> str:
    """Have promtool run one unit test; gives what it says."""
    promtool = needs("promtool")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [{"interval": "1m", **test}]}
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    return output_of([promtool, "test", "rules", str(folder / "tests.yaml")])


def _series(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series]


@pytest.mark.interop
@pytest.mark.parametrize("record", RECORDED)
def test_what_is_recorded(needs: Needs, tmp_path: Path, record: str) -> None:
    series, labels, value = RECORDED[record]
    # Rounded, for promtool compares floats bit by bit; that takes the name away.
    expected = {"labels": f"{{{labels}}}", "value": value}
    asked = {"expr": f"round({record}, 0.001)", "eval_time": "10m", "exp_samples": [expected]}
    test = {"input_series": _series(series), "promql_expr_test": [asked]}
    assert PASSED in _judged(needs, tmp_path, chart_rules(), test)


@pytest.mark.interop
@pytest.mark.parametrize("alert", OPERATOR)
def test_the_operators_alerts_fire_and_are_silent(needs: Needs, tmp_path: Path, alert: str) -> None:
    [rule] = [one for one in OPERATOR_ALERTS if one.name == alert]
    for number, series in enumerate(OPERATOR[alert]):
        folder = tmp_path / str(number)
        folder.mkdir()
        firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
        expected = {"labels": "{}", "value": 1 - number}
        counted = {"expr": firing, "eval_time": "90m", "exp_samples": [expected]}
        test = {"input_series": _series(series), "promql_expr_test": [counted]}
        said = _judged(needs, folder, chart_rules(), test)
        assert PASSED in said, f"{rule}\n{said}"


def test_every_rule_has_its_test() -> None:
    assert RECORDED.keys() == RECORDS.keys()
    assert OPERATOR.keys() == {one.name for one in OPERATOR_ALERTS}


def test_the_plain_rules_are_the_operators_alerts_for_one_job() -> None:
    groups = {group["name"]: group["rules"] for group in plain_rules()["groups"]}
    assert [rule["alert"] for rule in groups["mailproxy"]] == [alert.name for alert in ALERTS]
    for rule in groups["mailproxy"]:
        assert 'job="mailproxy"' in rule["expr"]
        # There are no pods where nobody finds targets through Kubernetes.
        assert "pod" not in rule["expr"].replace("mailproxy", "")
        assert "JOB" not in rule["expr"]


@pytest.mark.interop
def test_a_plain_alert_names_the_instance(needs: Needs, tmp_path: Path) -> None:
    fired = {
        "alertname": "MailProxyReloadFailed",
        "eval_time": "10m",
        "exp_alerts": [
            {
                "exp_labels": {"severity": "warning", "instance": "mail1:9113"},
                "exp_annotations": {
                    "summary": "mail1:9113 could not use its new configuration and goes on with the old one"
                },
            }
        ],
    }
    failed = ('mailproxy_config_last_reload_successful{job="mailproxy", instance="mail1:9113"}', "0x20")
    test = {"input_series": _series([failed]), "alert_rule_test": [fired]}
    assert PASSED in _judged(needs, tmp_path, plain_rules(), test)
