# SPDX-License-Identifier: Apache-2.0
"""The reference page of directives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mailproxy_config.directives import DIRECTIVES, Directive
from mailproxy_config.kubernetes_schema import DEPLOYMENT_MEANINGS
from mailproxy_config.listen_directive import LISTEN_PARAMETERS
from mailproxy_config.reference_page import render_page

ROOT = Path(__file__).parents[2]


def test_page_in_repository_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "directives.md").read_text()
    assert page == render_page(), (
        "run: python -m mailproxy_config.reference_page > docs/reference/directives.md"
    )


@pytest.mark.parametrize("row", DIRECTIVES, ids=lambda row: row.name)
def test_page_has_every_directive(row: Directive) -> None:
    lines = [line for line in render_page().splitlines() if line.startswith(f"| `{row.name}` | ")]
    assert any(row.meaning in line for line in lines)


def test_page_has_every_other_field() -> None:
    page = render_page()
    for name in (*(row.field for row in LISTEN_PARAMETERS), *DEPLOYMENT_MEANINGS):
        assert f"`{name}` |" in page


def test_rows_have_as_many_cells_as_the_header() -> None:
    counts = [
        line.replace("\\|", "").count("|") for line in render_page().splitlines() if line.startswith("|")
    ]
    assert set(counts) == {3, 5, 7}


def test_page_is_printed() -> None:
    command = [sys.executable, "-m", "mailproxy_config.reference_page"]
    printed = subprocess.run(command, cwd=ROOT / "proxy", capture_output=True, text=True, check=True)
    assert printed.stdout == render_page()
