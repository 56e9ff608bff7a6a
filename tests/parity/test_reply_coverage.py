# SPDX-License-Identifier: Apache-2.0
"""Every line that a client may receive before its login is received from both programs."""

from __future__ import annotations

import re
from typing import Final

import pytest

from support.parity.cases import DIALOGUES
from support.parity.results import Results

pytestmark = pytest.mark.interop

_CHALLENGE: Final = "[A-Za-z0-9+/=]{24,}"
LINES: Final = {
    "imap": r"""
        \* OK IMAP4 ready
        \+ OK
        \+\x20
        \+ VXNlcm5hbWU6
        \+ UGFzc3dvcmQ6
        \+ CHALLENGE
        \* CAPABILITY IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN
        \* CAPABILITY .*AUTH=PLAIN AUTH=LOGIN AUTH=CRAM-MD5 AUTH=EXTERNAL
        \* CAPABILITY .*AUTH=PLAIN.* STARTTLS
        \* CAPABILITY .* STARTTLS LOGINDISABLED
        [A-Za-z0-9._-]+ OK completed
        [A-Za-z0-9._-]+ BAD invalid command
        \* BAD invalid command
        [A-Za-z0-9._-]+ NO Invalid login or password
        \* BYE
        \* BAD internal server error
        \* BYE SSL certificate error
        \* BYE No required SSL certificate
    """,
    "pop3": r"""
        \+OK POP3 ready
        \+OK POP3 ready <R\.T@mx\.example\.test>
        \+OK
        \+\x20
        \+ VXNlcm5hbWU6
        \+ UGFzc3dvcmQ6
        \+ CHALLENGE
        \+OK Capability list follows
        SASL PLAIN LOGIN
        SASL PLAIN LOGIN CRAM-MD5 EXTERNAL
        STLS
        \+OK methods supported:
        PLAIN
        LOGIN
        CRAM-MD5
        EXTERNAL
        \.
        -ERR invalid command
        -ERR Invalid login or password
        -ERR internal server error
        -ERR SSL certificate error
        -ERR No required SSL certificate
    """,
    "smtp": r"""
        220 mx\.example\.test ESMTP ready
        250 mx\.example\.test
        250-mx\.example\.test
        250 AUTH PLAIN LOGIN
        250 AUTH PLAIN LOGIN CRAM-MD5 EXTERNAL
        250-AUTH PLAIN.*
        250 STARTTLS
        250-SIZE [0-9]+
        250 2\.0\.0 OK
        221 2\.0\.0 Bye
        220 2\.0\.0 Start TLS
        235 2\.0\.0 OK
        334\x20
        334 VXNlcm5hbWU6
        334 UGFzc3dvcmQ6
        334 CHALLENGE
        500 5\.5\.1 Invalid command
        501 5\.5\.4 Invalid argument
        503 5\.5\.1 Bad sequence of commands
        503 5\.5\.0 Improper use of SMTP command pipelining
        530 5\.7\.1 Authentication required
        535 5\.7\.0 Invalid login or password
        451 4\.3\.0 Try later
        451 4\.3\.2 Internal server error
        421 4\.7\.1 SSL certificate error
        421 4\.7\.1 No required SSL certificate
    """,
}


def _lines(protocol: str) -> list[str]:
    return [
        line.lstrip().replace("CHALLENGE", _CHALLENGE)
        for line in LINES[protocol].splitlines()
        if line.strip()
    ]


@pytest.mark.parametrize("protocol", LINES)
def test_every_reply_is_received_from_both(protocol: str, results: Results) -> None:
    results.play(DIALOGUES)
    received = results.received[protocol]
    missing = [
        line for line in _lines(protocol) if not any(re.fullmatch(line.encode(), reply) for reply in received)
    ]
    assert missing == []
