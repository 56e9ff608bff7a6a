# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator run``: puts the parts together and keeps them going."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import aiohttp

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
from mailproxy_operator.resync import Resync
from mailproxy_operator.settings import OperatorSettings
from mailproxy_operator.waker import Waker
from mailproxy_operator.watching import CARRIERS, Login, Watching, from_environment, kopf_settings
from mailproxy_operator.webhook import Webhook
from mailproxy_operator.work_queue import RECONCILE_SECONDS, WorkQueue

STUCK_SECONDS = RECONCILE_SECONDS + 60.0
RETRY_SECONDS = 5.0
KINDS_SECONDS = 60.0
"""Kinds of other products come and go; the operator does not have to be started again for that."""

NO_DEFINITION = "the custom resource definition is not installed: apply deploy/crd.yaml"

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def operate(
    settings: OperatorSettings,
    stop: asyncio.Event,
    *,
    configuration: Configuration | None = None,
    login: Login = from_environment,
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
        meters = Meters()
        watching = Watching(settings, login=login, told=meters, stop=stop)
        operator = Operator(settings, api, pods, credentials, meters=meters, watching=watching)
        webhook = operator.webhook()
        endpoint = AdminEndpoint(
            settings.admin_host,
            settings.admin_port,
            meters=meters,
            trouble=operator.trouble,
            unready=lambda: operator.unready() or ("" if webhook is None else webhook.unready()),
        )
        await stack.enter_async_context(endpoint)
        if webhook is None:
            return await operator.run(stop)
        return await _beside(operator.run(stop), webhook.run())


class Operator:
    """One operator process.

    Args:
        settings: What was asked for.
        api: The API server.
        pods: For asking pods themselves.
        credentials: How to get in at the API server.
        meters: What is counted.
        watching: Runs kopf.
    """

    def __init__(
        self,
        settings: OperatorSettings,
        api: ApiClient,
        pods: aiohttp.ClientSession,
        credentials: Credentials,
        *,
        meters: Meters,
        watching: Watching,
    ) -> None:
        self._settings = settings
        self._meters = meters
        self._watching = watching
        self._cluster = KubeCluster(
            api, pods, meter=meters.requested, node_version=settings.node_min_version, credentials=credentials
        )
        self._is_at_work = False
        self._waiting = ""
        self._queue: WorkQueue | None = None
        self._resync: Resync | None = None

    def webhook(self) -> Webhook | None:
        """Make the webhook, where it was asked for."""
        if self._settings.webhook is None:
            return None
        return Webhook(self._settings, self._cluster, watching=self._watching, told=self._meters.admitted)

    def unready(self) -> str:
        """Return why it is not ready; nothing when it works, or stands by for the one that does."""
        trouble = self._cluster.trouble or self._watching.trouble
        if not self._cluster.is_let_in:
            return trouble or "no answer from the API server yet"
        if self._watching.trouble:
            return self._watching.trouble
        is_synced = self._resync is not None and self._resync.is_synced
        if self._is_at_work and not is_synced:
            return self._waiting or trouble or "the resources have not all been read yet"
        return ""

    def trouble(self) -> str:
        """Tell why the operator is stuck; nothing when it is not."""
        running = 0.0 if self._queue is None else self._queue.longest_running()
        if running > STUCK_SECONDS:
            return f"a reconcile has been running for {running:.0f} seconds"
        return "" if self._resync is None else self._resync.trouble()

    async def run(self, stop: asyncio.Event) -> int:
        """Wait for the Lease, work, give it back."""
        settings = self._settings
        if not settings.lease_namespace:
            await _first(stop.wait(), self._work())
            return 0
        key = Key(settings.lease_namespace, settings.lease_name)
        leadership = Leadership(self._cluster, key, settings.identity, owner=settings.lease_owner())
        await _first(stop.wait(), leadership.acquire())
        if stop.is_set():
            return 0
        self._meters.leader.set(1)
        try:
            await _first(stop.wait(), self._work(), leadership.hold())
        finally:
            self._meters.leader.set(0)
            await leadership.release()
        return 0 if stop.is_set() else 1

    async def _work(self) -> None:
        """Reconcile whatever kopf or the resync wakes."""
        self._is_at_work = True
        version = await _answered(self._cluster.version)
        reconciler = Reconciler(self._cluster, self._settings.platform(version))
        await self._until_installed()
        waker = Waker(reconciler, told=self._meters.reconciled, ask=self._cluster.running_config)
        self._queue = waker.queue
        self._meters.watch_queue(lambda: len(waker.queue))
        self._resync = Resync(
            self._cluster,
            waker,
            namespaces=self._settings.namespaces,
            interval=self._settings.resync_seconds,
        )
        await _first(
            waker.queue.run(),
            waker.poll.run(),
            self._look(waker, self._resync),
            self._watching.keep(
                lambda registry: handlers.register_carriers(registry, waker),
                partial(kopf_settings, CARRIERS),
                listed=waker.carriers_listed,
            ),
        )

    async def _until_installed(self) -> None:
        """Wait for the custom resource definition: kopf would not notice if it came later."""
        while not await _answered(lambda: self._cluster.has(MAIL_PROXY)):
            self._waiting = NO_DEFINITION
            _log.warning(NO_DEFINITION)
            await asyncio.sleep(RETRY_SECONDS)
        self._waiting = ""

    async def _look(self, waker: Waker, resync: Resync) -> None:
        """Watch and resync, and begin anew when the cluster gets another kind or loses one."""
        while True:
            kinds = await _answered(self._kinds)
            register = partial(handlers.register, waker=waker, kinds=kinds)
            await _first(
                resync.run(),
                self._watching.keep(register, listed=waker.listed),
                self._until_others_than(kinds),
            )

    async def _kinds(self) -> tuple[Kind, ...]:
        """Tell which of the watched kinds the cluster has."""
        served = await self._cluster.served(kind for kind in handlers.WATCHED if kind.optional)
        return tuple(kind for kind in handlers.WATCHED if not kind.optional or kind in served)

    async def _until_others_than(self, kinds: tuple[Kind, ...]) -> None:
        while True:
            await asyncio.sleep(KINDS_SECONDS)
            found = await _answered(self._kinds)
            if found != kinds:
                changed = ", ".join(sorted(kind.name for kind in {*found} ^ {*kinds}))
                _log.info("the cluster has other kinds than before: %s", changed)
                return


async def _answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the API server again until it answers: without that there is nothing to begin with."""
    while True:
        try:
            return await ask()
        except OperatorError as failure:
            _log.warning("%s", failure)
            await asyncio.sleep(RETRY_SECONDS)


async def _beside(work: Awaitable[int], webhook: Awaitable[None]) -> int:
    """Work with the webhook beside it, whoever holds the Lease; neither goes on without the other."""
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(_plain(webhook))
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
