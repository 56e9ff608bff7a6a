# SPDX-License-Identifier: Apache-2.0
"""All login methods, with the standard library's clients, Dovecot and Postfix; the same through nginx."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
from collections.abc import Callable
from typing import Any

import pytest

from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.clients import Listeners, imap, pop3, smtp
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop

TLS_MODES = ["plain", "implicit", "starttls"]


def imap_login(client: imaplib.IMAP4, user: str, password: str) -> Any:
    return client.login(user, password)


def imap_plain(client: imaplib.IMAP4, user: str, password: str) -> Any:
    return client.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())


def imap_plain_login(client: imaplib.IMAP4, user: str, password: str) -> Any:
    answers = [user.encode(), password.encode()]
    return client.authenticate("LOGIN", lambda _: answers.pop(0))


def imap_cram_md5(client: imaplib.IMAP4, user: str, password: str) -> Any:
    return client.login_cram_md5(user, password)


IMAP = [
    pytest.param(imap_login, "plain", id="LOGIN"),
    pytest.param(imap_plain, "plain", id="AUTHENTICATE-PLAIN"),
    pytest.param(imap_plain_login, "plain", id="AUTHENTICATE-LOGIN"),
    pytest.param(imap_cram_md5, "cram-md5", id="AUTHENTICATE-CRAM-MD5"),
]


@pytest.mark.parametrize("tls_mode", TLS_MODES)
@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize(("log_in", "method"), IMAP)
def test_imap_login(
    dovecot: Dovecot,
    proxy_or_nginx: Listeners,
    tls: Certificates,
    service: AuthService,
    tls_mode: str,
    user: str,
    log_in: Callable[[imaplib.IMAP4, str, str], Any],
    method: str,
) -> None:
    with imap(proxy_or_nginx, tls, tls_mode) as client:
        assert log_in(client, user, dovecot.passwords[user])[0] == "OK"
        assert client.select()[0] == "OK"
        assert client.logout()[0] == "BYE"
    auth_request = service.latest_request("/imap")
    assert (auth_request.user, auth_request["auth-method"], auth_request["client-ip"]) == (
        user,
        method,
        "127.0.0.1",
    )
    assert auth_request.headers.get("auth-ssl") == (None if tls_mode == "plain" else "on")


def pop3_user(client: poplib.POP3, user: str, password: str) -> bytes:
    client.user(user)
    return client.pass_(password)


def pop3_apop(client: poplib.POP3, user: str, password: str) -> bytes:
    return client.apop(user, password)


@pytest.mark.parametrize("tls_mode", TLS_MODES)
@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize(
    ("log_in", "method"),
    [pytest.param(pop3_user, "plain", id="USER-PASS"), pytest.param(pop3_apop, "apop", id="APOP")],
)
def test_pop3_login(
    dovecot: Dovecot,
    proxy_or_nginx: Listeners,
    tls: Certificates,
    service: AuthService,
    tls_mode: str,
    user: str,
    log_in: Callable[[poplib.POP3, str, str], bytes],
    method: str,
) -> None:
    with pop3(proxy_or_nginx, tls, tls_mode) as client:
        assert log_in(client, user, dovecot.passwords[user]).startswith(b"+OK")
        assert len(client.stat()) == 2
        assert client.quit().startswith(b"+OK")
    auth_request = service.latest_request("/pop3")
    assert (auth_request.user, auth_request["auth-method"]) == (user, method)


@pytest.mark.parametrize("tls_mode", TLS_MODES)
@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_smtp_login(
    postfix: Postfix,
    proxy_or_nginx: Listeners,
    tls: Certificates,
    service: AuthService,
    tls_mode: str,
    user: str,
    mechanism: str,
) -> None:
    with smtp(proxy_or_nginx, tls, tls_mode) as client:
        client.ehlo("client.example.org")
        authenticate(client, mechanism, user, service.passwords[user])
        assert client.noop()[0] == 250
        assert client.quit()[0] == 221
    auth_request = service.latest_request("/smtp")
    assert (auth_request.user, auth_request["auth-method"]) == (
        user,
        "cram-md5" if mechanism == "CRAM-MD5" else "plain",
    )
    assert auth_request["client-host"] == "[UNAVAILABLE]"


def authenticate(client: smtplib.SMTP, mechanism: str, user: str, password: str) -> None:
    client.user, client.password = user, password
    objects: dict[str, Callable[..., str]] = {
        "PLAIN": client.auth_plain,
        "LOGIN": client.auth_login,
        "CRAM-MD5": client.auth_cram_md5,
    }
    assert client.auth(mechanism, objects[mechanism])[0] == 235


def test_imap_login_with_wrong_password_is_denied(
    dovecot: Dovecot, proxy_or_nginx: Listeners, tls: Certificates
) -> None:
    with imap(proxy_or_nginx, tls, "starttls") as client:
        with pytest.raises(imaplib.IMAP4.error, match="Invalid login or password"):
            client.login("alice", "wrong")
        with pytest.raises(imaplib.IMAP4.abort, match="EOF"):
            client.noop()


def test_pop3_login_with_wrong_password_is_denied(
    dovecot: Dovecot, proxy_or_nginx: Listeners, tls: Certificates
) -> None:
    with pop3(proxy_or_nginx, tls, "plain") as client:
        client.user("alice")
        with pytest.raises(poplib.error_proto, match="Invalid login or password"):
            client.pass_("wrong")


def test_smtp_login_with_wrong_password_is_denied(
    postfix: Postfix, proxy_or_nginx: Listeners, tls: Certificates
) -> None:
    with smtp(proxy_or_nginx, tls, "implicit") as client:
        client.ehlo("client.example.org")
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.auth("PLAIN", lambda _=None: "\0alice\0wrong")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (535, b"5.7.0 Invalid login or password")


def test_error_of_the_upstream_is_passed_to_the_client(
    dovecot: Dovecot, shared_proxy: SharedProxy, service: AuthService, tls: Certificates
) -> None:
    """With ``proxy_pass_error_message`` the client receives the upstream's own error message."""
    service.passwords["eve"] = "unknown to Dovecot"
    with imap(shared_proxy, tls) as client, pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        client.login("eve", service.passwords["eve"])
    shared_proxy.proxy.event("session", user="eve", result="upstream_denied")
