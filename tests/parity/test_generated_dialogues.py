# SPDX-License-Identifier: Apache-2.0
"""Dialogues generated from a grammar: for any input of a client, nginx and the proxy send the same."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.fuzz import examples
from support.parity.dialogue import Dialogue
from support.parity.differences import HOW_TO_DECLARE
from support.parity.grammar import dialogues
from support.parity.results import Results

pytestmark = [
    pytest.mark.interop,
    # Long reprs of dialogues, and random numbers that other code draws meanwhile, do not matter here.
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]

EXAMPLES: Final = examples(6)
"""Batches for each protocol; ``make fuzz`` plays more of them."""
BATCH: Final = 32

bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),  # the first dialogue that differs is reported; shrinking the batch adds nothing
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


def _assert_all_accepted(batch: list[Dialogue], results: Results) -> None:
    for dialogue, comparison in zip(batch, results.compare(batch), strict=True):
        assert comparison.is_accepted, (
            f"{dialogue.steps}\n{dialogue.auth} {dialogue.upstream}\n{comparison.faults}\n{HOW_TO_DECLARE}"
        )


@bounded
@given(batch=st.lists(dialogues("imap"), min_size=BATCH, max_size=BATCH))
def test_generated_imap_dialogues_are_the_same(batch: list[Dialogue], results: Results) -> None:
    _assert_all_accepted(batch, results)


@bounded
@given(batch=st.lists(dialogues("pop3"), min_size=BATCH, max_size=BATCH))
def test_generated_pop3_dialogues_are_the_same(batch: list[Dialogue], results: Results) -> None:
    _assert_all_accepted(batch, results)


@bounded
@given(batch=st.lists(dialogues("smtp"), min_size=BATCH, max_size=BATCH))
def test_generated_smtp_dialogues_are_the_same(batch: list[Dialogue], results: Results) -> None:
    _assert_all_accepted(batch, results)
