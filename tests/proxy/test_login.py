# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service again."""

from __future__ import annotations

import pytest

from mailproxy.enums import Method
from mailproxy.errors import AuthUnavailable
from mailproxy.protocols.auth_retry import ask_again
from mailproxy.protocols.sansio import Authenticate, Wait
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthDeferred,
    AuthDenied,
    AuthRequest,
    Client,
    Credentials,
    Envelope,
    Secret,
)
from support.driving import drive

CLIENT = Client("192.0.2.1")
APOP = Credentials(Method.APOP, b"alice", Secret(b"digest"), b"<1.2@x>")


def test_a_decision_is_given_back_as_it_is() -> None:
    request = AuthRequest(APOP, 2, CLIENT, Envelope(b"", b"MAIL x", b"RCPT y"))
    denied = AuthDenied(b"no", wait=3)
    driven = drive(ask_again(request, AuthDeferred(1)), None, denied)
    assert driven.result is denied
    (_, asked) = driven.asked
    assert isinstance(asked, Authenticate)
    assert asked.request is request


def test_a_postponed_question_is_repeated_as_the_same_attempt() -> None:
    request = AuthRequest(APOP, 1, CLIENT)
    granted = AuthAllowed("192.0.2.10", 110, b"alice")
    requests = []
    dialogue = ask_again(request, AuthDeferred(7))
    answers = iter([None, AuthDeferred(1, b"bob", Secret(b"other")), None, granted])
    action = dialogue.send(None)
    waits = []
    result: object = None
    try:
        while True:
            if isinstance(action, Authenticate):
                requests.append((action.request.attempt, action.request.credentials))
            elif isinstance(action, Wait):
                waits.append(action.seconds)
            action = dialogue.send(next(answers))
    except StopIteration as end:
        result = end.value
    assert result is granted
    assert waits == [7, 1]
    changed = Credentials(Method.APOP, b"bob", Secret(b"other"), b"<1.2@x>")
    assert requests == [(1, APOP), (1, changed)]
    assert APOP.user == b"alice"


def test_a_service_may_put_an_attempt_off_for_a_day_in_all() -> None:
    pauses = AuthDeferred(43200), None, AuthDeferred(43200), None
    request = AuthRequest(APOP, 1, CLIENT)
    granted = AuthAllowed("192.0.2.10", 110, b"alice")
    assert drive(ask_again(request, pauses[0]), *pauses[1:], granted).result is granted
    with pytest.raises(AuthUnavailable):
        drive(ask_again(request, pauses[0]), *pauses[1:], AuthDeferred(1))
