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
    """The comparisons of one run; each written dialogue is played once.

    Attributes:
        kit: The kit that plays the dialogues.
        comparisons: The comparison of each dialogue that was played.
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
        """Return the comparison of a dialogue; play it if it was not played yet."""
        self.play([dialogue])
        return self.comparisons[dialogue]

    def play(self, dialogues: Iterable[Dialogue]) -> None:
        """Play those dialogues that were not played yet."""
        wanted = [dialogue for dialogue in dialogues if dialogue not in self.comparisons]
        self.comparisons |= dict(zip(wanted, self.compare(wanted), strict=True))

    def compare(self, dialogues: Sequence[Dialogue]) -> list[Comparison]:
        """Play dialogues, count their outcomes, and return their comparisons."""
        version = self.kit.nginx.version

        def is_settled(dialogue: Dialogue, nginx_record: Record | None, proxy_record: Record) -> bool:
            return compare_records(dialogue, nginx_record, proxy_record, version).is_accepted

        pairs = self.kit.play(dialogues, is_settled)
        found = [
            compare_records(dialogue, nginx_record, proxy_record, version)
            for dialogue, (nginx_record, proxy_record) in zip(dialogues, pairs, strict=True)
        ]
        for dialogue, (nginx_record, proxy_record) in zip(dialogues, pairs, strict=True):
            if nginx_record is not None:
                both = set(nginx_record.client.splitlines()) & set(proxy_record.client.splitlines())
                self.received[self.kit.blocks[dialogue.block].protocol] |= both
        for item in found:
            self.outcomes[item.outcome] += 1
            self.differences.update(item.differences)
        return found

    @property
    def summary(self) -> str:
        """The summary of the run, as one line."""
        total = sum(self.outcomes.values())
        parts = [f"{self.outcomes[outcome]} {outcome.value}" for outcome in Outcome if self.outcomes[outcome]]
        return f"{total} dialogues compared with {self.kit.nginx.name}: {', '.join(parts)}"
