# SPDX-License-Identifier: Apache-2.0
"""Dashboard row: delays and blocks after failed logins."""

from __future__ import annotations

from typing import Final

from mailproxy_monitoring.colours import FAILED_CREDENTIALS, PENALTY_ACTIONS
from mailproxy_monitoring.grafana import EVENTS_PER_SECOND, LOGINS_PER_SECOND, Panel, Row
from mailproxy_monitoring.queries import JOB, rate

FAILED_LOGINS: Final = Row(
    "Failed logins",
    (
        Panel(
            title="Delayed and refused logins",
            stacked=True,
            unit=LOGINS_PER_SECOND,
            width=6,
            queries=((rate("mailproxy_auth_penalties_total", "action", JOB), "{{action}}"),),
            colours=PENALTY_ACTIONS,
            description="With authPenalty. known: not delayed, as the user logged in from there lately."
            " refused: with a temporary error.",
            alerts=("MailProxyPenaltyRefusesLogins",),
        ),
        Panel(
            title="Waiting logins",
            width=6,
            queries=((f"sum(mailproxy_auth_penalty_waiting{{{JOB}}})", "waiting"),),
            description="Logins that wait for their delay, or for another login of their account. Their"
            " maximum is authPenaltyMax per pod.",
            alerts=("MailProxyPenaltyRefusesLogins",),
        ),
        Panel(
            title="Refused credentials",
            stacked=True,
            unit=LOGINS_PER_SECOND,
            width=6,
            queries=(
                (rate("mailproxy_auth_failed_credentials_total", "credentials", JOB), "{{credentials}}"),
            ),
            colours=FAILED_CREDENTIALS,
            description="new: guesses and mistakes. repeated: devices with an old password.",
        ),
        Panel(
            title="Blocked addresses and connections",
            unit=EVENTS_PER_SECOND,
            width=6,
            queries=(
                (rate("mailproxy_auth_addresses_blocked_total", where=JOB), "blocks"),
                (
                    rate("mailproxy_limit_rejections_total", where=f'{JOB}, limit="blocked"'),
                    "closed connections",
                ),
            ),
            description="With authBlock. Connections of blocked addresses are closed without a reply.",
        ),
    ),
)
