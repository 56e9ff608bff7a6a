# SPDX-License-Identifier: Apache-2.0
"""What decides about logins: the clients of authentication services, and what is asked before them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.pending_request import Authenticator
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses
from mailproxy.policy_clients import PolicyClients
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.routing.route_authenticator import LoginRouter, RouteAuthenticator
from mailproxy.routing.router import Table
from mailproxy.tls.client import ClientTls
from mailproxy.users.password_pool import PasswordPool
from mailproxy.users.static_authenticator import StaticAuthenticator
from mailproxy.users.user_list import UserList
from mailproxy_config.model import AuthHttp, AuthMode, ServerConfig

if TYPE_CHECKING:
    from mailproxy.auth_cache.caching_authenticator import CachingAuthenticator
    from mailproxy.limits.preauth import PreauthLimit
    from mailproxy.limits.worker_limits import WorkerLimits
    from mailproxy.oauth.jwks_cache import JwksCache
    from mailproxy.penalty.block_check import BlockCheck, Exemptions
    from mailproxy.penalty.pod_state import PodState

_RESOLVE_SECONDS: Final = 3.0
"""How long a start or reload waits for the names of authentication services to resolve."""

AuthKey = tuple[AuthHttp, float, bool, int | None, bool]


class Authenticators:
    """What decides about the logins of a worker's servers.

    Args:
        context: The worker's shared parts.

    Attributes:
        auth_caches: The caches of their decisions, by the configuration of their server.
        auth_clients: The clients of authentication services, by their configuration.
        jwks_caches: The keys of token issuers, by their URL.
        policy_clients: The clients of policy servers.
        tables: The tables of routes of the newest configuration, by the paths of their files.
        users: Its lists of users, likewise.
    """

    __slots__ = (
        "_cache_secret",
        "_context",
        "_limits",
        "_passwords",
        "_penalties",
        "auth_caches",
        "auth_clients",
        "jwks_caches",
        "policy_clients",
        "tables",
        "users",
    )

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._limits: WorkerLimits | None = None
        self._penalties: PodState | None = None
        self._cache_secret = b""
        self.auth_caches: dict[ServerConfig, CachingAuthenticator] = {}
        self.auth_clients: dict[AuthKey, AuthHttpClient] = {}
        self.jwks_caches: dict[str, JwksCache] = {}
        self.tables: Mapping[str, Table] = {}
        self.users: Mapping[str, UserList] = {}
        self._passwords: PasswordPool | None = None
        self.policy_clients = PolicyClients(context)

    def authenticator(
        self, config: ServerConfig, template: RequestTemplate, trusted: TrustedPeers
    ) -> Authenticator:
        """Return what decides about the logins of a server.

        Args:
            config: The server block.
            template: Renders its requests to the authentication service.
            trusted: The addresses of its ``set_real_ip_from``.
        """
        authenticator = self.policy_clients.asking(self._decider(config, template), config)
        return self._limited(self._penalizing(authenticator, config, trusted), config)

    def _limited(self, following: Authenticator, config: ServerConfig) -> Authenticator:
        """Return what applies limits to logins (``limit_conn``, ``limit_req``, ``limit_preauth``)."""
        if config.limits_logins or config.limit_preauth:
            return self._worker_limits().limited(following, config)
        return following

    def preauth(self, config: ServerConfig) -> PreauthLimit | None:
        """Return what limits the connections of a server before the login (``limit_preauth``)."""
        return self._worker_limits().preauth(config) if config.limit_preauth else None

    def _worker_limits(self) -> WorkerLimits:
        if self._limits is None:
            from mailproxy.limits.worker_limits import WorkerLimits  # noqa: PLC0415 - most workers have none

            self._limits = WorkerLimits(self._context)
        return self._limits

    def _penalizing(
        self, following: Authenticator, config: ServerConfig, trusted: TrustedPeers
    ) -> Authenticator:
        """Return what delays logins after failed ones (``auth_penalty``, ``auth_block``)."""
        if not config.counts_failed_logins:
            return following
        from mailproxy.penalty.penalty_authenticator import PenaltyAuthenticator  # noqa: PLC0415 - as below

        return PenaltyAuthenticator(
            self._context,
            following,
            config,
            self._penalty_state(),
            exemptions=_exemptions(config, trusted),
            log=self._context.log.for_server(config),
        )

    def block_check(self, config: ServerConfig, trusted: TrustedPeers) -> BlockCheck | None:
        """Return what finds clients with a blocked address, if a server has ``auth_block``."""
        if config.auth_block is None:
            return None
        from mailproxy.penalty.block_check import BlockCheck  # noqa: PLC0415 - as below

        return BlockCheck(self._penalty_state(), _exemptions(config, trusted))

    def _penalty_state(self) -> PodState:
        """Return the records of failed logins, the same for all servers and configurations."""
        if self._penalties is None:
            from mailproxy.penalty.pod_state import PodState  # noqa: PLC0415 - as below

            self._penalties = PodState(self._context.memory)
        return self._penalties

    def _decider(self, config: ServerConfig, template: RequestTemplate) -> Authenticator:
        """Return what decides about credentials (``auth_mode``)."""
        if config.auth_mode is AuthMode.UPSTREAM:
            return RouteAuthenticator(self._context, self._router(config))
        if config.used_user_file is not None:
            return self._static(config, self.users[config.used_user_file])
        service = self._cached(config, self._auth_service(config))
        if config.auth_mode is AuthMode.HTTP:
            return service
        from mailproxy.oauth.jwks_cache import JwksCache  # noqa: PLC0415 - takes 13 MB in each worker
        from mailproxy.oauth.token_authenticator import TokenAuthenticator  # noqa: PLC0415

        for issuer in config.oauth_issuer:
            if issuer.jwks_uri not in self.jwks_caches:
                self.jwks_caches[issuer.jwks_uri] = JwksCache(self._context, issuer.jwks_uri)
        return TokenAuthenticator(
            self._context,
            service,
            config,
            template,
            caches=self.jwks_caches,
            log=self._context.log.for_server(config),
        )

    def _cached(self, config: ServerConfig, service: AuthHttpClient) -> Authenticator:
        """Return the cache of a service's decisions; it survives a reload that does not change the server."""
        settings = config.auth_cache
        if settings is None or not settings.size:
            return service
        from mailproxy.auth_cache.cache_key import CacheKeys, new_secret  # noqa: PLC0415 - most workers have none
        from mailproxy.auth_cache.caching_authenticator import CachingAuthenticator  # noqa: PLC0415 - as above

        if config not in self.auth_caches:
            self._cache_secret = self._cache_secret or new_secret()
            keys, log = CacheKeys(config, self._cache_secret), self._context.log.for_server(config)
            self.auth_caches[config] = CachingAuthenticator(self._context, service, config, keys, log=log)
        return self.auth_caches[config]

    async def start(self, worker_connections: int) -> None:
        """Begin to work for a configuration; waits a short time for the names of services to resolve.

        Args:
            worker_connections: The limit of clients of a worker.
        """
        await self.policy_clients.close_retired()
        with suppress(TimeoutError):
            async with asyncio.timeout(_RESOLVE_SECONDS):
                await asyncio.gather(*(service.addresses.start() for service in self.auth_clients.values()))
        for cache in self.jwks_caches.values():
            cache.start()
        for service in self.auth_clients.values():
            service.resize(worker_connections)

    def retire(self, configs: Iterable[ServerConfig]) -> None:
        """Close what none of these servers needs; sessions of an earlier configuration may go on using it."""
        configs = tuple(configs)
        asking = (config for config in configs if not config.auth_mode.needs_routes)
        services = {id(self._auth_service(config)) for config in asking}
        for key in [key for key, service in self.auth_clients.items() if id(service) not in services]:
            self.auth_clients.pop(key).close()  # for its sessions: a connection per request
        if self._limits is not None:
            self._limits.retire(configs)
        for unused in self.auth_caches.keys() - set(configs):
            self.auth_caches.pop(unused).close()
        uris = {issuer.jwks_uri for config in configs for issuer in config.used_issuers}
        for uri in self.jwks_caches.keys() - uris:
            self.jwks_caches.pop(uri).close()
        self.policy_clients.retire(configs)

    def stop(self) -> None:
        """Close all connections to authentication services."""
        for service in self.auth_clients.values():
            service.close()

    async def close(self) -> None:
        """Close everything else, after ``stop``."""
        if self._passwords is not None:
            self._passwords.close()
        for cache in self.jwks_caches.values():
            cache.close()
        for decisions in self.auth_caches.values():
            decisions.close()
        self.jwks_caches.clear()
        self.auth_caches.clear()
        await self.policy_clients.close()
        for service in self.auth_clients.values():
            await service.addresses.close()
        self.auth_clients.clear()

    def _static(self, config: ServerConfig, users: UserList) -> StaticAuthenticator:
        """Return what verifies passwords; all servers share the threads of the worker."""
        if self._passwords is None:
            self._passwords = PasswordPool(self._context.loop, self._context.metrics)
        return StaticAuthenticator(self._context, self._router(config), users, self._passwords)

    def _router(self, config: ServerConfig) -> LoginRouter:
        return LoginRouter(config, self.tables, self._context)

    def _auth_service(self, config: ServerConfig) -> AuthHttpClient:
        where, keeps, maximum = config.auth_http, config.auth_http_keepalive, config.auth_http_max_connections
        names = config.auth_http_server_names
        assert where is not None  # noqa: S101 -- the configuration requires it
        key = (where, config.auth_http_timeout, keeps, maximum, names)
        if key not in self.auth_clients:
            context = self._context
            addresses = HostAddresses(where, metrics=context.metrics, on_failure=context.log_lookup_failure)
            self.auth_clients[key] = AuthHttpClient(
                context,
                addresses,
                config.auth_http_timeout,
                ClientTls(where.host) if where.tls else None,
                keeps=keeps,
                maximum=maximum,
                accepts_names=names,
            )
        return self.auth_clients[key]


def _exemptions(config: ServerConfig, trusted: TrustedPeers) -> Exemptions:
    from mailproxy.penalty.block_check import Exemptions  # noqa: PLC0415 - only where failed logins are counted

    return Exemptions(TrustedPeers(config.auth_penalty_exempt), trusted)
