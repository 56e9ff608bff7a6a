# SPDX-License-Identifier: Apache-2.0
"""The upstream's error for a client's access token, passed on to the client (``proxy_pass_error_message``).

An upstream that refuses a token sends a challenge with an error first, which has the address of the
authorization server (RFC 7628 section 3.2.2).  Clients use it to get another token.  The client gets this
challenge, responds to it, and then gets the upstream's refusal, as after ``Auth-Error-SASL`` of the
authentication service.  The classes are used only where clients' tokens are sent on as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from mailproxy.enums import CloseReason, ProtocolErrorKind
from mailproxy.errors import LineTooLong, UpstreamError, UpstreamRefused
from mailproxy.protocols.frontend import ConfigT, Frontend
from mailproxy.protocols.sansio import ProtocolGenerator, send
from mailproxy.protocols.sasl_tokens import TOKEN_METHODS
from mailproxy.protocols.tempfail import ResumableLogin, login_values
from mailproxy.protocols.types import AuthAllowed, AuthRequest, SessionEnd, UpstreamLogin


class TokenErrorFrontend(Frontend[ConfigT]):
    """A frontend that passes on the error of a token; the first base of a protocol's class."""

    __slots__ = ()

    def send_greeting(self) -> ProtocolGenerator[SessionEnd | None]:
        """Send the greeting, once: ``run`` may begin anew after a refused token."""
        if self.login_attempts:
            return None
        return (yield from super().send_greeting())

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs, and what follows a refused token."""
        login = super().upstream_login(request, grant)  # type: ignore[safe-super]  # of the protocol
        if login.method not in TOKEN_METHODS:
            return login
        with_token = TokenLogin(*login_values(login))
        with_token.frontend = login.frontend if isinstance(login, ResumableLogin) else None
        with_token.token_frontend = self
        return with_token

    def run_after_refused_token(
        self, login: UpstreamLogin, challenge: bytes, refusal: bytes
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Send the challenge, read the client's response, and send the refusal.

        Args:
            login: The login; what the client sent ahead of it is read again.
            challenge: The challenge in base64.
            refusal: The upstream's last reply.

        Returns:
            The end of the session.  It goes on after a response that is none (RFC 7628 section 3.2.3), which
            counts towards ``max_errors``.
        """
        self.reader.put_back(login.unread)
        try:
            is_finished = yield from self._send_token_error(login.method, challenge)
        except LineTooLong:
            yield from self.reply_invalid(ProtocolErrorKind.LINE_TOO_LONG)
            return SessionEnd(CloseReason.PROTOCOL_ERROR)
        if not is_finished:
            ended = yield from self.count_failure()
            return ended or (yield from self.run())
        yield from send(refusal)
        return SessionEnd(CloseReason.UPSTREAM_ERROR)


@dataclass(slots=True)
class TokenLogin(ResumableLogin):
    """A login with the client's access token."""

    token_frontend: TokenErrorFrontend[Any] | None = None

    def pass_on(
        self, error: UpstreamError, refusal: bytes, /
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd] | None:
        """Return the generator that sends the upstream's challenge, ``None`` if there was none.

        Args:
            error: The failure, which is no outage.
            refusal: The last reply to the client.
        """
        frontend = self.token_frontend
        if frontend is None or not isinstance(error, UpstreamRefused) or not error.token_error:
            return None
        return frontend.run_after_refused_token(self, error.token_error, refusal)


@cache
def with_token_errors(frontend: type[Frontend[Any]]) -> type[Frontend[Any]]:
    """Return a class derived from a protocol's frontend class that passes on the error of a token."""
    return type(f"TokenError{frontend.__name__}", (TokenErrorFrontend, frontend), {"__slots__": ()})
