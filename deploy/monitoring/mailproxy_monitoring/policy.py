# SPDX-License-Identifier: Apache-2.0
"""The row about policy servers."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import POLICY_RESULTS
from mailproxy_monitoring.grafana import Panel, Row
from mailproxy_monitoring.queries import JOB, rate

POLICY: Final = Row(
    "Policy server",
    (
        Panel(
            title="Questions by result",
            stacked=True,
            unit="reqps",
            width=8,
            queries=(
                (rate("mailproxy_policy_requests_total", "result", f'{JOB}, command="allow"'), "{{result}}"),
            ),
            colours=POLICY_RESULTS,
            description="Before and after the check of a password. skipped: the server has just failed.",
            alerts=("MailProxyPolicyServerFails",),
        ),
        Panel(
            title="Reports by result, and dropped reports",
            unit="reqps",
            width=8,
            queries=(
                (rate("mailproxy_policy_requests_total", "result", f'{JOB}, command="report"'), "{{result}}"),
                (rate("mailproxy_policy_reports_dropped_total", where=JOB), "dropped"),
            ),
            colours=POLICY_RESULTS,
            description="Results of logins that the policy server gets.",
        ),
        Panel(
            title="Suspended workers",
            unit="short",
            width=8,
            queries=((f"sum(mailproxy_policy_breaker_open{{{JOB}}})", "suspended"),),
            description="Workers that send no requests, because the policy server has failed.",
            alerts=("MailProxyPolicyServerFails",),
        ),
    ),
)
