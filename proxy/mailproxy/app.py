# SPDX-License-Identifier: Apache-2.0
"""The composition root of one worker: a configuration and its sockets become a running proxy."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import chain
from typing import Final, TypeVarTuple

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import Drained, WorkerContext
from mailproxy.dns import HostAddresses, Resolver
from mailproxy.loop.epoll import Reactor
from mailproxy.net.listen_plan import plan_sockets
from mailproxy.protocols import PROTOCOLS
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.types import Secret
from mailproxy.session.accept import Listener, ListenTarget
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.tls.client import ClientTls
from mailproxy.tls.context import ServerTls, build
from mailproxy.tls.ticket_keys import TicketKeys
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import AuthHttp, LogLevel, ProxyConfig, ResolverConfig, ServerConfig

_LAG_EVERY: Final = 0.1
_CALM_LAG_EVERY: Final = 1.0
_CALM: Final = 3
"""Polls between two ticks that only the ticks themselves and the supervisor account for."""
_FIND_SECONDS: Final = 3.0
"""How long a start or reload waits for the names of authorization services to resolve."""
_FLUSH_EVERY: Final = 10
"""Ticks between two writes of the log's buffer."""
_DRAIN_STEP: Final = 0.05

Arguments = TypeVarTuple("Arguments")
AuthKey = tuple[AuthHttp, float, bool, int | None]
ResolverKey = tuple[ResolverConfig, float]


class WorkerLoop(asyncio.SelectorEventLoop):
    """The stock loop on a selector that serves the mail sockets itself, and hears here of asyncio's needs."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        super().__init__(self.reactor)

    def call_soon(
        self, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """Call something in the next turn of the loop."""
        self.reactor.is_wanted = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call something at a time of the loop's clock; ``call_later`` comes by here too."""
        self.reactor.is_wanted = True
        return super().call_at(when, callback, *args, context=context)


def make_loop() -> WorkerLoop:
    """Make the loop that an ``App`` runs on."""
    return WorkerLoop()


