# SPDX-License-Identifier: Apache-2.0
"""How soon a dead worker is replaced: at once, unless they die all the time."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_SECONDS: Final = 10.0
FREE: Final = 3
INTERVAL_SECONDS: Final = 1.0


class Backoff:
    """Counts deaths.

    The first three within ten seconds cost nothing; after that, replacements
    start at least one second apart.
    """

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=FREE + 1)
        self._next = 0.0

    def pause(self, now: float) -> float:
        """Count a death, and say how many seconds to wait before its replacement starts.

        Args:
            now: Monotonic time in seconds.
        """
        self._deaths.append(now)
        recent = sum(1 for death in self._deaths if now - death < WINDOW_SECONDS)
        start = now if recent <= FREE else max(now, self._next)
        self._next = start + INTERVAL_SECONDS
        return start - now
