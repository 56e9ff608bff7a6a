"""The conversation with an IMAP server, from its greeting to the client's login.

LOGIN with literals, as nginx does it, under the client's own tag: so the
server's last reply answers the client's command, and is handed on unchanged.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from mailproxy.dialogue.actions import Dialogue, receive, send
from mailproxy.dialogue.values import Client, Identified, LoggedIn
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.events import ProtocolErrorKind, UpstreamStage
from mailproxy.protocols.proxy_header import outbound
from mailproxy_config.model import ServerConfig

_GREETING: Final = b"* OK"
_BYE: Final = b"* BYE"
_UNTAGGED: Final = b"* "
_NEXT: Final = b"+"
_TAKES_LITERALS_AT_ONCE: Final = re.compile(rb"\* OK \[CAPABILITY [^\]]*(?<= )LITERAL\+[ \]]", re.IGNORECASE)


class ImapUpstream:
    """One server's side of the conversations with IMAP upstreams."""

    __slots__ = ("_server",)

    def __init__(self, server: ServerConfig) -> None:
        self._server = server

    def log_in(self, client: Client, identified: Identified) -> Dialogue[LoggedIn]:
        """Log in on the client's behalf.

        Raises:
            UpstreamRefused: The upstream said no; everything it said in that step goes with it.
            UpstreamError: A step's lines are more than ``proxy_buffer`` holds.
        """
        header = outbound(self._server, client)
        if header:
            yield from send(header)
        said = _Step(self._server.proxy_buffer, UpstreamStage.GREETING)
        greeting = yield from said.line()
        if not greeting.startswith(_GREETING):
            said.refuse(is_violation=not greeting.startswith(_BYE))
        said.stage = UpstreamStage.LOGIN
        if _TAKES_LITERALS_AT_ONCE.match(greeting):
            yield from _present_at_once(said, identified)
        else:
            yield from _present(said, identified)
        return (yield from _verdict(said, identified.tag))


class _Step:
    """What the upstream said since our last command, line by line, within one buffer."""

    __slots__ = ("_at", "_buffer", "_limit", "stage")

    def __init__(self, limit: int, stage: UpstreamStage) -> None:
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self.stage = stage

    def line(self) -> Dialogue[bytes]:
        """Give the next line with its line end, which may be a bare LF."""
        end = self._buffer.find(b"\n", self._at)
        while end < 0:
            room = self._limit - len(self._buffer)
            if room <= 0:
                kind = ProtocolErrorKind.REPLY_TOO_LONG
                raise UpstreamError("upstream sent too long reply", stage=self.stage, kind=kind)
            seen = len(self._buffer)
            self._buffer += yield from receive(room)
            end = self._buffer.find(b"\n", seen)
        start, self._at = self._at, end + 1
        return self._buffer[start : self._at]

    def next(self) -> None:
        """Begin another step: forget the lines that were looked at."""
        self._buffer, self._at = self._buffer[self._at :], 0

    def forget_lines(self) -> None:
        """Begin another step, and forget all whole lines, looked at or not."""
        self._at = max(self._at, self._buffer.rfind(b"\n") + 1)
        self.next()

    def everything(self) -> bytes:
        """Give all that was said in this step, whole lines or not."""
        return self._buffer

    def refuse(self, *, is_violation: bool) -> NoReturn:
        """End the login; the upstream did not say what was hoped for."""
        kind = ProtocolErrorKind.UNEXPECTED_REPLY if is_violation else None
        raise UpstreamRefused(self.everything(), stage=self.stage, kind=kind)


def _present(said: _Step, identified: Identified) -> Dialogue[None]:
    """Send tag, user and password, each when the upstream asks for it."""
    user, password = _login(identified)
    yield from send(b"%b LOGIN {%d}\r\n" % (identified.tag, len(user)))
    yield from _continuation(said, identified.tag)
    yield from send(b"%b {%d}\r\n" % (user, len(password)))
    yield from _continuation(said, identified.tag)
    yield from send(password + b"\r\n")
    said.next()


def _present_at_once(said: _Step, identified: Identified) -> Dialogue[None]:
    """Send the same in one flight, to an upstream that announces LITERAL+ (RFC 7888)."""
    user, password = _login(identified)
    said.forget_lines()
    yield from send(
        b"%b LOGIN {%d+}\r\n%b {%d+}\r\n%b\r\n" % (identified.tag, len(user), user, len(password), password)
    )


def _login(identified: Identified) -> tuple[bytes, bytes]:
    password = identified.grant.password
    return identified.grant.user, b"" if password is None else password.reveal()


def _continuation(said: _Step, tag: bytes) -> Dialogue[None]:
    """Wait for the go-ahead, past any untagged lines."""
    said.next()
    line = yield from said.line()
    while line.startswith(_UNTAGGED) and not line.startswith(_BYE):
        line = yield from said.line()
    if not line.startswith(_NEXT):
        said.refuse(is_violation=not _is_answer(line, tag))


def _verdict(said: _Step, tag: bytes) -> Dialogue[LoggedIn]:
    """Wait for the tagged reply, past any untagged lines, which the client gets as well."""
    line = yield from said.line()
    while line.startswith(_UNTAGGED) and not line.startswith(_BYE):
        line = yield from said.line()
    if not line.startswith(tag + b" OK"):
        said.refuse(is_violation=not _is_answer(line, tag))
    return LoggedIn(said.everything())


def _is_answer(line: bytes, tag: bytes) -> bool:
    return line.startswith((_BYE, tag + b" NO", tag + b" BAD"))
