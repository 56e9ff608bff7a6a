# SPDX-License-Identifier: Apache-2.0
"""An operator under load: rollouts, changes, drift, invalid resources, lost watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mailproxy_operator.api.kinds import MAIL_PROXY, SERVICE
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import running
from support.prometheus_world.rollouts import Rollouts

_WRONG = {"servers": [{"name": "imap", "protocol": "imap", "listen": []}]}


@asynccontextmanager
async def operating(
    port: int,
    pause: Callable[[int], float] = lambda _: 0.5,
    has_faults: Callable[[], bool] = lambda: True,
) -> AsyncIterator[FakeKube]:
    """Run an operator on an emulated API server, with its metrics on a port of 127.0.0.1.

    Args:
        port: Port of the metrics.
        pause: Seconds until the next change, by the number of changes so far.
        has_faults: Whether there are faults now: invalid resources, deleted objects, lost watches.
    """
    async with (
        FakeKube() as kube,
        running(kube, admin_port=port, lease_namespace="mail", identity="one"),
        asyncio.TaskGroup() as tasks,
    ):
        rollouts = Rollouts(kube)
        work = [tasks.create_task(_change(kube, pause, has_faults)), tasks.create_task(rollouts.run())]
        try:
            yield kube
        finally:
            for task in work:
                task.cancel()
            await asyncio.to_thread(rollouts.close)


async def _change(kube: FakeKube, pause: Callable[[int], float], has_faults: Callable[[], bool]) -> None:
    _put(kube, "steady")
    count = 0
    while True:
        count += 1
        wanted: dict[str, Any] = {"networkPolicy": {"enabled": count % 2 == 0}}
        _put(kube, "edge", **wanted)
        _put(kube, "changing", **(_WRONG if count % 2 and has_faults() else {}))
        await asyncio.sleep(pause(count))
        if has_faults():
            _break(kube, count)


def _break(kube: FakeKube, count: int) -> None:
    if count % 7 == 0:
        kube.end_watches()
    if kube.find(SERVICE, "steady"):
        kube.remove(SERVICE, "steady")
    if count % 5 == 0 and kube.find(MAIL_PROXY, "changing"):
        kube.remove(MAIL_PROXY, "changing")


def _put(kube: FakeKube, name: str, **spec: Any) -> None:
    """Write a MailProxy as a user does: the status, a subresource, is not changed."""
    stored = kube.find(MAIL_PROXY, name) or {}
    status = {"status": stored["status"]} if "status" in stored else {}
    kube.put({**body(**spec), "metadata": {"name": name, "namespace": "mail"}, **status})
