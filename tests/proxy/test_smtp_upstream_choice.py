# SPDX-License-Identifier: Apache-2.0
"""SMTP logins that differ from client to client: ``proxy_smtp_helo client``, and ``Auth-SMTP``."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any, Final

import pytest

from mailproxy.enums import Method
from mailproxy.errors import UpstreamGuardError
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy.protocols.smtp.upstream_choice import PerLoginAuthUpstream, smtp_upstream
from mailproxy.protocols.types import AuthAllowed, Client, Envelope, Secret, UpstreamLogin
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    Protocol,
    ProxySsl,
    ServerConfig,
    SmtpHelo,
    XclientMode,
)
from support.configs import server
from support.generator_driver import drive
from support.loopback_worker import GRANT, http_response, loopback_worker, run

SMTP: Final = Protocol.SMTP
CLIENT: Final = SmtpHelo.CLIENT
OWN_EHLO: Final = b"EHLO mail.example.com\r\n"
AUTH: Final = b"AUTH PLAIN " + b64encode(b"\0alice\0secret") + b"\r\n"
LOGIN: Final = UpstreamLogin(
    AuthAllowed("192.0.2.10", 587, b"alice", Secret(b"secret")),
    Method.PLAIN,
    helo=b"me.example",
    esmtp=True,
)
LISTS_XCLIENT: Final = b"250-mx\r\n250 XCLIENT ADDR NAME\r\n"
ADDRESS: Final = b"XCLIENT ADDR=192.0.2.1 NAME=[UNAVAILABLE]\r\n"


def sent(*replies: bytes | None, login: UpstreamLogin = LOGIN, **directives: Any) -> bytes:
    """Return what a login sends after the greeting, up to its end or to the last of the replies."""
    values = {"xclient": False, "proxy_smtp_auth": True, **directives}
    upstream = PROTOCOLS[SMTP].upstream(server(SMTP, **values))
    return drive(upstream.log_in(Client("192.0.2.1", 4711), login), b"220 mx\r\n", *replies).sent


# --- the client's EHLO name -------------------------------------------------------------------------


def test_upstream_gets_the_name_of_the_proxy_by_default() -> None:
    assert sent(b"250 mx\r\n", b"235 ok\r\n") == OWN_EHLO + AUTH


def test_upstream_gets_the_name_of_the_client() -> None:
    assert sent(b"250 mx\r\n", b"235 ok\r\n", proxy_smtp_helo=CLIENT) == b"EHLO me.example\r\n" + AUTH


def test_upstream_gets_helo_from_a_client_that_used_helo() -> None:
    login = replace(LOGIN, esmtp=False)
    found = sent(b"250 mx\r\n", login=login, proxy_smtp_helo=CLIENT, proxy_smtp_auth=False)
    assert found == b"HELO me.example\r\n"


@pytest.mark.parametrize(
    "name",
    [None, b"", b"a" * 256, b"me example", b"me\texample", b"me\r\nRSET", b"me\0", b"me\x7f", "mé".encode()],
)
@pytest.mark.parametrize("esmtp", [False, True])
def test_upstream_gets_the_name_of_the_proxy_instead_of_an_unusable_one(
    name: bytes | None, esmtp: bool
) -> None:
    login = replace(LOGIN, helo=name, esmtp=esmtp)
    found = sent(b"250 mx\r\n", b"235 ok\r\n", login=login, proxy_smtp_helo=CLIENT)
    assert found == (OWN_EHLO if esmtp else OWN_EHLO.replace(b"EHLO", b"HELO")) + AUTH


@pytest.mark.parametrize("name", [b"a" * 255, b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"my_host-1.", b"<x>"])
def test_name_of_printable_characters_is_sent_unchanged(name: bytes) -> None:
    login = replace(LOGIN, helo=name)
    assert sent(b"250 mx\r\n", login=login, proxy_smtp_helo=CLIENT) == b"EHLO " + name + b"\r\n" + AUTH


def test_envelope_follows_the_name_of_the_client() -> None:
    login = replace(LOGIN, method=Method.NONE, envelope=Envelope(b"me", b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>"))
    replies = (b"250 mx\r\n", b"250 ok\r\n", b"250 ok\r\n")
    assert sent(*replies, login=login, proxy_smtp_helo=CLIENT) == (
        b"EHLO me.example\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n"
    )


def test_name_of_the_client_comes_after_xclient_as_in_nginx() -> None:
    replies = (b"250 mx\r\n", b"220 mx\r\n", b"250 mx\r\n", b"235 ok\r\n")
    for helo in SmtpHelo:
        found = sent(*replies, xclient=True, proxy_smtp_helo=helo)
        assert found == OWN_EHLO + ADDRESS + b"EHLO me.example\r\n" + AUTH


def test_name_of_the_client_is_sent_where_xclient_is_not_listed() -> None:
    directives: dict[str, Any] = {"xclient": True, "xclient_mode": XclientMode.AUTO}
    found = sent(b"250 mx\r\n", b"235 ok\r\n", **directives)
    assert found == OWN_EHLO + AUTH
    replies = (b"250 mx\r\n", b"250 mx\r\n", b"235 ok\r\n")
    assert sent(*replies, proxy_smtp_helo=CLIENT, **directives) == OWN_EHLO + b"EHLO me.example\r\n" + AUTH
    listed = (LISTS_XCLIENT, b"220 mx\r\n", b"250 mx\r\n", b"235 ok\r\n")
    assert sent(*listed, proxy_smtp_helo=CLIENT, **directives).count(b"EHLO me.example\r\n") == 1


def test_name_of_the_client_is_sent_inside_of_tls_only() -> None:
    replies = (b"250 STARTTLS\r\n", b"220 go\r\n", None, b"250 mx\r\n", b"235 ok\r\n")
    found = sent(*replies, proxy_smtp_helo=CLIENT, proxy_ssl=ProxySsl.STARTTLS)
    assert found == OWN_EHLO + b"STARTTLS\r\nEHLO me.example\r\n" + AUTH


def test_guard_checks_the_reply_to_the_name_of_the_client() -> None:
    with pytest.raises(UpstreamGuardError):
        sent(LISTS_XCLIENT, proxy_smtp_helo=CLIENT)


# --- Auth-SMTP --------------------------------------------------------------------------------------

WITHOUT_AUTH: Final = replace(LOGIN, grant=replace(LOGIN.grant, smtp_auth=False))


def test_login_without_auth() -> None:
    assert sent(b"250 mx\r\n", login=WITHOUT_AUTH) == OWN_EHLO
    assert sent(b"250 mx\r\n", b"235 ok\r\n") == OWN_EHLO + AUTH


def test_login_without_auth_has_the_user_in_xclient() -> None:
    replies = (b"250 mx\r\n", b"220 mx\r\n", b"250 mx\r\n")
    found = sent(*replies, login=WITHOUT_AUTH, xclient=True)
    assert found == (
        OWN_EHLO + b"XCLIENT ADDR=192.0.2.1 LOGIN=alice NAME=[UNAVAILABLE]\r\nEHLO me.example\r\n"
    )


def test_login_without_auth_is_guarded_like_every_one_without() -> None:
    """Dovecot's XCLIENT is no danger only where AUTH follows."""
    dovecot = b"250-mx\r\n250 XCLIENT ADDR PORT TTL FORWARD\r\n"
    with pytest.raises(UpstreamGuardError):
        sent(dovecot, login=WITHOUT_AUTH)
    assert sent(dovecot, b"235 ok\r\n") == OWN_EHLO + AUTH


