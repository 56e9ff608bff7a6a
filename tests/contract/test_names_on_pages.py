# SPDX-License-Identifier: Apache-2.0
"""The tests and files that a page names exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")])
DEFINED: Final = frozenset(
    name
    for path in ROOT.glob("tests/**/*.py")
    for name in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
)
_TEST: Final = re.compile(r"`(test_[a-z0-9_]+)`")
_FILE: Final = re.compile(
    r"`((?:tests|proxy|operator|demo|deploy|charts|benchmarks|docs)/[\w./-]+\.(?:py|yaml|md|json|sh))`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_and_files_exist(page: Path) -> None:
    text = page.read_text()
    unknown = set(_TEST.findall(text)) - DEFINED
    missing = {name for name in _FILE.findall(text) if not (ROOT / name).exists()}
    assert (unknown, missing) == (set(), set())
