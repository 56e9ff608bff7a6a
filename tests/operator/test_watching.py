# SPDX-License-Identifier: Apache-2.0
"""kopf at work: whatever ends a watch, it is begun again, and counted by why."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator

import kopf
import pytest

from mailproxy_operator import operate as operate_module
from mailproxy_operator import watching as watching_module
from mailproxy_operator.kinds import DEPLOYMENT, MAIL_PROXY, POD_MONITOR, PROMETHEUS_RULE, SERVICE
from mailproxy_operator.settings import OperatorSettings
from mailproxy_operator.watch_session import Connected, WatchSession
from mailproxy_operator.watching import Watching
from support.kube_faults import HANGS, Fault, is_list, is_watch, tell_watches, watched, watches
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import running, until


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as fake:
        yield fake


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching_module, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(watching_module, "BACK_OFFS", (0.02, 0.02))


async def works(kube: FakeKube, name: str) -> None:
    """See that a new resource is noticed, long before a resync would.

    This server replays nothing to a watch that begins, so the resource is edited until it is seen.
    """
    async with asyncio.timeout(60):
        for workers in itertools.count(1):
            kube.put({**body(workers=workers), "metadata": {"name": name, "namespace": "mail"}})
            await asyncio.sleep(0.2)
            if kube.find(DEPLOYMENT, name):
                return


async def test_a_watch_that_the_server_ends(kube: FakeKube) -> None:
    async with watched(kube) as operator:
        await until(lambda: watches(kube))
        assert await operator.metric("watch_restarts_total") == 0
        kube.end_watches()
        await operator.counts("watch_restarts_total", reason="closed")
        await works(kube, "edge")
        assert await operator.metric("api_requests_total", verb="watch", code="2xx") > 10
        assert await operator.metric("api_request_duration_seconds_count", verb="watch") == 0


@pytest.mark.parametrize(("code", "reason"), [(410, "expired"), (500, "error"), (429, "error")])
async def test_a_watch_that_is_told_of_an_error(kube: FakeKube, code: int, reason: str) -> None:
    async with watched(kube) as operator:
        await until(lambda: watches(kube))
        tell_watches(kube, code)
        await operator.counts("watch_restarts_total", reason=reason)
        await until(lambda: watches(kube))
        await works(kube, "edge")


async def test_what_changes_while_a_watch_is_listed_anew_is_noticed(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status has no part in what we compare objects by: the list's versions tell."""
    monkeypatch.setattr("mailproxy_operator.reconcile.LOOK_AGAIN_SECONDS", 3600.0)
    monkeypatch.setattr("mailproxy_operator.work_queue.LONGEST_LOOK", 3600.0)
    kube.put(body())
    async with watched(kube, resync_seconds=3600.0) as operator:
        await until(lambda: watches(kube))
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await until(lambda: kube.found(MAIL_PROXY, "edge").get("status"))
        await works(kube, "second")  # the watches are at work
        listed, kube._watches = list(kube._watches), []  # nothing is told of what follows
        live = kube.found(DEPLOYMENT, "edge")
        status = {"observedGeneration": live["metadata"]["generation"], "replicas": 1, "availableReplicas": 7}
        kube.put({**live, "status": status})
        kube.remove(SERVICE, "second")
        kube._watches = listed
        tell_watches(kube, 410)
        await operator.counts("watch_restarts_total", reason="expired")
        await until(lambda: "7 of 2 pods are available" in available(kube, "edge"))
        await until(lambda: kube.find(SERVICE, "second"))


def available(kube: FakeKube, name: str) -> str:
    found = kube.found(MAIL_PROXY, name)["status"]["conditions"]
    return next(str(one["message"]) for one in found if one["type"] == "Available")


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (400, "error", "4xx"),
        (401, "error", "4xx"),
        (403, "error", "4xx"),
        (404, "error", "4xx"),
        (409, "error", "409"),
        (410, "expired", "410"),
        (422, "error", "422"),
        (429, "error", "429"),
        (500, "error", "5xx"),
        (504, "error", "5xx"),
    ],
)
async def test_a_watch_that_is_refused(kube: FakeKube, status: int, reason: str, code: str) -> None:
    fault = Fault(is_watch, status, {"Retry-After": "0"} if status == 429 else {}, left=100)
    kube.faults.append(fault)
    async with watched(kube) as operator:
        await operator.counts("watch_restarts_total", reason=reason)
        await operator.counts("api_requests_total", verb="watch", code=code)
        assert (await operator.get("/healthz"))[0] == 200, "another start would not help"
        if status == 401:
            assert (await operator.get("/readyz"))[0] == 503
        fault.lift()
        await works(kube, "edge")
        assert not operator.task.done()


