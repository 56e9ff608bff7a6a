# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/limits.md names an existing test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from support import pages

PAGE: Final = Path(__file__).parents[2] / "docs" / "limits.md"
ROWS: Final = pages.rows(PAGE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_rows_are_complete(row: tuple[str, ...]) -> None:
    what, bound, _default, consequence, shown = row
    assert what
    assert bound
    assert consequence or not _default
    assert pages.missing(shown) == []


def test_page_has_rows() -> None:
    assert len(ROWS) > 60


def test_limits_are_unique() -> None:
    names = [row[0] for row in ROWS]
    assert len(names) == len(set(names))


def test_named_constants_exist() -> None:
    sources = "\n".join(path.read_text() for path in (PAGE.parents[1] / "proxy").rglob("*.py"))
    named = {word for row in ROWS for word in pages.quoted(row[1]) if word.isupper()}
    assert named
    assert {word for word in named if f"{word}: Final" not in sources and f"{word} =" not in sources} == set()
