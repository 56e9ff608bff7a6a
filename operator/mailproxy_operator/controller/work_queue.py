# SPDX-License-Identifier: Apache-2.0
"""Which resource is reconciled when: one at a time each, with a pause of its own after a failure."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.controller.reconciler import Outcome
from mailproxy_operator.errors import OperatorError, TransientError

WORKERS = 8
RECONCILE_SECONDS = 120.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
LONGEST_LOOK = 60.0
"""What is on its way is looked at again and again, ever less often: events tell most of it anyway."""

_log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[Outcome]]
Recorder = Callable[[Key, Outcome | None, float], None]
"""Told about every reconcile: whose, what came of it (``None``: a fault of ours), seconds."""


@dataclass(slots=True)
class _Entry:
    """What is known about one resource.

    Attributes:
        due: When it is to be reconciled; ``None`` when it is not.
        not_before: After a failure: events do not shorten the pause.
        looks: How often it has been looked at since it was last woken for a reason.
        begun: When the reconcile that runs now began.
    """

    due: float | None = None
    not_before: float = 0.0
    failures: int = 0
    requeues: int = 0
    begun: float | None = None


class WorkQueue:
    """Reconciles resources that were woken, a few at once.

    Args:
        work: Reconciles one resource.
        told: Told about every reconcile.
        workers: How many at once.
    """

    def __init__(self, work: Work, *, recorder: Recorder = lambda *_: None, workers: int = WORKERS) -> None:
        self._work = work
        self._told = recorder
        self._workers = workers
        self._entries: dict[Key, _Entry] = {}
        self._heap: list[tuple[float, Key]] = []
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return sum(entry.due is not None for entry in self._entries.values())

    def enqueue(self, key: Key, after: float = 0.0, *, reset_backoff: bool = False) -> None:
        """Have a resource reconciled.

        Args:
            key: Which.
            after: Seconds from now; whatever is due earlier stays so.
            reset_backoff: Somebody has changed the resource itself: a pause after failures is cut short.
        """
        entry = self._entries.setdefault(key, _Entry())
        if reset_backoff:
            entry.not_before, entry.failures, entry.requeues = 0.0, 0, 0
        due = max(self._now() + after, entry.not_before)
        if entry.due is None or due < entry.due:
            entry.due = due
            heapq.heappush(self._heap, (due, key))
            self._changed.set()

    def longest_running(self) -> float:
        """Tell for how many seconds the oldest reconcile has been running."""
        now = self._now()
        return max(
            (now - entry.begun for entry in self._entries.values() if entry.begun is not None), default=0.0
        )

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            key = await self._next()
            entry = self._entries[key]
            entry.due, entry.begun = None, self._now()
            try:
                await self._reconcile(key, entry)
            finally:
                entry.begun = None
            self._settle(key, entry)

    def _settle(self, key: Key, entry: _Entry) -> None:
        """Forget a resource that needs nothing; bring back one that was woken meanwhile."""
        if entry.due is not None:
            heapq.heappush(self._heap, (entry.due, key))
            self._changed.set()
        elif not entry.failures:
            del self._entries[key]

    async def _next(self) -> Key:
        """Wait for a resource that is due and not being worked on."""
        while True:
            now, wait = self._now(), None
            while self._heap:
                due, key = self._heap[0]
                entry = self._entries.get(key)
                if entry is None or entry.due != due or entry.begun is not None:
                    heapq.heappop(self._heap)
                    continue
                if due <= now:
                    heapq.heappop(self._heap)
                    return key
                wait = due - now
                break
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _reconcile(self, key: Key, entry: _Entry) -> None:
        begun = self._now()
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                outcome = await self._work(key)
        except OperatorError as failure:
            known = failure if isinstance(failure, TransientError) else TransientError(str(failure))
            outcome = Outcome(failed=known)
        except TimeoutError:
            outcome = Outcome(failed=TransientError(f"not finished after {RECONCILE_SECONDS:.0f} seconds"))
        except Exception:  # the outer edge of a reconcile: one resource's fault must not stop the others
            _log.exception("reconciling %s failed", key)
        self._told(key, outcome, self._now() - begun)
        self._plan_next(key, entry, outcome)

    def _plan_next(self, key: Key, entry: _Entry, outcome: Outcome | None) -> None:
        if outcome is None or outcome.failed is not None:
            asked = outcome.failed.delay if outcome and outcome.failed else None
            pause = asked if asked is not None else min(FIRST_PAUSE * 2**entry.failures, LONGEST_PAUSE)
            entry.failures = min(entry.failures + 1, 16)
            entry.not_before = self._now() + min(pause, LONGEST_PAUSE)
            entry.due = None
            self.enqueue(key, pause)
            if outcome and outcome.failed:
                _log.warning("reconciling %s again in %.0f s: %s", key, pause, outcome.failed)
            return
        entry.failures, entry.not_before = 0, 0.0
        if outcome.again_after is not None:
            self.enqueue(key, min(outcome.again_after * 2**entry.requeues, LONGEST_LOOK))
            entry.requeues = min(entry.requeues + 1, 16)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
