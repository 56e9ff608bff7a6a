# SPDX-License-Identifier: Apache-2.0
"""The addresses of a host that we connect to: at hand at any time, kept fresh in the background."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from mailproxy.events import DnsPurpose, DnsResult
from mailproxy.runtime.resolver.measures import Failure, Meter, count, unreported
from mailproxy.runtime.resolver.names import packed
from mailproxy.runtime.resolver.tasks import Tasks
from mailproxy_config.model import AuthHttp

REFRESH: Final = 30.0
"""Seconds that must lie between two look-ups while connections succeed."""
RETRY: Final = 1.0
"""Seconds that must lie between two look-ups in any case."""
LIMIT: Final = 30.0
"""Seconds after which a look-up counts as timed out."""
MAX_ADDRESSES: Final = 16
"""Addresses of one host that are used; more are ignored."""

_ERRORS: Final = {
    socket.EAI_NONAME: DnsResult.NXDOMAIN,
    socket.EAI_NODATA: DnsResult.NXDOMAIN,
    socket.EAI_AGAIN: DnsResult.SERVFAIL,
    socket.EAI_FAIL: DnsResult.REFUSED,
}


Target = tuple[int, Any]
"""What ``socket.socket`` and ``connect`` want: an address family, and an address of it."""


class HostAddresses:
    """The addresses behind one ``auth_http``, taken in turn (nginx uses the first for ever).

    The system's resolver is asked, in a thread: at the start, then whenever an
    address is taken and the last look-up is 30 seconds old, or a connection
    failed.  A failed look-up leaves the last good addresses in place.

    Args:
        where: Host and port, or a UNIX socket.  What is no name is never looked up.
        meter: Where look-ups are counted, for the purpose ``auth``.
        ask: ``socket.getaddrinfo``, or what stands in for it.
        clock: Monotonic seconds.
        failed: Called for each look-up without an address.
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
        self._failed = failed
        self._host = where.host.strip("[]")
        self._port = where.port
        self._meter = meter
        self._ask = ask
        self._clock = clock
        self._tasks = Tasks()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = clock()
        self._interval = 0.0
        self._next = 0
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

    def take(self) -> Target | None:
        """Give the next address, at once; ``None`` when none was ever found.

        Begins a look-up in the background when it is time for one.
        """
        if not self._is_fixed and self._clock() - self._looked_at >= self._interval:
            self._look()
        targets = self._targets
        if not targets:
            return None
        self._next = (self._next + 1) % len(targets)
        return targets[self._next - 1]

    def failed(self) -> None:
        """Tell that a connection to one of the addresses failed: the next ``take`` may look again."""
        self._interval = RETRY

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
            self._failed(DnsPurpose.AUTH, self._host, DnsResult.TIMEOUT)
            await asyncio.wait((answer,))
        result = self._learn(answer)
        if done:
            count(self._meter, DnsPurpose.AUTH, result, self._clock() - began)
            if result is not DnsResult.OK:
                self._failed(DnsPurpose.AUTH, self._host, result)

    def _learn(self, answer: asyncio.Future[Sequence[tuple[Any, ...]]]) -> DnsResult:
        self._interval = REFRESH if self._targets else RETRY
        try:
            found = dict.fromkeys((int(family), address) for family, *_, address in answer.result())
        except socket.gaierror as error:
            return _ERRORS.get(error.errno or 0, DnsResult.INVALID)
        except (OSError, UnicodeError):
            return DnsResult.INVALID
        self._targets = tuple(found)[:MAX_ADDRESSES]
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
