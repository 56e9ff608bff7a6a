# SPDX-License-Identifier: Apache-2.0
"""Logins that the upstream decides about (``auth_mode upstream``), as all protocols share them.

The client gets a refusal in words of the proxy, which are the same whether the upstream has refused the
password, or no route leads to one.  It may log in again on the same connection, up to ``max_errors``
refusals, outages and syntax errors together.  After an outage it gets the replies of ``proxy_tempfail
rfc5530``: an outage is no refusal.

What is a refusal: another reply of the upstream than the expected one to a credential, which its protocol
has, does not announce the end of the connection, and has no code of a temporary failure
(``TempfailFrontend.is_outage``).  Everything else is an outage.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Final

from mailproxy.enums import CloseReason, LoginDenied, Method, ProtocolErrorKind
from mailproxy.errors import LineTooLong, UpstreamError, UpstreamRefused
from mailproxy.protocols.frontend import ConfigT, passes_token_errors
from mailproxy.protocols.sansio import ProtocolGenerator, WaitToRefuse, note, send
from mailproxy.protocols.tempfail import ResumableLogin, TempfailFrontend, login_values
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    LoginUnknown,
    SessionEnd,
    UpstreamLogin,
)

REFUSED: Final = b"Authentication failed."
"""The text of every refusal, in every protocol."""
_TOO_OFTEN: Final = "client failed to log in too often"


class VerdictFrontend(TempfailFrontend[ConfigT]):
    """A frontend that goes on after a refusal, too; the first base of a protocol's class."""

    __slots__ = ()

    @abstractmethod
    def refused_reply(self, reply: bytes = b"") -> bytes:
        """Return the reply to a refused login.

        Args:
            reply: The upstream's, of which some response codes are passed on; empty without an upstream,
                or if it contains the password.
        """

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs, and what follows a refusal."""
        if request.envelope is not None:
            return super().upstream_login(request, grant)  # no credentials that the upstream could refuse
        login = super(TempfailFrontend, self).upstream_login(request, grant)  # type: ignore[safe-super]
        verdict = VerdictLogin(*login_values(login))
        verdict.frontend = verdict.verdict_frontend = self
        return verdict

    def run_after_refusal(
        self, unread: bytes, method: Method, reply: bytes, token_error: bytes
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Go on after a login that the upstream refused.

        Args:
            unread: What the client sent ahead; it is read again.
            method: How the client has logged in.
            reply: See ``refused_reply``.
            token_error: The upstream's challenge with the error of the client's token, in base64, or nothing.
        """
        self.reader.put_back(unread)
        yield WaitToRefuse(is_upstream=True)
        if token_error and passes_token_errors(self.server):
            try:
                is_finished = yield from self._send_token_error(method, token_error)
            except LineTooLong:
                yield from self.reply_invalid(ProtocolErrorKind.LINE_TOO_LONG)
                return SessionEnd(CloseReason.PROTOCOL_ERROR)
            if not is_finished:  # the client got the reply to an invalid command
                ended = yield from self.count_failure(_TOO_OFTEN)
                return ended or (yield from self.run())
        ended = yield from self._reply_refused(reply)
        return ended or (yield from self.run())

    def _deny_or_retry(
        self, request: AuthRequest, decision: AuthDenied | AuthDeferred
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd | None]:
        """Refuse a login without an upstream as an upstream's refusal is passed on."""
        if not isinstance(decision, LoginUnknown) or request.envelope is not None:
            return (yield from super()._deny_or_retry(request, decision))
        request.credentials = replace(request.credentials, password=None)  # not while the reply waits
        yield from note(LoginDenied(decision.text))
        yield WaitToRefuse(is_upstream=False)
        ended = yield from self._reply_refused(b"")
        if ended is None:
            yield self.config.deadline
        return ended

    def _reply_refused(self, reply: bytes) -> ProtocolGenerator[SessionEnd | None]:
        yield from send(self.refused_reply(reply))
        return (yield from self.count_failure(_TOO_OFTEN))


@dataclass(slots=True)
class VerdictLogin(ResumableLogin):
    """A login about which the upstream decides."""

    verdict_frontend: VerdictFrontend[Any] | None = None

    def pass_on(
        self, error: UpstreamError, refusal: bytes, /
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd] | None:
        """Return the generator that sends the refusal.  It does not hold the password.

        Args:
            error: The failure, which is no outage.
            refusal: The upstream's reply, or nothing if the client must not get anything of it.
        """
        frontend = self.verdict_frontend
        if frontend is None or not isinstance(error, UpstreamRefused):
            return None
        return frontend.run_after_refusal(self.unread, self.method, refusal, error.token_error)
