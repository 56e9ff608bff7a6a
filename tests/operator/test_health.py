# SPDX-License-Identifier: Apache-2.0
"""Liveness and readiness: what may restart the operator, and what must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import DEPLOYMENT, LEASE, MAIL_PROXY, Kind, Manifest
from mailproxy_operator.controller import resync as resync_module
from mailproxy_operator.controller import work_queue as work_queue_module
from mailproxy_operator.controller.cache import Cache
from mailproxy_operator.controller.handlers import EventHandlers
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.resync import Resync
from mailproxy_operator.errors import TransientError
from mailproxy_operator.settings import Platform
from support.kube_faults import HANGS, Fault, OperatorInProcess, running_with_metrics
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster
from support.operator_fakekube import FakeKube
from support.operator_running import until

EDGE = Key("mail", "edge")


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as fake:
        fake.put(body())
        yield fake


class Source(MemoryCluster):
    """A cluster whose lists have the delay or the number of failures that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0
        self.is_slow = False
        self.failure: Exception | None = None
        self.hangs = False

    async def list_all(
        self, kind: Kind, namespaces: tuple[str, ...], selector: str, on_page: Callable[[], None]
    ) -> list[Manifest]:
        del namespaces, selector
        self.lists += 1
        if self.failure is not None:
            raise self.failure
        while self.is_slow:
            await asyncio.sleep(0.02)
            on_page()
        if self.hangs:
            await asyncio.Event().wait()
        return [one for (stored_kind, _), one in self.objects.items() if stored_kind is kind]


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(resync_module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(resync_module, "SETTLE_SECONDS", 0.0)


def new_resync(source: Source, interval: float = 0.01) -> tuple[Resync, EventHandlers]:
    cache = Cache(source)
    cache.attach({MAIL_PROXY: {}})
    reconciler = Reconciler(cache, Platform())
    handlers = EventHandlers(
        reconciler, cache, recorder=lambda *_: None, request_config=source.running_config
    )
    return Resync(source, cache, handlers, namespaces=(), interval=interval), handlers


async def wait_until_ready(operator: OperatorInProcess) -> None:
    async with asyncio.timeout(60):
        while (await operator.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.05)


async def wait_half_a_second() -> None:
    await asyncio.sleep(0.5)


@pytest.mark.usefixtures("short_delays")
async def test_slow_list_with_progress_is_not_stuck() -> None:
    source = Source()
    source.is_slow = True
    async with asyncio.TaskGroup() as tasks:
        resync, _ = new_resync(source)
        running = tasks.create_task(resync.run())
        await wait_half_a_second()
        assert (resync.liveness_error(), source.lists) == ("", 1)
        source.is_slow = False
        await until(lambda: source.lists > 30)
        running.cancel()


@pytest.mark.usefixtures("short_delays")
async def test_refusing_api_server_does_not_affect_liveness() -> None:
    source = Source()
    source.failure = TransientError("busy")
    async with asyncio.TaskGroup() as tasks:
        resync, _ = new_resync(source)
        running = tasks.create_task(resync.run())
        await wait_half_a_second()
        assert resync.liveness_error() == ""
        source.failure = None
        await until(lambda: source.lists > 30)
        running.cancel()


@pytest.mark.usefixtures("short_delays")
async def test_resync_without_progress_affects_liveness() -> None:
    source = Source()
    source.hangs = True
    async with asyncio.TaskGroup() as tasks:
        resync, _ = new_resync(source)
        running = tasks.create_task(resync.run())
        await until(lambda: source.lists)
        await wait_half_a_second()
        assert resync.liveness_error().startswith("no resync has made progress for")
        running.cancel()


async def test_retry_after_of_list_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "LONGEST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(resync_module, "RETRY_SECONDS", 0.01)
    source = Source()
    source.failure = TransientError("busy", delay=3600.0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(new_resync(source)[0].run())
        await until(lambda: source.lists >= 3)
        running.cancel()


@pytest.mark.usefixtures("short_delays")
async def test_kind_is_compared_at_once_after_its_watch_restarts_with_a_list() -> None:
    source = Source()
    async with asyncio.TaskGroup() as tasks:
        resync, handlers = new_resync(source, interval=3600.0)
        running = tasks.create_task(resync.run())
        await wait_half_a_second()
        assert source.lists == 0
        source.put(body())
        resync.listed_again(MAIL_PROXY)
        await until(lambda: source.lists == 1)
        await until(lambda: len(handlers.queue) == 1)
        running.cancel()


async def test_operator_is_ready_after_all_lists_are_read(kube: FakeKube) -> None:
    fault = Fault(lambda one: one.path.endswith("/mailproxies") and "watch" not in one.query, HANGS)
    kube.faults.append(fault)
    async with running_with_metrics(kube) as operator:
        await until(lambda: fault.count)
        assert (await operator.get("/readyz"))[0] == 503
        assert (await operator.get("/healthz"))[0] == 200
    kube.faults.clear()
    async with running_with_metrics(kube) as operator:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await wait_until_ready(operator)


async def test_malformed_requests_write_no_tracebacks(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_with_metrics(kube) as operator:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        caplog.clear()
        for malformed in (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01", b"GET / HTTP/9.x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", operator.port)
            writer.write(malformed)
            writer.write_eof()
            await reader.read()
            writer.close()
            await writer.wait_closed()
        assert (await operator.get("/healthz"))[0] == 200
        assert [record for record in caplog.records if record.exc_info] == []


async def test_operator_is_not_ready_without_crd(kube: FakeKube) -> None:
    kube.missing.add(MAIL_PROXY)
    async with running_with_metrics(kube) as operator:
        await operator.wait_for_metric("api_requests_total", verb="get")
        assert (await operator.get("/readyz"))[0] == 503
        assert (await operator.get("/healthz"))[0] == 200


async def test_standby_operator_is_ready(kube: FakeKube) -> None:
    async with running_with_metrics(kube, lease_namespace="mail", identity="first") as first:
        await until(lambda: kube.find(LEASE, "mailproxy-operator"))
        async with running_with_metrics(kube, lease_namespace="mail", identity="second") as second:
            await second.wait_for_metric("api_requests_total", verb="get")
            await until(lambda: kube.find(DEPLOYMENT, "edge"))
            await wait_until_ready(second)
            assert (await first.metric("leader"), await second.metric("leader")) == (1, 0)


async def test_reconcile_that_hangs_affects_liveness(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy_operator.main.STUCK_SECONDS", 0.2)
    monkeypatch.setattr(work_queue_module, "RECONCILE_SECONDS", 3600.0)
    async with running_with_metrics(kube) as operator:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await until(kube.open_watches)
        kube.faults.append(Fault(lambda one: one.method == "PATCH", HANGS))
        kube.put(body(workers=2))
        async with asyncio.timeout(60):
            while (await operator.get("/healthz"))[0] == 200:
                await asyncio.sleep(0.05)
        status, text = await operator.get("/healthz")
        assert status == 503
        assert "a reconcile has been running" in text
