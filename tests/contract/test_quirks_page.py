# SPDX-License-Identifier: Apache-2.0
"""docs/quirks.md lists every known difference from nginx, with its reason and its test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from support import pages

PAGE: Final = Path(__file__).parents[2] / "docs" / "quirks.md"
ROWS: Final = pages.rows(PAGE)
KNOWN: Final = [row for row in ROWS if row[0].startswith("Q-")]
OTHERS: Final = [row for row in ROWS if not row[0].startswith("Q-")]


def test_every_known_difference_is_listed_once() -> None:
    assert [row[0] for row in KNOWN] == [f"Q-{number:02}" for number in range(1, 43)]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row[0])
def test_known_difference_has_decision_and_test(row: tuple[str, ...]) -> None:
    _, kind, *told, shown = row
    assert kind in {"copied", "fixed", "chosen"}
    assert len(told) == 3
    assert all(told)
    assert pages.missing(shown) == []


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row[0][:60])
def test_other_difference_has_explanation_and_test(row: tuple[str, ...]) -> None:
    nginx, ours, why, shown = row
    assert all((nginx, ours, why))
    assert pages.missing(shown) == []


def test_page_has_rows() -> None:
    assert len(OTHERS) > 40
