# SPDX-License-Identifier: Apache-2.0
"""docs/mailu.md: its manifest with a service that follows Mailu's rules, real Dovecot and Postfix."""

from __future__ import annotations

import imaplib
import re
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.guides import dovecot as dovecots
from support.guides import postfix as postfixes
from support.guides.blocks import Page
from support.guides.clients import (
    CLIENT,
    PROXY,
    SmtpTls,
    imap_login,
    imaps_login,
    pop3_login,
    pop3s_login,
    smtp,
)
from support.guides.dovecot import GuideDovecot
from support.guides.front import GuideFront, GuideFronts
from support.guides.postfix import GuidePostfix
from support.helm_schemas import VERSIONS, schema_errors
from support.needs import Needs
from support.network_policies import Peer, allows_connection
from support.servers.auth_service import AuthRequest, AuthService, Headers
from support.servers.programs import eventually
from support.servers.tiny_mail import tiny_mail

pytestmark = pytest.mark.interop

PAGE: Final = Page("mailu.md")
USER: Final = "alice@example.com"
PASSWORDS: Final = {USER: "wonder land%21"}
DENIED: Final = "Authentication credentials invalid"
SERVERS: Final = ("smtp", "submission", "submissions", "imap", "imaps", "pop3", "pop3s")


class MailuAdmin(AuthService):
    """The rules of Mailu's ``/internal/auth/email``, as read from its source."""

    def response_headers(self, request: AuthRequest) -> Headers:
        port, _ = request["auth-port"], request["client-port"]  # without them, Mailu's service fails
        is_mx = request["auth-method"] == "none"
        if (port == "25") != is_mx:
            return [("Auth-Status", "AUTH not supported"), ("Auth-Error-Code", "502 5.5.1")]
        if not is_mx and self.authenticated_user(request) is None:
            code = {"imap": "AUTHENTICATIONFAILED", "smtp": "535 5.7.8"}.get(request["auth-protocol"], "-ERR")
            wait = ("Auth-Wait", "0")
            return [("Auth-Status", DENIED), ("Auth-Error-Code", code), ("Auth-User", request.user), wait]
        rule = self.rules[request.path]
        where = [("Auth-Server", rule.address), ("Auth-Port", str(rule.port))]
        return [("Auth-Status", "OK"), *where, *([] if is_mx else [("Auth-User", request.user)])]


@dataclass
class World:
    """The servers of Mailu, and the proxy of the page in front of them."""

    front: GuideFront
    fronts: GuideFronts
    dovecot: GuideDovecot
    postfix: GuidePostfix


@pytest.fixture(scope="module")
def world(needs: Needs, module_folder: Path) -> Iterator[World]:
    dovecot_path, postfix_path = needs("dovecot"), needs("postfix", by_root=True)
    needs("sasl2/libplain.so")
    with ExitStack() as stack:
        fronts = GuideFronts(module_folder, stack, PASSWORDS, MailuAdmin)
        relay = stack.enter_context(tiny_mail("smtp"))
        ports = {**fronts.ports.take_all("imap", "pop3", "submission"), "relay_port": relay.port}
        trusted = f"login_trusted_networks = {PROXY}/32\n"
        overrides = PAGE.object("values")["dovecot"]["overrides"]["dovecot.conf"]
        dovecot = dovecots.start(dovecot_path, fronts.new_folder(), trusted + overrides, ports, PASSWORDS)
        stack.callback(dovecot.stop)
        main = f"smtpd_authorized_xclient_hosts = {PROXY}/32\nmynetworks = {PROXY}/32\n"
        master = "\n10025 inet n - n - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n"
        special = fronts.ports.take_all("smtp", "10025")
        postfix = postfixes.start(postfix_path, fronts.new_folder(), main, master, special)
        stack.callback(postfix.stop)
        backends = {
            "imap": ports["imap"],
            "pop3": ports["pop3"],
            "submission": special["10025"],
            "submissions": special["10025"],
            "smtp": special["smtp"],
        }
        yield World(fronts.start(PAGE.object("manifest"), backends), fronts, dovecot, postfix)


