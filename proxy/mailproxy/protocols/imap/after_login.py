# SPDX-License-Identifier: Apache-2.0
"""The upstream's capabilities with the response to a login (``imap_capability_after_login``).

A client that has got the list of the proxy may not ask again after login.  So it gets the list of the
upstream: untagged if it asked before (as from Dovecot), otherwise inside of the tagged OK.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final, NamedTuple

from mailproxy.enums import UpstreamStage
from mailproxy.errors import PeerDisconnected
from mailproxy.protocols.frontend import CommandResult
from mailproxy.protocols.imap.commands import Command
from mailproxy.protocols.imap.frontend import ImapFrontend
from mailproxy.protocols.imap.upstream import RESPONSE, ImapUpstream, own_tag, tagged
from mailproxy.protocols.sansio import ProtocolGenerator, Receive, Send
from mailproxy.protocols.types import Client, UpstreamLogin, UpstreamLoginResult
from mailproxy.protocols.upstream_reply import read_reply, upstream_disconnected, upstream_refused

_LOGIN: Final = UpstreamStage.LOGIN
_UNTAGGED: Final = re.compile(rb"^\* CAPABILITY ([^\]\r\n]*)\r?\n", re.IGNORECASE | re.MULTILINE)
_IN_CODE: Final = re.compile(rb"[^ ]+ OK \[CAPABILITY ([^\]\r\n]*)\]", re.IGNORECASE)
_OK: Final = re.compile(rb"([^ ]+ OK)( \[)?", re.IGNORECASE)


class _Parts(NamedTuple):
    """Everything that the upstream sent since the last command of the login."""

    untagged: bytes
    """Complete lines."""
    line: bytes
    """The tagged OK without its LF."""
    rest: bytes
    """From the LF on."""


class CapabilityNotingFrontend(ImapFrontend):
    """A frontend that notes whether its client asks for capabilities."""

    __slots__ = ()

    def _dispatch(self, command: Command) -> ProtocolGenerator[CommandResult]:
        if command.word == b"CAPABILITY":
            self.client.has_asked_capabilities = True
        return super()._dispatch(command)


class CapabilityAfterLogin(ImapUpstream):
    """The login at one server's upstreams; the first base of a class derived from another one."""

    __slots__ = ()

    def log_in(self, client: Client, login: UpstreamLogin) -> ProtocolGenerator[UpstreamLoginResult]:
        """Log in; the client also gets the upstream's capabilities."""
        reply = yield from super().log_in(client, login)
        parts = _split(reply)
        if _UNTAGGED.search(parts.untagged) is not None:
            return reply
        listed = _IN_CODE.match(parts.line)
        if listed is None:
            return (yield from self._ask(client, login, parts))
        if client.has_asked_capabilities:
            return b"%b* CAPABILITY %b\r\n%b%b" % (parts.untagged, listed[1], parts.line, parts.rest)
        return reply

    def _ask(self, client: Client, login: UpstreamLogin, parts: _Parts) -> ProtocolGenerator[bytes]:
        """Send CAPABILITY, and return the response to the login with the list."""
        complete = parts.rest[: parts.rest.rfind(b"\n") + 1]
        kept = parts.rest[len(complete) :]
        yield Send(own_tag(b"9", login.tag) + b" CAPABILITY\r\n")
        try:
            received = kept + (yield Receive(self.limit - len(kept)))
            received = yield from read_reply(received, RESPONSE, self.limit, _LOGIN)
        except PeerDisconnected as gone:
            raise upstream_disconnected(gone, _LOGIN) from gone
        if tagged(received).startswith(b"* BYE"):
            raise upstream_refused(received, _LOGIN, is_valid_reply=True, is_bye=True)
        self.check_capabilities(received)
        answer = _split(received)
        listed = _UNTAGGED.search(answer.untagged)
        untagged = parts.untagged + _UNTAGGED.sub(b"", answer.untagged)
        line, behind = parts.line, complete + answer.rest[1:]
        if listed is None:
            return untagged + line + behind
        found = _OK.match(line)
        if client.has_asked_capabilities or found is None or found[2]:
            return b"%b* CAPABILITY %b\r\n%b%b" % (untagged, listed[1], line, behind)
        text = line[found.end() :]
        text = text if text.strip() else b" Logged in" + text
        return b"%b%b [CAPABILITY %b]%b%b" % (untagged, found[1], listed[1], text, behind)


def _split(received: bytes) -> _Parts:
    found = RESPONSE.match(received)
    assert found is not None  # noqa: S101 - the response is complete
    start, end = found.span(1)
    return _Parts(received[:start], received[start:end], received[end:])


@cache
def noting_capabilities(frontend: type[ImapFrontend]) -> type[ImapFrontend]:
    """Return a frontend class that notes whether its client asks for capabilities."""
    return type(f"Noting{frontend.__name__}", (CapabilityNotingFrontend, frontend), {"__slots__": ()})


@cache
def capability_after_login(upstream: type[ImapUpstream]) -> type[Any]:
    """Return a class derived from that of a login, after which the client gets the capabilities."""
    return type(f"Asking{upstream.__name__}", (CapabilityAfterLogin, upstream), {"__slots__": ()})
