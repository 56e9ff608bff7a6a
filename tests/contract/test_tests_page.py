# SPDX-License-Identifier: Apache-2.0
"""tests/README.md lists every folder of the tests and every module of tests/support, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
PAGE: Final = (TESTS / "README.md").read_text("utf-8")
_FIRST_CELL: Final = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def _listed(heading: str) -> list[str]:
    """Return the first cells of the tables below a heading of the second level."""
    [section] = re.findall(rf"(?ms)^## {re.escape(heading)}$(.+?)(?=^## |\Z)", PAGE)
    return _FIRST_CELL.findall(section)


def test_page_lists_every_support_module_once() -> None:
    support = TESTS / "support"
    modules = [str(path.relative_to(support)) for path in support.rglob("*.py")]
    assert sorted(_listed("Modules of `tests/support`")) == sorted(modules)


def test_page_lists_every_folder_once() -> None:
    folders = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert sorted(_listed("Folders")) == sorted(folders)
