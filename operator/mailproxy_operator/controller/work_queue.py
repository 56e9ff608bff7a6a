# SPDX-License-Identifier: Apache-2.0
"""The work queue: one reconcile per resource at a time, with a back-off per resource after a failure."""

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
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 300.0
MAX_REQUEUE_SECONDS = 60.0
"""Maximum requeue delay during a rollout: the delay grows, since events report most changes."""

_log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[Outcome]]
Recorder = Callable[[Key, Outcome | None, float], None]
"""Called after every reconcile: key, outcome (``None`` for an unexpected exception), seconds."""


@dataclass(slots=True)
class _Entry:
    """The queue state of one resource.

    Attributes:
        due: When it is due; ``None`` when it is not enqueued.
        not_before: The end of the back-off after a failure; events do not shorten it.
        requeues: How often it was requeued since the last change of the resource.
        started_at: When the current reconcile began; ``None`` when none runs.
    """

    due: float | None = None
    not_before: float = 0.0
    failures: int = 0
    requeues: int = 0
    started_at: float | None = None


class WorkQueue:
    """Reconciles enqueued resources with a fixed number of workers.

    Args:
        work: Reconciles one resource.
        recorder: Called after every reconcile.
        workers: The number of concurrent reconciles.
    """

    def __init__(self, work: Work, *, recorder: Recorder = lambda *_: None, workers: int = WORKERS) -> None:
        self._work = work
        self._recorder = recorder
        self._workers = workers
        self._entries: dict[Key, _Entry] = {}
        self._heap: list[tuple[float, Key]] = []
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self.keys())

    def enqueue(self, key: Key, after: float = 0.0, *, reset_backoff: bool = False) -> None:
        """Enqueue a resource.

        Args:
            key: The resource.
            after: Seconds from now; an earlier due time is kept.
            reset_backoff: The resource itself has changed: end the back-off after failures.
        """
        entry = self._entries.setdefault(key, _Entry())
        if reset_backoff:
            entry.not_before, entry.failures, entry.requeues = 0.0, 0, 0
        due = max(self._now() + after, entry.not_before)
        if entry.due is None or due < entry.due:
            entry.due = due
            heapq.heappush(self._heap, (due, key))
            self._changed.set()

    def keys(self) -> frozenset[Key]:
        """Return the enqueued resources."""
        return frozenset(key for key, entry in self._entries.items() if entry.due is not None)

    def requeues(self, key: Key) -> int:
        """Return how often a resource was requeued since its last change."""
        entry = self._entries.get(key)
        return entry.requeues if entry else 0

    def longest_running(self) -> float:
        """Return for how many seconds the oldest reconcile has been running."""
        now = self._now()
        return max(
            (now - entry.started_at for entry in self._entries.values() if entry.started_at is not None),
            default=0.0,
        )

    async def run(self) -> None:
        """Run the workers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            key = await self._next()
            entry = self._entries[key]
            entry.due, entry.started_at = None, self._now()
            try:
                await self._reconcile(key, entry)
            finally:
                entry.started_at = None
            self._finish(key, entry)

    def _finish(self, key: Key, entry: _Entry) -> None:
        """Remove a resource that is finished; requeue one that was enqueued during its reconcile."""
        if entry.due is not None:
            heapq.heappush(self._heap, (entry.due, key))
            self._changed.set()
        elif not entry.failures:
            del self._entries[key]

    async def _next(self) -> Key:
        """Wait for a resource that is due and not being reconciled."""
        while True:
            now, wait = self._now(), None
            while self._heap:
                due, key = self._heap[0]
                entry = self._entries.get(key)
                if entry is None or entry.due != due or entry.started_at is not None:
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
        started_at = self._now()
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                outcome = await self._work(key)
        except OperatorError as failure:
            error = failure if isinstance(failure, TransientError) else TransientError(str(failure))
            outcome = Outcome(failed=error)
        except TimeoutError:
            outcome = Outcome(failed=TransientError(f"not finished after {RECONCILE_SECONDS:.0f} seconds"))
        except Exception:  # an exception in one reconcile must not stop the others
            _log.exception("reconciling %s failed", key)
        self._recorder(key, outcome, self._now() - started_at)
        self._requeue(key, entry, outcome)

    def _requeue(self, key: Key, entry: _Entry, outcome: Outcome | None) -> None:
        if outcome is None or outcome.failed is not None:
            requested = outcome.failed.delay if outcome and outcome.failed else None
            delay = (
                requested
                if requested is not None
                else min(MIN_BACKOFF_SECONDS * 2**entry.failures, MAX_BACKOFF_SECONDS)
            )
            entry.failures = min(entry.failures + 1, 16)
            entry.not_before = self._now() + min(delay, MAX_BACKOFF_SECONDS)
            entry.due = None
            self.enqueue(key, delay)
            if outcome and outcome.failed:
                _log.warning("reconciling %s again in %.0f s: %s", key, delay, outcome.failed)
            return
        entry.failures, entry.not_before = 0, 0.0
        if outcome.again_after is not None:
            self.enqueue(key, min(outcome.again_after * 2**entry.requeues, MAX_REQUEUE_SECONDS))
            entry.requeues = min(entry.requeues + 1, 16)
        if outcome.changes_after is not None:
            self.enqueue(key, outcome.changes_after)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
