# SPDX-License-Identifier: Apache-2.0
"""Reads the tables of a documentation page, and finds the tests that they name."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent.parent
_CELLS: Final = re.compile(r"(?<!\\)\|")
_QUOTED: Final = re.compile(r"`([^`]+)`")
_TEST: Final = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)


def rows(page: Path) -> list[tuple[str, ...]]:
    """All rows of all tables of a page, without the header rows."""
    found: list[tuple[str, ...]] = []
    lines = page.read_text("utf-8").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        is_head = before == "" or line.startswith("|---")
        if line.startswith("|") and not is_head:
            found.append(tuple(cell.strip().replace("\\|", "|") for cell in _CELLS.split(line)[1:-1]))
    return found


def quoted(cell: str) -> list[str]:
    """The texts between backticks in a cell."""
    return _QUOTED.findall(cell)


def missing(cell: str) -> list[str]:
    """The tests and transcripts of a cell that do not exist; a cell must name at least one."""
    named = quoted(cell)
    return [name for name in named if not _exists(name)] if named else ["a test"]


def _exists(name: str) -> bool:
    if name.startswith("test_"):
        return name in _tests()
    return (TESTS / "dialogues" / f"{name}.dialogue").is_file()


@functools.cache
def _tests() -> frozenset[str]:
    return frozenset(
        name for path in TESTS.rglob("test_*.py") for name in _TEST.findall(path.read_text("utf-8"))
    )
