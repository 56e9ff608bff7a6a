"""Every difference from nginx that is meant.  What is not here is a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from support.parity.dialogue import Dialogue
from support.parity.record import Record


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        name: The quirk's number, or a word.
        nginx: What nginx does.
        proxy: What the proxy does.
        reason: Why.
        kind: ``fixed``, ``chosen``, ``stricter``, ``newer`` (what a newer nginx does) or ``extended``.
        until: The version of nginx that does as the proxy does.
        level: Makes both records equal in what this is about.
        explains: Tells whether this is why a generated dialogue's records differ.
    """

    name: str
    nginx: str
    proxy: str
    reason: str
    kind: str = "fixed"
    until: tuple[int, ...] = ()
    level: Callable[[Record], Record] | None = None
    explains: Callable[[Dialogue, Record, Record], bool] | None = None


RESET_IS_EOF: Final = "Q-25"

_TABLE: Final[tuple[Difference, ...]] = (
    Difference(
        RESET_IS_EOF,
        "closes at once; where input lies unread, TCP resets the connection and the last reply may be lost",
        "shuts its side, reads past what still comes for a moment, then closes",
        "the client should hear the last reply",
    ),
)

DIFFERENCES: Final = {difference.name: difference for difference in _TABLE}


def explaining(dialogue: Dialogue, theirs: Record, ours: Record) -> Difference | None:
    """Find the difference that explains why a generated dialogue's records are not the same."""
    for difference in _TABLE:
        if difference.explains is not None and difference.explains(dialogue, theirs, ours):
            return difference
    return None
