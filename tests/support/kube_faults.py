# SPDX-License-Identifier: Apache-2.0
"""Faults for the emulated API server, and access to an operator's own metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from mailproxy_operator.api.kinds import MAIL_PROXY
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
    """Answers matching requests with a status until it is removed.

    Attributes:
        matching: Selects the requests.
        status: The status of the response; ``HANGS`` for no response.
        headers: Headers of the response.
        left: How many more requests it answers; ``None`` for no limit.
        met: How many requests it has answered.
    """

    matching: Matching
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    left: int | None = None
    met: int = 0

    def __call__(self, request: web.Request) -> web.Response | None:
        if self.left == 0 or not self.matching(request):
            return None
        self.met += 1
        if self.left is not None:
            self.left -= 1
        if self.status == HANGS:
            return _Hanging()
        body = {"kind": "Status", "status": "Failure", "code": self.status, "message": "said by the fault"}
        return web.json_response(body, status=self.status, headers=self.headers)

    def lift(self) -> None:
        """Let every request through from now on."""
        self.left = 0


def is_watch(request: web.Request) -> bool:
    """Match watches."""
    return "watch" in request.query


def is_list(request: web.Request) -> bool:
    """Match lists of whole clusters, which the resync and kopf send."""
    is_named = "/namespaces/" in request.path or request.path.count("/") < 3
    return request.method == "GET" and not is_watch(request) and not is_named and "limit" in request.query


def tell_watches(kube: FakeKube, code: int) -> None:
    """Send an error event on every watch, as a server does in the middle of a stream."""
    status = {"kind": "Status", "metadata": {"labels": _EVERYBODYS}, "code": code, "message": "too old"}
    for _, _, queue in list(kube._watches):
        queue.put_nowait({"type": "ERROR", "object": status})


_EVERYBODYS: Final = {"mailproxy.dev/proxy": "edge"}


def watches(kube: FakeKube) -> int:
    """Return the number of open watches of MailProxies."""
    return sum(kind is MAIL_PROXY for kind, _, _ in kube._watches)


class Running:
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
        async with self._session.get(self._base + path) as answer:
            return answer.status, await answer.text()

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        _, text = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"mailproxy_operator_{name}" and labels.items() <= sample.labels.items()
        )

    async def counts(self, name: str, **labels: str) -> None:
        """Wait until a metric is above zero."""
        async with asyncio.timeout(60):
            while not await self.metric(name, **labels):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def watched(kube: FakeKube, **settings: Any) -> AsyncIterator[Running]:
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
        yield Running(port, task, session)
