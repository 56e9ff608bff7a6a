# SPDX-License-Identifier: Apache-2.0
"""What the admin endpoint is told: the facts of all processes in one place."""

from __future__ import annotations

import functools
import platform
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from mailproxy.enums import ReloadResult, RestartReason
from mailproxy.supervisor import version
from mailproxy.supervisor.admin_endpoint import SNAPSHOT_SECONDS
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.telemetry.aggregate import Aggregator, BuildInfo, MetricsPage, SupervisorFacts
from mailproxy.telemetry.metrics import Snapshot
from mailproxy.telemetry.process_stats import process_figures
from mailproxy_config.errors import Problem

_ERROR_LIMIT: Final = 4096


class Workers(Protocol):
    """What there is to know about the workers; ``Pool`` knows it."""

    @property
    def alive(self) -> int:
        """How many processes there are."""

    @property
    def serving(self) -> int:
        """How many of them take new sessions."""

    @property
    def late(self) -> Mapping[int, float]:
        """Those that do not report: seconds of silence by process number."""

    @property
    def is_settled(self) -> bool:
        """Whether all of them run what is wanted."""

    @property
    def wanted(self) -> ConfigRevision:
        """What they are to run."""

    @property
    def restarts(self) -> Mapping[RestartReason, int]:
        """How many were replaced, and why."""

    async def report(self, number: int, seconds: float) -> None:
        """Have all of them send their numbers within so many seconds."""


class Status:
    """The admin endpoint's source.

    Attributes:
        pool: The workers, as soon as there are any.
        is_started: Whether all workers have been ready once.
        is_draining: Whether the end has begun.
    """

    def __init__(self) -> None:
        self.pool: Workers | None = None
        self.is_started = False
        self.is_draining = False
        self._totals = Aggregator()
        self._since = time.time()
        self._reloads = dict.fromkeys(ReloadResult, 0)
        self._last_error: str | None = None
        self._shown: ConfigRevision | None = None
        self._reports = 0

    # -- what is told to it

    def reported(self, key: int, snapshot: Snapshot) -> None:
        """Take in a worker's numbers."""
        self._totals.update(key, snapshot)

    def gone(self, key: int) -> None:
        """Keep what a worker that has ended counted."""
        self._totals.retire(key)

    def loaded(self, deployment: ConfigRevision) -> None:
        """A configuration was accepted by everybody."""
        self._reloads[ReloadResult.SUCCESS] += 1
        self._last_error = None
        self._totals.keep_servers(server.name for server in deployment.config.servers)

    def refused(self, problems: tuple[Problem, ...]) -> None:
        """A configuration was refused; the one before goes on."""
        self._reloads[ReloadResult.FAILURE] += 1
        self._last_error = "; ".join(map(str, problems))[:_ERROR_LIMIT]

    # -- what is asked of it

    async def snapshots(self) -> None:
        """Ask every worker for its numbers."""
        self._reports += 1
        if self.pool is not None:
            await self.pool.report(self._reports, SNAPSHOT_SECONDS)

    def page(self) -> MetricsPage:
        """Give the sums as they are known now."""
        facts = SupervisorFacts(
            build=_build(),
            workers=self.pool.alive if self.pool else 0,
            started=self._since,
            restarts=self.pool.restarts if self.pool else {},
            reloads=self._reloads,
            config_refused=self._last_error is not None,
            draining=self.is_draining,
            process=process_figures(),
        )
        return self._totals.page(facts)

    def unready(self) -> str:
        """Return why clients are not accepted, or not by all workers; empty where they are."""
        if self.is_draining:
            return "draining"
        if self.pool is None or not self.is_started:
            return "starting"
        if not self.pool.serving:
            return "no worker is ready"
        return "; ".join(
            f"worker {pid} has not reported for {seconds:.0f} s" for pid, seconds in self.pool.late.items()
        )

    def config(self) -> Mapping[str, object]:
        """Describe the configuration that all workers run; ``hash`` is ``None`` until there is one."""
        if self.pool is not None and self.is_started and self.pool.is_settled:
            self._shown = self.pool.wanted
        shown = self._shown
        return {
            "hash": shown.hash if shown else None,
            "generation": shown.generation if shown else None,
            "loaded_at": datetime.fromtimestamp(shown.loaded_at, UTC).isoformat() if shown else None,
            "last_error": self._last_error,
        }


@functools.cache
def _build() -> BuildInfo:
    """Look up what is running; not at the start, which need not wait for it."""
    return BuildInfo(
        version=version.version(),
        revision=version.revision(),
        python_version=platform.python_version(),
        openssl_version=ssl.OPENSSL_VERSION,
    )
