# SPDX-License-Identifier: Apache-2.0
"""The addresses of the authentication service's host, refreshed in the background."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from mailproxy.dns.lookup import OnFailure, TaskSet, count_lookup, ignore_failure, packed
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import AuthHttp

REFRESH_INTERVAL: Final = 30.0
"""Minimum of seconds between two lookups while connections succeed."""
RETRY_INTERVAL: Final = 1.0
"""Minimum of seconds between two lookups after a failure."""
LOOKUP_TIMEOUT: Final = 30.0
"""Seconds after which a lookup counts as timed out."""
MAX_ADDRESSES: Final = 16
"""Addresses of one host that are used; more are ignored."""
FAILED_SECONDS: Final = 10.0
"""How long a failed address is used only as a last resort; the default of nginx's ``fail_timeout``."""

_ERRORS: Final = {
    socket.EAI_NONAME: DnsResult.NXDOMAIN,
    socket.EAI_AGAIN: DnsResult.SERVFAIL,
    socket.EAI_FAIL: DnsResult.REFUSED,
    # An extension of the GNU C library, which musl lacks (RFC 3493 section 6.1).
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): DnsResult.NXDOMAIN,
}


Target = tuple[int, Any]
"""Arguments of ``socket.socket`` and ``connect``: an address family, and an address of it."""


class HostAddresses:
    """The addresses of one ``auth_http``, used in turn (nginx always uses the first).

    An address that failed is used only as a last resort for ``FAILED_SECONDS``.

    Names are looked up by the system's resolver, in a thread: at the start,
    then whenever an address is taken and the last lookup is 30 seconds old, or
    a connection failed.  After a failed lookup the previous addresses stay.

    Args:
        where: Host and port, or a UNIX socket.  IP addresses and UNIX sockets are never looked up.
        metrics: Counts lookups, with the purpose ``auth``.
        getaddrinfo: ``socket.getaddrinfo`` or a replacement.
        clock: Monotonic seconds.
        on_failure: Called for each lookup without an address.

    Attributes:
        name: The host and port as configured, or ``unix:`` and a path; for logs.
        targets: The addresses of the last successful lookup.
        failed_until: The time, by ``clock``, until which an address that failed is avoided.
        lookup: The current or last lookup.
    """

    def __init__(
        self,
        where: AuthHttp,
        *,
        metrics: WorkerMetrics,
        getaddrinfo: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
        on_failure: OnFailure = ignore_failure,
    ) -> None:
        self.name = f"{where.host}:{where.port}" if where.unix_path is None else f"unix:{where.unix_path}"
        self._host = where.host.strip("[]")
        self._port = where.port
        self._metrics = metrics
        self._getaddrinfo = getaddrinfo
        self._clock = clock
        self._on_failure = on_failure
        self._tasks = TaskSet()
        self.lookup: asyncio.Task[None] | None = None
        self._looked_up_at = clock()
        self._interval = 0.0
        self._next = 0
        self.failed_until: dict[Target, float] = {}
        self.targets: tuple[Target, ...] = ()
        if where.unix_path is not None:
            self.targets = ((socket.AF_UNIX, where.unix_path),)
        elif packed(self._host) is not None:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self.targets = ((family, (self._host, where.port)),)
        self._is_fixed = bool(self.targets)

    async def start(self) -> bool:
        """Look the host up for the first time; waits at most 30 seconds.

        Returns:
            Whether there is an address.  If not, ``take`` starts further lookups.
        """
        if not self._is_fixed:
            await asyncio.wait((self._start_lookup(),), timeout=LOOKUP_TIMEOUT)
        return bool(self.targets)

    def take(self, tried: Sequence[Target] = ()) -> Target | None:
        """Return the next address without waiting; a failed one only if there is no other.

        Starts a lookup in the background when one is due.

        Args:
            tried: Addresses to leave out, because this request tried them already.

        Returns:
            ``None`` if there is no address, or all were tried.
        """
        if not self._is_fixed and self._clock() - self._looked_up_at >= self._interval:
            self._start_lookup()
        targets = self.targets
        if not targets:
            return None
        if self.failed_until or tried:
            return self._take_working(tried)
        self._next = (self._next + 1) % len(targets)
        return targets[self._next - 1]

    def _take_working(self, tried: Sequence[Target]) -> Target | None:
        """Return the next address that did not fail; if there is none, the one that failed first."""
        targets, now = self.targets, self._clock()
        total, first = len(targets), self._next
        best, oldest = -1, math.inf
        for index in (*range(first, total), *range(min(first, total))):
            if targets[index] in tried:
                continue
            until = self.failed_until.get(targets[index], 0.0)
            if until <= now:
                best = index
                break
            if until < oldest:
                best, oldest = index, until
        if best < 0:
            return None
        self._next = (best + 1) % total
        return targets[best]

    def failed(self, target: Target) -> bool:
        """Mark an address as failed; the next ``take`` may start a lookup.

        Returns:
            Whether it was not marked before.
        """
        now = self._clock()
        is_news = self.failed_until.get(target, 0.0) <= now
        self.failed_until[target] = now + FAILED_SECONDS
        self._interval = RETRY_INTERVAL
        return is_news

    def works(self, target: Target) -> None:
        """Mark an address as working: it is used in turn again."""
        self.failed_until.pop(target, None)

    async def close(self) -> None:
        """Cancel the lookup in progress."""
        await self._tasks.close()

    def _start_lookup(self) -> asyncio.Task[None]:
        self._looked_up_at = self._clock()
        if self.lookup is None or self.lookup.done():
            self.lookup = self._tasks.start(self._refresh())
        return self.lookup

    async def _refresh(self) -> None:
        """Look up once.  Ends only with its thread, so that there is never a second one."""
        started = self._clock()
        query = partial(self._getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM)
        answer = asyncio.get_running_loop().run_in_executor(None, query)
        done, _ = await asyncio.wait((answer,), timeout=LOOKUP_TIMEOUT)
        if not done:
            count_lookup(self._metrics, DnsPurpose.AUTH, DnsResult.TIMEOUT, LOOKUP_TIMEOUT)
            self._on_failure(DnsPurpose.AUTH, self._host, DnsResult.TIMEOUT)
            await asyncio.wait((answer,))
        result = self._store(answer)
        if done:
            count_lookup(self._metrics, DnsPurpose.AUTH, result, self._clock() - started)
            if result is not DnsResult.OK:
                self._on_failure(DnsPurpose.AUTH, self._host, result)

    def _store(self, answer: asyncio.Future[Sequence[tuple[Any, ...]]]) -> DnsResult:
        self._interval = REFRESH_INTERVAL if self.targets else RETRY_INTERVAL
        try:
            found = dict.fromkeys((int(family), address) for family, *_, address in answer.result())
        except socket.gaierror as error:
            return _ERRORS.get(error.errno or 0, DnsResult.INVALID)
        except (OSError, UnicodeError):
            return DnsResult.INVALID
        self.targets = targets = tuple(found)[:MAX_ADDRESSES]
        self.failed_until = {
            target: until for target, until in self.failed_until.items() if target in targets
        }
        self._interval = REFRESH_INTERVAL
        return DnsResult.OK


def target_text(target: Target) -> str:
    """Format an address for a log: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``unix:/path``."""
    family, address = target
    if family == socket.AF_UNIX:
        return f"unix:{address}"
    return format_host_port(address[0], address[1])
