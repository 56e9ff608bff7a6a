# SPDX-License-Identifier: Apache-2.0
"""Label values are an interface: dashboards and alerts spell them out."""

from __future__ import annotations

from enum import StrEnum

import pytest

from mailproxy.observe import words


@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (words.Limit, ["conn_total", "max_errors"]),
        (words.LimitMode, ["enforce"]),
        (words.Direction, ["to_upstream", "to_client"]),
        (words.TlsVersion, ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "other"]),
        (words.ReloadResult, ["success", "failure"]),
        (words.RestartReason, ["crash", "killed", "requested", "unresponsive"]),
        (words.LoginOutcome, ["success", "failure"]),
        (words.ConnectResult, ["ok", "error"]),
        (words.Authenticated, ["true", "false"]),
    ],
)
def test_values_are_spelt_as_documented(enum: type[StrEnum], values: list[str]) -> None:
    assert [word.value for word in enum] == values
