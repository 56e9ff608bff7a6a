# SPDX-License-Identifier: Apache-2.0
"""Which resource is reconciled when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.controller import work_queue
from mailproxy_operator.controller.reconciler import Outcome
from mailproxy_operator.controller.work_queue import WorkQueue
from mailproxy_operator.errors import TerminalError, TransientError

A, B = Key("mail", "a"), Key("mail", "b")


class Work:
    """Reconciles whose results a test sets."""

    def __init__(self) -> None:
        self.done: list[Key] = []
        self.running: set[Key] = set()
        self.results: dict[Key, list[Outcome | Exception]] = {}
        self.gate: dict[Key, asyncio.Event] = {}

    async def __call__(self, key: Key) -> Outcome:
        assert key not in self.running, "two reconciles of one resource at once"
        self.running.add(key)
        try:
            if key in self.gate:
                await self.gate[key].wait()
            result = self.results[key].pop(0) if self.results.get(key) else Outcome()
        finally:
            self.running.discard(key)
            self.done.append(key)
        if isinstance(result, Exception):
            raise result
        return result


@asynccontextmanager
async def running(work: Work, workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, workers=workers)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(queue.run())
        try:
            yield queue
        finally:
            task.cancel()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_resource_enqueued_many_times_is_reconciled_once() -> None:
    work = Work()
    async with running(work) as queue:
        for _ in range(50):
            queue.enqueue(A, 0.02)
        queue.enqueue(B)
        await until(lambda: len(work.done) == 2)
        await asyncio.sleep(0.05)
    assert sorted(work.done) == [A, B]


async def test_resource_enqueued_during_its_reconcile_is_reconciled_again() -> None:
    work = Work()
    work.gate[A] = asyncio.Event()
    async with running(work) as queue:
        queue.enqueue(A)
        await until(lambda: A in work.running)
        queue.enqueue(A)
        queue.enqueue(B)
        await until(lambda: B in work.done)
        assert queue.longest_running() > 0
        work.gate[A].set()
        await until(lambda: work.done.count(A) == 2)
        await until(lambda: len(queue) == 0)


async def test_events_do_not_shorten_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "MIN_BACKOFF_SECONDS", 30.0)
    work = Work()
    work.results[A] = [Outcome(failed=TransientError("busy"))]
    async with running(work) as queue:
        queue.enqueue(A)
        await until(lambda: work.done == [A])
        queue.enqueue(A)
        await asyncio.sleep(0.05)
        assert work.done == [A]
        assert len(queue) == 1
        queue.enqueue(A, reset_backoff=True)
        await until(lambda: work.done == [A, A])


@pytest.mark.parametrize(
    "failure",
    [
        Outcome(failed=TransientError("busy", delay=0.01)),
        TransientError("busy"),
        TerminalError("may not read", "Forbidden"),
        ValueError("a bug"),
    ],
)
async def test_failed_reconcile_is_retried(
    monkeypatch: pytest.MonkeyPatch, failure: Outcome | Exception
) -> None:
    monkeypatch.setattr(work_queue, "MIN_BACKOFF_SECONDS", 0.01)
    work = Work()
    work.results[A] = [failure, failure]
    recorder: list[Outcome | None] = []
    queue = WorkQueue(work, recorder=lambda _, outcome, __: recorder.append(outcome))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(queue.run())
        queue.enqueue(A)
        await until(lambda: len(work.done) == 3)
        task.cancel()
    assert (recorder[0] is None) is isinstance(failure, ValueError)
    assert recorder[-1] == Outcome()


async def test_reconcile_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "RECONCILE_SECONDS", 0.02)
    monkeypatch.setattr(work_queue, "MIN_BACKOFF_SECONDS", 0.01)
    work = Work()
    work.gate[A] = asyncio.Event()
    async with running(work, workers=1) as queue:
        queue.enqueue(A)
        await until(lambda: len(work.done) == 2)
        queue.enqueue(B)
        await until(lambda: B in work.done)


async def test_outcome_can_requeue_resource() -> None:
    work = Work()
    work.results[A] = [Outcome(again_after=0.01), Outcome(again_after=0.01)]
    async with running(work) as queue:
        queue.enqueue(A)
        await until(lambda: len(work.done) == 3)


async def test_requeue_delay_grows_until_resource_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "MAX_REQUEUE_SECONDS", 0.04)
    work = Work()
    work.results[A] = [Outcome(again_after=0.01)] * 6
    async with running(work) as queue:
        queue.enqueue(A)
        await until(lambda: work.results[A] == [])
        assert queue.requeues(A) == 6
        queue.enqueue(A, reset_backoff=True)
        assert queue.requeues(A) == 0


async def test_change_by_time_is_not_delayed_by_requeues_before() -> None:
    work = Work()
    work.results[A] = [Outcome(again_after=3600.0), Outcome(again_after=3600.0, changes_after=0.01)]
    async with running(work) as queue:
        queue.enqueue(A)
        await until(lambda: len(work.done) == 1)
        queue.enqueue(A)
        await until(lambda: len(work.done) == 3)


async def test_number_of_concurrent_reconciles_is_limited() -> None:
    work = Work()
    gate = asyncio.Event()
    keys = [Key("mail", str(index)) for index in range(100)]
    work.gate = dict.fromkeys(keys, gate)
    async with running(work, workers=3) as queue:
        for key in keys:
            queue.enqueue(key)
        await until(lambda: len(work.running) == 3)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await until(lambda: len(work.running) > 3)
        assert len(work.running) == 3
        gate.set()
        await until(lambda: len(work.done) == 100)
    assert sorted(work.done) == sorted(keys)
