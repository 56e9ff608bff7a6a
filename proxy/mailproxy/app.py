# SPDX-License-Identifier: Apache-2.0
"""The proxy of one worker: it runs a configuration on its listening sockets, reloads it, and drains."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mailproxy.auth_http.request import EmptyTemplate, RequestTemplate
from mailproxy.authenticators import Authenticators
from mailproxy.context import Drainable, WorkerContext
from mailproxy.dns import Resolver
from mailproxy.dns.upstream_names import UpstreamNames, is_name
from mailproxy.loop.worker_loop import WorkerLoop
from mailproxy.net.listen_plan import listening_addresses, plan_sockets, shared_lines
from mailproxy.net.open_files import fit, open_files_limit
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.policy.password_fingerprint import PasswordFingerprints
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.types import Secret
from mailproxy.routing.route_authenticator import group_choices
from mailproxy.routing.router import Table
from mailproxy.session.accept import Listener
from mailproxy.session.gradual_close import GradualClose
from mailproxy.session.login_secrets import read_login_secrets, read_secret
from mailproxy.session.refusal_times import RefusalTimes
from mailproxy.session.shared_listener import check_choices, listen_target
from mailproxy.session.upstream_capabilities import follow_upstreams, stop_probes
from mailproxy.session.virtual_server import VirtualServer
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.tls import upstream_context
from mailproxy.tls.choice import CertificateChooser
from mailproxy.tls.context import ServerTls, build
from mailproxy.tls.resumption import TicketKeys
from mailproxy.tls.upstream_context import UpstreamTls
from mailproxy.users.user_list import UserList
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import (
    LogLevel,
    ProxyConfig,
    ResolverConfig,
    ServerConfig,
)
from mailproxy_config.upstream_groups import service_groups
from mailproxy_config.upstream_login import ProxyAuthToken
from mailproxy_config.upstream_members import MemberList

if TYPE_CHECKING:
    from mailproxy.oauth.token_source import TokenSource

_LAG_INTERVAL: Final = 0.1
_IDLE_LAG_INTERVAL: Final = 1.0
"""Seconds between two measurements of the event loop's lag, with clients and without."""
_MAX_IDLE_ITERATIONS: Final = 3
"""Iterations between two measurements that come from these and the supervisor, not from clients."""
_TICKS_PER_FLUSH: Final = 10
"""Measurements between two writes of the log's buffer; durations are sorted into histograms as often."""
_DRAIN_POLL_SECONDS: Final = 0.05

ResolverKey = tuple[ResolverConfig, float]
NamesKey = tuple[ResolverConfig | None, float, tuple[str, ...]]
TokenKey = tuple[ProxyAuthToken, Secret | None, Secret | None]

_NO_TABLES: Final[Mapping[str, Table]] = MappingProxyType({})
_NO_USERS: Final[Mapping[str, UserList]] = MappingProxyType({})


