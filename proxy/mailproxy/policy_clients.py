# SPDX-License-Identifier: Apache-2.0
"""The clients of the policy servers of a worker, one for each server with its secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from mailproxy.auth_http.pending_request import Authenticator
from mailproxy.auth_http.upstream_servers import has_controls
from mailproxy.context import WorkerContext
from mailproxy.enums import LoginResult
from mailproxy.protocols.types import AuthRequest, Secret
from mailproxy.session.login_secrets import read_secret
from mailproxy_config.errors import ConfigError, Problem
from mailproxy_config.model import ServerConfig
from mailproxy_config.policy_server import AuthPolicyServer

if TYPE_CHECKING:
    from mailproxy.policy.policy_client import PolicyClient

_Key = tuple[AuthPolicyServer, Secret, Secret | None]


class PolicyClients:
    """The clients; one survives a reload that does not change it.

    Args:
        context: The worker's shared parts.
    """

    __slots__ = ("_clients", "_context", "_keys", "_retired")

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._clients: dict[_Key, PolicyClient] = {}
        self._keys: dict[str, _Key] = {}
        """Of the last configuration, by the names of its servers."""
        self._retired: list[PolicyClient] = []

    def asking(self, following: Authenticator, config: ServerConfig) -> Authenticator:
        """Return what asks the policy server of a server, if it has one, beside what decides about logins."""
        policy = config.auth_policy_server
        if policy is None:
            return following
        from mailproxy.policy.policy_authenticator import PolicyAuthenticator  # noqa: PLC0415 - few need it

        return PolicyAuthenticator(
            self._context, following, config, policy, self._client(config.name, policy)
        )

    def reporter(self, config: ServerConfig) -> Callable[[AuthRequest, LoginResult], None] | None:
        """Return what reports the results of a server's logins to its policy server."""
        policy = config.auth_policy_server
        if policy is None or not policy.report:
            return None
        from mailproxy.policy.policy_authenticator import report_login  # noqa: PLC0415 - as above

        return partial(report_login, self._client(config.name, policy), config.protocol)

    def retire(self, configs: Iterable[ServerConfig]) -> None:
        """Keep for ``close_retired`` what none of these servers needs; sessions may go on using it."""
        used = {self._keys[config.name] for config in configs if config.auth_policy_server is not None}
        for key in self._clients.keys() - used:
            client = self._clients.pop(key)
            client.retire()
            self._retired.append(client)

    async def close_retired(self) -> None:
        """Close clients that an earlier reload left to the sessions that used them."""
        retired, self._retired = self._retired, []
        await asyncio.gather(*(client.close() for client in retired))

    async def close(self) -> None:
        """Close all clients."""
        self._retired += self._clients.values()
        self._clients.clear()
        await self.close_retired()

    def _client(self, server: str, policy: AuthPolicyServer) -> PolicyClient:
        from mailproxy.policy.policy_client import PolicyClient  # noqa: PLC0415 - as above

        directive = "auth_policy_server"
        nonce = read_secret(server, directive, policy.nonce_file)
        header = None if policy.header_file is None else read_header(server, directive, policy.header_file)
        key = (policy, nonce, header)
        self._keys[server] = key
        if key not in self._clients:
            self._clients[key] = PolicyClient(self._context, policy, nonce, header)
        return self._clients[key]


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
