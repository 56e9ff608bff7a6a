# SPDX-License-Identifier: Apache-2.0
"""The addresses of a host that we connect to: at hand at any time, kept fresh in the background."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from mailproxy.dns.dns_names import packed
from mailproxy.dns.measures import Failure, Meter, count, unreported
from mailproxy.dns.task_set import TaskSet
from mailproxy.enums import DnsPurpose, DnsResult
from mailproxy_config.addresses import format_host_port
from mailproxy_config.model import AuthHttp

REFRESH: Final = 30.0
"""Seconds that must lie between two look-ups while connections succeed."""
RETRY: Final = 1.0
"""Seconds that must lie between two look-ups in any case."""
LIMIT: Final = 30.0
"""Seconds after which a look-up counts as timed out."""
MAX_ADDRESSES: Final = 16
"""Addresses of one host that are used; more are ignored."""
FAILED_SECONDS: Final = 10.0
"""How long an address that failed comes after the others; nginx's ``fail_timeout`` has the same default."""

_ERRORS: Final = {
    socket.EAI_NONAME: DnsResult.NXDOMAIN,
    socket.EAI_AGAIN: DnsResult.SERVFAIL,
    socket.EAI_FAIL: DnsResult.REFUSED,
    # An extension of the GNU C library, which musl lacks (RFC 3493 section 6.1).
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): DnsResult.NXDOMAIN,
}


Target = tuple[int, Any]
"""What ``socket.socket`` and ``connect`` want: an address family, and an address of it."""


class HostAddresses:
    """The addresses behind one ``auth_http``, taken in turn (nginx uses the first for ever).

    An address that failed comes after the others for ``FAILED_SECONDS``.

    The system's resolver is asked, in a thread: at the start, then whenever an
    address is taken and the last look-up is 30 seconds old, or a connection
    failed.  A failed look-up leaves the last good addresses in place.

    Args:
        where: Host and port, or a UNIX socket.  What is no name is never looked up.
        meter: Where look-ups are counted, for the purpose ``auth``.
        ask: ``socket.getaddrinfo``, or what stands in for it.
        clock: Monotonic seconds.
        failed: Called for each look-up without an address.

    Attributes:
        name: The host and port as configured, or ``unix:`` and a path; for logs.
    """

    def __init__(
        self,
        where: AuthHttp,
        *,
        meter: Meter,
        ask: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
        failed: Failure = unreported,
    ) -> None:
        self._report = failed
        self.name = f"{where.host}:{where.port}" if where.unix_path is None else f"unix:{where.unix_path}"
        self._host = where.host.strip("[]")
        self._port = where.port
        self._meter = meter
        self._ask = ask
        self._clock = clock
        self._tasks = TaskSet()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = clock()
        self._interval = 0.0
        self._next = 0
        self._failed: dict[Target, float] = {}  # and until when it comes last
        self._targets = _known(where)
        self._is_fixed = bool(self._targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The last good addresses; empty until there were any."""
        return self._targets

    async def start(self) -> bool:
        """Look the host up for the first time, waiting at most 30 seconds.

        Returns:
            Whether there is an address.  If not, taking one goes on trying.
        """
        if not self._is_fixed:
            await asyncio.wait((self._look(),), timeout=LIMIT)
        return bool(self._targets)

    def take(self, tried: Sequence[Target] = ()) -> Target | None:
        """Give the next address, at once; one that failed only if there is no other.

        Begins a look-up in the background when it is time for one.

        Args:
            tried: Addresses that are not wanted, because this request tried them.

        Returns:
            ``None`` when no address was ever found, or all were tried.
        """
        if not self._is_fixed and self._clock() - self._looked_at >= self._interval:
            self._look()
        targets = self._targets
        if not targets:
            return None
        if self._failed or tried:
            return self._take_working(tried)
        self._next = (self._next + 1) % len(targets)
        return targets[self._next - 1]

    def _take_working(self, tried: Sequence[Target]) -> Target | None:
        """Give the next address that did not fail; without one, that whose failure is oldest."""
        targets, now = self._targets, self._clock()
        count, first = len(targets), self._next
        best, oldest = -1, math.inf
        for index in (*range(first, count), *range(min(first, count))):
            if targets[index] in tried:
                continue
            until = self._failed.get(targets[index], 0.0)
            if until <= now:
                best = index
                break
            if until < oldest:
                best, oldest = index, until
        if best < 0:
            return None
        self._next = (best + 1) % count
        return targets[best]

    def failed(self, target: Target) -> bool:
        """Note that an address does not work: it comes last for a while; the next ``take`` may look up again.

        Returns:
            Whether that is news.
        """
        now = self._clock()
        is_news = self._failed.get(target, 0.0) <= now
        self._failed[target] = now + FAILED_SECONDS
        self._interval = RETRY
        return is_news

    def works(self, target: Target) -> None:
        """Note that an address can be connected to: it takes its turn again."""
        self._failed.pop(target, None)

    async def close(self) -> None:
        """Stop looking."""
        await self._tasks.close()

    def _look(self) -> asyncio.Task[None]:
        self._looked_at = self._clock()
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.begin(self._refresh())
        return self._looking

    async def _refresh(self) -> None:
        """Look once.  Ends only with its thread, so that there is never a second one."""
        began = self._clock()
        ask = partial(self._ask, self._host, self._port, type=socket.SOCK_STREAM)
        answer = asyncio.get_running_loop().run_in_executor(None, ask)
        done, _ = await asyncio.wait((answer,), timeout=LIMIT)
        if not done:
            count(self._meter, DnsPurpose.AUTH, DnsResult.TIMEOUT, LIMIT)
            self._report(DnsPurpose.AUTH, self._host, DnsResult.TIMEOUT)
            await asyncio.wait((answer,))
        result = self._learn(answer)
        if done:
            count(self._meter, DnsPurpose.AUTH, result, self._clock() - began)
            if result is not DnsResult.OK:
                self._report(DnsPurpose.AUTH, self._host, result)

    def _learn(self, answer: asyncio.Future[Sequence[tuple[Any, ...]]]) -> DnsResult:
        self._interval = REFRESH if self._targets else RETRY
        try:
            found = dict.fromkeys((int(family), address) for family, *_, address in answer.result())
        except socket.gaierror as error:
            return _ERRORS.get(error.errno or 0, DnsResult.INVALID)
        except (OSError, UnicodeError):
            return DnsResult.INVALID
        self._targets = targets = tuple(found)[:MAX_ADDRESSES]
        self._failed = {target: until for target, until in self._failed.items() if target in targets}
        self._interval = REFRESH
        return DnsResult.OK


def _known(where: AuthHttp) -> tuple[Target, ...]:
    """Give the address that stands in the configuration itself, if one does."""
    if where.unix_path is not None:
        return ((socket.AF_UNIX, where.unix_path),)
    host = where.host.strip("[]")
    if packed(host) is None:
        return ()
    return ((socket.AF_INET6 if ":" in host else socket.AF_INET, (host, where.port)),)


def target_text(target: Target) -> str:
    """Write an address for a log: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``unix:/path``."""
    family, address = target
    if family == socket.AF_UNIX:
        return f"unix:{address}"
    return format_host_port(address[0], address[1])
