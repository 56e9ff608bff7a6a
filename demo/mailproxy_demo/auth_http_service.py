# SPDX-License-Identifier: Apache-2.0
"""An HTTP authentication service as nginx's ``auth_http`` expects one.

The request carries what is known about the client in headers; the answer
says in headers whether the client may come in, and to which server.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from typing import Self
from urllib.parse import unquote

from aiohttp import web

from mailproxy_demo.memory_mailbox import Account
from mailproxy_demo.sasl import apop_digest, cram_md5_digest

_DIGESTS = {"cram-md5": cram_md5_digest, "apop": apop_digest}


def answer(headers: Mapping[str, str], account: Account, upstream_ports: Mapping[str, int]) -> dict[str, str]:
    """Decide about one request.

    Args:
        headers: The request's headers; user and password are percent-encoded.
        account: Who may come in.
        upstream_ports: The port of each protocol's server on loopback.

    Returns:
        The headers of the answer.  A digest mechanism keeps the password from
        the proxy, so the answer has to supply it (``Auth-Pass``).
    """
    method, user = headers.get("Auth-Method", "plain"), unquote(headers.get("Auth-User", ""))
    secret = unquote(headers.get("Auth-Pass", ""))
    port = upstream_ports.get(headers.get("Auth-Protocol", ""))
    if port is None or not _is_right(method, user, secret, headers.get("Auth-Salt", ""), account):
        return {"Auth-Status": "Invalid login or password", "Auth-Wait": "1"}
    granted = {"Auth-Status": "OK", "Auth-Server": "127.0.0.1", "Auth-Port": str(port)}
    return granted | ({"Auth-Pass": account.password} if method in _DIGESTS else {})


def _is_right(method: str, user: str, secret: str, salt: str, account: Account) -> bool:
    if method in _DIGESTS:
        expected = _DIGESTS[method](salt, account.password)
        return user == account.user and hmac.compare_digest(expected.encode(), secret.encode())
    return method == "plain" and account.admits(user, secret)


class AuthService:
    """The service on a loopback port, for as long as the context lasts."""

    def __init__(self, account: Account, upstream_ports: Mapping[str, int], port: int = 0) -> None:
        self._account = account
        self._upstream_ports = upstream_ports
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1)
        self.port = port

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(5):
            await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/auth", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        return web.Response(headers=answer(request.headers, self._account, self._upstream_ports))
