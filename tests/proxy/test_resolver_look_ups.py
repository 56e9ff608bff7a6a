# SPDX-License-Identifier: Apache-2.0
"""Sharing, limiting and losing interest, over questions that the test answers itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mailproxy.dns.cache import Cache
from mailproxy.dns.lookup import LookupCache, _Waiter
from mailproxy.dns.measures import Answer
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics

OK: Answer[str] = Answer(DnsResult.OK, "value", 60)
NO_ANSWER: Answer[str] = Answer(DnsResult.INVALID)


class Questions:
    """Holds every question until the test answers it."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[Answer[str]]] = {}
        self.asked: list[str] = []

    async def ask(self, key: str) -> Answer[str]:
        self.asked.append(key)
        self.open[key] = asyncio.get_running_loop().create_future()
        return await self.open[key]


class Table:
    """Look-ups, who answers them, and what was heard."""

    def __init__(self, *, timeout: float = 0, limit: int = 3) -> None:
        self.questions = Questions()
        self.metrics = WorkerMetrics()
        cache: Cache[str, str] = Cache(None, self.metrics)
        self.look_ups = LookupCache(
            DnsPurpose.PTR,
            self.questions.ask,
            timeout=timeout,
            cache=cache,
            metrics=self.metrics,
            limit=limit,
        )
        self.heard: list[Answer[str]] = []

    def find(self, key: str) -> Callable[[], None]:
        return self.look_ups.find(key, self.heard.append)

    async def answer(self, key: str) -> None:
        self.questions.open[key].set_result(OK)
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_everybody_hears_the_one_answer() -> None:
    table = Table()
    table.find("a")
    table.find("a")
    await settled()
    await table.answer("a")
    assert table.heard == [OK, OK]
    assert table.questions.asked == ["a"]
    assert table.look_ups.cached("a") is OK


def crash(_: Answer[str]) -> None:
    raise ZeroDivisionError


async def test_one_that_fails_does_not_cost_the_others_their_answer() -> None:
    table = Table()
    table.look_ups.find("a", crash)
    table.find("a")
    crashes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    await settled()
    await table.answer("a")
    assert table.heard == [OK]
    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


async def test_above_the_limit_there_is_no_answer() -> None:
    table = Table(limit=2)
    for key in ("a", "b", "c", "a"):
        table.find(key)()  # whoever leaves makes room
    for key in ("a", "b", "a"):
        table.find(key)
    assert table.heard == []
    table.find("c")()
    assert table.heard == [NO_ANSWER]
    await settled()
    assert table.questions.asked == ["a", "b"]
    await table.look_ups.close()


async def test_the_question_ends_with_the_last_who_waits() -> None:
    table = Table(limit=1)
    first, second = table.find("a"), table.find("a")
    await settled()
    first()
    assert not table.questions.open["a"].cancelled()
    second()
    await settled()
    assert table.questions.open["a"].cancelled()
    table.find("b")
    await settled()
    assert table.questions.asked == ["a", "b"]
    assert table.heard == []
    assert table.metrics.dns_queries[DnsPurpose.PTR, DnsResult.OK].value == 0
    await table.look_ups.close()


async def test_who_asks_again_at_once_asks_anew() -> None:
    table = Table()
    table.find("a")()
    table.find("a")
    await settled()
    await table.answer("a")
    assert table.heard == [OK]


async def test_who_leaves_between_answer_and_news_hears_nothing() -> None:
    table = Table()
    cancel: list[Callable[[], None]] = []

    def first(_: Answer[str]) -> None:
        cancel[0]()

    table.look_ups.find("a", first)
    cancel.append(table.find("a"))
    await settled()
    await table.answer("a")
    assert table.heard == []


async def test_the_limit_of_time_is_one_of_the_answers() -> None:
    table = Table(timeout=0.01)
    heard: asyncio.Future[Answer[str]] = asyncio.get_running_loop().create_future()
    table.look_ups.find("a", heard.set_result)
    assert await heard == Answer(DnsResult.TIMEOUT)
    assert table.metrics.dns_timeouts[DnsPurpose.PTR].value == 1
    assert table.metrics.dns_queries[DnsPurpose.PTR, DnsResult.TIMEOUT].value == 1
    table.metrics.flush()
    assert sum(table.metrics.dns_seconds[DnsPurpose.PTR].counts) == 1


@pytest.mark.parametrize("is_asked", [True, False])
async def test_closing_answers_everybody(is_asked: bool) -> None:
    table = Table()
    table.find("a")
    if is_asked:
        await settled()
    await table.look_ups.close()
    await settled()
    assert table.heard == [NO_ANSWER]


async def test_a_bug_below_is_reported_and_leaves_nobody_waiting() -> None:
    metrics = WorkerMetrics()

    async def broken(_: str) -> Answer[str]:
        raise ZeroDivisionError

    look_ups = LookupCache(
        DnsPurpose.PTR, broken, timeout=0, cache=Cache[str, str](None, metrics), metrics=metrics
    )
    heard: list[Answer[str]] = []
    crashes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    look_ups.find("a", heard.append)
    await settled()
    assert heard == [NO_ANSWER]
    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


async def test_losing_interest_does_not_search_among_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody behind one address asks the same, and may leave at the same time."""
    compared = 0

    def equal(self: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(_Waiter, "__eq__", equal)
    monkeypatch.setattr(_Waiter, "__hash__", object.__hash__)
    table = Table()
    cancels = [table.find("key") for _ in range(1_000)]
    for cancel in reversed(cancels):
        cancel()
    assert compared < 1_000
    assert table.heard == []
    await table.look_ups.close()
