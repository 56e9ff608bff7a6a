# SPDX-License-Identifier: Apache-2.0
"""Plays a login at an upstream without sockets: what is sent before each reply, and how it ends."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Final

from mailproxy.enums import Method
from mailproxy.errors import UpstreamError
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import GetToken, Receive, Send, UpgradeToTls
from mailproxy.protocols.types import AuthAllowed, Client, Envelope, LoginSecrets, Secret, UpstreamLogin
from mailproxy_config.model import Protocol
from support import configs

TOKEN: Final = b"eyJ0eXAi.token.0123456789"
USER: Final = b"alice@example.org"
PASSWORD: Final = b"wonderland"


def b64(data: bytes) -> bytes:
    return b64encode(data)


@dataclass
class Played:
    """What a login did.

    Attributes:
        sent: What was sent before each reply, and after the last one.
        reply: What the client gets; ``None`` if the login failed.
        error: Why it failed.
        tokens: Number of tokens that it asked for.
    """

    sent: list[bytes] = field(default_factory=lambda: [b""])
    reply: bytes | None = None
    error: UpstreamError | None = None
    tokens: int = 0

    @property
    def all_sent(self) -> bytes:
        return b"".join(self.sent)


def play(
    protocol: Protocol,
    *replies: bytes,
    user: bytes = USER,
    password: bytes | None = PASSWORD,
    token: bytes | Exception = TOKEN,
    master: bytes | None = None,
    method: Method = Method.PLAIN,
    envelope: Envelope | None = None,
    helo: bytes | None = b"client",
    **directives: Any,
) -> Played:
    """Log in; every reply must be used, and none may be missing."""
    server = configs.server(protocol, **{"xclient": False, **directives})
    secrets = LoginSecrets(Secret(master) if master is not None else None)
    grant = AuthAllowed("192.0.2.10", 143, user, None if password is None else Secret(password))
    login = UpstreamLogin(grant, method, tag=b"a", envelope=envelope, helo=helo, esmtp=helo is not None)
    generator = PROTOCOLS[protocol].upstream(server, secrets).log_in(Client("192.0.2.1"), login)
    played, waiting = Played(), list(replies)
    result: Any = None
    try:
        while True:
            is_error = isinstance(result, Exception)
            effect = generator.throw(result) if is_error else generator.send(result)
            result = None
            match effect:
                case Send(data):
                    played.sent[-1] += data
                case GetToken():
                    played.tokens += 1
                    result = token if isinstance(token, Exception) else Secret(token)
                case Receive():
                    assert waiting, f"it waits for a reply to {played.sent[-1]!r}"
                    result = waiting.pop(0)
                    played.sent.append(b"")
                case UpgradeToTls():
                    played.sent[-1] += b"<TLS>"
                case _:
                    raise AssertionError(effect)
    except StopIteration as end:
        played.reply = end.value
    except UpstreamError as error:
        played.error = error
    assert not waiting, f"unused replies: {waiting}"
    return played
