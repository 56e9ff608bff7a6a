# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/quirks.md has a reason and an existing test, and all numbered quirks are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from support import pages

PAGE: Final = Path(__file__).parents[2] / "docs" / "quirks.md"
ROWS: Final = pages.rows(PAGE)
NUMBERED: Final = [row for row in ROWS if row[0].startswith("Q-")]
UNNUMBERED: Final = [row for row in ROWS if not row[0].startswith("Q-")]


def test_every_numbered_quirk_is_listed_once() -> None:
    assert [row[0] for row in NUMBERED] == [f"Q-{number:02}" for number in range(1, 43)]


@pytest.mark.parametrize("row", NUMBERED, ids=lambda row: row[0])
def test_numbered_quirk_has_kind_reason_and_test(row: tuple[str, ...]) -> None:
    _, kind, *texts, shown = row
    assert kind in {"copied", "fixed", "chosen"}
    assert len(texts) == 3
    assert all(texts)
    assert pages.missing(shown) == []


@pytest.mark.parametrize("row", UNNUMBERED, ids=lambda row: row[0][:60])
def test_other_difference_has_reason_and_test(row: tuple[str, ...]) -> None:
    nginx, ours, why, shown = row
    assert all((nginx, ours, why))
    assert pages.missing(shown) == []


def test_the_page_has_rows() -> None:
    assert len(UNNUMBERED) > 40
