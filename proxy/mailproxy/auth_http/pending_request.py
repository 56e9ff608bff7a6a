# SPDX-License-Identifier: Apache-2.0
"""One request to the authentication service, and who waits for its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mailproxy.context import WorkerContext
from mailproxy.dns import Target
from mailproxy.enums import AuthOutcome
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.types import Client, Credentials, Decision
from mailproxy.telemetry.metrics import Histogram
from mailproxy_config import model


class Asker(Protocol):
    """Whoever waits for an answer; it is called once, later, and never while it asks.

    Attributes:
        client: For whom.
    """

    client: Client

    def authorized(self, decision: Decision) -> None:
        """The service answered."""
        ...

    def auth_failed(self, error: AuthUnavailable) -> None:
        """The service gave no usable answer."""
        ...


class RequestCarrier(Protocol):
    """The connection that carries a request.

    Attributes:
        is_open: Whether a request can be sent; false while it connects.
        question: The request.
        target: The address that it is connected to, or tries.
    """

    is_open: bool
    question: PendingRequest | None
    target: Target | None

    def drop(self) -> None:
        """Close the connection."""
        ...


class PendingRequest:
    """One request, and who asked.

    Attributes:
        asker: Who waits for the answer; ``None`` when nobody does any more.
        exchange: The connection that carries it; ``None`` while it waits for one.
        is_repeated: Whether it was sent twice.
        protocol: Of the client: the rules for an answer depend on it.
        seconds: Where the time until the answer is counted, by what it is.
        started: When it was asked, by the reactor's clock.
        tried: Addresses of the service that did not work for it.
    """

    __slots__ = (
        "asker",
        "credentials",
        "exchange",
        "is_repeated",
        "protocol",
        "request",
        "seconds",
        "started",
        "tried",
    )

    def __init__(
        self,
        asker: Asker,
        request: bytes,
        credentials: Credentials,
        protocol: model.Protocol,
        seconds: Mapping[AuthOutcome, Histogram],
        started: float,
    ) -> None:
        self.asker: Asker | None = asker
        self.request = request
        self.credentials = credentials
        self.protocol = protocol
        self.seconds = seconds
        self.started = started
        self.exchange: RequestCarrier | None = None
        self.is_repeated = False
        self.tried: tuple[Target, ...] = ()


def hand_over(engine: WorkerContext, asker: Asker, error: AuthUnavailable) -> None:
    """Give the asker the failure; what it does with that must not end the connection or a timer."""
    try:
        asker.auth_failed(error)
    except Exception as crash:  # the outer edge of a session
        engine.crashed(asker, crash)
