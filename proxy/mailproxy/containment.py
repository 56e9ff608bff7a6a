# SPDX-License-Identifier: Apache-2.0
"""What an exception of our own ends: exactly the session, relay or connection that it belongs to.

Handlers, deadlines, deferred calls and callbacks of the event loop are entry
points: nothing above them catches an exception.  Each leads to an owner, and
``Engine.crashed`` ends that owner.  An entry point that works for another
object names it in its attribute ``owner``.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

_LINKS: Final = ("owner", "__self__", "func", "_callback")
"""From an object to its owner, a method to its object, a partial to its function, a handle to its call."""
_LONGEST: Final = 8
"""Links that are followed; a chain has at most five."""


@runtime_checkable
class Contained(Protocol):
    """Whatever an exception of our own ends."""

    def crashed(self) -> None:
        """End it: with the protocol's internal error where that can still be sent."""
        ...

    def give_up(self) -> None:
        """Close its descriptors and forget it in whatever state it is; never raises.

        Called where ``crashed`` has raised.
        """
        ...


def owner_of(culprit: object) -> Contained | None:
    """Find what ends with an exception.

    Args:
        culprit: A handler, a callback, or an asyncio handle.

    Returns:
        Its owner, or ``None`` where it belongs to the whole worker.
    """
    for _ in range(_LONGEST):
        if isinstance(culprit, Contained):
            return culprit
        links = (getattr(culprit, name, None) for name in _LINKS)
        culprit = next((link for link in links if link is not None), None)
    return None


def name_of(culprit: object) -> str:
    """Name code for the log; a ``repr`` would show the arguments of callbacks."""
    while (inner := getattr(culprit, "_callback", None) or getattr(culprit, "func", None)) is not None:
        culprit = inner
    get_coro = getattr(culprit, "get_coro", None)  # of a task
    name = getattr(culprit if get_coro is None else get_coro(), "__qualname__", None)
    return name if isinstance(name, str) else type(culprit).__name__