def test_login_without_auth_sends_the_name_of_the_client() -> None:
    assert sent(b"250 mx\r\n", login=WITHOUT_AUTH, proxy_smtp_helo=CLIENT) == b"EHLO me.example\r\n"


def test_login_without_auth_needs_no_password() -> None:
    login = replace(WITHOUT_AUTH, grant=replace(WITHOUT_AUTH.grant, password=None))
    assert sent(b"250 mx\r\n", login=login) == OWN_EHLO


def test_configuration_chooses_the_class() -> None:
    """A login without these features costs no more than before."""
    assert type(smtp_upstream(server(SMTP))) is SmtpUpstream
    assert type(smtp_upstream(server(SMTP, proxy_smtp_auth=True))) is PerLoginAuthUpstream


@pytest.mark.parametrize(("header", "commands"), [("no", 1), ("No", 1), ("yes", 2), ("", 2)])
def test_service_decides_for_each_login(header: str, commands: int) -> None:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(SMTP, auth_http=auth, listen=(listen,), xclient=False, proxy_smtp_auth=True)

    granted = http_response(GRANT + (f"Auth-SMTP: {header}\r\n" if header else ""))

    async def play() -> None:
        async with loopback_worker(build, granted) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(b"EHLO me.example\r\n")
            await client.read_line()
            await client.send(AUTH)
            upstream = await w.upstream.accept()
            assert await upstream.exchange(b"220 mx\r\n") == OWN_EHLO
            await upstream.send(b"250 mx\r\n")
            if commands == 2:
                assert await upstream.read_line() == AUTH
                await upstream.send(b"235 ok\r\n")
            assert await client.read_line() == b"235 2.0.0 OK\r\n"
            await client.send(b"MAIL FROM:<a@x>\r\n")
            assert await upstream.read_line() == b"MAIL FROM:<a@x>\r\n"

    run(play)
