# SPDX-License-Identifier: Apache-2.0
"""Faults for the emulated API server, and an operator in this process with access to its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from support.operator_fakekube import FakeKube
from support.operator_running import running
from support.servers.programs import Ports

HANGS: Final = 0
"""Used in place of a status: the server sends no response."""

_PORTS: Final = Ports()

Matching = Callable[[web.Request], bool]


class _Hanging(web.Response):
    """A response that never starts."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        del request
        await asyncio.sleep(3600)


@dataclass
class Fault:
    """Responds to matching requests with an error status until it is disabled.

    Attributes:
        matching: Returns whether a request matches.
        status: The status of the response; ``HANGS`` for no response.
        headers: Headers of the response.
        remaining: To how many more requests it responds; ``None`` for no limit.
        count: To how many requests it has responded.
    """

    matching: Matching
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    remaining: int | None = None
    count: int = 0

    def __call__(self, request: web.Request) -> web.Response | None:
        if self.remaining == 0 or not self.matching(request):
            return None
        self.count += 1
        if self.remaining is not None:
            self.remaining -= 1
        if self.status == HANGS:
            return _Hanging()
        body = {"kind": "Status", "status": "Failure", "code": self.status, "message": "injected error"}
        return web.json_response(body, status=self.status, headers=self.headers)

    def disable(self) -> None:
        """Respond to no request from now on."""
        self.remaining = 0


def is_watch(request: web.Request) -> bool:
    """Match watches."""
    return "watch" in request.query


def is_list(request: web.Request) -> bool:
    """Match lists of whole clusters, which the resync and kopf send."""
    is_named = "/namespaces/" in request.path or request.path.count("/") < 3
    return request.method == "GET" and not is_watch(request) and not is_named and "limit" in request.query


class OperatorInProcess:
    """An operator that runs in this process.

    Attributes:
        task: The task of the operator; its result is the exit code.
        port: The port of its admin endpoint, on loopback.
    """

    def __init__(self, port: int, task: asyncio.Task[int], session: aiohttp.ClientSession) -> None:
        self.task = task
        self.port = port
        self._base = f"http://127.0.0.1:{port}"
        self._session = session

    async def get(self, path: str) -> tuple[int, str]:
        """Request a path of its admin endpoint; return status and body."""
        async with self._session.get(self._base + path) as response:
            return response.status, await response.text()

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        _, text = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"mailproxy_operator_{name}" and labels.items() <= sample.labels.items()
        )

    async def wait_for_metric(self, name: str, **labels: str) -> None:
        """Wait until the sum of these samples is above zero."""
        async with asyncio.timeout(60):
            while not await self.metric(name, **labels):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running_with_metrics(kube: FakeKube, **settings: Any) -> AsyncIterator[OperatorInProcess]:
    """Run an operator whose metrics the test can read."""
    port = _PORTS.take()
    async with (
        running(kube, admin_port=port, **settings) as task,
        aiohttp.ClientSession() as session,
    ):
        async with asyncio.timeout(60):
            while True:
                try:
                    await session.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)
        yield OperatorInProcess(port, task, session)
