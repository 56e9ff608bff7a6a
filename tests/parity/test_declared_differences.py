# SPDX-License-Identifier: Apache-2.0
"""Every declared difference is in docs/quirks.md, and every difference there is declared."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from support import pages
from support.parity.cases import DIALOGUES
from support.parity.comparison import Outcome
from support.parity.differences import CLOSE_NOTIFY, DIFFERENCES, RESET_IS_EOF
from support.parity.results import Results

PAGE: Final = Path(__file__).parents[2] / "docs" / "quirks.md"
ROWS: Final = pages.rows(PAGE)
_NAME: Final = re.compile(r"\*\*([a-z0-9-]+)\*\* ")
NAMED: Final = [found[1] for row in ROWS if (found := _NAME.match(row[0]))]
NUMBERED: Final = {row[0]: row[1] for row in ROWS if row[0].startswith("Q-")}

NOT_SHOWN_HERE: Final = {
    "Q-17": "the second period after STARTTLS ends as the first does",
    "Q-20": "a listener that is refused has no dialogue; test_config_validation has it",
    "Q-23": "what is not done any more is not seen; own tests",
    "Q-24": "addresses of names change over time; own tests",
    "Q-27": "buffers that are refused have no dialogue; test_config_validation has them",
    "Q-30": "the end of the process; own tests",
    "Q-34": "what is remembered is not asked again; own tests",
}
"""Quirks that are not copied and that no dialogue shows, each with the reason."""


def test_every_declared_difference_has_a_row() -> None:
    declared = {name for name in DIFFERENCES if not name.startswith("Q-")}
    assert Counter(NAMED) == Counter(declared)
    numbered = {name for name in DIFFERENCES if name.startswith("Q-")}
    assert [name for name in numbered if NUMBERED.get(name) not in {"fixed", "chosen"}] == []


def test_every_quirk_that_is_not_copied_is_declared() -> None:
    not_copied = {name for name, kind in NUMBERED.items() if kind != "copied"}
    assert not_copied - set(DIFFERENCES) == set(NOT_SHOWN_HERE)


@pytest.mark.interop
@pytest.mark.parametrize("name", sorted(set(DIFFERENCES) - {RESET_IS_EOF, CLOSE_NOTIFY}))
def test_declared_difference_occurs(name: str, results: Results) -> None:
    results.play(dialogue for dialogue in DIALOGUES if dialogue.declared_difference)
    comparisons = [
        results.comparison(dialogue) for dialogue in DIALOGUES if dialogue.declared_difference == name
    ]
    assert comparisons
    assert [comparison.faults for comparison in comparisons if not comparison.is_accepted] == []
    same_since = DIFFERENCES[name].same_since
    if not same_since or results.kit.nginx.version < same_since:
        assert {comparison.outcome for comparison in comparisons} == {Outcome.DECLARED}
