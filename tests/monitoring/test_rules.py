# SPDX-License-Identifier: Apache-2.0
"""Unit tests of the rules with promtool: recorded values are right, and alerts fire only on their data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mailproxy_monitoring.rules import OPERATOR_ALERTS, RECORDS, chart_rules, plain_rules

from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy_operator.metrics import Metrics
from mailproxy_operator.render.prometheus_rule import ALERTS
from support.alerts import SERIES
from support.needs import Needs
from support.servers.programs import run_program

ALERTS_PAGE = Path(__file__).parents[2] / "docs/alerts.md"
POD = 'namespace="mail", job="mail/edge", pod="edge-0", instance="a"'
IMAP = 'namespace="mail", job="mail/edge", protocol="imap"'
PASSED = "SUCCESS"

Series = list[tuple[str, str]]


def _buckets(metric: str, labels: str) -> Series:
    """A histogram with 100 observations per minute, half of them below 1 second, all below 2."""
    return [
        (f'{metric}_bucket{{{labels}, le="1"}}', "0+50x20"),
        (f'{metric}_bucket{{{labels}, le="2"}}', "0+100x20"),
        (f'{metric}_bucket{{{labels}, le="+Inf"}}', "0+100x20"),
    ]


# recording rule -> input series, labels of the recorded series, its value after ten minutes
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

OPERATOR_POD = 'namespace="system", job="op", pod="op-0"'
# As scraped without honorLabels: the label namespace is that of the operator's pod.
CONDITION = f'mailproxy_operator_condition{{{OPERATOR_POD}, exported_namespace="mail", name="edge"'
RESOURCES = f'mailproxy_operator_resources{{{OPERATOR_POD}, ready="true"}}'
RECONCILES = f"mailproxy_operator_reconciles_total{{{OPERATOR_POD}"
LEADER = f"mailproxy_operator_leader{{{OPERATOR_POD}}}"
STANDBY = LEADER.replace("op-0", "op-1")

# alert -> input series on which it fires after 90 minutes, and cases in which it does not fire
OPERATOR: dict[str, tuple[Series, list[Series]]] = {
    "MailProxyOperatorNotReconciling": (
        [(RESOURCES, "3x100"), (f'{RECONCILES}, result="ok"}}', "5x100")],
        [
            # a fresh installation without resources
            [(RESOURCES, "0x100"), (f'{RECONCILES}, result="ok"}}', "0x100")],
            # an operator that started 15 minutes ago, with its first resource
            [(RESOURCES, "_x75 1x100"), (f'{RECONCILES}, result="ok"}}', "_x75 1x100")],
            # a resync every ten minutes, with a resource that is not valid
            [
                (RESOURCES, "1x100"),
                (f'{RECONCILES}, result="hopeless"}}', " ".join(f"{n}x9" for n in range(12))),
                (f'{RECONCILES}, result="ok"}}', "0x100"),
            ],
        ],
    ),
    "MailProxyOperatorErrors": (
        [
            (f'{RECONCILES}, result="ok"}}', "0+60x100"),
            (f'{RECONCILES}, result="error"}}', "0+60x100"),
        ],
        [
            [
                (f'{RECONCILES}, result="ok"}}', "0+60x100"),
                (f'{RECONCILES}, result="retry"}}', "0+60x100"),
                (f'{RECONCILES}, result="error"}}', "0+6x100"),
            ],
            # resources that are not valid
            [
                (f'{RECONCILES}, result="ok"}}', "0+6x100"),
                (f'{RECONCILES}, result="hopeless"}}', "0+60x100"),
                (f'{RECONCILES}, result="error"}}', "0x100"),
            ],
        ],
    ),
    "MailProxyOperatorDown": (
        [(LEADER, "0x100"), (STANDBY, "0x100")],
        [[(LEADER, "0x100"), (STANDBY, "1x100")], [(LEADER, "1x60 0x40"), (STANDBY, "0x60 1x40")]],
    ),
    "MailProxyNotReady": (
        [(f'{CONDITION}, type="Ready", status="Unknown"}}', "1x100")],
        [
            [(f'{CONDITION}, type="Ready", status="True"}}', "1x100")],
            [(f'{CONDITION}, type="Reconciling", status="False"}}', "1x100")],
            # not running, then running again
            [(f'{CONDITION}, type="Ready", status="False"}}', "1x85 0x20")],
        ],
    ),
    "MailProxyStalled": (
        [(f'{CONDITION}, type="Stalled", status="True"}}', "1x100")],
        [[(f'{CONDITION}, type="Stalled", status="False"}}', "1x100")]],
    ),
    "MailProxySysctlForbidden": (
        [(f'mailproxy_operator_circuit_breakers_open{{{OPERATOR_POD}, reason="sysctl_forbidden"}}', "1x100")],
        [
            [
                (
                    f'mailproxy_operator_circuit_breakers_open{{{OPERATOR_POD}, reason="sysctl_forbidden"}}',
                    "0x100",
                )
            ]
        ],
    ),
}


def _run_promtool(needs: Needs, folder: Path, rules: dict[str, Any], test: dict[str, Any]) -> str:
    """Run one unit test with promtool, and return its output."""
    promtool = needs("promtool")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [{"interval": "1m", **test}]}
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    return run_program([promtool, "test", "rules", str(folder / "tests.yaml")])


def _series(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series]


@pytest.mark.interop
@pytest.mark.parametrize("record", RECORDED)
def test_recording_rules_have_expected_values(needs: Needs, tmp_path: Path, record: str) -> None:
    series, labels, value = RECORDED[record]
    # Rounded, because promtool compares floats exactly; rounding removes the name.
    expected = {"labels": f"{{{labels}}}", "value": value}
    asked = {"expr": f"round({record}, 0.001)", "eval_time": "10m", "exp_samples": [expected]}
    test = {"input_series": _series(series), "promql_expr_test": [asked]}
    assert PASSED in _run_promtool(needs, tmp_path, chart_rules(), test)


def _firing(
    needs: Needs, folder: Path, rules: dict[str, Any], series: Series, alert: str, minute: int
) -> str:
    """Return the firing alerts of a name, from promtool's message about unexpected alerts."""
    folder.mkdir()
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    asked = {"expr": firing, "eval_time": f"{minute}m", "exp_samples": []}
    return _run_promtool(needs, folder, rules, {"input_series": _series(series), "promql_expr_test": [asked]})


