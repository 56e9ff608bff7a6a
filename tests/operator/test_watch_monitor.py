# SPDX-License-Identifier: Apache-2.0
"""Watches: each one that ends is started again and counted by its reason, and no change is missed."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from typing import cast

import aiohttp
import kopf
import pytest

from mailproxy_operator import main as main_module
from mailproxy_operator.api import watch_monitor
from mailproxy_operator.api.kinds import DEPLOYMENT, MAIL_PROXY, POD_MONITOR, PROMETHEUS_RULE, SERVICE
from mailproxy_operator.api.watch_monitor import WatchMonitor
from mailproxy_operator.controller import resync as resync_module
from support.kube_faults import HANGS, Fault, is_list, is_watch, running_with_metrics
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import until


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as fake:
        yield fake


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "BACK_OFFS", (0.02, 0.02))
    monkeypatch.setattr(watch_monitor, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(resync_module, "SETTLE_SECONDS", 0.05)


async def assert_reconciles(kube: FakeKube, name: str) -> None:
    """Check that a new resource is reconciled by its event, long before the resync.

    This server does not replay events to a new watch, so the resource is changed until it is reconciled.
    """
    async with asyncio.timeout(60):
        for workers in itertools.count(1):
            kube.put({**body(workers=workers), "metadata": {"name": name, "namespace": "mail"}})
            await asyncio.sleep(0.2)
            if kube.find(DEPLOYMENT, name):
                return


async def test_watch_ended_by_server_is_counted_and_restarted(kube: FakeKube) -> None:
    async with running_with_metrics(kube) as operator:
        await until(kube.open_watches)
        assert await operator.metric("watch_restarts_total") == 0
        kube.end_watches()
        await operator.wait_for_metric("watch_restarts_total", reason="closed")
        await assert_reconciles(kube, "edge")
        assert await operator.metric("api_requests_total", verb="watch", code="2xx") > 10
        assert await operator.metric("api_request_duration_seconds_count", verb="watch") == 0


async def test_expired_watch_restarts_with_a_list(kube: FakeKube) -> None:
    async with running_with_metrics(kube) as operator:
        await until(kube.open_watches)
        kube.send_watch_error(410)
        await operator.wait_for_metric("watch_restarts_total", reason="expired")
        await until(kube.open_watches)
        await assert_reconciles(kube, "edge")


@pytest.mark.parametrize("code", [429, 500])
async def test_other_error_event_in_watch_ends_the_process(kube: FakeKube, code: int) -> None:
    async with running_with_metrics(kube, restarts=False) as operator:
        await until(kube.open_watches)
        kube.send_watch_error(code)
        async with asyncio.timeout(60):
            assert await operator.task == 1
    async with running_with_metrics(kube):
        await assert_reconciles(kube, "edge")


async def test_changes_during_restart_of_watch_are_noticed(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of objects ignores the status: the list's resource versions show the change."""
    monkeypatch.setattr("mailproxy_operator.controller.reconciler.ROLLOUT_REQUEUE_SECONDS", 3600.0)
    monkeypatch.setattr("mailproxy_operator.controller.work_queue.MAX_REQUEUE_SECONDS", 3600.0)
    kube.put(body())
    async with running_with_metrics(kube, resync_seconds=3600.0) as operator:
        await until(kube.open_watches)
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await until(lambda: kube.found(MAIL_PROXY, "edge").get("status"))
        await assert_reconciles(kube, "second")  # the watches are running
        with kube.muted_watches():
            deployment = kube.found(DEPLOYMENT, "edge")
            generation = deployment["metadata"]["generation"]
            status = {"observedGeneration": generation, "replicas": 1, "availableReplicas": 7}
            kube.put({**deployment, "status": status})
            kube.remove(SERVICE, "second")
        kube.send_watch_error(410)
        await operator.wait_for_metric("watch_restarts_total", reason="expired")
        await until(lambda: "7 of 2 pods are available" in available_message(kube, "edge"))
        await until(lambda: kube.find(SERVICE, "second"))


def available_message(kube: FakeKube, name: str) -> str:
    found = kube.found(MAIL_PROXY, name)["status"]["conditions"]
    return next(str(one["message"]) for one in found if one["type"] == "Available")


