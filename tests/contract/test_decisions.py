# SPDX-License-Identifier: Apache-2.0
"""Every number of a decision has a page or a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "docs" / "decisions"


def test_every_number_has_a_page_or_a_reason() -> None:
    text = (FOLDER / "README.md").read_text()
    pages = {int(path.name[:4]): path.name for path in FOLDER.glob("[0-9]*.md")}
    cells = re.findall(r"^\| ([0-9, ]+) \|", text, re.MULTILINE)
    listed = {int(number) for cell in cells for number in cell.split(",")}
    assert listed == set(range(1, max(pages) + 1))
    assert set(re.findall(r"\(([0-9]{4}-[^)]+)\)", text)) == set(pages.values())


def test_index_has_the_title_of_each_page() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.glob("[0-9]*.md"):
        title = path.read_text().splitlines()[0].partition(". ")[2]
        assert f"[{title}]({path.name})" in text
