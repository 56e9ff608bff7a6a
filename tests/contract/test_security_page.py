# SPDX-License-Identifier: Apache-2.0
"""docs/security.md has a reason and a test for each vulnerability of nginx's mail modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from support import pages

PAGE: Final = Path(__file__).parents[2] / "docs" / "security.md"
ROWS: Final = [row for row in pages.rows(PAGE) if len(row) == 4]
ASKED: Final = (
    *("CVE-2025-53859", "CVE-2026-27651", "CVE-2026-28753", "CVE-2026-113425", "CVE-2025-23419"),
    "nginx#1620",
)


def test_every_vulnerability_is_listed_once() -> None:
    named = [match[0] for row in ROWS for match in re.finditer(r"CVE-\d+-\d+|nginx#\d+", row[0])]
    assert sorted(named) == sorted(ASKED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_vulnerability_has_explanation_and_test(row: tuple[str, ...]) -> None:
    _, nginx, ours, shown = row
    assert nginx
    assert ours
    assert pages.missing(shown) == []
