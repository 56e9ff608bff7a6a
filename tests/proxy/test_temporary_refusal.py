# SPDX-License-Identifier: Apache-2.0
"""Refusals that are no verdict on the credentials: which are one, and which are worth another try."""

from __future__ import annotations

import pytest

from mailproxy.protocols.temporary_refusal import REPEATABLE, TEMPORARY
from mailproxy_config.model import Protocol

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP


@pytest.mark.parametrize(
    ("protocol", "reply", "is_temporary", "is_repeatable"),
    [
        (IMAP, b"a NO [UNAVAILABLE] later", True, True),
        (IMAP, b"a no [unavailable] later", True, True),
        (IMAP, b"a NO [INUSE] locked", True, False),
        (IMAP, b"a NO [SERVERBUG] oops", True, False),
        (IMAP, b"a NO [LIMIT] too many", True, False),
        (IMAP, b"a NO [LIMIT 5] too many", True, False),
        (IMAP, b"a NO [LIMITED] other", False, False),
        (IMAP, b"a NO [AUTHENTICATIONFAILED] [UNAVAILABLE]", False, False),
        (IMAP, b"* NO [UNAVAILABLE] a warning", False, False),
        (IMAP, b"a BAD [UNAVAILABLE] syntax", False, False),
        (POP3, b"-ERR [SYS/TEMP] later", True, True),
        (POP3, b"-err [sys/temp] later", True, True),
        (POP3, b"-ERR [IN-USE] locked", True, False),
        (POP3, b"-ERR [LOGIN-DELAY] too soon", True, False),
        (POP3, b"-ERR [SYS/PERM] never", False, False),
        (POP3, b"-ERR no [SYS/TEMP]", False, False),
        (SMTP, b"454 4.7.0 later", True, True),
        (SMTP, b"421 4.3.2 later", True, True),
        (SMTP, b"535 4.7.8 no", False, False),
    ],
)
def test_temporary_refusal_may_be_repeatable(
    protocol: Protocol, reply: bytes, is_temporary: bool, is_repeatable: bool
) -> None:
    assert (TEMPORARY[protocol].search(reply) is not None) is is_temporary
    assert (REPEATABLE[protocol].match(reply) is not None) is is_repeatable


def test_untagged_responses_may_come_before_a_temporary_refusal() -> None:
    reply = b"* OK [ALERT] note\r\n* NO warning\r\na NO [INUSE] locked\r\n"
    assert TEMPORARY[IMAP].search(reply) is not None
