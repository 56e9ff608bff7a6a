# SPDX-License-Identifier: Apache-2.0
"""Looks at everything now and then: what a watch has missed is found here."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from mailproxy_operator.errors import OperatorError
from mailproxy_operator.snapshot import Snapshot
from mailproxy_operator.waker import Waker

SPREAD = 0.1
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 60.0
STUCK_SECONDS = 180.0
"""A listing that goes on is never stuck: every page has a deadline of its own."""

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Where everything is read."""

    async def snapshot(self, namespaces: tuple[str, ...], *, moved: Callable[[], None]) -> Snapshot:
        """Read every MailProxy and all that they own.

        Args:
            namespaces: Of these namespaces; of all where there are none.
            moved: Called whenever there is a page more.
        """


class Resync:
    """The resync of one operator that works.

    Args:
        source: Where everything is read.
        waker: Who is told.
        namespaces: Which to look at; all of them when empty.
        interval: Seconds between two looks.

    Attributes:
        is_synced: Whether everything has been seen once.
    """

    def __init__(self, source: Source, waker: Waker, *, namespaces: tuple[str, ...], interval: float) -> None:
        self.is_synced = False
        self._source = source
        self._waker = waker
        self._namespaces = namespaces
        self._interval = interval
        self._moved_at = _now()

    def trouble(self) -> str:
        """Tell why it is stuck; nothing when it is not.

        An API server that refuses or does not answer is no reason: another start would not help.
        """
        age = _now() - self._moved_at
        return f"no resync has got on for {age:.0f} seconds" if age > self._patience() else ""

    def _patience(self) -> float:
        return max(3 * self._interval, STUCK_SECONDS)

    async def run(self) -> None:
        """Look again and again, until cancelled: at once to begin with, without haste from then on."""
        spread = 0.0
        while True:
            pause = await self._look(spread)
            self._moved()
            spread = SPREAD * self._interval if self.is_synced else 0.0
            await asyncio.sleep(pause)

    async def _look(self, spread: float) -> float:
        """Look once.

        Args:
            spread: Seconds over which to distribute what follows.

        Returns:
            Seconds until the next time.
        """
        self._waker.about_to_look()
        try:
            snapshot = await self._source.snapshot(self._namespaces, moved=self._moved)
        except OperatorError as failure:
            _log.warning("resync: %s", failure)
            return min(max(getattr(failure, "delay", None) or 0.0, RETRY_SECONDS), LONGEST_RETRY_SECONDS)
        self._waker.resync(snapshot, spread=spread)
        self.is_synced = True
        return self._interval * random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311

    def _moved(self) -> None:
        self._moved_at = _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
