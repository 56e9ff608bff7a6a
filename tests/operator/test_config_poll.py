# SPDX-License-Identifier: Apache-2.0
"""Running pods are polled: state that only they have reaches the status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.controller import config_poll
from mailproxy_operator.controller.cache import Cache
from mailproxy_operator.controller.config_poll import ConfigPoll
from mailproxy_operator.controller.handlers import EventHandlers
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster
from support.operator_running import until

EDGE = Key("mail", "edge")
GOOD = RunningConfig("h")
BAD = RunningConfig("h", "certificate /etc/x does not load")


def pod(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "mail"}, "status": {"podIP": "192.0.2.1"}}


class Pods:
    """Pods with responses that a test sets; they count the requests."""

    def __init__(self) -> None:
        self.responses: dict[str, RunningConfig | None] = {}
        self.requested: list[str] = []
        self.changed: list[Key] = []
        self.concurrent = self.max_concurrent = 0
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def request_config(self, one: dict[str, Any]) -> RunningConfig | None:
        self.concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        await self.may_respond.wait()
        self.concurrent -= 1
        self.requested.append(one["metadata"]["name"])
        return self.responses.get(one["metadata"]["name"])


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_poll, "POLL_SECONDS", 0.01)


@pytest.fixture
async def pods() -> Pods:
    return Pods()


@pytest.fixture
async def poll(short_interval: None, pods: Pods) -> AsyncIterator[ConfigPoll]:
    del short_interval
    made = ConfigPoll(pods.request_config, pods.changed.append)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.run())
        yield made
        running.cancel()


async def test_changed_response_enqueues_resource_once(poll: ConfigPoll, pods: Pods) -> None:
    pods.responses["a"] = GOOD
    poll.store(EDGE, [(pod("a"), GOOD)])
    await until(lambda: len(pods.requested) > 3)
    assert pods.changed == []
    for response in (BAD, GOOD, None):
        pods.responses["a"] = response
        await until(lambda: pods.changed)
        count = len(pods.requested)
        await until(lambda: len(pods.requested) > count + 3)  # noqa: B023  it ends with the loop
        assert pods.changed == [EDGE]
        pods.changed.clear()


async def test_response_already_seen_by_reconcile_enqueues_nothing(poll: ConfigPoll, pods: Pods) -> None:
    pods.responses["a"] = BAD
    pods.may_respond.clear()
    poll.store(EDGE, [(pod("a"), GOOD)])
    await until(lambda: pods.concurrent)
    poll.store(EDGE, [(pod("a"), BAD)])
    pods.may_respond.set()
    await until(lambda: len(pods.requested) > 3)
    assert pods.changed == []
    poll.store(EDGE, [])
    await until(lambda: pods.concurrent == 0)
    pods.requested.clear()
    await asyncio.sleep(0.1)
    assert len(pods.requested) <= 1, "no request for a deleted resource"


async def test_concurrent_requests_are_limited(
    poll: ConfigPoll, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.may_respond.clear()
    names = [str(number) for number in range(3 * config_poll.MAX_CONCURRENT_REQUESTS)]
    poll.store(EDGE, [(pod(name), None) for name in names])
    await until(lambda: pods.concurrent == config_poll.MAX_CONCURRENT_REQUESTS)
    pods.may_respond.set()
    await until(lambda: set(pods.requested) >= set(names))
    assert pods.max_concurrent == config_poll.MAX_CONCURRENT_REQUESTS


async def test_certificate_error_of_pod_is_reported_in_status(short_interval: None) -> None:
    """The API server sees no change: neither an event nor a resync reports it."""
    del short_interval
    cluster = MemoryCluster()
    cluster.put(body(replicas=1))
    reconciler = Reconciler(cluster, Platform())
    handlers = EventHandlers(
        reconciler, Cache(cluster), recorder=lambda *_: None, request_config=cluster.running_config
    )
    async with asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(handlers.queue.run()), tasks.create_task(handlers.poll.run())]
        handlers.queue.enqueue(EDGE)
        await until(lambda: cluster.found_status("edge"))
        cluster.roll_out("edge")
        digest = cluster.found_status("edge")["configHash"]
        cluster.report_config(digest)
        handlers.queue.enqueue(EDGE)
        await until(lambda: cluster.condition("edge") == ("True", "Ready"))
        cluster.report_config(digest, "certificate /etc/mailproxy-refs/tls.crt does not load")
        await until(lambda: cluster.condition("edge", "ConfigSynced") == ("False", "ConfigRejected"))
        assert cluster.condition("edge", "ResolvedRefs") == ("False", "InvalidCertificate")
        cluster.report_config(digest)
        await until(lambda: cluster.condition("edge") == ("True", "Ready"))
        for task in working:
            task.cancel()


def test_poll_interval_is_at_most_half_a_minute() -> None:
    assert config_poll.POLL_SECONDS <= 30.0
