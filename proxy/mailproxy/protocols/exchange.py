# SPDX-License-Identifier: Apache-2.0
"""The other side's half: what an upstream says while we log in there, in every protocol.

What it said since our last command is kept whole, within ``proxy_buffer``:
the client may get to see it.  A line may end in LF alone.
"""

from __future__ import annotations

import re
from typing import Final

from mailproxy.dialogue.actions import Dialogue, Receive, Send, Telling, receive_at_most, send
from mailproxy.dialogue.values import Client
from mailproxy.errors import PeerGone, UpstreamError, UpstreamRefused
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.proxy_header import outbound
from mailproxy_config.model import SendProxyProtocol, ServerConfig

LINE: Final = re.compile(rb"([^\n]*)\n")
"""A reply of one line."""
_LF: Final = 10
_CR: Final = b"\r"
_GREETING: Final = UpstreamStage.GREETING
_DISABLED: Final = SendProxyProtocol.DISABLED


class Exchange:
    """Commands to an upstream and its replies, one after the other.

    Attributes:
        stage: How far the login has come; what goes wrong is told with it.
    """

    __slots__ = ("_buffer", "_limit", "_receive", "stage")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._receive = receive_at_most(limit)
        self._buffer = b""
        self.stage = _GREETING

    def introduce(self, server: ServerConfig, client: Client) -> Telling | tuple[()]:
        """Say who the client is where ``proxy_protocol`` wants it, ahead of everything else."""
        if server.proxy_protocol is _DISABLED:
            return ()
        return send(outbound(server, client))

    def say(self, command: bytes, stage: UpstreamStage) -> Telling:
        """Say a command, line end included; what was said before it is forgotten."""
        self.stage = stage
        self._buffer = b""
        return (Send(command),)

    def reply(self, whole: re.Pattern[bytes] = LINE) -> Dialogue[bytes]:
        """Take the reply to what was said last, and give the line of it that counts, without its line end.

        Args:
            whole: What a complete reply looks like, from its first octet on;
                its one group is the line that counts.  A reply ends with a line feed.

        Raises:
            UpstreamError: The reply does not fit ``proxy_buffer``, or the upstream is gone.
        """
        buffer = self._buffer
        while True:
            held = len(buffer)
            try:
                chunk: bytes = yield Receive(self._limit - held) if held else self._receive
            except PeerGone as gone:
                silent = ProtocolErrorKind.NO_GREETING if self.stage is _GREETING else None
                raise self.failed("upstream broke off", silent) from gone
            self._buffer = buffer = buffer + chunk if held else chunk
            if _LF in chunk and (found := whole.match(buffer)) is not None:
                line: bytes = found[1]
                return line[:-1] if line[-1:] == _CR else line
            if len(buffer) >= self._limit:
                raise self.failed("upstream sent too long reply", ProtocolErrorKind.REPLY_TOO_LONG)

    def said(self) -> bytes:
        """Everything the upstream said since our last command, unchanged."""
        return self._buffer

    def failed(self, message: str, kind: ProtocolErrorKind | None = None) -> UpstreamError:
        """Make the error for a login that cannot go on."""
        return UpstreamError(message, stage=self.stage, kind=kind)

    def refused(self, kind: ProtocolErrorKind | None = None) -> UpstreamRefused:
        """Make the error for a complete reply that is not the one hoped for.

        Args:
            kind: ``None`` for an honest refusal.
        """
        whole = self._buffer[: self._buffer.rfind(b"\n") + 1]
        return UpstreamRefused(whole, stage=self.stage, kind=kind)