@pytest.mark.interop
@pytest.mark.parametrize("alert", OPERATOR)
def test_operator_alerts_fire_only_on_their_data(needs: Needs, tmp_path: Path, alert: str) -> None:
    fires, silent = OPERATOR[alert]
    output = _firing(needs, tmp_path / "fires", chart_rules(), fires, alert, 90)
    about_a_resource = alert in {"MailProxyNotReady", "MailProxyStalled"}
    assert f'namespace="{"mail" if about_a_resource else "system"}"' in output, output
    assert ('mailproxy="edge"' in output) == about_a_resource, output
    for number, series in enumerate(silent):
        output = _firing(needs, tmp_path / str(number), chart_rules(), series, alert, 90)
        assert PASSED in output, output


@pytest.mark.interop
def test_resource_alerts_work_with_honor_labels(needs: Needs, tmp_path: Path) -> None:
    """With honorLabels, as in the chart's monitors."""
    series = 'mailproxy_operator_condition{namespace="mail", name="edge", type="Ready", status="False"}'
    output = _firing(needs, tmp_path / "a", chart_rules(), [(series, "1x100")], "MailProxyNotReady", 90)
    assert 'mailproxy="edge"' in output
    assert 'namespace="mail"' in output


@pytest.mark.interop
def test_missing_operator_is_down(needs: Needs, tmp_path: Path) -> None:
    rules, alert = chart_rules(), "MailProxyOperatorDown"
    vanished = [(LEADER, "1x30"), (LEADER.replace("system", "other"), "1x100")]
    assert 'namespace="system"' in _firing(needs, tmp_path / "one", rules, vanished, alert, 60)
    assert alert in _firing(needs, tmp_path / "never", rules, [("up", "1x100")], alert, 90)


# --- every MailProxy at once, for a Prometheus without its operator ------------


def _input_series(name: str, series: Series) -> Series:
    """The input series of an alert, with the labels of another MailProxy."""
    job = f'namespace="{name}", mailproxy="edge", job="{name}/edge"'
    return [(one.replace('job="mail/edge"', job), values) for one, values in series]


@pytest.mark.interop
@pytest.mark.parametrize("alert", SERIES)
def test_two_proxies_have_two_alerts(needs: Needs, tmp_path: Path, alert: str) -> None:
    series = [*_input_series("a", SERIES[alert]), *_input_series("b", SERIES[alert])]
    # A hash or a certificate of one proxy must not be compared with those of the other.
    output = _firing(needs, tmp_path / "two", plain_rules(), series, alert, 80)
    for namespace in ("a", "b"):
        assert f'mailproxy="edge", namespace="{namespace}"' in output, output


@pytest.mark.interop
def test_config_skew_compares_pods_of_one_proxy(needs: Needs, tmp_path: Path) -> None:
    series: Series = [
        (
            f'mailproxy_config_info{{namespace="{name}", mailproxy="x", job="{name}/x", hash="{name}"}}',
            "1x90",
        )
        for name in ("a", "b")
    ]
    assert PASSED in _firing(needs, tmp_path / "a", plain_rules(), series, "MailProxyConfigSkew", 80)


def _rollout(old_minutes: int, drain_minutes: int) -> Series:
    """From minute 20 on, a pod has the next configuration; the old pod continues, then drains."""
    old, new = (f'{POD.replace("edge-0", name)}, mailproxy="edge"' for name in ("old", "new"))
    return [
        (f'mailproxy_config_info{{{old}, hash="a"}}', f"1x{20 + old_minutes + drain_minutes}"),
        (f"mailproxy_draining{{{old}}}", f"0x{19 + old_minutes} 1x{drain_minutes}"),
        (f'mailproxy_config_info{{{new}, hash="b"}}', "_x20 1x200"),
        (f"mailproxy_draining{{{new}}}", "_x20 0x200"),
    ]


