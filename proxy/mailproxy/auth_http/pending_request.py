# SPDX-License-Identifier: Apache-2.0
"""A login that waits for a decision, and what decides about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from mailproxy.enums import AuthOutcome
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.types import AuthRequest, Decision
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.metrics import Histogram
from mailproxy_config.model import ServerConfig

if TYPE_CHECKING:
    from mailproxy.auth_http.connection import AuthConnection
    from mailproxy.dns import Target

AuthCallback = Callable[[Decision | AuthUnavailable], None]


class PendingRequest:
    """One request to the authentication service.

    Attributes:
        callback: Called once with the decision, or with the error where there is
            none, but never from ``AuthHttpClient.send``; ``None`` when the request is over.
        connection: The connection that it is sent on; ``None`` while it waits for one.
        data: The HTTP request.
        durations: Histograms of the time until the response, by its outcome.
        head: The head of the response.
        is_repeated: Whether it was sent twice.
        record: The log record of the session.
        server: The server of the client; the rules for a response depend on it.
        started: Time of the request, as in ``Epoll.now``.
        tried: The service's addresses that did not work for it.
    """

    __slots__ = (
        "auth_request",
        "callback",
        "connection",
        "data",
        "durations",
        "head",
        "is_repeated",
        "record",
        "server",
        "started",
        "tried",
    )

    def __init__(
        self,
        callback: AuthCallback,
        data: bytes,
        auth_request: AuthRequest,
        server: ServerConfig,
        durations: Mapping[AuthOutcome, Histogram],
        started: float,
        record: SessionRecord,
    ) -> None:
        self.callback: AuthCallback | None = callback
        self.data = data
        self.auth_request = auth_request
        self.server = server
        self.durations = durations
        self.started = started
        self.record = record
        self.head = b""
        self.connection: AuthConnection | None = None
        self.is_repeated = False
        self.tried: tuple[Target, ...] = ()


class Authenticator(Protocol):
    """What decides about logins: the client of an authentication service, or what is asked before it."""

    def send(self, request: PendingRequest, /) -> None:
        """Begin to decide.  The request's callback gets the result; it is never called from here."""

    def cancel(self, request: PendingRequest, /) -> None:
        """Drop a request whose client has left; its callback is not called."""
