# SPDX-License-Identifier: Apache-2.0
"""What IMAP clients get of an upstream's refusal (``auth_mode upstream``)."""

from __future__ import annotations

import random
import re
from typing import Final

import pytest

from mailproxy.errors import UpstreamConfigError
from mailproxy.protocols.imap.verdict import MAX_TEXT, ImapVerdictFrontend
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.types import Client
from mailproxy_config.model import AuthMode, Protocol
from support import configs, upstream_logins
from support.fuzz import examples

LINE: Final = re.compile(rb"a NO \[[A-Z][A-Z0-9-]*\] [!-~][ -~]*\r\n")
PARTS: Final = (
    *(b"a NO ", b"a BAD ", b"* ", b"[", b"]", b" ", b"EXPIRED", b"ALERT", b"REFERRAL imap://mx/", b"-", b"9"),
    *(b"\r\n", b"\n", b"\r", b"\0", b"\x1b[2J", b"\x7f", b"\x80", "é".encode(), b"x" * 300, b"+ ", b"a OK "),
)


@pytest.fixture
def frontend() -> ImapVerdictFrontend:
    server = configs.server(Protocol.IMAP, auth_mode=AuthMode.UPSTREAM)
    made = PROTOCOLS[Protocol.IMAP].frontend_for(server)(Client("192.0.2.1"))
    assert isinstance(made, ImapVerdictFrontend)
    made.prepare_reply(b"a LOGIN x y")
    return made


@pytest.mark.generated
def test_any_refusal_becomes_one_printable_line(frontend: ImapVerdictFrontend) -> None:
    chance = random.Random(5530)
    passed_on = 0
    for _ in range(examples(2000)):
        first = chance.choice([b"a NO [", b"a NO ", b"* x\r\na NO [EXPIRED] ", b"a NO [EXPIRED] "])
        reply = first + b"".join(chance.choices(PARTS, k=chance.randint(0, 6))) + b"\r\n"
        line = frontend.refused_reply(reply)
        assert LINE.fullmatch(line), (reply, line)
        assert len(line) <= MAX_TEXT + 50
        passed_on += b"[AUTHENTICATIONFAILED]" not in line
    assert passed_on > 0


def test_text_with_a_code_is_cut(frontend: ImapVerdictFrontend) -> None:
    line = frontend.refused_reply(b"a NO [EXPIRED] " + b"y" * (MAX_TEXT + 1) + b"\r\n")
    assert line == b"a NO [EXPIRED] " + b"y" * MAX_TEXT + b"\r\n"


def test_refusal_without_an_upstream_is_the_one_of_a_wrong_password(frontend: ImapVerdictFrontend) -> None:
    assert frontend.refused_reply() == frontend.refused_reply(b"a NO [AUTHENTICATIONFAILED] unknown user\r\n")


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize(
    "replies",
    [
        (b"* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi\r\n",),
        (b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hi\r\n", b"a NO [PRIVACYREQUIRED] no\r\n"),
    ],
)
def test_upstream_that_does_not_accept_login_is_misconfigured(
    guard: bool, replies: tuple[bytes, ...]
) -> None:
    played = upstream_logins.play(
        Protocol.IMAP, *replies, auth_mode=AuthMode.UPSTREAM, proxy_imap_guard=guard
    )
    assert isinstance(played.error, UpstreamConfigError)


def test_logindisabled_is_a_whole_word() -> None:
    replies = (b"* OK [CAPABILITY IMAP4rev1 LITERAL+ XLOGINDISABLED LOGINDISABLEDX] hi\r\n", b"a OK in\r\n")
    assert upstream_logins.play(Protocol.IMAP, *replies, auth_mode=AuthMode.UPSTREAM).reply == b"a OK in\r\n"
