# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service again, however often it wants to be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.sansio import Authenticate, ProtocolGenerator, wait
from mailproxy.protocols.types import AuthAllowed, AuthDeferred, AuthDenied, AuthRequest, Decision

POSTPONED_AT_MOST: Final = 86400
"""Seconds that a service may put an attempt off, all pauses together."""


def ask_again(request: AuthRequest, postponed: AuthDeferred) -> ProtocolGenerator[AuthAllowed | AuthDenied]:
    """Repeat a question that was put off (``Auth-Status: WAIT``) until there is a decision.

    It stays the same attempt, with the user name and password that the service
    sent meanwhile, and with the client's digest where there was one.

    Raises:
        AuthUnavailable: The service gave no usable answer.
    """
    left = POSTPONED_AT_MOST
    decision: Decision = postponed
    while isinstance(decision, AuthDeferred):
        left -= decision.wait
        if left < 0:
            raise AuthUnavailable("postponed for more than a day")
        yield from wait(decision.wait)
        if decision.user is not None:
            request.credentials = replace(request.credentials, user=decision.user)
        if decision.password is not None:
            request.credentials = replace(request.credentials, password=decision.password)
        decision = yield Authenticate(request)
    return decision
