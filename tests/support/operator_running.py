# SPDX-License-Identifier: Apache-2.0
"""An operator that runs in a thread of this process, with an emulated API server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import kopf

from mailproxy_operator.api.credentials import Configuration
from mailproxy_operator.api.watch_monitor import Login
from mailproxy_operator.main import operate
from mailproxy_operator.settings import OperatorSettings
from support.operator_fakekube import FakeKube

RESTART_SECONDS = 0.1


class _Thread:
    """Runs an operator in an event loop of its own: kopf cancels all tasks of its loop when it ends."""

    def __init__(self, operate_until: Callable[[asyncio.Event], Any], *, restarts: bool) -> None:
        self._operate = operate_until
        self._restarts = restarts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._is_stopped = threading.Event()

    def run(self) -> int:
        """Run the operator, and restart it as Kubernetes does, until it ends after ``stop``."""
        while True:
            code = asyncio.run(self._run())
            if code == 0 or self._is_stopped.is_set() or not self._restarts:
                return code
            self._is_stopped.wait(RESTART_SECONDS)

    async def _run(self) -> int:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if self._is_stopped.is_set():
            self._stop.set()
        code: int = await self._operate(self._stop)
        return code

    def stop(self) -> None:
        """Request the operator to stop."""
        self._is_stopped.set()
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)


@asynccontextmanager
async def running(
    kube: FakeKube,
    *,
    configuration: Configuration | None = None,
    login: Login | None = None,
    restarts: bool = True,
    **settings: Any,
) -> AsyncIterator[asyncio.Task[int]]:
    """Run an operator until the context ends.

    Args:
        kube: The API server.
        configuration: The client configuration of the operator.
        login: The login of kopf to the API server.
        restarts: Whether to restart it when it ends by itself, as Kubernetes does.
        settings: Settings of the operator.
    """
    operator_settings = OperatorSettings(**{"admin_host": "127.0.0.1", "admin_port": 0, **settings})

    def operate_until(stop: asyncio.Event) -> Any:
        return operate(
            operator_settings,
            stop,
            configuration=configuration or Configuration(host=kube.url),
            login=login or (lambda **_: kopf.ConnectionInfo(server=kube.url)),
        )

    thread = _Thread(operate_until, restarts=restarts)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(asyncio.to_thread(thread.run))
        try:
            yield task
        finally:
            thread.stop()
            async with asyncio.timeout(60):
                await asyncio.wait([task])


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until a function returns a true value, and return it."""
    async with asyncio.timeout(60):
        while not (found := condition()):
            await asyncio.sleep(0.02)
    return found
