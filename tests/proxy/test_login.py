# SPDX-License-Identifier: Apache-2.0
"""Asking the authorization service, once or again."""

from __future__ import annotations

from mailproxy.dialogue.actions import Authorize, Wait
from mailproxy.dialogue.values import Client, Credentials, Denied, Envelope, Granted, Postponed, Secret
from mailproxy.events import Method
from mailproxy.protocols.login import Attempts, ask
from support.driving import drive

CLIENT = Client("192.0.2.1")
APOP = Credentials(Method.APOP, b"alice", Secret(b"digest"), b"<1.2@x>")


def test_attempts_count_from_one() -> None:
    attempts = Attempts()
    assert [attempts.begin(), attempts.begin()] == [1, 2]
    assert attempts.made == 2


def test_a_decision_is_given_back_as_it_is() -> None:
    attempts = Attempts()
    envelope = Envelope(b"", b"MAIL x", b"RCPT y")
    denied = Denied(b"no", wait=3)
    driven = drive(ask(APOP, client=CLIENT, attempts=attempts, envelope=envelope), denied)
    assert driven.result is denied
    (asked,) = driven.asked
    assert isinstance(asked, Authorize)
    assert asked.request.credentials == APOP
    assert asked.request.attempt == 1
    assert asked.request.client is CLIENT
    assert asked.request.envelope is envelope


def test_a_postponed_question_is_repeated_as_the_same_attempt() -> None:
    attempts = Attempts()
    granted = Granted("192.0.2.10", 110, b"alice")
    requests = []
    dialogue = ask(APOP, client=CLIENT, attempts=attempts)
    answers = iter([Postponed(7), None, Postponed(1, b"bob", Secret(b"other")), None, granted])
    action = dialogue.send(None)
    waits = []
    result: object = None
    try:
        while True:
            if isinstance(action, Authorize):
                requests.append((action.request.attempt, action.request.credentials))
            elif isinstance(action, Wait):
                waits.append(action.seconds)
            action = dialogue.send(next(answers))
    except StopIteration as end:
        result = end.value
    assert result is granted
    assert waits == [7, 1]
    changed = Credentials(Method.APOP, b"bob", Secret(b"other"), b"<1.2@x>")
    assert requests == [(1, APOP), (1, APOP), (1, changed)]
    assert APOP.user == b"alice"
    assert attempts.made == 1
