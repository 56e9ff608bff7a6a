# SPDX-License-Identifier: Apache-2.0
"""``mailproxy-operator run``: one ``kopf.operator()`` and the tasks that run beside it.

Every process watches, so its cache is complete and it can answer the webhook.  Only the process that
holds the Lease reconciles.  An error that cannot be handled ends the process, and Kubernetes restarts it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import aiohttp
import kopf

from mailproxy_operator.admin import AdminEndpoint
from mailproxy_operator.api import names, watch_monitor
from mailproxy_operator.api.client import KubeClient, api_client
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.credentials import Configuration, Credentials
from mailproxy_operator.api.kinds import GATEWAY_GROUP, MAIL_PROXY, Kind
from mailproxy_operator.api.leader_election import LeaderElector
from mailproxy_operator.api.slice_client import SliceClient
from mailproxy_operator.api.watch_monitor import Login, WatchMonitor, from_environment
from mailproxy_operator.controller.cache import Cache
from mailproxy_operator.controller.handlers import WATCHED, EventHandlers, register_indexes
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.controller.resync import Resync
from mailproxy_operator.controller.service_watch import ServiceWatch
from mailproxy_operator.controller.work_queue import RECONCILE_SECONDS
from mailproxy_operator.errors import OperatorError
from mailproxy_operator.metrics import Metrics
from mailproxy_operator.settings import OperatorSettings
from mailproxy_operator.sidecar.webhook import Webhook

STUCK_SECONDS = RECONCILE_SECONDS + 60.0
RETRY_SECONDS = 5.0
KINDS_SECONDS = 60.0
"""Interval of the check whether an optional kind was added to or removed from the cluster."""
CHECK_SECONDS = 10.0
EXIT_SECONDS = 8.0
"""Timeout for kopf to end after its clean-up; kopf waits five seconds for tasks that do not end."""
BACK_OFFS = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Back-off of kopf after a failed request, in seconds; the last value repeats."""

NO_DEFINITION = "the custom resource definition is not installed: apply deploy/crd.yaml"

T = TypeVar("T")

_log = logging.getLogger(__name__)


async def operate(
    settings: OperatorSettings,
    stop: asyncio.Event | None = None,
    *,
    configuration: Configuration | None = None,
    login: Login = from_environment,
) -> int:
    """Run the operator until it receives a signal, ``stop`` is set, or it fails.

    Args:
        settings: The settings from the command line.
        stop: Set it to stop the operator; ``SIGTERM`` and ``SIGINT`` do the same.
        configuration: How to reach the API server; read from the environment by default.
        login: The login handler of kopf.

    Returns:
        The exit code: 0 when it was stopped, 1 when it has to be restarted.

    Raises:
        OSError: It cannot listen.
        NoCredentials: There are no credentials.
    """
    operator = Operator(settings, stop or asyncio.Event(), configuration=configuration, login=login)
    return await operator.run()


