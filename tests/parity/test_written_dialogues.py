# SPDX-License-Identifier: Apache-2.0
"""In every written dialogue, nginx and the proxy send the same, or differ as declared."""

from __future__ import annotations

from collections import Counter

import pytest

from support.parity.cases import BLOCKS, DIALOGUES
from support.parity.dialogue import Dialogue
from support.parity.differences import DIFFERENCES, GOODBYE, HOW_TO_DECLARE, RESET_IS_EOF
from support.parity.results import Ledger

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=str)
def test_both_answer_alike(dialogue: Dialogue, ledger: Ledger) -> None:
    verdict = ledger.verdict(dialogue)
    assert verdict.is_fine, f"{verdict.faults}\n{HOW_TO_DECLARE}"


def test_every_declared_difference_is_shown() -> None:
    shown = {dialogue.differs for dialogue in DIALOGUES if dialogue.differs}
    assert shown | {RESET_IS_EOF, GOODBYE} == set(DIFFERENCES)


def test_no_two_dialogues_have_one_name() -> None:
    assert [name for name, count in Counter(map(str, DIALOGUES)).items() if count > 1] == []


def test_no_two_servers_have_one_name() -> None:
    assert [name for name, count in Counter(block.name for block in BLOCKS).items() if count > 1] == []
