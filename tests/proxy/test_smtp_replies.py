# SPDX-License-Identifier: Apache-2.0
"""The replies to SMTP clients."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest

from mailproxy.protocols.smtp import replies
from mailproxy.protocols.types import AuthDenied
from mailproxy_config.model import AuthMethod, Protocol, ServerConfig, StartTls
from support import configs

EVERY = frozenset(
    {AuthMethod.NONE, AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}
)
ENABLED = partial(replies.capabilities, starttls=StartTls.ENABLED)
ONLY = partial(replies.capabilities, starttls=StartTls.ONLY)
LISTS_REQUIRETLS = configs.server(
    Protocol.SMTP, server_name="mx", smtp_auth=EVERY, smtp_capabilities=("RequireTLS", "DSN")
)
SERVER = configs.server(Protocol.SMTP, server_name="mx", smtp_auth=EVERY, smtp_capabilities=("SIZE 1", "DSN"))
AUTH = b"AUTH PLAIN LOGIN CRAM-MD5 EXTERNAL\r\n"


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        (replies.greeting, b"220 mx ESMTP ready\r\n"),
        (replies.hello, b"250 mx\r\n"),
        (replies.capabilities, b"250-mx\r\n250-SIZE 1\r\n250-DSN\r\n250 " + AUTH),
        (
            ENABLED,
            b"250-mx\r\n250-SIZE 1\r\n250-DSN\r\n250-" + AUTH + b"250 STARTTLS\r\n",
        ),
        (
            partial(replies.capabilities, starttls=StartTls.ONLY),
            b"250-mx\r\n250-SIZE 1\r\n250-DSN\r\n250 STARTTLS\r\n",
        ),
    ],
)
def test_replies_have_server_name(reply: Callable[[ServerConfig], bytes], data: bytes) -> None:
    assert reply(SERVER) == data


def test_ehlo_reply_without_capabilities_is_one_line() -> None:
    server = configs.server(Protocol.SMTP, server_name="mx", smtp_auth=frozenset({AuthMethod.NONE}))
    assert replies.capabilities(server) == b"250 mx\r\n"


@pytest.mark.parametrize(
    ("denied", "reply"),
    [
        (AuthDenied(b"no"), b"535 5.7.0 no\r\n"),
        (AuthDenied(b"later", code=b"451 4.3.0"), b"451 4.3.0 later\r\n"),
        (AuthDenied(b"", code=b""), b"535 5.7.0 \r\n"),
    ],
)
def test_denied_reply_has_text_of_authentication_service(denied: AuthDenied, reply: bytes) -> None:
    assert replies.denial(denied) == reply


@pytest.mark.parametrize("name", [name for name in vars(replies) if name.isupper() and name[0] != "_"])
def test_every_reply_is_one_line_with_matching_enhanced_code(name: str) -> None:
    reply = getattr(replies, name)
    match = re.fullmatch(rb"(\d)\d\d (\d)\.\d\.\d [ -~]+\r\n", reply)
    assert match is not None
    assert match[1] == match[2]


def test_requiretls_is_listed_with_tls_only() -> None:
    assert b"250-RequireTLS\r\n" in replies.capabilities(LISTS_REQUIRETLS)
    assert ONLY(LISTS_REQUIRETLS) == b"250-mx\r\n250-DSN\r\n250 STARTTLS\r\n"
