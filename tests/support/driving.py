# SPDX-License-Identifier: Apache-2.0
"""Drives one dialogue by hand: answers in, what was said and asked out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mailproxy.protocols.sansio import Effect, Note, OneEffect, ProtocolGenerator, Receive, Send, SetDeadline


@dataclass
class Driven:
    """What became of a dialogue: its result, what it said, what it asked for, what it noted."""

    result: Any = None
    finished: bool = False
    said: bytes = b""
    asked: list[Effect] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)


def drive(dialogue: ProtocolGenerator[Any] | OneEffect | tuple[()], *answers: Any) -> Driven:
    """Run a dialogue until it ends, or waits for an answer that is not there.

    ``Send``, ``Note`` and ``SetDeadline`` answer themselves; everything else takes
    the next of ``answers``.  An exception among them is thrown.
    """
    if isinstance(dialogue, tuple):  # one that needs no answer
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
            case SetDeadline(seconds):
                driven.deadlines.append(seconds)
            case _:
                driven.asked.append(action)
                if not waiting:
                    return driven
                answer = waiting.pop(0)


def _telling(actions: OneEffect | tuple[()]) -> ProtocolGenerator[None]:
    yield from actions


def limits(driven: Driven) -> list[int]:
    """How many bytes each ``Receive`` asked for."""
    return [action.limit for action in driven.asked if isinstance(action, Receive)]
