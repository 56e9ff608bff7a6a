# SPDX-License-Identifier: Apache-2.0
"""The other side's half: what an upstream says while we log in there, in every protocol.

What it said since our last command is kept whole, within ``proxy_buffer``:
the client may get to see it.  A line may end in LF alone.

An upstream mostly says at once, and no more than, what is hoped for; a login
looks for just that, and comes here with everything else.
"""

from __future__ import annotations

import re
from typing import Final

from mailproxy.enums import ProtocolErrorKind, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.protocols.sansio import ProtocolGenerator, Receive
from mailproxy_config.model import SendProxyProtocol, ServerConfig

LF: Final = 10
"""A number: bytes are searched for one faster than for bytes."""
_CREDENTIALS: Final = frozenset({UpstreamStage.LOGIN, UpstreamStage.ENVELOPE})
"""The stages at which a refusal is about this client."""
ONE_LINE: Final = re.compile(rb"[^\n]*\n")
"""A reply of one line."""


class UpstreamLoginBase:
    """What all logins at one server's upstreams have in common, prepared once.

    Attributes:
        limit: The bytes of the longest reply (directive ``proxy_buffer``).
        receive: Waits for a reply of which nothing is there yet.
        introduces: Whether a PROXY header goes ahead of everything else (``proxy_protocol``).
        server: The server block that the clients connect to.
    """

    __slots__ = ("introduces", "limit", "receive", "server")

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.limit = server.proxy_buffer
        self.receive = Receive(self.limit)
        self.introduces = server.proxy_protocol is not SendProxyProtocol.DISABLED


def read_reply(
    heard: bytes, whole: re.Pattern[bytes], limit: int, stage: UpstreamStage
) -> ProtocolGenerator[bytes]:
    """Wait for the rest of a reply, and give everything the upstream said since our last command.

    Args:
        heard: What it said so far; at least one byte.
        whole: What a complete reply looks like, from its first byte on.  It
            ends with a line feed.
        limit: The bytes of the longest reply.
        stage: How far the login has come.

    Raises:
        UpstreamError: The reply is longer than that.
        PeerGone: The upstream is gone.
    """
    fresh = heard
    while LF not in fresh or whole.match(heard) is None:
        if len(heard) >= limit:
            raise upstream_error(
                "upstream sent too long reply", stage, ProtocolErrorKind.REPLY_TOO_LONG, heard
            )
        fresh = yield Receive(limit - len(heard))
        heard += fresh
    return heard


def upstream_error(
    message: str, stage: UpstreamStage, kind: ProtocolErrorKind | None = None, heard: bytes = b""
) -> UpstreamError:
    """Make the error for a login that cannot go on."""
    return UpstreamError(message, stage=stage, kind=kind, reply=heard)


def upstream_disconnected(stage: UpstreamStage) -> UpstreamError:
    """Make the error for an upstream that is gone, which is worse before it has said anything."""
    silent = ProtocolErrorKind.NO_GREETING if stage is UpstreamStage.GREETING else None
    return upstream_error("upstream broke off", stage, silent)


def upstream_refused(
    heard: bytes, stage: UpstreamStage, *, is_honest: bool, is_bye: bool = False
) -> UpstreamRefused:
    """Make the error for a complete reply that is not the one hoped for.

    Args:
        heard: Everything the upstream said since our last command.
        stage: How far the login has come.
        is_honest: Whether it is a reply that its protocol has for this.
        is_bye: Whether it is the one with which an upstream closes the
            session (``421``, ``* BYE``), which answers no login.
    """
    kind = None if is_honest else ProtocolErrorKind.UNEXPECTED_REPLY
    is_denial = stage in _CREDENTIALS and not is_bye
    return UpstreamRefused(heard[: heard.rfind(b"\n") + 1], stage=stage, kind=kind, is_denial=is_denial)
