# SPDX-License-Identifier: Apache-2.0
"""The replies to IMAP clients."""

from __future__ import annotations

import pytest

from mailproxy.protocols.imap import replies
from mailproxy_config.model import AuthMethod, Protocol, StartTls
from support.configs import server

ALL = [
    replies.GREETING,
    replies.CONTINUE,
    replies.BYE,
    replies.CERTIFICATE_INVALID,
    replies.CERTIFICATE_MISSING,
    replies.INTERNAL_ERROR,
    replies.SHUTDOWN,
    replies.BUSY,
    replies.completed(b"a1"),
    replies.invalid(b"*"),
    replies.denied(b"a1", b"no"),
]


@pytest.mark.parametrize("reply", ALL)
def test_every_reply_is_one_line(reply: bytes) -> None:
    assert reply.endswith(b"\r\n")
    assert not set(reply[:-2]) & set(b"\r\n\0")
    assert len(reply) <= 1024


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        (replies.completed(b"a1"), b"a1 OK completed\r\n"),
        (replies.invalid(b"a1"), b"a1 BAD invalid command\r\n"),
        (replies.denied(b"a1", b""), b"a1 NO \r\n"),
        (replies.denied(b"a1", b"[ALERT] no"), b"a1 NO [ALERT] no\r\n"),
    ],
)
def test_replies_start_with_tag(reply: bytes, data: bytes) -> None:
    assert reply == data


@pytest.mark.parametrize(
    ("words", "methods", "plain", "only"),
    [
        (
            ("IMAP4", "IMAP4rev1", "UIDPLUS"),
            {AuthMethod.PLAIN},
            b"* CAPABILITY IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN",
            b"* CAPABILITY IMAP4 IMAP4rev1 UIDPLUS STARTTLS LOGINDISABLED\r\n",
        ),
        (
            ("IDLE",),
            {AuthMethod.EXTERNAL, AuthMethod.CRAM_MD5, AuthMethod.LOGIN, AuthMethod.PLAIN},
            b"* CAPABILITY IDLE AUTH=PLAIN AUTH=LOGIN AUTH=CRAM-MD5 AUTH=EXTERNAL",
            b"* CAPABILITY IDLE STARTTLS LOGINDISABLED\r\n",
        ),
        ((), set(), b"* CAPABILITY", b"* CAPABILITY STARTTLS LOGINDISABLED\r\n"),
    ],
)
def test_capability_replies_by_starttls(
    words: tuple[str, ...], methods: set[AuthMethod], plain: bytes, only: bytes
) -> None:
    config = server(Protocol.IMAP, imap_capabilities=words, imap_auth=frozenset(methods))
    assert replies.capabilities(config) == plain + b"\r\n"
    assert replies.capabilities(config, StartTls.ENABLED) == plain + b" STARTTLS\r\n"
    assert replies.capabilities(config, StartTls.ONLY) == only
