# SPDX-License-Identifier: Apache-2.0
"""kopf at work: it watches for us, and is begun again whatever ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import kopf

from mailproxy_operator import names
from mailproxy_operator.api_tls import described
from mailproxy_operator.settings import OperatorSettings
from mailproxy_operator.task_family import TaskFamily
from mailproxy_operator.watch_session import FAILED, INACTIVE, Connected, Listed, Told, WatchSession

INACTIVE_SECONDS = 90.0
"""A watch from which nothing came for so long is given up: an API server sends a bookmark every 60 to 75."""
SILENT_SECONDS = 3 * INACTIVE_SECONDS
"""kopf itself is begun again when nothing at all was heard of a watch: not an attempt, not a refusal."""
CHECK_SECONDS = 10.0
PAUSE_SECONDS = 5.0
STOP_SECONDS = 3.0
BACK_OFFS = (1.0, 2.0, 4.0, 8.0, 15.0)
OURS = names.label_selector(names.MANAGED_BY_US)
CARRIERS = names.INJECT

_log = logging.getLogger(__name__)

Login = Callable[..., kopf.ConnectionInfo | None]
Register = Callable[[kopf.OperatorRegistry], None]


class Silent(Exception):
    """A watch is neither at work nor being begun."""


def from_environment(**known: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401  whatever kopf hands over
    """Log in with the service account in a pod, with the kubeconfig elsewhere."""
    return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)


def kopf_settings(selector: str = OURS) -> kopf.OperatorSettings:
    """Settings under which kopf only watches.

    Args:
        selector: Of the objects that are no MailProxies.
    """
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.finalizer = f"{names.GROUP}/kopf-finalizer"
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = INACTIVE_SECONDS
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = BACK_OFFS
    settings.execution.max_workers = 1
    # Otherwise it kills the process ten minutes after it was stopped, though we may have begun it again.
    settings.process.ultimate_exiting_timeout = None
    # The server sends ours only: a cluster has many pods and ConfigMaps that are none of our business.
    settings.watching.label_selectors[_is_owned_kind] = selector
    return settings


def _is_owned_kind(resource: kopf.Resource) -> bool:
    return resource.group != names.GROUP


class Watching:
    """Runs kopf.

    Args:
        settings: Which namespaces, and who we are.
        login: How kopf gets in.
        told: Who is told about requests and watches.
        stop: Set when the process is told to end.

    Attributes:
        trouble: Why the API server does not let us watch, as far as is known; empty when it does.
    """

    def __init__(self, settings: OperatorSettings, *, login: Login, told: Told, stop: asyncio.Event) -> None:
        self._settings = settings
        self._login = login
        self._told = told
        self._stop = stop
        self.trouble = ""

    async def keep(
        self,
        register: Register,
        settings: Callable[[], kopf.OperatorSettings] = kopf_settings,
        *,
        listed: Listed | None = None,
    ) -> None:
        """Run kopf until cancelled.

        Args:
            register: Attaches handlers.
            settings: Makes kopf's settings.
            listed: Given what watches list when they begin, or begin anew.
        """
        while True:
            reason = FAILED
            try:
                await self._run(register, settings(), listed)
            except Silent as silence:
                reason = INACTIVE
                _log.warning("watching: begun again: %s", silence)
            except kopf.LoginError:
                # It gives up as soon as they are refused; new ones may come.
                _log.warning(
                    "watching: the API server does not accept our credentials; they may have expired"
                )
            except Exception as error:  # kopf hands up whatever it meets
                _log.warning("watching: begun again in %.0f s: %s", PAUSE_SECONDS, described(error))
            self._told.watch_restarted(reason)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _run(self, register: Register, settings: kopf.OperatorSettings, listed: Listed | None) -> None:
        session = WatchSession(
            self._told,
            patience=INACTIVE_SECONDS,
            let_in=self._let_in,
            again=partial(self._login, logger=_log, settings=settings),
            listed=listed,
        )
        registry = kopf.OperatorRegistry()
        register(registry)
        self._register_login(registry, session)
        namespaces = self._settings.namespaces
        identity: Any = self._settings.identity or names.FIELD_MANAGER
        family = TaskFamily()
        try:
            with family.begun():
                tasks = await kopf.spawn_tasks(
                    registry=registry,
                    settings=settings,
                    identity=identity,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    standalone=True,
                )
            self._take_signals_back()
            await self._first_of(tasks, session)
        finally:
            # kopf's own way to end takes every task that is younger than it for its own.
            try:
                await family.end(STOP_SECONDS)
            finally:
                await session.close()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _let_in(self, trouble: str) -> None:
        self.trouble = trouble

    def _register_login(self, registry: kopf.OperatorRegistry, session: WatchSession) -> None:
        @kopf.on.login(registry=registry)
        async def _login(**known: Any) -> Connected | None:  # noqa: ANN401  handed on
            found = self._login(**known)
            return session.connected(found) if found else None

    def _take_signals_back(self) -> None:
        """Let the process's signals end all of us: kopf takes them, for itself."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop.set)

    async def _first_of(self, tasks: Collection[asyncio.Task[Any]], session: WatchSession) -> None:
        while True:
            done, _ = await asyncio.wait(tasks, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            if session.silent_for() > SILENT_SECONDS:
                raise Silent(f"a watch has brought nothing for {session.silent_for():.0f} seconds")
