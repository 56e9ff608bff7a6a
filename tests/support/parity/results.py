# SPDX-License-Identifier: Apache-2.0
"""Keeps the results of the comparisons of one run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from support.parity.comparison import Comparison, Outcome, compare_records
from support.parity.dialogue import Dialogue
from support.parity.kit import Kit
from support.parity.record import Record


@dataclass
class Results:
    """The verdicts of one run; each written dialogue is played once.

    Attributes:
        kit: The kit that plays the dialogues.
        comparisons: The verdict on each dialogue that was played.
        outcomes: The count of each outcome, including generated dialogues.
        differences: The count of each declared difference that was seen.
        received: The lines that clients received from both programs, by protocol.
    """

    kit: Kit
    comparisons: dict[Dialogue, Comparison] = field(default_factory=dict)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    differences: Counter[str] = field(default_factory=Counter)
    received: defaultdict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))

    def comparison(self, dialogue: Dialogue) -> Comparison:
        """Return the verdict on a dialogue; play it if it was not played yet."""
        self.play([dialogue])
        return self.comparisons[dialogue]

    def play(self, dialogues: Iterable[Dialogue]) -> None:
        """Play those dialogues that were not played yet."""
        wanted = [dialogue for dialogue in dialogues if dialogue not in self.comparisons]
        self.comparisons |= dict(zip(wanted, self.compare(wanted), strict=True))

    def compare(self, dialogues: Sequence[Dialogue]) -> list[Comparison]:
        """Play dialogues, count their outcomes, and return their verdicts."""
        version = self.kit.nginx.version

        def is_settled(dialogue: Dialogue, theirs: Record | None, ours: Record) -> bool:
            return compare_records(dialogue, theirs, ours, version).is_accepted

        pairs = self.kit.play(dialogues, is_settled)
        found = [
            compare_records(dialogue, theirs, ours, version)
            for dialogue, (theirs, ours) in zip(dialogues, pairs, strict=True)
        ]
        for dialogue, (theirs, ours) in zip(dialogues, pairs, strict=True):
            if theirs is not None:
                both = set(theirs.client.splitlines()) & set(ours.client.splitlines())
                self.received[self.kit.blocks[dialogue.block].protocol] |= both
        for one in found:
            self.outcomes[one.outcome] += 1
            self.differences.update(one.differences)
        return found

    @property
    def summary(self) -> str:
        """The summary of the run, as one line."""
        total = sum(self.outcomes.values())
        parts = [f"{self.outcomes[outcome]} {outcome.value}" for outcome in Outcome if self.outcomes[outcome]]
        return f"{total} dialogues compared with {self.kit.nginx.name}: {', '.join(parts)}"