class App:
    """One worker's proxy.  Made inside its running ``WorkerLoop``.

    Args:
        log: Where sessions and events are told.
        metrics: The numbers that sessions bump.
    """

    def __init__(self, *, log: Log, metrics: WorkerMetrics) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, WorkerLoop):
            message = "an App runs on the loop that make_loop() made"
            raise TypeError(message)
        self._engine = WorkerContext(loop, loop.reactor, log=log, metrics=metrics)
        loop.reactor.on_crash = self._engine.crashed
        loop.set_exception_handler(self._engine.escaped)
        self._listeners: list[Listener] = []
        self._servers: dict[str, VirtualServer] = {}
        self._auth: dict[AuthKey, AuthHttpClient] = {}
        self._resolvers: dict[ResolverKey, Resolver] = {}
        self._retired: list[Resolver] = []
        self._ticket_keys: dict[int, TicketKeys] = {}
        self._ticks = 0
        self._polls = 0
        self._tick(time.monotonic())

    @property
    def sessions(self) -> int:
        """How many sessions there are, relays included."""
        return len(self._engine.live)

    async def apply(
        self,
        config: ProxyConfig,
        sockets: Mapping[str, Sequence[socket.socket]],
        *,
        names: Mapping[str, tuple[str, ...]],
        ticket_keys: Mapping[int, tuple[bytes, ...]],
    ) -> None:
        """Put a configuration to work: at the start, and at every reload.

        Sessions that run keep what they began with.

        Args:
            config: What to run.
            sockets: The listening sockets, one or more, by the key of their
                plan; they belong to the application from here on.
            names: What host names in the configuration resolved to.
            ticket_keys: What TLS session tickets are sealed with, for all workers alike; see
                ``set_ticket_keys``.

        Raises:
            ConfigError: A file does not load.  What ran before goes on.
        """
        try:
            self.set_ticket_keys(ticket_keys)
            servers = self._build(config, names)
        except ConfigError:
            for sock in chain.from_iterable(sockets.values()):
                sock.close()
            raise
        await self._close_retired()
        await self._find_services()
        self._engine.limit = config.worker_connections
        for service in self._auth.values():
            service.resize(config.worker_connections)
        self._engine.metrics.connections_limit.value = config.worker_connections
        self._engine.metrics.keep_servers(server.name for server in config.servers)
        self._tell_expiries(servers)
        self._listen(config, servers, sockets, names)
        self._servers = {server.config.name: server for server in servers}
        self._retire(servers)

    def set_ticket_keys(self, ticket_keys: Mapping[int, tuple[bytes, ...]]) -> None:
        """Seal and open TLS session tickets with these keys from now on.

        Args:
            ticket_keys: Keys by the ``ssl_session_timeout`` of their servers,
                in seconds: the first seals tickets, each opens them.
        """
        for seconds, keys in ticket_keys.items():
            if seconds in self._ticket_keys:
                self._ticket_keys[seconds].replace(keys)
            else:
                self._ticket_keys[seconds] = TicketKeys(keys)

    # -- building

    def _build(self, config: ProxyConfig, names: Mapping[str, tuple[str, ...]]) -> Sequence[VirtualServer]:
        problems: list[Problem] = []
        servers: list[VirtualServer] = []
        for server in config.servers:
            try:
                servers.append(self._server(server, names))
            except ConfigError as error:
                problems += error.problems
            except Exception as crash:  # a fault of our own must not end the worker and all its sessions
                self._engine.report_crash(None, crash, "App")
                reason = f"internal error ({type(crash).__name__}): see the log, and report it"
                problems.append(Problem(f"servers[{server.name}]", reason))
        if problems:
            raise ConfigError(problems)
        return servers

    def _server(self, config: ServerConfig, names: Mapping[str, tuple[str, ...]]) -> VirtualServer:
        previous = self._servers.get(config.name)
        tls: ServerTls | None = None
        if config.tls_is_used:
            seconds = int(config.ssl_session_timeout)
            ticket_keys = self._ticket_keys.setdefault(seconds, TicketKeys.random())
            tls = build(config, ticket_keys=ticket_keys, previous=previous.tls if previous else None)
        metrics = self._engine.metrics
        return VirtualServer(
            config,
            protocol=PROTOCOLS[config.protocol],
            auth=self._auth_service(config),
            template=_template(config),
            resolver=self._resolver(config),
            tls=tls,
            trusted=_trusted(config, names),
            metrics=metrics.server(config.name, config.protocol),
            numbers=metrics.protocol(config.protocol),
            patience=self._engine.timers.lane(config.timeout),
            idleness=self._engine.timers.lane(config.proxy_timeout),
            log=self._engine.log.for_server(config),
        )

    def _auth_service(self, config: ServerConfig) -> AuthHttpClient:
        where, keeps, maximum = config.auth_http, config.auth_http_keepalive, config.auth_http_max_connections
        key = (where, config.auth_http_timeout, keeps, maximum)
        if key not in self._auth:
            addresses = HostAddresses(where, metrics=self._engine.metrics, failed=self._engine.look_up_failed)
            tls = ClientTls(where.host) if where.tls else None
            self._auth[key] = AuthHttpClient(
                self._engine, addresses, config.auth_http_timeout, tls, keeps=keeps, maximum=maximum
            )
        return self._auth[key]

    def _resolver(self, config: ServerConfig) -> Resolver | None:
        if config.resolver is None:
            return None
        key = (config.resolver, config.resolver_timeout)
        if key not in self._resolvers:
            self._resolvers[key] = Resolver(
                config.resolver,
                timeout=config.resolver_timeout,
                metrics=self._engine.metrics,
                failed=self._engine.look_up_failed,
            )
        return self._resolvers[key]

    def _tell_expiries(self, servers: Sequence[VirtualServer]) -> None:
        for server in servers:
            name, not_after = server.config.name, server.tls.not_after if server.tls is not None else ()
            self._engine.metrics.set_certificates(name, not_after)
            for position, expiry in enumerate(not_after):
                if expiry is None:
                    self._engine.log.event(
                        LogLevel.WARN, "certificate_date_malformed", server=name, certificate=position
                    )

    # -- listening

    def _listen(
        self,
        config: ProxyConfig,
        servers: Sequence[VirtualServer],
        sockets: Mapping[str, Sequence[socket.socket]],
        names: Mapping[str, tuple[str, ...]],
    ) -> None:
        old, self._listeners = self._listeners, []
        for listener in old:
            listener.close()
        for planned in plan_sockets(config, names):
            doors = {
                address: ListenTarget(
                    servers[route.server], config.servers[route.server].listen[route.listen]
                )
                for address, route in planned.routes.items()
            }
            default = ListenTarget(
                servers[planned.default.server],
                config.servers[planned.default.server].listen[planned.default.listen],
            )
            for sock in sockets.get(planned.key, ()):
                listener = Listener(self._engine, planned.key, sock, default, doors)
                self._listeners.append(listener)
                if not self._engine.draining:
                    listener.open()

    def _retire(self, servers: Sequence[VirtualServer]) -> None:
        """Let go of what only the previous configuration needed."""
        timeouts = {int(server.config.ssl_session_timeout) for server in servers}
        self._ticket_keys = {one: keys for one, keys in self._ticket_keys.items() if one in timeouts}
        services = {id(server.auth) for server in servers}
        for auth_key in [key for key, service in self._auth.items() if id(service) not in services]:
            self._auth.pop(auth_key).close()  # sessions that still ask it open a connection for that
        resolvers = {id(server.resolver) for server in servers}
        for key in [key for key, resolver in self._resolvers.items() if id(resolver) not in resolvers]:
            self._retired.append(self._resolvers.pop(key))

    async def _close_retired(self) -> None:
        """Close what an earlier reload left to sessions that were looking up names with it."""
        retired, self._retired = self._retired, []
        for resolver in retired:
            await resolver.close()

    async def _find_services(self) -> None:
        """Give the names of new authorization services a moment to resolve before clients come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIND_SECONDS):
                await asyncio.gather(*(service.addresses.start() for service in self._auth.values()))

    # -- leaving

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - not a limit on this call: it is what relays get
        """Stop accepting, say goodbye to who has not logged in, give relays ``timeout`` seconds, then cut.

        The time holds for the last replies of sessions that are over, too: who lingers is waited for.
        """
        engine = self._engine
        engine.draining = True
        engine.metrics.draining.value = 1
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._each(engine.live, lambda session: session.say_goodbye())
        ends_at = time.monotonic() + timeout
        while (engine.live or engine.lingering) and time.monotonic() < ends_at:  # noqa: ASYNC110 - sessions report their end to nobody
            await asyncio.sleep(_DRAIN_STEP)
        self.stop()
        await self.close()

    def stop(self) -> None:
        """End everything at once."""
        engine = self._engine
        engine.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._each([*engine.live, *engine.lingering], lambda session: session.cut())
        for service in self._auth.values():
            service.close()
        engine.log.flush()

    def _each(self, sessions: Iterable[Drained], do: Callable[[Drained], object]) -> None:
        """Do something with each session; what one raises ends that one only."""
        for session in list(sessions):
            try:
                do(session)
            except Exception as crash:  # an entry point
                self._engine.crashed(session, crash)

    async def close(self) -> None:
        """Let go of what looks up names, and of pipes in stock; after ``stop`` or ``drain``."""
        self._engine.pipes.close()
        await self._close_retired()
        for service in self._auth.values():
            await service.addresses.close()
        for resolver in self._resolvers.values():
            await resolver.close()
        self._auth.clear()
        self._resolvers.clear()

    # -- the loop's health

    def _tick(self, due: float) -> None:
        now = time.monotonic()
        engine = self._engine
        polls, self._polls = self._polls, engine.reactor.polls
        is_calm = self._polls - polls <= _CALM
        next_due = now + (_CALM_LAG_EVERY if is_calm else _LAG_EVERY)
        engine.loop.call_at(next_due, self._tick, next_due)  # first, so that it goes on whatever raises below
        engine.metrics.loop_lag.observe(max(now - due, 0.0))
        engine.metrics.flush()
        self._ticks += 1
        if is_calm or self._ticks % _FLUSH_EVERY == 0:
            engine.log.flush()


def _template(config: ServerConfig) -> RequestTemplate:
    try:
        return RequestTemplate(config, header_values(config), keep_alive=config.auth_http_keepalive)
    except ValueError as error:
        raise ConfigError([Problem(f"servers[{config.name}].auth_http", str(error))]) from error


def _trusted(config: ServerConfig, names: Mapping[str, tuple[str, ...]]) -> TrustedPeers:
    try:
        return TrustedPeers(
            [address for entry in config.set_real_ip_from for address in names.get(entry, (entry,))]
        )
    except ValueError as error:
        raise ConfigError([Problem(f"servers[{config.name}].set_real_ip_from", str(error))]) from error


def header_values(config: ServerConfig) -> list[tuple[bytes, Secret | bytes]]:
    """Read the values of ``auth_http_header``.

    Raises:
        ConfigError: A file that holds one cannot be read.
    """
    values: list[tuple[bytes, Secret | bytes]] = []
    for position, header in enumerate(config.auth_http_header):
        if header.value_file is None:
            values.append((header.name.encode(), (header.value or "").encode()))
            continue
        try:
            with open(header.value_file, "rb") as file:
                data = file.read(64 * 1024)
        except OSError as error:
            path = f"servers[{config.name}].auth_http_header[{position}]"
            reason = f"cannot read {header.value_file}: {error.strerror}"
            raise ConfigError([Problem(path, reason)]) from error
        values.append((header.name.encode(), Secret(data.removesuffix(b"\n").removesuffix(b"\r"))))
    return values
