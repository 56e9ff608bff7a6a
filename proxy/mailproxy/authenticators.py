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
from mailproxy.routing.route_authenticator import LoginRouter, RouteAuthenticator
from mailproxy.routing.router import Table
from mailproxy.tls.client import ClientTls
from mailproxy.users.password_pool import PasswordPool
from mailproxy.users.static_authenticator import StaticAuthenticator
from mailproxy.users.user_list import UserList
from mailproxy_config.model import AuthHttp, AuthMode, ServerConfig

if TYPE_CHECKING:
    from mailproxy.oauth.jwks_cache import JwksCache

_RESOLVE_SECONDS: Final = 3.0
"""How long a start or reload waits for the names of authentication services to resolve."""

AuthKey = tuple[AuthHttp, float, bool, int | None, bool]


class Authenticators:
    """What decides about the logins of a worker's servers.

    Args:
        context: The worker's shared parts.

    Attributes:
        auth_clients: The clients of authentication services, by their configuration.
        jwks_caches: The keys of token issuers, by their URL.
        tables: The tables of routes of the newest configuration, by the paths of their files.
        users: Its lists of users, likewise.
    """

    __slots__ = ("_context", "_passwords", "auth_clients", "jwks_caches", "tables", "users")

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.auth_clients: dict[AuthKey, AuthHttpClient] = {}
        self.jwks_caches: dict[str, JwksCache] = {}
        self.tables: Mapping[str, Table] = {}
        self.users: Mapping[str, UserList] = {}
        self._passwords: PasswordPool | None = None

    def authenticator(self, config: ServerConfig, template: RequestTemplate) -> Authenticator:
        """Return what decides about the logins of a server (``auth_mode``)."""
        if config.auth_mode is AuthMode.UPSTREAM:
            return RouteAuthenticator(self._context, LoginRouter(config, self.tables))
        if config.used_user_file is not None:
            return self._static(config, self.users[config.used_user_file])
        service = self._auth_service(config)
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

    async def start(self, worker_connections: int) -> None:
        """Begin to work for a configuration; waits a short time for the names of services to resolve.

        Args:
            worker_connections: The limit of clients of a worker.
        """
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
        uris = {issuer.jwks_uri for config in configs for issuer in config.used_issuers}
        for uri in self.jwks_caches.keys() - uris:
            self.jwks_caches.pop(uri).close()

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
        self.jwks_caches.clear()
        for service in self.auth_clients.values():
            await service.addresses.close()
        self.auth_clients.clear()

    def _static(self, config: ServerConfig, users: UserList) -> StaticAuthenticator:
        """Return what verifies passwords; all servers share the threads of the worker."""
        if self._passwords is None:
            self._passwords = PasswordPool(self._context.loop, self._context.metrics)
        return StaticAuthenticator(self._context, LoginRouter(config, self.tables), users, self._passwords)

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
