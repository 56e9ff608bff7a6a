# SPDX-License-Identifier: Apache-2.0
"""When a client gets the reply to a refused login (``auth_mode upstream``).

The time of a refusal must not show whether an upstream was asked: otherwise anybody could list the
domains that the proxy serves.  So a refusal without an upstream takes as long as the refusals of
upstreams have taken, and both have the same minimum and the same random part.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from random import SystemRandom
from typing import TYPE_CHECKING, Final

from mailproxy.protocols import sansio

if TYPE_CHECKING:
    from mailproxy.session.session import Session

MIN_SECONDS: Final = 2.0
"""The shortest time between a login and its refusal, without ``auth_failure_delay``."""
MAX_SECONDS: Final = 10.0
"""The longest, without its random part, for a refusal that is earlier, unless the minimum is longer."""
WINDOW: Final = 32
"""Refusals of upstreams that are remembered."""
JITTER: Final = 0.25
"""The random part is at most this fraction of the rest."""

_RANDOM: Final = SystemRandom()


class RefusalTimes:
    """How long the last refusals of one server's upstreams took.

    Both kinds of refusals are sent after ``max(minimum, min(max(median, t), MAX_SECONDS))``, plus a random
    part of at most a quarter.  ``t`` is the time that the upstream took, or that of one of the last
    refusals, drawn at random, where no upstream was asked.  The two thus have one distribution.

    Args:
        random: Returns a number from 0 up to 1.
    """

    __slots__ = ("_random", "_seconds")

    def __init__(self, random: Callable[[], float] = _RANDOM.random) -> None:
        self._random = random
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def seconds_left(self, elapsed: float, *, is_upstream: bool, minimum: float | None = None) -> float:
        """Return how long to wait now, in seconds.

        Args:
            elapsed: Seconds since the login.
            is_upstream: Whether an upstream has refused it; its time is remembered.
            minimum: The shortest time in seconds; ``MIN_SECONDS`` if it is not given.
        """
        seconds = self._seconds
        least = MIN_SECONDS if minimum is None else minimum
        median = statistics.median(seconds) if seconds else 0.0
        if is_upstream:
            taken = elapsed
            seconds.append(min(elapsed, MAX_SECONDS))
        else:
            taken = seconds[int(self._random() * len(seconds))] if seconds else 0.0
        due = max(least, min(max(median, taken), MAX_SECONDS)) * (1 + JITTER * self._random())
        return max(due - elapsed, 0.0)


def wait_to_refuse(session: Session, effect: sansio.WaitToRefuse) -> object:
    """Perform ``WaitToRefuse``: the login is counted, so that its duration is in the session's record.

    Delays before the check of the login (``auth_penalty``, ``limit_req``, a policy server) are no part of
    the time that a refusal takes: they do not depend on the route, and the time of the upstream comes
    on top of them.
    """
    server = session.server
    elapsed = max((session.record.login_seconds or 0.0) - session.seconds_to_check, 0.0)
    seconds = server.refusals.seconds_left(
        elapsed, is_upstream=effect.is_upstream, minimum=server.config.auth_failure_delay
    )
    return session.wait(sansio.Wait(seconds))
