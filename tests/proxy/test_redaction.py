# SPDX-License-Identifier: Apache-2.0
"""What a log keeps of a reply that may repeat a password."""

from __future__ import annotations

import sys
from binascii import b2a_base64

import pytest

from mailproxy.protocols import redaction
from mailproxy.protocols.redaction import LOGGED_REPLY, WITHHELD, reply_for_log
from mailproxy.protocols.types import Secret


def steps(reply: bytes, password: bytes) -> int:
    """How many calls of Python code it takes to search a reply, those of generators included."""
    count = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        assert reply_for_log(reply, b"user", Secret(password)) == reply
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "password",
    [bytes(range(33, 127)) * 40, b" ".join(b"%04d" % number for number in range(800)), b"1 2 3 " * 600],
)
def test_a_long_password_makes_no_more_work_than_a_reply_is_long(password: bytes) -> None:
    """Whoever may try to log in chooses how long a password is."""
    reply = b"NO login failed"
    words = len(set(password.split()))
    assert steps(reply, password) < 200 + 8 * words


def test_words_of_a_reply_are_found_once_however_many_a_password_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = redaction._words
    calls = []
    monkeypatch.setattr(redaction, "_words", lambda text: calls.append(text) or found(text))
    reply_for_log(b"NO login failed", b"user", Secret(b"1 2 3 4 5 6 7 8"))
    assert len(calls) == 1


@pytest.mark.parametrize("long", [b"x" * 40, b"x" * 4000])
def test_a_part_of_a_password_is_found_whichever_of_the_two_is_longer(long: bytes) -> None:
    password = long + b"secret42" + long
    for repeated in (b"secret42", password[:60], password[-60:]):
        assert reply_for_log(b"NO bad command " + repeated, b"user", Secret(password)) == WITHHELD
    assert reply_for_log(b"NO bad command secret4", b"user", Secret(password)) != WITHHELD
    encoded = b2a_base64(b"\0user\0" + password, newline=False)
    assert reply_for_log(b"NO bad command " + encoded[-40:], b"user", Secret(password)) == WITHHELD


def test_what_is_not_logged_is_not_searched() -> None:
    begins_there = b"-ERR ".ljust(LOGGED_REPLY - 4, b".") + b"hunter2hunter2"
    far_behind = b"-ERR ".ljust(LOGGED_REPLY * 2, b".") + b"hunter2hunter2"
    password = Secret(b"hunter2hunter2")
    assert reply_for_log(begins_there, b"user", password) == WITHHELD
    assert reply_for_log(far_behind, b"user", password) == far_behind[:LOGGED_REPLY] + b"..."
