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
        self.answers: dict[str, RunningConfig | None] = {}
        self.asked: list[str] = []
        self.changed: list[Key] = []
        self.at_once = self.most_at_once = 0
        self.held = asyncio.Event()
        self.held.set()

    async def ask(self, one: dict[str, Any]) -> RunningConfig | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.held.wait()
        self.at_once -= 1
        self.asked.append(one["metadata"]["name"])
        return self.answers.get(one["metadata"]["name"])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_poll, "POLL_SECONDS", 0.01)


@pytest.fixture
async def pods() -> Pods:
    return Pods()


@pytest.fixture
async def poll(quick: None, pods: Pods) -> AsyncIterator[ConfigPoll]:
    del quick
    made = ConfigPoll(pods.ask, pods.changed.append)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.run())
        yield made
        running.cancel()


async def test_changed_response_enqueues_resource_once(poll: ConfigPoll, pods: Pods) -> None:
    pods.answers["a"] = GOOD
    poll.store(EDGE, [(pod("a"), GOOD)])
    await until(lambda: len(pods.asked) > 3)
    assert pods.changed == []
    for answer in (BAD, GOOD, None):
        pods.answers["a"] = answer
        await until(lambda: pods.changed)
        count = len(pods.asked)
        await until(lambda: len(pods.asked) > count + 3)  # noqa: B023  it ends with the loop
        assert pods.changed == [EDGE]
        pods.changed.clear()


async def test_response_already_seen_by_reconcile_enqueues_nothing(poll: ConfigPoll, pods: Pods) -> None:
    pods.answers["a"] = BAD
    pods.held.clear()
    poll.store(EDGE, [(pod("a"), GOOD)])
    await until(lambda: pods.at_once)
    poll.store(EDGE, [(pod("a"), BAD)])
    pods.held.set()
    await until(lambda: len(pods.asked) > 3)
    assert pods.changed == []
    poll.store(EDGE, [])
    await until(lambda: pods.at_once == 0)
    pods.asked.clear()
    await asyncio.sleep(0.1)
    assert len(pods.asked) <= 1, "nobody is asked for a resource that is gone"


async def test_concurrent_requests_are_limited(
    poll: ConfigPoll, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods.held.clear()
    names = [str(number) for number in range(3 * config_poll.MAX_CONCURRENT_REQUESTS)]
    poll.store(EDGE, [(pod(name), None) for name in names])
    await until(lambda: pods.at_once == config_poll.MAX_CONCURRENT_REQUESTS)
    pods.held.set()
    await until(lambda: set(pods.asked) >= set(names))
    assert pods.most_at_once == config_poll.MAX_CONCURRENT_REQUESTS


async def test_certificate_error_of_pod_is_reported_in_status(quick: None) -> None:
    """The API server sees no change: neither an event nor a resync reports it."""
    del quick
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
