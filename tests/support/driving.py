# SPDX-License-Identifier: Apache-2.0
"""Runs one protocol generator with given results, and records its actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mailproxy.protocols.sansio import Action, Deadline, Note, ProtocolGenerator, Receive, Send, Telling


@dataclass
class Driven:
    """The actions of a protocol generator, and its result."""

    result: Any = None
    finished: bool = False
    said: bytes = b""
    asked: list[Action] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)


def drive(dialogue: ProtocolGenerator[Any] | Telling | tuple[()], *answers: Any) -> Driven:
    """Run a generator until it ends, or waits for a result that is not given.

    ``Send``, ``Note`` and ``Deadline`` answer themselves; everything else takes
    the next of ``answers``.  An exception among them is thrown.
    """
    if isinstance(dialogue, tuple):  # actions without a result
        dialogue = _telling(dialogue)
    driven, waiting = Driven(), list(answers)
    answer: Any = None
    while True:
        failing = isinstance(answer, BaseException)
        try:
            action = dialogue.throw(answer) if failing else dialogue.send(answer)
        except StopIteration as end:
            driven.result, driven.finished = end.value, True
            assert not waiting, f"never asked for {waiting}"
            return driven
        answer = None
        match action:
            case Send(data):
                driven.said += data
            case Note(event):
                driven.notes.append(event)
            case Deadline(seconds):
                driven.deadlines.append(seconds)
            case _:
                driven.asked.append(action)
                if not waiting:
                    return driven
                answer = waiting.pop(0)


def _telling(actions: Telling | tuple[()]) -> ProtocolGenerator[None]:
    yield from actions


def limits(driven: Driven) -> list[int]:
    """Return the limit of each ``Receive``."""
    return [action.limit for action in driven.asked if isinstance(action, Receive)]