@pytest.mark.parametrize(
    ("status", "code"), [(401, "4xx"), (403, "4xx"), (429, "429"), (500, "5xx"), (504, "5xx")]
)
async def test_refused_watch_is_retried(kube: FakeKube, status: int, code: str) -> None:
    fault = Fault(is_watch, status, {"Retry-After": "0"} if status == 429 else {}, remaining=None)
    kube.faults.append(fault)
    async with running_with_metrics(kube, restarts=False) as operator:
        await operator.wait_for_metric("watch_restarts_total", reason="error")
        await operator.wait_for_metric("api_requests_total", verb="watch", code=code)
        assert (await operator.get("/healthz"))[0] == 200, "a restart would not help"
        if status == 401:
            assert (await operator.get("/readyz"))[0] == 503
        fault.disable()
        await assert_reconciles(kube, "edge")
        assert not operator.task.done()


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422])
async def test_watch_with_terminal_error_ends_the_process(kube: FakeKube, status: int) -> None:
    fault = Fault(is_watch, status, remaining=1)
    kube.faults.append(fault)
    async with running_with_metrics(kube, restarts=False) as operator:
        async with asyncio.timeout(60):
            assert await operator.task == 1
    async with running_with_metrics(kube):
        await assert_reconciles(kube, "edge")


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_refused_list_is_retried(kube: FakeKube, status: int) -> None:
    fault = Fault(lambda one: is_list(one) or one.path.endswith("/mailproxies"), status, remaining=None)
    kube.faults.append(fault)
    async with running_with_metrics(kube) as operator:
        await until(lambda: fault.count > 20)
        assert (await operator.get("/readyz"))[0] == 503
        fault.disable()
        await assert_reconciles(kube, "edge")
        assert not operator.task.done()


async def test_stalled_watch_ends_the_process(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The API server requests a pause of an hour, and kopf obeys: there is no error, and no event arrives."""
    monkeypatch.setattr(main_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(watch_monitor, "STALLED_SECONDS", 3.0)
    fault = Fault(
        lambda one: is_watch(one) and one.path.endswith("/mailproxies"),
        429,
        {"Retry-After": "3600"},
        remaining=1,
    )
    kube.faults.append(fault)
    async with running_with_metrics(kube, restarts=False) as operator:
        await until(lambda: fault.count)
        async with asyncio.timeout(60):
            assert await operator.task == 1
    assert "has sent no request for" in caplog.text
    monkeypatch.setattr(watch_monitor, "STALLED_SECONDS", 480.0)
    async with running_with_metrics(kube):
        await assert_reconciles(kube, "edge")


@pytest.mark.parametrize("is_before_response", [True, False])
async def test_inactive_watch_is_restarted(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, is_before_response: bool
) -> None:
    monkeypatch.setattr(watch_monitor, "INACTIVE_SECONDS", 0.5)
    if is_before_response:
        kube.faults.append(Fault(is_watch, HANGS, remaining=20))
    async with running_with_metrics(kube) as operator:
        await operator.wait_for_metric("watch_restarts_total", reason="inactive")
        await assert_reconciles(kube, "edge")


async def test_kinds_added_and_removed_later_are_detected(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_module, "KINDS_SECONDS", 0.1)
    kube.missing |= {POD_MONITOR, PROMETHEUS_RULE}
    kube.put(body(monitoring={"podMonitor": {"enabled": True}}))
    async with running_with_metrics(kube) as operator:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        kube.missing.clear()
        await until(lambda: kube.find(POD_MONITOR, "edge"))
        await until(lambda: kube.open_watches(POD_MONITOR))
        kube.remove(POD_MONITOR, "edge")
        await until(lambda: kube.find(POD_MONITOR, "edge"))
        kube.missing |= {POD_MONITOR, PROMETHEUS_RULE}
        kube.requests.clear()
        kube.end_watches()
        await until(lambda: ("watch", "MailProxy", "") in kube.requests)
        await assert_reconciles(kube, "second")
        assert not operator.task.done()


async def test_login_is_retried_until_credentials_exist(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    results: list[kopf.ConnectionInfo | Exception | None] = [None, OSError("half written")]
    credentials = kopf.ConnectionInfo(server="http://x", token="secret")

    def login(**_: object) -> kopf.ConnectionInfo | None:
        found = results.pop(0) if results else credentials
        if isinstance(found, Exception):
            raise found
        return found

    monitor = WatchMonitor(_Recorder(), login)
    one, other = await monitor.session(), await monitor.session()
    assert one != other, "kopf would end if it got refused credentials back"
    assert "does not accept the operator's credentials" in caplog.text
    assert "secret" not in caplog.text + repr(one)
    for session in (one, other):
        await session.aiohttp_session.close()


class _Recorder:
    def requested(self, *_: object) -> None:
        pass

    def watch_restarted(self, *_: object) -> None:
        pass


async def test_body_of_closed_session_ends_with_connection_error() -> None:
    """aiohttp raises RuntimeError there, for which kopf would end."""

    class Closed:
        async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
            yield b"x" * size
            raise RuntimeError("Connection closed.")

    body = watch_monitor.ResponseContent(cast("aiohttp.StreamReader", Closed()))
    read = body.iter_chunked(2)
    assert await anext(read) == b"xx"
    with pytest.raises(aiohttp.ClientConnectionError, match="Connection closed"):
        await anext(read)
