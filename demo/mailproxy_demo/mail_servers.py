# SPDX-License-Identifier: Apache-2.0
"""The demo's servers together, for as long as the context lasts."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Self

from mailproxy_demo import imap, pop3, smtp
from mailproxy_demo.auth_http_service import AuthService
from mailproxy_demo.memory_mailbox import Account, Mailbox
from mailproxy_demo.wire import LineServer

_SERVERS = {"imap": imap.converse, "pop3": pop3.converse, "smtp": smtp.converse}


class MailWorld:
    """IMAP, POP3 and SMTP servers on free loopback ports, and the service that sends clients there.

    Attributes:
        account: The one user.
        mailbox: What the three servers share.
        ports: Each server's port, by protocol.
    """

    def __init__(self, auth_port: int = 0) -> None:
        self.account = Account()
        self.mailbox = Mailbox()
        self.ports: dict[str, int] = {}
        self._auth = AuthService(self.account, self.ports, auth_port)
        self._stack = AsyncExitStack()

    @property
    def auth_url(self) -> str:
        """Where the authentication service answers: the value of ``authHttp``."""
        return f"http://127.0.0.1:{self._auth.port}/auth"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for protocol, converse in _SERVERS.items():
                serve = partial(converse, mailbox=self.mailbox, account=self.account)
                server = await stack.enter_async_context(LineServer(serve))
                self.ports[protocol] = server.port
            await stack.enter_async_context(self._auth)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
