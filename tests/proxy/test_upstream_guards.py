# SPDX-License-Identifier: Apache-2.0
"""Upstreams that offer a client a way out of its login: XCLIENT (``proxy_smtp_guard``), UNAUTHENTICATE."""

from __future__ import annotations

from typing import Any

import pytest

from mailproxy.enums import Method, UpstreamStage
from mailproxy.errors import UpstreamGuardError
from mailproxy.protocols.imap.upstream_auth import imap_upstream
from mailproxy.protocols.sansio import ProtocolGenerator, Send
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy.protocols.types import AuthAllowed, Client, Secret, UpstreamLogin, UpstreamLoginResult
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, ServerConfig
from support import configs
from support.generator_driver import drive
from support.loopback_worker import GRANT, http_response, loopback_worker, run

LISTS_XCLIENT = b"250-mx\r\n250-PIPELINING\r\n250-XCLIENT NAME ADDR LOGIN\r\n250 SIZE\r\n"
PLAIN = b"250-mx\r\n250 SIZE\r\n"


class Outcome:
    """What a login sent, and the error that ended it."""

    def __init__(self, generator: ProtocolGenerator[UpstreamLoginResult], replies: tuple[bytes, ...]) -> None:
        self.sent = b""
        self.error: UpstreamGuardError | None = None
        try:
            self.driven = drive(self._recorded(generator), *replies)
        except UpstreamGuardError as error:
            self.error = error

    def _recorded(
        self, generator: ProtocolGenerator[UpstreamLoginResult]
    ) -> ProtocolGenerator[UpstreamLoginResult]:
        result = None
        while True:
            try:
                effect = generator.send(result)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(effect, Send):
                self.sent += effect.data
            result = yield effect

    @property
    def finished(self) -> bool:
        return self.error is None and self.driven.finished


def smtp(*replies: bytes, helo: bytes | None = b"client", **directives: object) -> Outcome:
    grant = AuthAllowed("192.0.2.10", 25, b"alice", Secret(b"secret"))
    login = UpstreamLogin(grant, Method.PLAIN, helo=helo, esmtp=True)
    values: dict[str, Any] = {"proxy_smtp_auth": True, **directives}
    upstream = SmtpUpstream(configs.server(Protocol.SMTP, **values))
    return Outcome(upstream.log_in(Client("192.0.2.1"), login), replies)


@pytest.mark.parametrize(
    "reply",
    [
        LISTS_XCLIENT,
        b"250-mx\r\n250 XCLIENT\r\n",
        b"250-mx\r\n250-xclient addr\r\n250 SIZE\r\n",
        b"250-mx\n250 XClient\n",
    ],
)
def test_login_ends_if_last_ehlo_lists_xclient(reply: bytes) -> None:
    for xclient, replies in (
        (False, (b"220 mx\r\n", reply)),
        (True, (b"220 mx\r\n", PLAIN, b"220 mx\r\n", reply)),
    ):
        driven = smtp(*replies, xclient=xclient)
        assert isinstance(driven.error, UpstreamGuardError)
        assert driven.error.stage is UpstreamStage.HELLO
        assert b"AUTH" not in driven.sent


@pytest.mark.parametrize(
    "reply",
    [PLAIN, b"250 mx XCLIENT\r\n", b"250-XCLIENTS\r\n250 SIZE\r\n", b"250-mx\r\n250 XFORWARD XCLIENT\r\n"],
)
def test_other_replies_to_ehlo_do_not_end_the_login(reply: bytes) -> None:
    assert b"AUTH PLAIN" in smtp(b"220 mx\r\n", reply, xclient=False).sent


def test_xclient_in_the_first_ehlo_is_expected_with_xclient() -> None:
    driven = smtp(b"220 mx\r\n", LISTS_XCLIENT, b"220 mx\r\n", PLAIN, b"235 ok\r\n", xclient=True)
    assert driven.finished


DOVECOT = (
    b"250-mx\r\n250-AUTH PLAIN\r\n250 XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT FORWARD\r\n"
)


def test_xclient_of_dovecot_may_be_listed_before_auth() -> None:
    """Dovecot 2.3 lists XCLIENT until AUTH, also after XCLIENT, and refuses it then."""
    replies = (b"220 mx\r\n", DOVECOT, b"220 mx\r\n", DOVECOT, b"235 ok\r\n")
    assert smtp(*replies, xclient=True).finished


def test_xclient_of_dovecot_ends_a_login_without_auth() -> None:
    replies = (b"220 mx\r\n", DOVECOT, b"220 mx\r\n", DOVECOT)
    assert smtp(*replies, xclient=True, proxy_smtp_auth=False).error is not None


def test_xclient_may_be_listed_with_proxy_smtp_guard_off() -> None:
    replies = (b"220 mx\r\n", LISTS_XCLIENT, b"235 ok\r\n")
    assert smtp(*replies, xclient=False, proxy_smtp_guard=False).finished


def test_client_gets_a_temporary_failure() -> None:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(Protocol.SMTP, auth_http=auth, listen=(listen,), xclient=False)

    async def play() -> None:
        async with loopback_worker(build, http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            assert (await client.exchange(b"EHLO me\r\n")).startswith(b"250-")
            await client.read_line()
            await client.send(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n")
            upstream = await w.upstream.accept()
            await upstream.exchange(b"220 mx\r\n")
            await upstream.send(LISTS_XCLIENT)
            assert await client.read_line() == b"454 4.7.0 Temporary authentication failure\r\n"
            assert await client.read_to_eof() == b""
            assert "upstream accepts XCLIENT from this client" in w.read_log()
            assert w.value("mailproxy_upstream_errors_total", "smtp", "hello") == 1

    run(play)


def imap(*replies: bytes, **directives: object) -> Outcome:
    grant = AuthAllowed("192.0.2.10", 143, b"alice", Secret(b"secret"))
    upstream = imap_upstream(configs.server(Protocol.IMAP, **directives))
    login = UpstreamLogin(grant, Method.PASSWORD, tag=b"a")
    return Outcome(upstream.log_in(Client("192.0.2.1"), login), replies)


OFFERS = b"CAPABILITY IMAP4rev1 LITERAL+ UNAUTHENTICATE"


def test_no_password_is_sent_if_the_greeting_lists_unauthenticate() -> None:
    driven = imap(b"* OK [" + OFFERS + b"] hi\r\n", proxy_imap_guard=True)
    assert isinstance(driven.error, UpstreamGuardError)
    assert b"secret" not in driven.sent


@pytest.mark.parametrize(
    "reply", [b"a OK [" + OFFERS + b"] in\r\n", b"* " + OFFERS + b"\r\na OK in\r\n"], ids=["code", "untagged"]
)
def test_login_ends_if_its_reply_lists_unauthenticate(reply: bytes) -> None:
    replies = (b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hi\r\n", reply)
    assert isinstance(imap(*replies, proxy_imap_guard=True).error, UpstreamGuardError)
    assert imap(*replies).finished


def test_words_that_only_resemble_unauthenticate_are_no_reason() -> None:
    replies = (
        b"* OK [CAPABILITY IMAP4rev1 LITERAL+] UNAUTHENTICATE\r\n",
        b"a OK [CAPABILITY XUNAUTHENTICATE] in\r\n",
    )
    assert imap(*replies, proxy_imap_guard=True).finished
