# SPDX-License-Identifier: Apache-2.0
"""What decides about logins: the clients of authentication services, and what is asked before them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.pending_request import Authenticator
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.auth_http.upstream_servers import has_controls
from mailproxy.context import WorkerContext
from mailproxy.dns import HostAddresses
from mailproxy.enums import LoginResult
from mailproxy.protocols.types import AuthRequest, Secret
from mailproxy.routing.route_authenticator import LoginRouter, RouteAuthenticator
from mailproxy.routing.router import Table
from mailproxy.session.login_secrets import read_secret
from mailproxy.tls.client import ClientTls
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import AuthHttp, AuthMode, ServerConfig
from mailproxy_config.policy_server import AuthPolicyServer

if TYPE_CHECKING:
    from mailproxy.oauth.jwks_cache import JwksCache
    from mailproxy.policy.policy_client import PolicyClient

_RESOLVE_SECONDS: Final = 3.0
"""How long a start or reload waits for the names of authentication services to resolve."""

PolicyKey = tuple[AuthPolicyServer, Secret, Secret | None]
AuthKey = tuple[AuthHttp, float, bool, int | None, bool]


class Authenticators:
    """What decides about the logins of a worker's servers.

    Args:
        context: The worker's shared parts.

    Attributes:
        auth_clients: The clients of authentication services, by their configuration.
        jwks_caches: The keys of token issuers, by their URL.
        tables: The tables of routes of the newest configuration, by the paths of their files.
    """

    __slots__ = (
        "_context",
        "_policy_clients",
        "_policy_keys",
        "_retired_policy_clients",
        "auth_clients",
        "jwks_caches",
        "tables",
    )

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.auth_clients: dict[AuthKey, AuthHttpClient] = {}
        self.jwks_caches: dict[str, JwksCache] = {}
        self.tables: Mapping[str, Table] = {}
        self._policy_clients: dict[PolicyKey, PolicyClient] = {}
        self._policy_keys: dict[str, PolicyKey] = {}
        """Of the last configuration, by the names of its servers."""
        self._retired_policy_clients: list[PolicyClient] = []

    def authenticator(self, config: ServerConfig, template: RequestTemplate) -> Authenticator:
        """Return what decides about the logins of a server (``auth_mode``, ``auth_policy_server``)."""
        inner = self._without_policy(config, template)
        if config.auth_policy_server is None:
            return inner
        from mailproxy.policy.policy_authenticator import PolicyAuthenticator  # noqa: PLC0415 - few need it

        client = self._policy_client(config.name, config.auth_policy_server)
        return PolicyAuthenticator(self._context, inner, config, config.auth_policy_server, client)

    def reporter(self, config: ServerConfig) -> Callable[[AuthRequest, LoginResult], None] | None:
        """Return what reports the results of a server's logins to its policy server."""
        policy = config.auth_policy_server
        if policy is None or not policy.report:
            return None
        from mailproxy.policy.policy_authenticator import report_login  # noqa: PLC0415

        return partial(report_login, self._policy_client(config.name, policy), config.protocol)

    def _policy_client(self, server: str, policy: AuthPolicyServer) -> PolicyClient:
        """Return the client of a policy server; it survives a reload that does not change it."""
        from mailproxy.policy.policy_client import PolicyClient  # noqa: PLC0415 - as above

        directive = "auth_policy_server"
        nonce = read_secret(server, directive, policy.nonce_file)
        header = None if policy.header_file is None else read_header(server, directive, policy.header_file)
        key = (policy, nonce, header)
        self._policy_keys[server] = key
        if key not in self._policy_clients:
            self._policy_clients[key] = PolicyClient(self._context, policy, nonce, header)
        return self._policy_clients[key]

    def _without_policy(self, config: ServerConfig, template: RequestTemplate) -> Authenticator:
        if config.auth_mode is AuthMode.UPSTREAM:
            return RouteAuthenticator(self._context, LoginRouter(config, self.tables))
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
        await self._close_retired()
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
        asking = (config for config in configs if config.auth_mode is not AuthMode.UPSTREAM)
        services = {id(self._auth_service(config)) for config in asking}
        for key in [key for key, service in self.auth_clients.items() if id(service) not in services]:
            self.auth_clients.pop(key).close()  # for its sessions: a connection per request
        uris = {issuer.jwks_uri for config in configs for issuer in config.used_issuers}
        for uri in self.jwks_caches.keys() - uris:
            self.jwks_caches.pop(uri).close()
        used = {self._policy_keys[config.name] for config in configs if config.auth_policy_server is not None}
        for policy_key in self._policy_clients.keys() - used:
            self._retired_policy_clients.append(self._policy_clients.pop(policy_key))

    async def _close_retired(self) -> None:
        """Close clients that an earlier reload left to the sessions that used them."""
        retired, self._retired_policy_clients = self._retired_policy_clients, []
        for client in retired:
            await client.close()

    def stop(self) -> None:
        """Close all connections to authentication services."""
        for service in self.auth_clients.values():
            service.close()

    async def close(self) -> None:
        """Close everything else, after ``stop``."""
        for cache in self.jwks_caches.values():
            cache.close()
        self.jwks_caches.clear()
        await self._close_retired()
        for client in self._policy_clients.values():
            await client.close()
        self._policy_clients.clear()
        for service in self.auth_clients.values():
            await service.addresses.close()
        self.auth_clients.clear()

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


def read_header(server: str, directive: str, path: str) -> Secret:
    """Read the value of a header from a file.

    Raises:
        ConfigError: It cannot be read, is empty, or contains a control character.
    """
    value = read_secret(server, directive, path)
    if has_controls(value.reveal()):
        reason = f"{path} contains a control character"
        raise ConfigError([Problem(f"servers[{server}].{directive}", reason)])
    return value
