# SPDX-License-Identifier: Apache-2.0
"""Compares two records, and checks whether a difference between them is declared."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from support.parity.dialogue import Dialogue
from support.parity.differences import DIFFERENCES, GOODBYE, RESET_IS_EOF, Difference, explaining
from support.parity.record import Record


class Outcome(Enum):
    """The result of a comparison."""

    SAME = "same"
    MEANT = "differs as declared"
    NEWER = "compared with what the newer nginx is known to do"
    WRONG = "differs"


@dataclass(frozen=True)
class Verdict:
    """The result of one dialogue.

    Attributes:
        outcome: The result of the comparison.
        differences: The names of the declared differences that were seen.
        faults: The faults found, as text.
    """

    outcome: Outcome
    differences: tuple[str, ...] = ()
    faults: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether the outcome is not ``WRONG``."""
        return self.outcome is not Outcome.WRONG


def judge(  # noqa: C901 - one branch per way in which two records may differ
    dialogue: Dialogue, theirs: Record | None, ours: Record, version: tuple[int, ...]
) -> Verdict:
    """Compare two records of one dialogue.

    Args:
        dialogue: The dialogue that was played.
        theirs: nginx's record; ``None`` if nginx is too old for the server block.
        ours: The proxy's record.
        version: The version of nginx.
    """
    faults = _unlike(ours, dialogue.ours, "the proxy")
    if dialogue.check is not None and (found := dialogue.check(ours)):
        faults.append(f"the proxy: {found}")
    is_old = version < dialogue.since
    if theirs is None:
        return _verdict(Outcome.NEWER, (), faults)
    if is_old or (dialogue.differs and not _is_over(dialogue, version)):
        faults += _unlike(theirs, dialogue.theirs, "nginx")
    if is_old:
        return _verdict(Outcome.NEWER, (), faults)
    seen: list[str] = []
    if dialogue.differs and not _is_over(dialogue, version):
        difference = DIFFERENCES[dialogue.differs]
        seen.append(difference.name)
        if dialogue.rest_differs:
            return _verdict(Outcome.MEANT, tuple(seen), faults)
        theirs, ours = _levelled(dialogue, difference, theirs, ours)
    if theirs.ending == "reset" and ours.ending in {"eof", "notified"}:
        seen.append(RESET_IS_EOF)
        theirs = replace(theirs, ending=ours.ending)
    if (theirs.afterwards, ours.afterwards) == ("eof", "notified"):
        seen.append(GOODBYE)
        theirs = replace(theirs, afterwards=ours.afterwards)
    if theirs != ours and dialogue.is_generated:
        explained = explaining(theirs, ours, version)
        if explained is not None:
            return _verdict(Outcome.MEANT, (*seen, explained.name), faults)
    faults += _differing(theirs, ours)
    return _verdict(Outcome.MEANT if seen else Outcome.SAME, tuple(seen), faults)


def _is_over(dialogue: Dialogue, version: tuple[int, ...]) -> bool:
    """Return whether this version of nginx behaves as the proxy does."""
    until = DIFFERENCES[dialogue.differs].until
    return bool(until) and version >= until


def _levelled(
    dialogue: Dialogue, difference: Difference, theirs: Record, ours: Record
) -> tuple[Record, Record]:
    """Make the fields equal that were already checked or that the difference affects."""
    if difference.level is not None:
        theirs, ours = difference.level(theirs), difference.level(ours)
    names = {_FIELDS.get(name, name) for name in (*dialogue.ours, *dialogue.theirs)}
    same: dict[str, Any] = {name: getattr(ours, name) for name in names}
    return replace(theirs, **same), ours


_FIELDS = {"client": "turns"}


def _verdict(outcome: Outcome, differences: tuple[str, ...], faults: list[str]) -> Verdict:
    return Verdict(Outcome.WRONG if faults else outcome, differences, "\n".join(faults))


def _unlike(record: Record, wanted: dict[str, object], who: str) -> list[str]:
    return [
        f"{who}: {name} is\n    {getattr(record, name)!r}\n  and not\n    {value!r}"
        for name, value in wanted.items()
        if getattr(record, name) != value
    ]


def _differing(theirs: Record, ours: Record) -> list[str]:
    return [
        f"{field.name}:\n  nginx     {getattr(theirs, field.name)!r}\n  the proxy {getattr(ours, field.name)!r}"
        for field in fields(Record)
        if getattr(theirs, field.name) != getattr(ours, field.name)
    ]
