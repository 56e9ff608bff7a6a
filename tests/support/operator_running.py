# SPDX-License-Identifier: Apache-2.0
"""An operator at work in this process, on an emulated API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import kopf

from mailproxy_operator.credentials import Configuration
from mailproxy_operator.operate import operate
from mailproxy_operator.settings import OperatorSettings
from mailproxy_operator.watching import Login
from support.operator_fakekube import FakeKube


@asynccontextmanager
async def running(
    kube: FakeKube,
    *,
    configuration: Configuration | None = None,
    login: Login | None = None,
    **settings: Any,
) -> AsyncIterator[asyncio.Task[int]]:
    """An operator at work; ended at the end."""
    stop = asyncio.Event()
    made = OperatorSettings(**{"admin_host": "127.0.0.1", "admin_port": 0, **settings})
    operating = operate(
        made,
        stop,
        configuration=configuration or Configuration(host=kube.url),
        login=login or (lambda **_: kopf.ConnectionInfo(server=kube.url)),
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(operating)
        try:
            yield task
        finally:
            stop.set()
            async with asyncio.timeout(60):
                await asyncio.wait([task])


async def until(what: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := what()):
            await asyncio.sleep(0.02)
    return found
