# SPDX-License-Identifier: Apache-2.0
"""Runs one protocol generator in a test: results of effects in, effects out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mailproxy.protocols.sansio import Effect, Note, OneEffect, ProtocolGenerator, Receive, Send, SetDeadline


@dataclass
class Driven:
    """What a generator did.

    Attributes:
        result: What it returned.
        finished: Whether it returned.
        sent: All bytes that it sent.
        effects: The effects that needed a result, in order.
        notes: The events that it reported.
        deadlines: The deadlines that it set, in seconds.
    """

    result: Any = None
    finished: bool = False
    sent: bytes = b""
    effects: list[Effect] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)


def drive(generator: ProtocolGenerator[Any] | OneEffect | tuple[()], *results: Any) -> Driven:
    """Run a generator until it returns, or needs a result that was not given.

    ``Send``, ``Note`` and ``SetDeadline`` need no result; each other effect
    takes the next of ``results``.  An exception among them is raised in the generator.
    """
    if isinstance(generator, tuple):
        generator = _generator_of(generator)
    driven, waiting = Driven(), list(results)
    result: Any = None
    while True:
        is_error = isinstance(result, BaseException)
        try:
            effect = generator.throw(result) if is_error else generator.send(result)
        except StopIteration as end:
            driven.result, driven.finished = end.value, True
            assert not waiting, f"results left over: {waiting}"
            return driven
        result = None
        match effect:
            case Send(data):
                driven.sent += data
            case Note(event):
                driven.notes.append(event)
            case SetDeadline(seconds):
                driven.deadlines.append(seconds)
            case _:
                driven.effects.append(effect)
                if not waiting:
                    return driven
                result = waiting.pop(0)


def _generator_of(effects: OneEffect | tuple[()]) -> ProtocolGenerator[None]:
    yield from effects


def limits(driven: Driven) -> list[int]:
    """Return the limit of each ``Receive``."""
    return [effect.limit for effect in driven.effects if isinstance(effect, Receive)]
