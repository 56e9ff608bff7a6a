# SPDX-License-Identifier: Apache-2.0
"""Label values are an interface: dashboards and alerts spell them out."""

from __future__ import annotations

from enum import StrEnum

import pytest

from mailproxy.telemetry import labels


@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (labels.Limit, ["conn_total", "max_errors"]),
        (labels.LimitMode, ["enforce"]),
        (labels.Direction, ["to_upstream", "to_client"]),
        (labels.TlsVersion, ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "other"]),
        (labels.ReloadResult, ["success", "failure"]),
        (labels.RestartReason, ["crash", "killed", "requested", "unresponsive"]),
        (labels.LoginOutcome, ["success", "failure"]),
        (labels.ConnectResult, ["ok", "error"]),
        (labels.Authenticated, ["true", "false"]),
    ],
)
def test_values_are_spelt_as_documented(enum: type[StrEnum], values: list[str]) -> None:
    assert [word.value for word in enum] == values