@pytest.mark.parametrize("status", [401, 403, 410, 500])
async def test_a_list_that_is_refused(kube: FakeKube, status: int) -> None:
    fault = Fault(lambda one: is_list(one) or one.path.endswith("/mailproxies"), status, left=None)
    kube.faults.append(fault)
    async with watched(kube) as operator:
        await operator.counts("watch_restarts_total", reason="error")
        fault.lift()
        await works(kube, "edge")


async def test_a_pause_that_the_server_asks_for_is_kept_within_bounds_by_watches(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(watching_module, "SILENT_SECONDS", 0.5)
    fault = Fault(
        lambda one: is_watch(one) and one.path.endswith("/mailproxies"), 429, {"Retry-After": "3600"}, left=1
    )
    kube.faults.append(fault)
    async with watched(kube) as operator:
        await until(lambda: fault.met)
        await operator.counts("watch_restarts_total", reason="inactive")
        await works(kube, "edge")


@pytest.mark.parametrize("before_the_answer", [True, False])
async def test_a_watch_from_which_nothing_comes(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, before_the_answer: bool
) -> None:
    monkeypatch.setattr(watching_module, "INACTIVE_SECONDS", 0.5)
    if before_the_answer:
        kube.faults.append(Fault(is_watch, HANGS, left=20))
    async with watched(kube) as operator:
        await operator.counts("watch_restarts_total", reason="inactive")
        await works(kube, "edge")


async def test_kopf_itself_is_begun_again_when_it_forgets_a_watch(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(watching_module, "SILENT_SECONDS", 0.3)
    async with watched(kube) as operator:
        await operator.counts("watch_restarts_total", reason="inactive")
        assert "a watch has brought nothing" in caplog.text
        await works(kube, "edge")


async def test_kinds_that_are_installed_later_and_go_again(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate_module, "KINDS_SECONDS", 0.1)
    kube.missing |= {POD_MONITOR, PROMETHEUS_RULE}
    kube.put(body(monitoring={"podMonitor": {"enabled": True}}))
    async with watched(kube) as operator:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        kube.missing.clear()
        await until(lambda: kube.find(POD_MONITOR, "edge"))
        await until(lambda: [one for one in kube._watches if one[0] is POD_MONITOR])
        kube.remove(POD_MONITOR, "edge")
        await until(lambda: kube.find(POD_MONITOR, "edge"))
        kube.missing |= {POD_MONITOR, PROMETHEUS_RULE}
        kube.requests.clear()
        kube.end_watches()
        await until(lambda: ("watch", "MailProxy", "") in kube.requests)
        await works(kube, "second")
        assert not operator.task.done()


async def test_its_end_ends_nobody_else(kube: FakeKube) -> None:
    """kopf takes every task that is younger than itself for its own."""
    async with running(kube):
        await until(lambda: watches(kube))
        async with asyncio.TaskGroup() as tasks:
            younger = tasks.create_task(asyncio.sleep(1.0, "as it should"))
            fault = Fault(is_watch, 401, left=None)
            kube.faults.append(fault)
            kube.end_watches()
            await until(lambda: fault.met)
        assert younger.result() == "as it should"


async def test_the_same_credentials_are_known_again_though_the_session_is_another() -> None:
    session = WatchSession(_Deaf(), patience=1.0)
    one, other = (session.connected(kopf.ConnectionInfo(server="http://x", token="t")) for _ in range(2))
    assert one == other
    assert one != session.connected(kopf.ConnectionInfo(server="http://x", token="u"))
    assert "token" not in repr(one)
    assert isinstance(one, Connected)
    await session.close()


async def test_without_credentials_it_says_so_and_goes_on(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found: list[kopf.ConnectionInfo] = []
    kube.put(body())
    seen: list[str] = []
    watching = Watching(
        OperatorSettings(), login=lambda **_: next(iter(found), None), told=_Deaf(), stop=asyncio.Event()
    )

    def register(registry: kopf.OperatorRegistry) -> None:
        @kopf.on.event("mailproxy.dev", "v1alpha1", MAIL_PROXY.plural, registry=registry)
        async def _seen(name: str, **_: object) -> None:
            seen.append(name)

    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(watching.keep(register))
        await until(lambda: "does not accept our credentials" in caplog.text)
        found.append(kopf.ConnectionInfo(server=kube.url))
        await until(lambda: seen == ["edge"])
        keeping.cancel()


class _Deaf:
    def requested(self, *_: object) -> None:
        pass

    def watch_restarted(self, *_: object) -> None:
        pass
