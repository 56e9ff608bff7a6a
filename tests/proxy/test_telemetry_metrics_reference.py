# SPDX-License-Identifier: Apache-2.0
"""The reference page is generated from the definitions."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mailproxy.telemetry.definitions import ALL_METRICS
from mailproxy.telemetry.metrics_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def test_metrics_page_is_up_to_date() -> None:
    hint = "run: python -m mailproxy.telemetry.metrics_reference > docs/reference/metrics.md"
    assert PAGE.read_text() == reference(), hint


def test_every_metric_has_its_section() -> None:
    sections = [line for line in reference().splitlines() if line.startswith("## ")]
    assert sections == [f"## `{family.name}`" for family in ALL_METRICS]


def test_module_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(
        str(Path(__file__).parents[2] / "proxy/mailproxy/telemetry/metrics_reference.py"), run_name="__main__"
    )
    assert capsys.readouterr().out == reference()
