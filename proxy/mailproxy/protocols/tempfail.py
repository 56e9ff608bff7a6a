# SPDX-License-Identifier: Apache-2.0
"""Temporary failures that leave the session open (``proxy_tempfail rfc5530``), as all protocols share them.

A login fails in an **outage** for a reason other than its credentials: the authentication service
sends no usable response, or the upstream cannot be reached, fails or sends a temporary refusal.
Mail clients ask for another password after nginx's replies to that.  Here the client gets a
reply that names a temporary failure, and may log in again on the same connection.

``max_errors`` limits the number of such failures and syntax errors together; ``timeout`` starts
anew with each.  The classes are used only where the directive is set.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any, Final

from mailproxy.errors import AuthUnavailable, UpstreamError
from mailproxy.protocols.frontend import ConfigT, Frontend
from mailproxy.protocols.sansio import ProtocolGenerator, ReportAuthFailure, send
from mailproxy.protocols.temporary_refusal import is_login_refused
from mailproxy.protocols.types import AuthAllowed, AuthRequest, SessionEnd, UpstreamLogin

login_values: Final = attrgetter(*(each.name for each in fields(UpstreamLogin)))
"""Returns the values of a login, for the constructor of a derived class."""


class TempfailFrontend(Frontend[ConfigT]):
    """A frontend that goes on after an outage; the first base of a protocol's class."""

    __slots__ = ()

    @abstractmethod
    def outage_reply(self, *, is_misconfigured: bool) -> bytes:
        """Return the reply to the command that tried to log in.

        Args:
            is_misconfigured: Whether an administrator has to change something.
        """

    def send_greeting(self) -> ProtocolGenerator[SessionEnd | None]:
        """Send the greeting, once: ``run`` begins anew after an outage."""
        if self.login_attempts:
            return None
        return (yield from super().send_greeting())

    def upstream_login(self, request: AuthRequest, grant: AuthAllowed) -> UpstreamLogin:
        """Put together what the login at the upstream needs, and what follows an outage."""
        login = super().upstream_login(request, grant)  # type: ignore[safe-super]  # of the protocol
        resumable = ResumableLogin(*login_values(login))
        resumable.frontend = self
        return resumable

    def run(self) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Serve the client; a login that the authentication service did not decide may be repeated."""
        while True:
            try:
                return (yield from super().run())
            except AuthUnavailable as error:
                yield ReportAuthFailure(error)
            ended = yield from self._reply_outage(is_misconfigured=False)
            if ended is not None:
                return ended

    def run_after(
        self, unread: bytes, *, is_misconfigured: bool
    ) -> ProtocolGenerator[UpstreamLogin | SessionEnd]:
        """Go on after a login that failed at the upstream.

        Args:
            unread: What the client sent ahead; it is read again.
            is_misconfigured: See ``outage_reply``.
        """
        self.reader.put_back(unread)
        ended = yield from self._reply_outage(is_misconfigured=is_misconfigured)
        return ended or (yield from self.run())

    def is_outage(self, error: UpstreamError) -> bool:
        """Whether the failure is no verdict of the upstream on this client's credentials or sender."""
        return not is_login_refused(error, self.server.protocol)

    def _reply_outage(self, *, is_misconfigured: bool) -> ProtocolGenerator[SessionEnd | None]:
        yield from send(self.outage_reply(is_misconfigured=is_misconfigured))
        return (yield from self.count_failure("client logged in too often during an outage"))


@dataclass(slots=True)
class ResumableLogin(UpstreamLogin):
    """A login after whose failure the session may go on."""

    frontend: TempfailFrontend[Any] | None = None

    def resume(self, error: UpstreamError, /) -> ProtocolGenerator[UpstreamLogin | SessionEnd] | None:
        """Return the generator that goes on after an outage, ``None`` after a refusal."""
        frontend = self.frontend
        if frontend is None or not frontend.is_outage(error):
            return None
        return frontend.run_after(self.unread, is_misconfigured=error.is_misconfigured)


@cache
def with_tempfail(
    tempfail: type[TempfailFrontend[Any]], frontend: type[Frontend[Any]]
) -> type[TempfailFrontend[Any]]:
    """Return a protocol's frontend class, or one derived from it, that goes on after an outage."""
    if issubclass(tempfail, frontend):
        return tempfail
    return type(f"Tempfail{frontend.__name__}", (tempfail, frontend), {"__slots__": ()})
