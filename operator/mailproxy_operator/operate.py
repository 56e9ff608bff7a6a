"""``mailproxy-operator run``: puts the parts together and keeps them going."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import aiohttp
import kopf

from mailproxy_operator import handlers
from mailproxy_operator.admin import AdminEndpoint
from mailproxy_operator.cluster import Key
from mailproxy_operator.credentials import Configuration, Credentials
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.kinds import MAIL_PROXY, Kind
from mailproxy_operator.kube import ApiClient, KubeCluster, api_client
from mailproxy_operator.lease import Leadership
from mailproxy_operator.meters import Meters
from mailproxy_operator.reconcile import Reconciler
from mailproxy_operator.settings import OperatorSettings, Platform
from mailproxy_operator.waker import Waker
from mailproxy_operator.webhook import Webhook
from mailproxy_operator.work_queue import RECONCILE_SECONDS, WorkQueue

STUCK_SECONDS = RECONCILE_SECONDS + 60.0
SPREAD = 0.1
RETRY_SECONDS = 5.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def operate(
    settings: OperatorSettings,
    stop: asyncio.Event,
    *,
    configuration: Configuration | None = None,
    login: handlers.Login = handlers.from_environment,
) -> int:
    """Run the operator until ``stop`` is set, or the Lease is lost.

    Args:
        settings: What was asked for.
        stop: Set from outside to end it.
        configuration: How to reach the API server; found out where not given.
        login: How kopf reaches it.

    Returns:
        The exit code: 0 when asked to stop, 1 when the Lease was lost.
    """
    async with AsyncExitStack() as stack:
        credentials = Credentials(configuration)
        api = await stack.enter_async_context(api_client(await credentials.read()))
        pods = await stack.enter_async_context(aiohttp.ClientSession())
        operator = Operator(settings, api, pods, login, credentials)
        webhook = operator.webhook()
        endpoint = AdminEndpoint(
            settings.admin_host,
            settings.admin_port,
            meters=operator.meters,
            trouble=operator.trouble,
            is_ready=lambda: operator.is_ready and (webhook is None or webhook.is_ready),
        )
        await stack.enter_async_context(endpoint)
        if webhook is None:
            return await operator.run(stop)
        return await _beside(operator.run(stop), webhook.run(), stop)


class Operator:
    """One operator process."""

    def __init__(
        self,
        settings: OperatorSettings,
        api: ApiClient,
        pods: aiohttp.ClientSession,
        login: handlers.Login,
        credentials: Credentials,
    ) -> None:
        self.meters = Meters()
        self._settings = settings
        self._login = login
        self._cluster = KubeCluster(
            api,
            pods,
            meter=self.meters.requested,
            node_version=settings.node_min_version,
            credentials=credentials,
        )
        self._queue: WorkQueue | None = None
        self._resynced: float | None = None

    def webhook(self) -> Webhook | None:
        """Make the webhook, where it was asked for."""
        if self._settings.webhook is None:
            return None
        return Webhook(self._settings, self._cluster, login=self._login, told=self.meters.admitted)

    @property
    def is_ready(self) -> bool:
        """Whether it works or stands by: the API server lets it in."""
        return self._cluster.is_let_in

    def trouble(self) -> str:
        """Tell why the operator is stuck; nothing when it is not."""
        if self._queue is None or self._resynced is None:
            return ""
        running = self._queue.longest_running()
        if running > STUCK_SECONDS:
            return f"a reconcile has been running for {running:.0f} seconds"
        age = asyncio.get_running_loop().time() - self._resynced
        return f"the last resync was {age:.0f} seconds ago" if age > 3 * self._settings.resync_seconds else ""

    async def run(self, stop: asyncio.Event) -> int:
        """Wait for the Lease, work, give it back."""
        settings = self._settings
        if not settings.lease_namespace:
            await _first(stop.wait(), self._work(stop))
            return 0
        key = Key(settings.lease_namespace, settings.lease_name)
        leadership = Leadership(self._cluster, key, settings.identity)
        await _first(stop.wait(), leadership.acquire())
        if stop.is_set():
            return 0
        self.meters.leader.set(1)
        try:
            await _first(stop.wait(), self._work(stop), leadership.hold())
        finally:
            self.meters.leader.set(0)
            await leadership.release()
        return 0 if stop.is_set() else 1

    async def _work(self, stop: asyncio.Event) -> None:
        """Reconcile whatever kopf or the resync wakes."""
        version = await _answered(self._cluster.version)
        platform = Platform(kube_version=version, image=self._settings.image)
        reconciler = Reconciler(self._cluster, platform)
        await self._until_installed()
        waker = Waker(reconciler, told=self.meters.reconciled)
        self._queue = waker.queue
        self.meters.watch_queue(lambda: len(waker.queue))
        kinds = tuple([kind for kind in handlers.WATCHED if await self._has(kind)])
        ours, carriers = kopf.OperatorRegistry(), kopf.OperatorRegistry()
        handlers.register(ours, waker, login=self._login, kinds=kinds)
        handlers.register_carriers(carriers, waker, login=self._login)
        await _first(
            waker.queue.run(),
            self._resync(waker),
            self._watch(ours, handlers.OURS, stop),
            self._watch(carriers, handlers.CARRIERS, stop),
        )

    async def _until_installed(self) -> None:
        """Wait for the custom resource definition: kopf would not notice if it came later."""
        while not await _answered(lambda: self._cluster.has(MAIL_PROXY)):
            _log.warning("the custom resource definition is not installed: apply deploy/crd.yaml")
            await asyncio.sleep(RETRY_SECONDS)

    async def _has(self, kind: Kind) -> bool:
        return not kind.optional or await _answered(lambda: self._cluster.has(kind))

    async def _watch(self, registry: kopf.OperatorRegistry, selector: str, stop: asyncio.Event) -> None:
        namespaces = self._settings.namespaces
        watching = partial(
            kopf.operator,
            registry=registry,
            clusterwide=not namespaces,
            namespaces=namespaces,
            standalone=True,
        )
        while True:
            try:
                await watching(settings=handlers.operator_settings(selector))
            except kopf.LoginError:
                # It gives up as soon as they are refused; new ones may come.
                _log.warning(
                    "watching: the API server does not accept our credentials; they may have expired"
                )
                await asyncio.sleep(RETRY_SECONDS)
            else:
                # kopf takes the process's signals for itself and returns after one.
                stop.set()
                return

    async def _resync(self, waker: Waker) -> None:
        """Look at everything now and then: what a watch has missed is found here."""
        interval = self._settings.resync_seconds
        while True:
            try:
                snapshot = await self._cluster.snapshot(self._settings.namespaces)
            except OperatorError as failure:
                _log.warning("resync: %s", failure)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            is_first = self._resynced is None
            self._resynced = asyncio.get_running_loop().time()
            waker.resync(snapshot, spread=0.0 if is_first else SPREAD * interval)
            await asyncio.sleep(interval * random.uniform(1 - SPREAD, 1 + SPREAD))  # noqa: S311


async def _answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the API server again until it answers: without that there is nothing to begin with."""
    while True:
        try:
            return await ask()
        except OperatorError as failure:
            _log.warning("%s", failure)
            await asyncio.sleep(RETRY_SECONDS)


async def _beside(work: Awaitable[int], webhook: Awaitable[None], stop: asyncio.Event) -> int:
    """Work with the webhook beside it, whoever holds the Lease; neither goes on without the other."""

    async def served() -> None:
        await webhook
        stop.set()

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(served())
        code = await work
        serving.cancel()
    return code


async def _first(*parts: Awaitable[object]) -> None:
    """Run things side by side until the first of them ends; the others are cancelled."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_plain(part)) for part in parts]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()


async def _plain(part: Awaitable[object]) -> None:
    await part
