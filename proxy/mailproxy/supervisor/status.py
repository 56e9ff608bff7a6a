# SPDX-License-Identifier: Apache-2.0
"""The status of all processes, as the admin endpoint reports it."""

from __future__ import annotations

import functools
import platform
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from mailproxy.enums import ReloadResult
from mailproxy.limits.table import LimitTable
from mailproxy.net.upstream_health import UpstreamHealth
from mailproxy.supervisor import version
from mailproxy.supervisor.config_loader import ConfigRevision
from mailproxy.supervisor.member_lists import MemberLists
from mailproxy.supervisor.worker_pool import WorkerPool
from mailproxy.telemetry.aggregate import Aggregator, BuildInfo, MetricsPage, SupervisorFacts
from mailproxy.telemetry.metrics import Snapshot
from mailproxy.telemetry.process_stats import process_stats
from mailproxy_config.errors import Problem
from mailproxy_config.limit_directives import PREAUTH_ZONE
from mailproxy_config.upstream_groups import service_groups

SNAPSHOT_SECONDS: Final = 1.0
"""How long a scrape waits for workers; for one that does not reply, its last snapshot is used."""

_MAX_ERROR_LENGTH: Final = 4096
_MAX_CERTIFICATES: Final = 20
"""Maximum number of reported certificates that are not used."""
_MAX_LINES: Final = 20
"""Maximum number of reported lines of tables, and of lists of users."""


class Status:
    """Collects what the admin endpoint reports.

    Args:
        upstream_health: The table that the workers share.
        limits: The zones of limits that they share.
        members: The members of Services.

    Attributes:
        pool: The workers; ``None`` before the start.
        is_started: Whether all workers have been ready once.
        is_draining: Whether the proxy is shutting down.
    """

    def __init__(
        self,
        upstream_health: UpstreamHealth,
        limits: LimitTable | None = None,
        members: MemberLists | None = None,
    ) -> None:
        self._upstream_health = upstream_health
        self._members = members or MemberLists()
        self._limits = limits
        self.pool: WorkerPool | None = None
        self.is_started = False
        self.is_draining = False
        self._aggregator = Aggregator()
        self._started_at = time.time()
        self._reloads = dict.fromkeys(ReloadResult, 0)
        self._last_error: str | None = None
        self._certificates: tuple[Problem, ...] = ()
        self._kept_tables = 0
        self._kept_user_files = 0
        self._refused_lines: tuple[str, ...] = ()
        self._refused_users: tuple[str, ...] = ()
        self._shown: ConfigRevision | None = None
        self._report_number = 0

    # -- updates from the supervisor

    def on_snapshot(self, key: int, snapshot: Snapshot) -> None:
        """Store a worker's metrics."""
        self._aggregator.update(key, snapshot)

    def on_exit(self, key: int) -> None:
        """Keep the counters of a worker that has exited; limits do not count its sessions any more."""
        self._aggregator.retire(key)
        if self._limits is not None:
            self._limits.reclaim()

    def loaded(self, revision: ConfigRevision) -> None:
        """Record that all workers have applied a configuration."""
        self._reloads[ReloadResult.SUCCESS] += 1
        self._last_error = None
        self._certificates = revision.certificates[:_MAX_CERTIFICATES]
        self._kept_tables = revision.kept_tables
        self._kept_user_files = revision.kept_user_files
        self._refused_lines = tuple(one.without_line for one in revision.refused_lines[:_MAX_LINES])
        self._refused_users = tuple(one.without_line for one in revision.refused_users[:_MAX_LINES])
        servers = revision.config.servers
        zones = {name for server in servers for name in server.limit_zones}
        groups = service_groups(group for server in servers for group in server.upstream_groups)
        self._aggregator.keep_servers((server.name for server in servers), {PREAUTH_ZONE, *zones}, groups)

    def refused(self, problems: tuple[Problem, ...]) -> None:
        """Record that a configuration was rejected; the previous one stays in use."""
        self._reloads[ReloadResult.FAILURE] += 1
        self._last_error = "; ".join(problem.without_line for problem in problems)[:_MAX_ERROR_LENGTH]

    # -- requests of the admin endpoint

    async def refresh(self) -> None:
        """Request the metrics of every worker; cancelled when that takes too long."""
        self._report_number += 1
        if self.pool is not None:
            await self.pool.report(self._report_number, SNAPSHOT_SECONDS)

    def page(self) -> MetricsPage:
        """Return the metrics of all processes together, as last received."""
        facts = SupervisorFacts(
            build=_build(),
            workers=self.pool.alive if self.pool else 0,
            started=self._started_at,
            restarts=self.pool.restarts if self.pool else {},
            reloads=self._reloads,
            config_rejected=self._last_error is not None,
            draining=self.is_draining,
            unhealthy_upstreams=self._upstream_health.unhealthy(),
            limit_zones={} if self._limits is None else self._limits.entries(),
            kept_route_tables=self._kept_tables,
            kept_user_files=self._kept_user_files,
            members=self._members.counts(),
            kept_member_lists=self._members.kept,
            process=process_stats(),
        )
        return self._aggregator.page(facts)

    def unready_reason(self) -> str:
        """Return why clients are not accepted, or not by all workers; empty if they are."""
        if self.is_draining:
            return "draining"
        if self.pool is None or not self.is_started:
            return "starting"
        if not self.pool.serving:
            return "no worker is ready"
        return "; ".join(
            f"worker {pid} has not reported for {seconds:.0f} s"
            for pid, seconds in self.pool.unresponsive.items()
        )

    def config(self) -> Mapping[str, object]:
        """Return hash, generation and load time of the configuration in all workers, and what is wrong.

        ``certificates`` are those that clients choose by name and that are not used, or not for all names.
        ``route_tables`` and ``user_files`` are lines of files whose earlier versions are used, without any
        part of the line.  ``upstreams`` has what logins at upstreams have shown, by server.
        """
        if self.pool is not None and self.is_started and self.pool.is_settled:
            self._shown = self.pool.wanted
        shown = self._shown
        return {
            "hash": shown.hash if shown else None,
            "generation": shown.generation if shown else None,
            "loaded_at": datetime.fromtimestamp(shown.loaded_at, UTC).isoformat() if shown else None,
            "last_error": self._last_error,
            "certificates": [str(problem) for problem in self._certificates],
            "route_tables": list(self._refused_lines),
            "user_files": list(self._refused_users),
            "upstreams": self._aggregator.upstreams(time.time()),
        }


@functools.cache
def _build() -> BuildInfo:
    """Return the version; only when it is needed, since it is slow."""
    return BuildInfo(
        version=version.version(),
        revision=version.revision(),
        python_version=platform.python_version(),
        openssl_version=ssl.OPENSSL_VERSION,
    )