@pytest.mark.interop
def test_rollout_is_not_a_config_skew(needs: Needs, tmp_path: Path) -> None:
    """Pods of both configurations run for ten minutes, and the old ones drain for an hour."""
    rules, alert = plain_rules(), "MailProxyConfigSkew"
    for minute in (29, 35, 60, 90):
        output = _firing(needs, tmp_path / str(minute), rules, _rollout(10, 60), alert, minute)
        assert PASSED in output, output
    assert alert in _firing(needs, tmp_path / "skew", rules, _rollout(40, 5), alert, 50)


@pytest.mark.interop
def test_proxies_with_their_own_jobs_are_not_down(needs: Needs, tmp_path: Path) -> None:
    """Proxies that are discovered by annotations have NAMESPACE/NAME as their job, not a common one."""
    job = 'namespace="mail", mailproxy="edge", job="mail/edge"'
    rules, alert = plain_rules(), "MailProxyDown"
    one_of_two: Series = [(f'up{{{job}, pod="a"}}', "1x90"), (f'up{{{job}, pod="b"}}', "0x90")]
    assert PASSED in _firing(needs, tmp_path / "up", rules, one_of_two, alert, 80)
    # A MailProxy that was deleted has no targets any more.
    assert PASSED in _firing(needs, tmp_path / "gone", rules, [(f"up{{{job}}}", "1x30")], alert, 80)
    others: Series = [('up{job="node"}', "0x90")]
    assert PASSED in _firing(needs, tmp_path / "others", rules, others, alert, 80)


def test_every_alert_has_a_description_and_an_existing_runbook() -> None:
    page = ALERTS_PAGE.read_text()
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert sections == [alert.name for alert in (*ALERTS, *OPERATOR_ALERTS)]
    for groups in (plain_rules(), chart_rules()):
        for rule in (rule for group in groups["groups"] for rule in group["rules"] if "alert" in rule):
            assert rule["annotations"]["description"].endswith((".", "}}"))
            where, _, anchor = rule["annotations"]["runbook_url"].rpartition("#")
            assert where.endswith(f"/blob/main/docs/{ALERTS_PAGE.name}")
            assert anchor in {name.lower() for name in sections}


def test_every_rule_has_a_test() -> None:
    assert RECORDED.keys() == RECORDS.keys()
    assert OPERATOR.keys() == {one.name for one in OPERATOR_ALERTS}


def test_plain_rules_are_the_rendered_alerts_for_every_proxy() -> None:
    groups = {group["name"]: group["rules"] for group in plain_rules()["groups"]}
    assert [rule["alert"] for rule in groups["mailproxy"]] == [alert.name for alert in ALERTS]
    for rule in groups["mailproxy"]:
        assert "namespace, mailproxy, job" in rule["expr"]
        assert "JOB" not in rule["expr"]
        assert "PROXY" not in rule["expr"]
        assert "JOB" not in rule["annotations"]["summary"]


@pytest.mark.interop
def test_plain_alert_has_the_instance(needs: Needs, tmp_path: Path) -> None:
    [_, group] = plain_rules()["groups"]
    [rule] = [one for one in group["rules"] if one["alert"] == "MailProxyReloadFailed"]
    fired = {
        "alertname": "MailProxyReloadFailed",
        "eval_time": "10m",
        "exp_alerts": [
            {
                "exp_labels": {
                    "severity": "warning",
                    "instance": "mail1:9113",
                    "job": "mailproxy",
                    "mailproxy": "edge",
                },
                "exp_annotations": {
                    **rule["annotations"],
                    "summary": "edge: mail1:9113 could not load its new configuration and keeps the old one",
                },
            }
        ],
    }
    labels = 'job="mailproxy", mailproxy="edge", instance="mail1:9113"'
    failed = (f"mailproxy_config_last_reload_successful{{{labels}}}", "0x20")
    test = {"input_series": _series([failed]), "alert_rule_test": [fired]}
    assert PASSED in _run_promtool(needs, tmp_path, plain_rules(), test)


def test_rules_query_only_existing_metrics() -> None:
    exposed = Metrics().exposition()[0].decode()
    known = {family.name for family in ALL_METRICS} | set(
        re.findall(r"^# TYPE (\w+) ", exposed, re.MULTILINE)
    )
    asked = {
        name
        for groups in (plain_rules(), chart_rules())
        for group in groups["groups"]
        for rule in group["rules"]
        for name in re.findall(r"(?<![\w:])mailproxy_\w+", rule["expr"])
    }
    assert "mailproxy_operator_condition" in asked
    assert {name for name in asked if re.sub("_(bucket|count)$", "", name) not in known} == set()
