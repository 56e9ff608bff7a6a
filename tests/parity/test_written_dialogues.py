# SPDX-License-Identifier: Apache-2.0
"""In every written dialogue, nginx and the proxy send the same, or differ as declared."""

from __future__ import annotations

from collections import Counter

import pytest

from support.parity.cases import BLOCKS, DIALOGUES
from support.parity.dialogue import Dialogue
from support.parity.differences import CLOSE_NOTIFY, DIFFERENCES, HOW_TO_DECLARE, RESET_IS_EOF
from support.parity.results import Results

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=str)
def test_nginx_and_proxy_send_the_same(dialogue: Dialogue, results: Results) -> None:
    comparison = results.comparison(dialogue)
    assert comparison.is_accepted, f"{comparison.faults}\n{HOW_TO_DECLARE}"


def test_every_declared_difference_has_a_dialogue() -> None:
    evidence = {dialogue.declared_difference for dialogue in DIALOGUES if dialogue.declared_difference}
    assert evidence | {RESET_IS_EOF, CLOSE_NOTIFY} == set(DIFFERENCES)


def test_names_of_dialogues_are_unique() -> None:
    assert [name for name, count in Counter(map(str, DIALOGUES)).items() if count > 1] == []


def test_names_of_server_blocks_are_unique() -> None:
    assert [name for name, count in Counter(block.name for block in BLOCKS).items() if count > 1] == []
