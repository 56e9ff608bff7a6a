# SPDX-License-Identifier: Apache-2.0
"""Compares two records, and checks whether a difference between them is declared."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from support.parity.dialogue import Dialogue
from support.parity.differences import CLOSE_NOTIFY, DIFFERENCES, RESET_IS_EOF, Difference, find_explanation
from support.parity.record import Record


class Outcome(Enum):
    """The result of a comparison."""

    SAME = "same"
    DECLARED = "differs as declared"
    NEWER = "compared with what the newer nginx is known to do"
    UNDECLARED = "differs"


@dataclass(frozen=True)
class Comparison:
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
    def is_accepted(self) -> bool:
        """Whether the outcome is not ``UNDECLARED``."""
        return self.outcome is not Outcome.UNDECLARED


def compare_records(  # noqa: C901 - one branch per way in which two records may differ
    dialogue: Dialogue, nginx_record: Record | None, proxy_record: Record, version: tuple[int, ...]
) -> Comparison:
    """Compare two records of one dialogue.

    Args:
        dialogue: The dialogue that was played.
        nginx_record: nginx's record; ``None`` if nginx is too old for the server block.
        proxy_record: The proxy's record.
        version: The version of nginx.
    """
    faults = _mismatches(proxy_record, dialogue.proxy_record, "the proxy")
    if dialogue.check is not None and (found := dialogue.check(proxy_record)):
        faults.append(f"the proxy: {found}")
    is_old = version < dialogue.since
    if nginx_record is None:
        return _comparison(Outcome.NEWER, (), faults)
    if is_old or (dialogue.declared_difference and not _nginx_behaves_alike(dialogue, version)):
        faults += _mismatches(nginx_record, dialogue.nginx_record, "nginx")
    if is_old:
        return _comparison(Outcome.NEWER, (), faults)
    seen: list[str] = []
    if dialogue.declared_difference and not _nginx_behaves_alike(dialogue, version):
        difference = DIFFERENCES[dialogue.declared_difference]
        seen.append(difference.name)
        if dialogue.allows_other_differences:
            return _comparison(Outcome.DECLARED, tuple(seen), faults)
        nginx_record, proxy_record = _equalize(dialogue, difference, nginx_record, proxy_record)
    if nginx_record.ending == "reset" and proxy_record.ending in {"eof", "notified"}:
        seen.append(RESET_IS_EOF)
        nginx_record = replace(nginx_record, ending=proxy_record.ending)
    if (nginx_record.afterwards, proxy_record.afterwards) == ("eof", "notified"):
        seen.append(CLOSE_NOTIFY)
        nginx_record = replace(nginx_record, afterwards=proxy_record.afterwards)
    if nginx_record != proxy_record and dialogue.is_generated:
        explanation = find_explanation(nginx_record, proxy_record, version)
        if explanation is not None:
            return _comparison(Outcome.DECLARED, (*seen, explanation.name), faults)
    faults += _field_differences(nginx_record, proxy_record)
    return _comparison(Outcome.DECLARED if seen else Outcome.SAME, tuple(seen), faults)


def _nginx_behaves_alike(dialogue: Dialogue, version: tuple[int, ...]) -> bool:
    """Return whether this version of nginx behaves as the proxy does."""
    same_since = DIFFERENCES[dialogue.declared_difference].same_since
    return bool(same_since) and version >= same_since


def _equalize(
    dialogue: Dialogue, difference: Difference, nginx_record: Record, proxy_record: Record
) -> tuple[Record, Record]:
    """Make the fields equal that were already checked or that the difference affects."""
    if difference.equalize is not None:
        nginx_record, proxy_record = difference.equalize(nginx_record), difference.equalize(proxy_record)
    names = {_FIELD_OF_PROPERTY.get(name, name) for name in (*dialogue.proxy_record, *dialogue.nginx_record)}
    same: dict[str, Any] = {name: getattr(proxy_record, name) for name in names}
    return replace(nginx_record, **same), proxy_record


_FIELD_OF_PROPERTY = {"client": "turns"}


def _comparison(outcome: Outcome, differences: tuple[str, ...], faults: list[str]) -> Comparison:
    return Comparison(Outcome.UNDECLARED if faults else outcome, differences, "\n".join(faults))


def _mismatches(record: Record, expected: dict[str, object], program: str) -> list[str]:
    return [
        f"{program}: {name} is\n    {getattr(record, name)!r}\n  and not\n    {value!r}"
        for name, value in expected.items()
        if getattr(record, name) != value
    ]


def _field_differences(nginx_record: Record, proxy_record: Record) -> list[str]:
    return [
        f"{field.name}:\n  nginx     {getattr(nginx_record, field.name)!r}\n  the proxy {getattr(proxy_record, field.name)!r}"
        for field in fields(Record)
        if getattr(nginx_record, field.name) != getattr(proxy_record, field.name)
    ]
