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
from support.parity.differences import DIFFERENCES, GOODBYE, RESET_IS_EOF
from support.parity.results import Ledger

PAGE: Final = Path(__file__).parents[2] / "docs" / "quirks.md"
ROWS: Final = pages.rows(PAGE)
_NAME: Final = re.compile(r"\*\*([a-z0-9-]+)\*\* ")
NAMED: Final = [found[1] for row in ROWS if (found := _NAME.match(row[0]))]
NUMBERED: Final = {row[0]: row[1] for row in ROWS if row[0].startswith("Q-")}

ELSEWHERE: Final = {
    "Q-17": "the second period after STARTTLS ends as the first does",
    "Q-20": "a listener that is refused has no dialogue; test_config_validation has it",
    "Q-23": "what is not done any more is not seen; own tests",
    "Q-24": "addresses of names change over time; own tests",
    "Q-27": "buffers that are refused have no dialogue; test_config_validation has them",
    "Q-30": "the end of the process; own tests",
    "Q-34": "what is remembered is not asked again; own tests",
}
"""Quirks that are not copied and that no dialogue shows, each with the reason."""


def test_every_declared_difference_has_its_row() -> None:
    declared = {name for name in DIFFERENCES if not name.startswith("Q-")}
    assert Counter(NAMED) == Counter(declared)
    numbered = {name for name in DIFFERENCES if name.startswith("Q-")}
    assert [name for name in numbered if NUMBERED.get(name) not in {"fixed", "chosen"}] == []


def test_every_oddity_that_is_not_copied_is_declared() -> None:
    not_copied = {name for name, kind in NUMBERED.items() if kind != "copied"}
    assert not_copied - set(DIFFERENCES) == set(ELSEWHERE)


@pytest.mark.interop
@pytest.mark.parametrize("name", sorted(set(DIFFERENCES) - {RESET_IS_EOF, GOODBYE}))
def test_a_declared_difference_is_seen(name: str, ledger: Ledger) -> None:
    ledger.play(dialogue for dialogue in DIALOGUES if dialogue.differs)
    verdicts = [ledger.verdict(dialogue) for dialogue in DIALOGUES if dialogue.differs == name]
    assert verdicts
    assert [verdict.faults for verdict in verdicts if not verdict.is_fine] == []
    until = DIFFERENCES[name].until
    if not until or ledger.kit.nginx.version < until:
        assert {verdict.outcome for verdict in verdicts} == {Outcome.MEANT}
