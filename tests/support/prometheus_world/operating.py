# SPDX-License-Identifier: Apache-2.0
"""An operator under load: changes, drift, invalid resources, lost watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mailproxy_operator.api.kinds import MAIL_PROXY, SERVICE
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import running

_WRONG = {"servers": [{"name": "imap", "protocol": "imap", "listen": []}]}


@asynccontextmanager
async def operating(port: int, pause: Callable[[int], float] = lambda _: 0.5) -> AsyncIterator[FakeKube]:
    """Run an operator on an emulated API server, with its metrics on a port of 127.0.0.1.

    Args:
        port: Port of the metrics.
        pause: Seconds until the next change, by the number of changes so far.
    """
    async with (
        FakeKube() as kube,
        running(kube, admin_port=port, lease_namespace="mail", identity="one"),
        asyncio.TaskGroup() as tasks,
    ):
        agitation = tasks.create_task(_agitate(kube, pause))
        try:
            yield kube
        finally:
            agitation.cancel()


async def _agitate(kube: FakeKube, pause: Callable[[int], float]) -> None:
    kube.put(_named("steady"))
    count = 0
    while True:
        count += 1
        wanted: dict[str, Any] = {"networkPolicy": {"enabled": count % 2 == 0}}
        kube.put(_named("edge", **wanted))
        kube.put(_named("mistaken", **(_WRONG if count % 2 else {})))
        if count % 7 == 0:
            kube.end_watches()
        await asyncio.sleep(pause(count))
        if kube.find(SERVICE, "steady"):
            kube.remove(SERVICE, "steady")
        if count % 5 == 0 and kube.find(MAIL_PROXY, "mistaken"):
            kube.remove(MAIL_PROXY, "mistaken")


def _named(name: str, **spec: Any) -> dict[str, Any]:
    return {**body(**spec), "metadata": {"name": name, "namespace": "mail"}}