class Operator:
    """One operator process.

    Args:
        settings: The settings from the command line.
        stop: Stops the operator when set.
        configuration: How to reach the API server.
        login: The login handler of kopf.
    """

    def __init__(
        self,
        settings: OperatorSettings,
        stop: asyncio.Event,
        *,
        configuration: Configuration | None,
        login: Login,
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._credentials = Credentials(configuration)
        self._metrics = Metrics()
        self._monitor = WatchMonitor(self._metrics, login, listed_again=self._listed_again)
        self._stack = AsyncExitStack()
        self._code = 0
        self._cleaned = asyncio.Event()
        self._failure: BaseException | None = None
        self._missing_definition = ""
        self._registry = kopf.OperatorRegistry()
        self._cluster: KubeClient | None = None
        self._handlers: EventHandlers | None = None
        self._resync: Resync | None = None
        self._services: ServiceWatch | None = None
        self._webhook: Webhook | None = None

    async def run(self) -> int:
        """Run kopf until it ends.

        Returns:
            The exit code.
        """
        await self._credentials.read()
        registry = self._registry
        kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)(self._start)
        kopf.on.cleanup(registry=registry)(self._clean_up)
        kopf.on.login(registry=registry)(self._monitor.session)
        register_indexes(registry)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                running = self._tasks.create_task(self._run_kopf())
                cleaned = self._tasks.create_task(_as_coroutine(self._cleaned.wait()))
                stopped = self._tasks.create_task(_as_coroutine(self._stop.wait()))
                await asyncio.wait([running, cleaned, stopped], return_when=asyncio.FIRST_COMPLETED)
                cleaned.cancel()
                stopped.cancel()
                # After an error kopf cancels its watches and their helper tasks; some watches then restart.
                await asyncio.wait([running], timeout=EXIT_SECONDS)
                if not running.done():
                    self._end("kopf does not end")
                    running.cancel()
        finally:
            await self._stack.aclose()
        if self._failure is not None:
            raise self._failure
        return self._code

    async def _run_kopf(self) -> None:
        try:
            await kopf.operator(
                registry=self._registry,
                settings=kopf_settings(),
                stop_flag=self._stop,
                identity=self._settings.identity or names.FIELD_MANAGER,  # type: ignore[arg-type]  # a NewType
                clusterwide=not self._settings.namespaces,
                namespaces=self._settings.namespaces,
                standalone=True,
            )
        except Exception as error:  # kopf raises any exception
            if self._failure is None:
                self._end(f"kopf has ended: {type(error).__name__}: {error}")

    def _end(self, reason: str) -> None:
        """End the process so that Kubernetes restarts it."""
        _log.error("the operator ends, and Kubernetes restarts it: %s", reason)
        self._code = 1
        self._stop.set()

    # -- kopf's activities ----------------------------------------------------

    async def _start(self, settings: kopf.OperatorSettings, **kwargs: Any) -> None:  # noqa: ANN401  kopf's own
        """Open clients and servers, and wait until the API server is ready for the operator."""
        try:
            cluster = await self._open(settings)
        except Exception as error:
            self._failure = error
            raise
        version = await _retry_until_ok(cluster.version)
        await self._until_installed(cluster)
        kinds = await _retry_until_ok(lambda: _served_kinds(cluster))
        cache = Cache(cluster)
        cache.attach({kind: kwargs[kind.id] for kind in kinds})
        self._services = ServiceWatch(await self._open_slices(cluster), self._enqueue)
        reconciler = Reconciler(cache, self._settings.platform(version), self._services)
        handlers = EventHandlers(
            reconciler, cache, recorder=self._metrics.reconciled, request_config=cluster.running_config
        )
        handlers.register(self._registry)
        self._handlers = handlers
        self._metrics.watch_queue(lambda: len(handlers.queue))
        self._resync = Resync(
            cluster,
            cache,
            handlers,
            namespaces=self._settings.namespaces,
            interval=self._settings.resync_seconds,
        )
        self._monitor.set_watches(kinds, self._settings.namespaces)
        background = self._tasks.create_task(self._run_background(cluster, kinds))
        self._stack.push_async_callback(_cancel, background)

    async def _open_slices(self, cluster: KubeClient) -> SliceClient:
        """Open a client for the watches of Services, which occupy their connections."""
        api = await self._stack.enter_async_context(api_client(self._credentials.configuration))
        return SliceClient(cluster, api)

    def _enqueue(self, key: Key) -> None:
        if self._handlers is not None:
            self._handlers.enqueue(key)

    async def _open(self, settings: kopf.OperatorSettings) -> KubeClient:
        """Open clients and servers."""
        api = await self._stack.enter_async_context(api_client(self._credentials.configuration))
        pods = await self._stack.enter_async_context(aiohttp.ClientSession())
        cluster = KubeClient(
            api,
            pods,
            meter=self._metrics.requested,
            node_version=self._settings.node_min_version,
            credentials=self._credentials,
        )
        self._cluster = cluster
        if self._settings.webhook is not None:
            self._webhook = Webhook(self._settings, cluster, recorder=self._metrics.admitted)
            self._webhook.register(self._registry)
            settings.admission.server = self._webhook.server
        endpoint = AdminEndpoint(
            self._settings.admin_host,
            self._settings.admin_port,
            metrics=self._metrics,
            liveness_error=self.liveness_error,
            readiness_error=self.readiness_error,
        )
        await self._stack.enter_async_context(endpoint)
        return cluster

    async def _clean_up(self, **_: object) -> None:
        """Cancel the tasks beside kopf, release the Lease, close clients and servers."""
        await self._stack.aclose()
        self._cleaned.set()

    # -- reported by the admin endpoint --------------------------------------

    def readiness_error(self) -> str:
        """Return why the operator is not ready; empty when its cache is complete, leader or not."""
        cluster = self._cluster
        error = self._monitor.last_error or (cluster.last_error if cluster else "")
        if cluster is None or not cluster.is_authenticated:
            return error or "no response from the API server yet"
        if self._monitor.last_error:
            return self._monitor.last_error
        if not self._monitor.is_synced():
            return self._missing_definition or error or "not all resources have been read yet"
        return "" if self._webhook is None else self._webhook.readiness_error()

    def liveness_error(self) -> str:
        """Return why the operator is stuck; empty when it is not."""
        running = 0.0 if self._handlers is None else self._handlers.queue.longest_running()
        if running > STUCK_SECONDS:
            return f"a reconcile has been running for {running:.0f} seconds"
        is_leading = self._resync is not None and self._metrics.is_leader
        return self._resync.liveness_error() if self._resync is not None and is_leading else ""

    # -- tasks beside kopf ----------------------------------------------------

    async def _run_background(self, cluster: KubeClient, kinds: tuple[Kind, ...]) -> None:
        """Run all tasks beside kopf until cancelled."""
        parts = [self._lead(cluster), self._watch_kinds(cluster, kinds), self._check_watches()]
        if self._webhook is not None:
            parts.append(self._webhook.keep())
        try:
            await _run_together(parts)
        except Exception:
            _log.exception("a task has failed")
            self._end("a task has failed")

    async def _lead(self, cluster: KubeClient) -> None:
        """Acquire the Lease, reconcile, release the Lease; losing it ends the process."""
        settings = self._settings
        if not settings.lease_namespace:
            await self._reconcile()
            return
        key = Key(settings.lease_namespace, settings.lease_name)
        elector = LeaderElector(cluster, key, settings.identity, owner=settings.lease_owner())
        await elector.acquire()
        try:
            await _run_until_first(self._reconcile(), elector.renew())
            self._end("the Lease is lost")
        finally:
            await elector.release()

    async def _reconcile(self) -> None:
        """Reconcile the resources that events and resyncs enqueue."""
        if self._handlers is None or self._resync is None or self._services is None:
            raise RuntimeError("not started")
        self._metrics.set_leader(is_leader=True)
        try:
            await _run_together(
                [
                    self._handlers.queue.run(),
                    self._handlers.poll.run(),
                    self._services.run(),
                    self._resync.run(),
                    self._resync.watch_unlabelled_pods(),
                ]
            )
        finally:
            self._metrics.set_leader(is_leader=False)

    async def _until_installed(self, cluster: KubeClient) -> None:
        """Wait for the custom resource definition: kopf would not detect it when it is added later."""
        while not await _retry_until_ok(lambda: cluster.has(MAIL_PROXY)):
            self._missing_definition = NO_DEFINITION
            _log.warning(NO_DEFINITION)
            await asyncio.sleep(RETRY_SECONDS)
        self._missing_definition = ""

    async def _watch_kinds(self, cluster: KubeClient, kinds: tuple[Kind, ...]) -> None:
        """End the process when a kind was added to or removed from the cluster: kopf reads kinds once."""
        while True:
            await asyncio.sleep(KINDS_SECONDS)
            found = await _retry_until_ok(lambda: _served_kinds(cluster))
            if found != kinds:
                changed = ", ".join(sorted(kind.name for kind in {*found} ^ {*kinds}))
                self._end(f"the kinds of the cluster have changed: {changed}")
                return

    async def _check_watches(self) -> None:
        """End the process when a watch has stalled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if stalled := self._monitor.stalled():
                self._end(stalled)
                return

    def _listed_again(self, kind: Kind) -> None:
        if self._resync is not None:
            self._resync.listed_again(kind)


def kopf_settings() -> kopf.OperatorSettings:
    """Return settings with which kopf only watches and serves webhooks."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{names.GROUP}/kopf-finalizer"
    settings.watching.server_timeout = int(watch_monitor.SERVER_SECONDS)
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = watch_monitor.INACTIVE_SECONDS
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = _BackOffs()
    settings.execution.max_workers = 1
    settings.process.ultimate_exiting_timeout = None
    # The selector limits watches to the operator's objects: a cluster has many other pods and ConfigMaps.
    settings.watching.label_selectors[_is_not_ours] = names.PROXY
    return settings


def _is_not_ours(resource: kopf.Resource) -> bool:
    return resource.group not in {names.GROUP, GATEWAY_GROUP}


class _BackOffs:
    """An endless sequence of back-offs: kopf stops a watch, and then itself, when the sequence ends."""

    def __iter__(self) -> Iterator[float]:
        yield from BACK_OFFS
        yield from itertools.repeat(BACK_OFFS[-1])


async def _served_kinds(cluster: KubeClient) -> tuple[Kind, ...]:
    """Return which of the watched kinds the cluster has."""
    served = await cluster.served(kind for kind in WATCHED if kind.optional)
    return tuple(kind for kind in WATCHED if not kind.optional or kind in served)


async def _retry_until_ok(request: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await request()
        except OperatorError as failure:
            _log.warning("%s", failure)
            await asyncio.sleep(RETRY_SECONDS)


async def _run_together(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines concurrently; a failure of one cancels the others."""
    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(part)


async def _as_coroutine(part: Awaitable[object]) -> None:
    await part


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _run_until_first(*parts: Coroutine[Any, Any, None]) -> None:
    """Run coroutines concurrently until the first one ends; the others are cancelled."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part) for part in parts]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