def test_imap_and_pop3_log_in_at_mailus_dovecot(world: World) -> None:
    context = world.fronts.tls.client()
    for name, port, login in [
        ("imap", 143, imap_login),
        ("imaps", 993, imaps_login),
        ("pop3", 110, pop3_login),
        ("pop3s", 995, pop3s_login),
    ]:
        login(world.front.ports[port], context, USER, PASSWORDS[USER])
        request = world.fronts.service.latest_request(f"/{name}")
        assert (request["auth-port"], request["client-ip"]) == (str(port), CLIENT)
        world.dovecot.logged(f"{name.removesuffix('s')}-login: Info: Log", f"user=<{USER}>", f"rip={PROXY}")


@pytest.mark.parametrize("port", [587, 465])
def test_submission_has_address_and_user_at_mailus_postfix(world: World, port: int) -> None:
    context = world.fronts.tls.client()
    where = world.front.ports[port]
    before = len(world.postfix.log())
    with SmtpTls(where, context) if port == 465 else smtp(where, context) as client:
        client.login(USER, PASSWORDS[USER])
        client.sendmail(USER, ["bob@example.org"], "Subject: test\r\n\r\ntest\r\n")
    line = f"client=unknown[{CLIENT}], sasl_method=XCLIENT"
    eventually(lambda: line in world.postfix.log()[before:], line)
    logged = world.postfix.logged(f": client=unknown[{CLIENT}]", "sasl_method=XCLIENT")
    shown = re.sub(r"smtpd\[\d+\]: [0-9A-F]+", "smtpd[4711]: 4F1D2242A01", logged[logged.index("postfix/") :])
    assert shown.replace(CLIENT, "203.0.113.9") == PAGE.block("log postfix").rstrip("\n")


def test_mail_from_other_servers_is_accepted_and_not_relayed(world: World) -> None:
    with smtp(world.front.ports[25], world.fronts.tls.client()) as client:
        client.sendmail("test@example.net", [USER], "Subject: test\r\n\r\ntest\r\n")
    assert world.fronts.service.latest_request("/smtp")["auth-ssl"] == "on"  # for INBOUND_TLS_ENFORCE
    with (
        smtp(world.front.ports[25], world.fronts.tls.client()) as client,
        pytest.raises(smtplib.SMTPRecipientsRefused, match="Relay access denied"),
    ):
        client.sendmail("test@example.net", ["bob@example.org"], "Subject: test\r\n\r\ntest\r\n")


def test_refused_logins_have_mailus_status(world: World) -> None:
    context = world.fronts.tls.client()
    with pytest.raises(imaplib.IMAP4.error, match=DENIED):
        imap_login(world.front.ports[143], context, USER, "wrong")
    with smtp(world.front.ports[587], context) as client:
        client.user, client.password = USER, "wrong"
        with pytest.raises(smtplib.SMTPResponseException) as got:
            client.auth("PLAIN", client.auth_plain)
    assert (got.value.smtp_code, got.value.smtp_error) == (535, f"5.7.8 {DENIED}".encode())


def test_server_without_the_headers_of_mailu(world: World) -> None:
    body = PAGE.object("manifest")
    body["spec"]["servers"] = [{**server, "authHttpHeader": []} for server in body["spec"]["servers"]]
    front = world.fronts.start(body, {"smtp": 1, "imap": 1, "pop3": 1})
    with pytest.raises(imaplib.IMAP4.error):
        imap_login(front.ports[143], world.fronts.tls.client(), USER, PASSWORDS[USER])
    assert front.proxy.event("authorization_failed")


def test_each_port_of_the_page_is_sent_as_auth_port() -> None:
    servers = PAGE.object("manifest")["spec"]["servers"]
    assert tuple(server["name"] for server in servers) == SERVERS
    for server in servers:
        [listen] = server["listen"]
        assert server["authHttpHeader"][0] == {"name": "Auth-Port", "value": str(listen["port"])}


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_policy_lets_the_proxy_in_and_nobody_else(version: str) -> None:
    policy = PAGE.object("policy")
    assert schema_errors(policy, version) == []
    mailproxy = Peer("mailu", {"mailproxy.dev/proxy": "front-mail"}, {})
    for component, ports in {"admin": [8080], "dovecot": [143, 110], "postfix": [25, 10025]}.items():
        labels = {"app.kubernetes.io/instance": "mailu", "app.kubernetes.io/component": component}
        target = Peer("mailu", labels, {})
        for port in ports:
            assert allows_connection([policy], mailproxy, target, port)
            assert not allows_connection([policy], Peer("mailu", {"app": "other"}, {}), target, port)
            assert not allows_connection([policy], Peer("web", mailproxy.labels, {}), target, port)
