# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service on a client's behalf, however often it wants to be asked.

What a client is told about a denial is its protocol's business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mailproxy.dialogue.actions import Authorize, Dialogue, wait
from mailproxy.dialogue.values import (
    AuthRequest,
    Client,
    Credentials,
    Decision,
    Denied,
    Envelope,
    Granted,
    Postponed,
)
from mailproxy.errors import AuthUnavailable

POSTPONED_AT_MOST: Final = 86400
"""Seconds that a service may put an attempt off, all pauses together."""


class Attempts:
    """Counts a session's attempts to log in (``Auth-Login-Attempt``); never reset."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = 0

    def begin(self) -> int:
        """Begin another attempt, and give its number: 1 for the session's first."""
        self.made += 1
        return self.made


def ask(
    credentials: Credentials, *, client: Client, attempts: Attempts, envelope: Envelope | None = None
) -> Dialogue[Granted | Denied]:
    """Ask about one complete set of credentials until there is a decision.

    ``Auth-Status: WAIT`` repeats the question after a pause: the same attempt,
    with the user name and password that the service sent meanwhile, and with
    the client's digest where there was one.

    Raises:
        AuthUnavailable: The service gave no usable answer.
    """
    request = AuthRequest(credentials, attempts.begin(), client, envelope)
    left = POSTPONED_AT_MOST
    while True:
        decision: Decision = yield Authorize(request)
        if not isinstance(decision, Postponed):
            return decision
        left -= decision.wait
        if left < 0:
            raise AuthUnavailable("postponed for more than a day")
        yield from wait(decision.wait)
        if decision.user is not None:
            request.credentials = replace(request.credentials, user=decision.user)
        if decision.password is not None:
            request.credentials = replace(request.credentials, password=decision.password)