class App:
    """One worker's proxy.  Made inside its running ``WorkerLoop``.

    Args:
        log: The log of sessions and events.
        metrics: The metrics.
        memory: Shared by all workers; ``None`` for a worker without others.

    Attributes:
        authenticators: What decides about logins.
        context: What the parts of the worker share.
        listeners: The listening sockets of the current configuration.
    """

    def __init__(self, *, log: Log, metrics: WorkerMetrics, memory: SharedMemory | None = None) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, WorkerLoop):
            message = "an App runs on the event loop that make_loop() makes"
            raise TypeError(message)
        self.context = WorkerContext(loop, loop.epoll, log=log, metrics=metrics, memory=memory)
        loop.epoll.on_error = self.context.handle_error
        loop.set_exception_handler(self.context.handle_loop_exception)
        self.listeners: list[Listener] = []
        self._servers: dict[str, VirtualServer] = {}
        self.authenticators = Authenticators(self.context)
        self._resolvers: dict[ResolverKey, Resolver] = {}
        self._upstream_names: dict[NamesKey, UpstreamNames] = {}
        self._retired: list[Resolver | UpstreamNames] = []
        self._tokens: dict[TokenKey, TokenSource] = {}
        self._ticket_keys: dict[int, TicketKeys] = {}
        self._ticks = 0
        self._iterations = 0
        self._tick(time.monotonic())

    @property
    def sessions(self) -> int:
        """Number of sessions, relays included."""
        return len(self.context.live)

    async def apply(
        self,
        config: ProxyConfig,
        sockets: Mapping[str, Sequence[socket.socket]],
        *,
        names: Mapping[str, tuple[str, ...]],
        ticket_keys: Mapping[int, tuple[bytes, ...]],
        tables: Mapping[str, Table] = _NO_TABLES,
        users: Mapping[str, UserList] = _NO_USERS,
    ) -> None:
        """Run a configuration: at the start, and after every reload.

        Sessions keep the configuration that they began with.

        Args:
            config: What to run.
            sockets: The listening sockets, one or more, by the key of their
                plan; the application closes them.
            names: Addresses of the host names in the configuration.
            ticket_keys: See ``set_ticket_keys``; the same for all workers.
            tables: The tables of routes, by the paths of their files.
            users: The lists of users, likewise.

        Raises:
            ConfigError: A file does not load.  The previous configuration goes on running.
        """
        try:
            self.set_ticket_keys(ticket_keys)
            self.authenticators.tables, self.authenticators.users = tables, users
            servers = self._build(config, names)
        except ConfigError:
            for sock in chain.from_iterable(sockets.values()):
                sock.close()
            raise
        await self._close_retired()
        listeners = sum(map(len, sockets.values()))
        limit, self.context.pipes.maximum = fit(open_files_limit(), config.worker_connections, listeners)
        await self.authenticators.start(limit)
        self.context.limit = self.context.metrics.connections_limit.value = limit
        self.context.metrics.keep_servers(server.name for server in config.servers)
        groups = (group for server in config.servers for group in server.upstream_groups)
        self.context.metrics.keep_groups(service_groups(groups))
        self._report_expiry(servers)
        self._listen(config, servers, sockets, names)
        stop_probes(self._servers.values())
        self._servers = {server.config.name: server for server in servers}
        self._retire(servers)

    def set_ticket_keys(self, ticket_keys: Mapping[int, tuple[bytes, ...]]) -> None:
        """Encrypt and decrypt TLS session tickets with these keys from now on.

        Args:
            ticket_keys: Keys by the ``ssl_session_timeout`` of their servers,
                in seconds: the first encrypts tickets, all decrypt them.
        """
        for seconds, keys in ticket_keys.items():
            if seconds in self._ticket_keys:
                self._ticket_keys[seconds].replace(keys)
            else:
                self._ticket_keys[seconds] = TicketKeys(keys)

    def set_members(self, lists: Mapping[str, MemberList | None]) -> None:
        """Replace lists of members of Services from now on; sessions that are logged in stay where they are.

        Args:
            lists: By the name of the group; ``None`` for a group without a list.
        """
        members = self.context.members
        members |= {name: each for name, each in lists.items() if each is not None}
        for name in [name for name, each in lists.items() if each is None]:
            members.pop(name, None)

    # -- building

    def _build(self, config: ProxyConfig, names: Mapping[str, tuple[str, ...]]) -> Sequence[VirtualServer]:
        problems: list[Problem] = []
        servers: list[VirtualServer] = []
        for server in config.servers:
            try:
                servers.append(self._server(server, names))
            except ConfigError as error:
                problems += error.problems
            except Exception as crash:  # an internal error must not end the worker and all its sessions
                self.context.log_internal_error(None, crash, "App")
                reason = f"internal error ({type(crash).__name__}): see the log, and report it"
                problems.append(Problem(f"servers[{server.name}]", reason))
        if problems:
            raise ConfigError(problems)
        check_choices(config, servers)
        return servers

    def _server(self, config: ServerConfig, names: Mapping[str, tuple[str, ...]]) -> VirtualServer:
        previous = self._servers.get(config.name)
        tls: ServerTls | None = None
        if config.tls_is_used:
            seconds = int(config.ssl_session_timeout)
            ticket_keys = self._ticket_keys.setdefault(seconds, TicketKeys.random())
            last = previous.tls if previous else None
            tls = build(config, ticket_keys=ticket_keys, previous=last, is_checked=True)
            if isinstance(tls.params.chooser, CertificateChooser):
                tls.params.chooser.report = partial(self._log_unusable_certificate, config.name)
        metrics, template, trusted = self.context.metrics, _template(config), _trusted(config, names)
        built = VirtualServer(
            config,
            protocol=PROTOCOLS[config.protocol],
            report_login=self.authenticators.policy_clients.reporter(config),
            fingerprints=self._fingerprints(config),
            auth=self.authenticators.authenticator(config, template, trusted),
            template=template,
            resolver=self._resolver(config),
            tls=tls,
            upstream_tls=self._upstream_tls(config, previous),
            tokens=self._token_source(config),
            login_secrets=read_login_secrets(config),
            trusted=trusted,
            blocks=self.authenticators.block_check(config, trusted),
            metrics=metrics.server(config.name, config.protocol),
            protocol_metrics=metrics.protocol(config.protocol),
            login_timeouts=self.context.timers.queue(config.timeout),
            idle_timeouts=self.context.timers.queue(config.proxy_timeout),
            log=self.context.log.for_server(config),
            upstream_names=self._names(config) if _has_names(config) else None,
            refusals=previous.refusals if previous else RefusalTimes(),
            group_choices=group_choices(config, self.context),
            preauth=self.authenticators.preauth(config),
        )
        built.groups = {
            name: self._group(name, built, each, previous and previous.groups.get(name))
            for name, each in config.group_configs.items()
        }
        follow_upstreams(self.context, built, previous)
        return built

    def _group(
        self, name: str, base: VirtualServer, config: ServerConfig, previous: VirtualServer | None
    ) -> VirtualServer:
        """Return the server for logins at a group of upstreams with directives of its own.

        Raises:
            ConfigError: A file of the group does not load.
        """
        try:
            return replace(
                base,
                config=config,
                upstream_tls=self._upstream_tls(config, previous),
                tokens=self._token_source(config),
                login_secrets=read_login_secrets(config),
                base=base,
            )
        except ConfigError as error:
            where = f"servers[{config.name}]"
            problems = [
                Problem(problem.path.replace(where, f"upstreams[{name}]", 1), problem.reason)
                for problem in error.problems
            ]
            raise ConfigError(problems) from None

    def _fingerprints(self, config: ServerConfig) -> PasswordFingerprints | None:
        return PasswordFingerprints(self.context.memory) if config.log_password_fingerprint else None

    def _log_unusable_certificate(self, server: str, reason: str) -> None:
        self.context.log.event(LogLevel.ERROR, "certificate_unusable", server=server, reason=reason)

    def _upstream_tls(self, config: ServerConfig, previous: VirtualServer | None) -> UpstreamTls | None:
        if not config.may_use_upstream_tls:
            return None
        return upstream_context.build(config, previous=previous.upstream_tls if previous else None)

    def _token_source(self, config: ServerConfig) -> TokenSource | None:
        """Return the source of access tokens; it and its token survive a reload that does not change it."""
        token = config.proxy_auth_token
        if token is None:
            return None
        from mailproxy.oauth.token_source import TokenSource  # noqa: PLC0415 - aiohttp is needed for it only

        secret, refresh = (
            None if path is None else read_secret(config.name, "proxy_auth_token", path)
            for path in (token.client_secret_file, token.refresh_token_file)
        )
        key = (token, secret, refresh)
        if key not in self._tokens:
            self._tokens[key] = TokenSource(self.context, token, secret, refresh)
        return self._tokens[key]

    def _resolver(self, config: ServerConfig) -> Resolver | None:
        if config.resolver is None:
            return None
        key = (config.resolver, config.resolver_timeout)
        if key not in self._resolvers:
            self._resolvers[key] = Resolver(
                config.resolver,
                timeout=config.resolver_timeout,
                metrics=self.context.metrics,
                on_failure=self.context.log_lookup_failure,
            )
        return self._resolvers[key]

    def _names(self, config: ServerConfig) -> UpstreamNames:
        key = (config.resolver, config.resolver_timeout, config.auth_http_server_networks)
        if key not in self._upstream_names:
            self._upstream_names[key] = UpstreamNames(
                config.resolver,
                timeout=config.resolver_timeout,
                networks=config.auth_http_server_networks,
                metrics=self.context.metrics,
                on_failure=self.context.log_lookup_failure,
                on_refused=self.context.log_refused_address,
            )
        return self._upstream_names[key]

    def _report_expiry(self, servers: Sequence[VirtualServer]) -> None:
        for server in servers:
            self.context.metrics.forget_upstream_certificates(server.config.name)
            name, not_after = server.config.name, server.tls.not_after if server.tls is not None else ()
            self.context.metrics.set_certificates(name, not_after)
            for position, expiry in enumerate(not_after):
                if expiry is None:
                    self.context.log.event(
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
        old, self.listeners = self.listeners, []
        for listener in old:
            listener.close()
        target = partial(listen_target, config, servers, shared_lines(config))
        plans = plan_sockets(config, names)
        for upstream_names in self._upstream_names.values():
            upstream_names.listeners = listening_addresses(plans)
        for planned in plans:
            targets = {address: target(route) for address, route in planned.routes.items()}
            default = target(planned.default)
            for sock in sockets.get(planned.key, ()):
                listener = Listener(self.context, planned.key, sock, default, targets)
                self.listeners.append(listener)
                if not self.context.draining:
                    listener.open()

    def _retire(self, servers: Sequence[VirtualServer]) -> None:
        """Close what only the previous configuration needed."""
        timeouts = {int(server.config.ssl_session_timeout) for server in servers}
        self._ticket_keys = {one: keys for one, keys in self._ticket_keys.items() if one in timeouts}
        self.authenticators.retire(server.config for server in servers)
        servers = [each for server in servers for each in (server, *server.groups.values())]
        for source in self._tokens.values():
            source.servers = frozenset(each.config.name for each in servers if each.tokens is source)
        # Sessions may still wait for one that is dropped here.
        self._tokens = {key: source for key, source in self._tokens.items() if source.servers}
        resolvers = {id(server.resolver) for server in servers}
        for key in [key for key, resolver in self._resolvers.items() if id(resolver) not in resolvers]:
            self._retired.append(self._resolvers.pop(key))
        used = {id(server.upstream_names) for server in servers}
        for names_key in [key for key, names in self._upstream_names.items() if id(names) not in used]:
            self._retired.append(self._upstream_names.pop(names_key))

    async def _close_retired(self) -> None:
        """Close resolvers that an earlier reload left to the sessions that used them."""
        retired, self._retired = self._retired, []
        for resolver in retired:
            await resolver.close()

    # -- draining

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - not of this call: the time that relays get
        """Stop accepting, end sessions without a login, give relays ``timeout`` seconds (``GradualClose``).

        Connections in their lingering close are waited for, too.
        """
        context = self.context
        context.draining = True
        context.metrics.draining.value = 1
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        self._each(context.live, lambda session: session.drain())
        ends_at, closing = time.monotonic() + timeout, GradualClose(context.live, timeout)
        while (context.live or context.lingering) and (left := ends_at - time.monotonic()) > 0.0:
            self._each(closing.due(left), lambda relay: relay.abort())
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        self.stop()
        await self.close()

    def stop(self) -> None:
        """Abort all sessions, and close everything."""
        context = self.context
        context.draining = True
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        self._each([*context.live, *context.lingering], lambda session: session.abort())
        self.authenticators.stop()
        context.log.flush()

    def _each(self, sessions: Iterable[Drainable], do: Callable[[Drainable], object]) -> None:
        """Call something for each session; an exception ends only the session it belongs to."""
        for session in list(sessions):
            try:
                do(session)
            except Exception as error:  # an entry point
                self.context.handle_error(session, error)

    async def close(self) -> None:
        """Close resolvers, pipes and probes; after ``stop`` or ``drain``."""
        stop_probes(self._servers.values())
        self.context.pipes.close()
        await self._close_retired()
        await self.authenticators.close()
        for resolver in self._resolvers.values():
            await resolver.close()
        for names in self._upstream_names.values():
            await names.close()
        for source in self._tokens.values():
            await source.close()
        self._resolvers.clear()
        self._upstream_names.clear()

    # -- the event loop's lag

    def _tick(self, due: float) -> None:
        now = time.monotonic()
        context = self.context
        iterations, self._iterations = self._iterations, context.epoll.iterations
        is_idle = self._iterations - iterations <= _MAX_IDLE_ITERATIONS
        next_due = now + (_IDLE_LAG_INTERVAL if is_idle else _LAG_INTERVAL)
        context.loop.call_at(next_due, self._tick, next_due)  # first: whatever raises below, it goes on
        context.metrics.loop_lag.observe(max(now - due, 0.0))
        self._ticks += 1
        if is_idle or self._ticks % _TICKS_PER_FLUSH == 0:
            context.metrics.flush()
            context.log.flush()


def _template(config: ServerConfig) -> RequestTemplate:
    if config.auth_mode.needs_routes:
        return EmptyTemplate()
    try:
        return RequestTemplate(config, header_values(config), keep_alive=config.auth_http_keepalive)
    except ValueError as error:
        raise ConfigError([Problem(f"servers[{config.name}].auth_http", str(error))]) from error


def _has_names(config: ServerConfig) -> bool:
    """Return whether host names of upstreams may have to be looked up."""
    servers = (server for group in config.upstream_groups for server in group.servers)
    return config.auth_http_server_names or any(is_name(server.host) for server in servers)


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
