# SPDX-License-Identifier: Apache-2.0
"""Gets everything ready for a configuration before any worker hears of it.

The file is read and judged, names are resolved, files are looked for, sockets
are opened.  Whatever can fail, fails here, and what runs is not touched.  A
deployment that was prepared is either committed or discarded.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from mailproxy.net import CannotListen, plan, resolve_names
from mailproxy.supervisor import cpus
from mailproxy.supervisor.config_files import read, referenced
from mailproxy.supervisor.config_revision import ConfigRevision
from mailproxy.supervisor.key_rotation import KeyRotation, rotated_timeouts
from mailproxy.supervisor.listening_sockets import Listeners
from mailproxy.supervisor.log_servers import with_addresses
from mailproxy.supervisor.options import Settings
from mailproxy.supervisor.verdict import in_order, judge
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.load import Loaded
from mailproxy_config.model import ProxyConfig
from mailproxy_config.rendered import dump

__all__ = ["CannotListen", "PreparedConfig", "in_thread"]

ResultT = TypeVar("ResultT")


class PreparedConfig:
    """Makes deployments out of the configuration file, and owns the sockets that they share.

    Attributes:
        files: What to watch: the file, and all that the running configuration
            and the one that was last tried refer to.
        ticket_keys: What TLS session tickets are sealed with.
    """

    def __init__(self, settings: Settings) -> None:
        self.files: frozenset[Path] = frozenset([settings.file])
        self._settings = settings
        self._running_files: frozenset[Path] = frozenset()
        self._listeners = Listeners()
        self._serials = count(1)
        self._hostname = socket.gethostname()
        self.ticket_keys = KeyRotation()

    async def prepare(self) -> ConfigRevision:
        """Read the file and get ready for what it says.

        Raises:
            ConfigError: It does not load, or refers to files that do not.
            CannotListen: An address cannot be listened on.
        """
        return await in_thread(self._prepare)

    def commit(self, deployment: ConfigRevision) -> None:
        """Close whatever this deployment does not need; it runs."""
        self._listeners.commit(deployment.sockets)
        self.ticket_keys.keep(rotated_timeouts(deployment.config))
        self._running_files = referenced(deployment.config)
        self.files = self._running_files | {self._settings.file}

    def discard(self, deployment: ConfigRevision) -> None:
        """Close whatever only this deployment needs; it does not run."""
        self._listeners.discard(deployment.sockets)

    def close(self) -> None:
        """Stop listening; see ``Listeners.close``."""
        self._listeners.close()

    def _prepare(self) -> ConfigRevision:
        path = self._settings.file
        verdict = judge(read(path), source=str(path), hostname=self._hostname)
        if verdict.loaded is not None:
            self.files = self._running_files | referenced(verdict.loaded.config) | {path}
        loaded = verdict.runnable()
        try:
            return self._deployment(loaded, verdict.notices)
        except ConfigError as error:
            raise ConfigError(in_order(map(loaded.located, error.problems))) from None
        except CannotListen as error:
            error.locate(loaded)
            raise

    def _deployment(self, loaded: Loaded, notices: tuple[Problem, ...]) -> ConfigRevision:
        config = loaded.config
        names = resolve_names(config)
        config = with_addresses(config)
        workers = self._workers(config)
        return ConfigRevision(
            serial=next(self._serials),
            config=config,
            text=dump(config, generation=loaded.generation).decode(),
            hash=loaded.hash,
            generation=loaded.generation,
            loaded_at=time.time(),
            hostname=self._hostname,
            names=names,
            workers=workers,
            notices=notices,
            located=loaded.located,
            sockets=self._listeners.prepare(plan(config, names), workers),
            ticket_keys=self.ticket_keys,
        )

    def _workers(self, config: ProxyConfig) -> int:
        wanted = self._settings.workers or config.workers
        return cpus.usable() if wanted is None or wanted == "auto" else max(1, wanted)


async def in_thread(work: Callable[[], ResultT]) -> ResultT:
    """Do blocking work in a thread of its own.

    Unlike the loop's own threads, this one does not keep the process from
    ending when nobody waits for it any more: a name server that is out of
    reach may hold it up for long.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        try:
            outcome: tuple[ResultT | None, Exception | None] = work(), None
        except Exception as error:  # raised again where it is waited for
            outcome = None, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="preparing", daemon=True).start()
    return await done
