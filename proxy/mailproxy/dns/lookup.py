# SPDX-License-Identifier: Apache-2.0
"""One kind of look-up: remembered, shared between those who ask the same, limited in time and number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic

from mailproxy.dns.cache import Cache, K
from mailproxy.dns.measures import MAX_LOOK_UPS, Answer, Cancel, V, WorkerMetrics, count
from mailproxy.dns.task_set import TaskSet
from mailproxy.enums import DnsPurpose, DnsResult

_ANSWERED: Final = frozenset({DnsResult.OK, DnsResult.NXDOMAIN})


class _Waiter(Generic[K, V]):
    """Somebody who wants an answer; ``owner`` leads to what ends where giving it raises."""

    __slots__ = ("_done", "_question", "owner")

    def __init__(self, question: _Question[K, V], done: Callable[[Answer[V]], None]) -> None:
        self._question = question
        self.owner = done
        self._done: Callable[[Answer[V]], None] | None = done

    def tell(self, answer: Answer[V]) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)

    def cancel(self) -> None:
        if self._done is not None:
            self._done = None
            self._question.lose(self)


class _Question(Generic[K, V]):
    """A look-up under way, and who waits for it."""

    __slots__ = ("_pending", "key", "task", "waiters")

    def __init__(self, pending: dict[K, _Question[K, V]], key: K) -> None:
        self._pending = pending
        self.key = key
        self.task: asyncio.Task[None] | None = None
        self.waiters: dict[_Waiter[K, V], None] = {}
        pending[key] = self

    def lose(self, waiter: _Waiter[K, V]) -> None:
        """Forget a waiter, and with the last one the question: without a limit it might be asked for ever."""
        self.waiters.pop(waiter, None)
        if not self.waiters and self.task is not None:
            task = self.task
            self.end()
            task.cancel()

    def end(self) -> None:
        """Make room for the next one who asks this."""
        self.task = None  # it holds this question in turn
        if self._pending.get(self.key) is self:
            del self._pending[self.key]

    def tell(self, answer: Answer[V]) -> None:
        """Answer everybody, each on its own: one who fails must not cost the others theirs."""
        self.end()
        loop = asyncio.get_running_loop()
        for waiter in self.waiters:
            loop.call_soon(waiter.tell, answer)
        self.waiters.clear()


class LookupCache(Generic[K, V]):
    """Look-ups of one purpose.

    Args:
        purpose: What they are for; a metric's label.
        ask: Puts one question to the name servers.
        timeout: ``resolver_timeout`` in seconds; 0 is no limit.
        cache: Where answers are kept.
        metrics: Counts questions and durations.
        limit: How many may be under way.
        failed: Called for each that fails or times out; that there is no such name is no failure.
    """

    def __init__(
        self,
        purpose: DnsPurpose,
        ask: Callable[[K], Awaitable[Answer[V]]],
        *,
        timeout: float,
        cache: Cache[K, V],
        metrics: WorkerMetrics,
        limit: int = MAX_LOOK_UPS,
        failed: Callable[[K, DnsResult], None] | None = None,
    ) -> None:
        self._failed = failed
        self._purpose = purpose
        self._ask = ask
        self._timeout = timeout or None
        self._cache = cache
        self._metrics = metrics
        self._limit = limit
        self._pending: dict[K, _Question[K, V]] = {}
        self._tasks = TaskSet()
        self.cached = cache.get

    def find(self, key: K, done: Callable[[Answer[V]], None]) -> Cancel:
        """Ask, together with whoever asks the same already; ``done`` hears the answer.

        Above the limit ``done`` is told at once that there is no answer.
        """
        question = self._pending.get(key)
        if question is None:
            if len(self._pending) >= self._limit:
                done(Answer(DnsResult.INVALID))
                return _nothing
            question = _Question(self._pending, key)
            question.task = self._tasks.begin(self._run(question))
        waiter = _Waiter(question, done)
        question.waiters[waiter] = None
        return waiter.cancel

    async def close(self) -> None:
        """Give up on everything under way; who waits is told so."""
        for question in tuple(self._pending.values()):
            question.tell(Answer(DnsResult.INVALID))
        await self._tasks.close()
        self._cache.clear()

    async def _run(self, question: _Question[K, V]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer: Answer[V] = Answer(DnsResult.INVALID)
        try:
            answer = await self._answer(question.key)
            count(self._metrics, self._purpose, answer.result, loop.time() - began)
            self._cache.put(question.key, answer)
            if self._failed is not None and answer.result not in _ANSWERED:
                self._failed(question.key, answer.result)
        finally:
            question.tell(answer)

    async def _answer(self, key: K) -> Answer[V]:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(key)
        except TimeoutError:
            return Answer(DnsResult.TIMEOUT)


def _nothing() -> None:
    """There is nothing to lose interest in."""
