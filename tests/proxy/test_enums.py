# SPDX-License-Identifier: Apache-2.0
"""Label values are an interface: dashboards and alerts use them."""

from __future__ import annotations

from enum import StrEnum

import pytest

from mailproxy import enums


@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (
            enums.Limit,
            [
                "conn_total",
                "max_errors",
                "max_commands",
                "limit_conn",
                "limit_req",
                "limit_preauth",
                "blocked",
            ],
        ),
        (enums.ZoneEvent, ["zone_full", "rejected", "dry_run", "delayed", "skipped"]),
        (enums.Direction, ["to_upstream", "to_client"]),
        (enums.TlsVersion, ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "other"]),
        (enums.ReloadResult, ["success", "failure"]),
        (enums.RestartReason, ["crash", "killed", "requested", "unresponsive"]),
        (enums.LoginOutcome, ["success", "failure"]),
        (enums.ConnectResult, ["ok", "error"]),
        (enums.Authenticated, ["true", "false"]),
    ],
)
def test_enum_values_are_as_documented(enum: type[StrEnum], values: list[str]) -> None:
    assert [word.value for word in enum] == values
