# SPDX-License-Identifier: Apache-2.0
"""Puts questions to the configured name servers, in turn, until one answers.

c-ares (through aiodns) speaks the protocol: ids, source ports, matching,
TCP after a truncated answer, and repeating a lost datagram, to the next server
each time.  This module decides what nginx's ``resolver`` decides: which server
a new question goes to first, what counts as an answer, and to go on asking
until somebody else says stop; there are no deadlines here.

Import it only where there is a ``resolver``: it loads the DNS library.
"""

from __future__ import annotations

import asyncio
import socket
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiodns
import pycares
from pycares import errno

from mailproxy.dns.dns_names import packed
from mailproxy.enums import DnsResult
from mailproxy_config.addresses import format_host_port, parse_host_port
from mailproxy_config.model import ResolverConfig

MAX_QUESTIONS: Final = 4_000
"""Questions with the DNS library, those included that nobody waits for any longer."""
_DNS_PORT: Final = 53
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_MAX_KNOWN: Final = 4_000
_LIBRARY_TTL: Final = 3_600

_FAILURES: Final = {
    errno.ARES_ENOTFOUND: DnsResult.NXDOMAIN,
    errno.ARES_ESERVFAIL: DnsResult.SERVFAIL,
    errno.ARES_ENOTIMP: DnsResult.REFUSED,
    errno.ARES_EREFUSED: DnsResult.REFUSED,
    errno.ARES_ECANCELLED: DnsResult.INVALID,
}
_ABSENT: Final = frozenset({errno.ARES_ENODATA, errno.ARES_ENOTFOUND})
_UNREACHABLE: Final = frozenset({errno.ARES_ECONNREFUSED, errno.ARES_ESERVICE})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How impatient to be, in seconds.

    ``first`` is how long a server of which nothing is known may take before the
    question is repeated (c-ares goes by measured answer times after that, and
    never below a quarter of a second); ``rounds`` is how often it repeats the
    question to all servers before it starts again with the next one; ``pause``
    is what lies between two attempts when no server can be reached at all.
    """

    first: float = 2.0
    rounds: int = 3
    pause: float = 5.0


class Failed(Exception):
    """A question was answered with a failure.

    Attributes:
        result: Which.
    """

    def __init__(self, result: DnsResult) -> None:
        super().__init__(result.value)
        self.result = result


class _Silence(Exception):
    """No server answered in time; worth asking again at once."""


class _NobodyThere(Exception):
    """No server could be reached; worth asking again after a pause."""


class _Unusable(Exception):
    """What came back is no answer to the question; another server may do better."""


class DnsClient:
    """The servers of one ``resolver`` directive.

    Host names among them are looked up once, when the first question is asked,
    with the system's own resolver; all their addresses become servers.

    Args:
        config: The directive.
        pace: How impatient to be.
        resolv_conf: Where the system's own servers stand, for ``system``; read once.
    """

    def __init__(
        self, config: ResolverConfig, pace: RetryPolicy = RetryPolicy(), *, resolv_conf: Path = _RESOLV_CONF
    ) -> None:
        self._config = config
        self._pace = pace
        self._resolv_conf = resolv_conf
        self._servers: tuple[str, ...] = ()
        self._finding = asyncio.Lock()
        self._find_again_at = 0.0
        self._turn = 0
        self._busy = 0
        self._library: aiodns.DNSResolver | None = None
        self._libraries: weakref.WeakSet[aiodns.DNSResolver] = weakref.WeakSet()
        self._known: dict[tuple[str, str], float] = {}

    def turn(self) -> int:
        """Give the next look-up its turn; round robin over the servers."""
        self._turn += 1
        return self._turn - 1

    async def ask(self, name: str, kind: str, turn: int) -> Sequence[pycares.DNSRecord]:
        """Ask for the records of one kind (``PTR``, ``A``, ``AAAA``) until there is an answer.

        Silent servers are asked again and again: the caller sets the limit.

        Args:
            name: In presentation form.
            kind: The type of record.
            turn: From ``turn``; questions of one look-up go to the same server first.

        Returns:
            The answer section; empty when the name has no such record.

        Raises:
            Failed: The name does not exist, a server refused or failed, or
                none of them gave a usable answer.
        """
        unusable = 0
        while True:
            try:
                return await self._attempt(name, kind, turn)
            except _NobodyThere:
                await asyncio.sleep(self._pace.pause)
            except _Unusable as error:
                unusable += 1
                if unusable >= len(self._servers):
                    raise Failed(DnsResult.INVALID) from error
            except _Silence:
                pass
            turn += 1

    async def close(self) -> None:
        """Let go of every socket and thread; questions under way end as failures."""
        self._library = None
        for library in tuple(self._libraries):
            await library.close()

    async def _attempt(self, name: str, kind: str, turn: int) -> Sequence[pycares.DNSRecord]:
        """Ask once round."""
        library = await self._for_question(name, kind, turn)
        if self._busy >= MAX_QUESTIONS:
            raise Failed(DnsResult.INVALID)
        future = library.query_dns(name, kind)
        self._busy += 1
        future.add_done_callback(self._freed)
        try:
            # Shielded: the library goes on with a question that nobody waits for, and it must be counted.
            answer = (await asyncio.shield(future)).answer
        except aiodns.error.DNSError as error:
            return self._judged(error.args[0], name, kind)
        if not answer:
            raise _Unusable  # a code that the library has no word for
        self._known[name, kind] = time.monotonic() + min(record.ttl for record in answer)
        return answer

    def _judged(self, code: int, name: str, kind: str) -> Sequence[pycares.DNSRecord]:
        if code == errno.ARES_ETIMEOUT:
            raise _Silence
        if code in _UNREACHABLE:
            raise _NobodyThere
        if code in _ABSENT:
            self._known[name, kind] = time.monotonic() + _LIBRARY_TTL
        if code == errno.ARES_ENODATA:
            return ()
        if code in _FAILURES:
            raise Failed(_FAILURES[code])
        raise _Unusable

    def _freed(self, future: asyncio.Future[pycares.DNSResult]) -> None:
        self._busy -= 1
        if not future.cancelled():
            future.exception()  # seen: nobody may be left to look at it

    async def _for_question(self, name: str, kind: str, turn: int) -> aiodns.DNSResolver:
        """Give the library, with the servers in the order of this turn."""
        if not self._servers:
            await self._find_servers()
        library = self._library
        if library is None or self._would_be_remembered(name, kind):
            library = self._renewed()
        servers = self._servers
        if len(servers) > 1:
            first = turn % len(servers)
            library.nameservers = servers[first:] + servers[:first]
        return library

    def _would_be_remembered(self, name: str, kind: str) -> bool:
        """Whether the library might answer from its own cache, which knows neither ``valid=`` nor a bound.

        That cache cannot be switched off from here, so it is thrown away
        together with its library before it can be asked.
        """
        return len(self._known) >= _MAX_KNOWN or self._known.get((name, kind), 0.0) > time.monotonic()

    def _renewed(self) -> aiodns.DNSResolver:
        self._known.clear()
        library = aiodns.DNSResolver(
            self._servers,
            loop=asyncio.get_running_loop(),
            # A failure is an answer, not a reason to ask elsewhere; and giving flags at all leaves EDNS off.
            flags=pycares.ARES_FLAG_NOCHECKRESP,
            timeout=self._pace.first,
            tries=self._pace.rounds,
        )
        self._library = library
        self._libraries.add(library)
        return library

    async def _find_servers(self) -> None:
        async with self._finding:
            if self._servers:
                return
            if time.monotonic() < self._find_again_at:
                raise _NobodyThere
            self._servers = await self._found_servers()
            if not self._servers:
                self._find_again_at = time.monotonic() + self._pace.pause
                raise _NobodyThere

    async def _found_servers(self) -> tuple[str, ...]:
        if self._config.system:
            return system_servers(self._resolv_conf)
        found = [await _addresses(address) for address in self._config.addresses]
        return tuple(dict.fromkeys(server for servers in found for server in servers))


def system_servers(resolv_conf: Path) -> tuple[str, ...]:
    """Read the ``nameserver`` lines of a resolv.conf(5); without any it is the one on this machine."""
    try:
        words = [line.split() for line in resolv_conf.read_text("ascii", "replace").splitlines()]
    except OSError:
        words = []
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and packed(line[1])]
    return tuple(format_host_port(server, _DNS_PORT) for server in servers or ["127.0.0.1"])


async def _addresses(address: str) -> list[str]:
    """Give the servers that one address of the directive stands for; none for a name that is not known."""
    written, port = parse_host_port(address)
    host, port = written.strip("[]"), port or _DNS_PORT
    if packed(host):
        return [format_host_port(host, port)]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return [format_host_port(str(sockaddr[0]), port) for *_, sockaddr in found]
