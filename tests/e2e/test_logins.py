# SPDX-License-Identifier: Apache-2.0
"""Logins through the Service: each protocol with STARTTLS and with TLS, passwords, addresses."""

from __future__ import annotations

import pytest

from support.e2e.mail_world import FailedRequestError, MailWorld

WAYS = [
    ("imap", 143, "starttls"),
    ("imap", 993, "tls"),
    ("pop3", 110, "starttls"),
    ("pop3", 995, "tls"),
    ("smtp", 587, "starttls"),
    ("smtp", 465, "tls"),
]


@pytest.mark.parametrize(("protocol", "port", "tls"), WAYS)
def test_login_reaches_the_mail_server(
    edge: MailWorld, first_certificate: str, protocol: str, port: int, tls: str
) -> None:
    before = _logins(edge, protocol)
    session = edge.open(protocol, port, tls)
    assert session.fingerprint == first_certificate
    session.command("NOOP")
    session.close()
    assert _logins(edge, protocol) == before + 1


def _logins(edge: MailWorld, protocol: str) -> int:
    found = edge.received()["logins"]
    return sum(one["protocol"] == protocol and "alice" in one["user"] for one in found)


@pytest.mark.parametrize(("protocol", "port"), [("imap", 143), ("pop3", 110), ("smtp", 587)])
def test_login_without_tls_is_refused(edge: MailWorld, protocol: str, port: int) -> None:
    with pytest.raises(FailedRequestError, match="refused"):
        edge.open(protocol, port, "none")


def test_wrong_password_is_refused(edge: MailWorld) -> None:
    wanted = {"protocol": "imap", "host": "edge.mail.svc", "port": 993, "tls": "tls"}
    with pytest.raises(FailedRequestError, match=r"refused.* NO "):
        edge.act("open", **wanted, user="alice", password="wrong")


def test_mail_server_gets_the_address_of_the_client(edge: MailWorld) -> None:
    session = edge.open("smtp", 465, "tls")
    session.close()
    last = [one["user"] for one in edge.received()["logins"] if one["protocol"] == "smtp"][-1]
    assert f"ADDR={session.address} " in last + " "
    assert "LOGIN=alice" in last
