# SPDX-License-Identifier: Apache-2.0
"""The replies to POP3 clients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from mailproxy.protocols.pop3 import replies
from mailproxy.protocols.types import AuthDenied
from mailproxy_config.model import AuthMethod, Protocol, ServerConfig, StartTls
from support import configs

EVERY = frozenset({AuthMethod.PLAIN, AuthMethod.APOP, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL})
SERVER = configs.server(Protocol.POP3, pop3_auth=EVERY, pop3_capabilities=("TOP", "user", "USERS"))
FIRST = b"+OK Capability list follows\r\n"


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        (replies.mechanisms, b"+OK methods supported:\r\nPLAIN\r\nLOGIN\r\nCRAM-MD5\r\nEXTERNAL\r\n.\r\n"),
        (
            replies.capabilities,
            FIRST + b"TOP\r\nuser\r\nUSERS\r\nSASL PLAIN LOGIN CRAM-MD5 EXTERNAL\r\n.\r\n",
        ),
        (
            partial(replies.capabilities, starttls=StartTls.ENABLED),
            FIRST + b"TOP\r\nuser\r\nUSERS\r\nSASL PLAIN LOGIN CRAM-MD5 EXTERNAL\r\nSTLS\r\n.\r\n",
        ),
        (partial(replies.capabilities, starttls=StartTls.ONLY), FIRST + b"TOP\r\nUSERS\r\nSTLS\r\n.\r\n"),
    ],
)
def test_multi_line_reply(reply: Callable[[ServerConfig], bytes], data: bytes) -> None:
    assert reply(SERVER) == data


def test_greeting_with_challenge() -> None:
    assert replies.greeting(b"<1.2@x>") == b"+OK POP3 ready <1.2@x>\r\n"


def test_denied_reply_has_text_of_authentication_service() -> None:
    assert replies.denial(AuthDenied(b"no", code=b"454 4.7.0")) == b"-ERR no\r\n"


@pytest.mark.parametrize("name", [name for name in vars(replies) if name.isupper() and name[0] != "_"])
def test_every_reply_is_one_line_with_status(name: str) -> None:
    reply = getattr(replies, name)
    assert reply.endswith(b"\r\n")
    assert reply.count(b"\r") == reply.count(b"\n") == 1
    assert reply.startswith((b"+OK", b"-ERR "))
