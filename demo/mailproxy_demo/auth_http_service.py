# SPDX-License-Identifier: Apache-2.0
"""An authentication service as nginx's ``auth_http`` requests one.

A request describes the client in its headers.  The headers of the response allow or deny the login, and name
the upstream.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Account:
    """The one user of the demo.  The password is no secret: the demo prints it."""

    user: str = "alice"
    password: str = "wonderland"  # noqa: S105  it is printed for everyone to try


def auth_response(
    headers: Mapping[str, str], account: Account, upstream_ports: Mapping[str, int]
) -> dict[str, str]:
    """Allow or deny one login.

    Args:
        headers: The request's headers; user and password are percent-encoded.
        account: The user who can log in.
        upstream_ports: The port of each protocol's upstream on loopback.

    Returns:
        The headers of the response.  A digest mechanism does not send the password, so the response has it
        (``Auth-Pass``).
    """
    method, salt = headers.get("Auth-Method", "plain"), headers.get("Auth-Salt", "")
    user, secret = unquote(headers.get("Auth-User", "")), unquote(headers.get("Auth-Pass", ""))
    port = upstream_ports.get(headers.get("Auth-Protocol", ""))
    password = account.password.encode()
    expected = {
        "plain": account.password,
        "cram-md5": hmac.new(password, salt.encode(), hashlib.md5).hexdigest(),
        "apop": hashlib.md5(salt.encode() + password).hexdigest(),  # noqa: S324  RFC 1939 prescribes MD5
    }.get(method, "")
    is_right = hmac.compare_digest(f"{user}\0{secret}".encode(), f"{account.user}\0{expected}".encode())
    if port is None or not expected or not is_right:
        return {"Auth-Status": "Invalid login or password", "Auth-Wait": "1"}
    allowed = {"Auth-Status": "OK", "Auth-Server": "127.0.0.1", "Auth-Port": str(port)}
    return allowed if method == "plain" else allowed | {"Auth-Pass": account.password}


class AuthHttpService:
    """The service on a loopback port.  An asynchronous context manager: it runs until that ends.

    Attributes:
        port: Its port.  With 0, a free one is chosen when the service starts.
    """

    def __init__(self, account: Account, upstream_ports: Mapping[str, int], port: int = 0) -> None:
        async def handle(request: web.Request) -> web.Response:
            return web.Response(headers=auth_response(request.headers, account, upstream_ports))

        app = web.Application()
        app.router.add_get("/auth", handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        self.port = port

    async def __aenter__(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
