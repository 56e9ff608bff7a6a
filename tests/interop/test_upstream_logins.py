# SPDX-License-Identifier: Apache-2.0
"""Logins at a real Dovecot and Postfix with SASL mechanisms, a master user, and access tokens."""

from __future__ import annotations

import contextlib
import imaplib
import poplib
import smtplib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import postfix as postfixes
from support.servers.auth_service import AuthRule, AuthService
from support.servers.certificates import Certificates
from support.servers.clients import RawClient
from support.servers.dovecot import Dovecot
from support.servers.oauth import OAuthService, oauth_service
from support.servers.postfix import DovecotPorts, Postfix
from support.servers.programs import TIMEOUT_SECONDS, Ports, eventually
from support.servers.proxy import Proxy, manifest

pytestmark = pytest.mark.interop

PASSWORDS: Final = {"alice": "wonder land%21", "carol": "only at the proxy"}
"""Passwords that the authentication service accepts; carol's is unknown to the mail servers."""
AT_SERVER: Final = {"alice": PASSWORDS["alice"], "carol": "only at the server"}
SECRET: Final = "client secret %&="
MASTER: Final = "master secret {7}"
MECHANISMS: Final = ("Plain", "Login", "Native")
PROTOCOLS: Final = ("imap", "pop3", "submission")


@dataclass
class World:
    """Dovecot with all mechanisms, and the OAuth service that it asks."""

    dovecot: Dovecot
    oauth: OAuthService
    files: Path

    def secret(self, name: str, content: str) -> dict[str, str]:
        """A reference to a file with a secret."""
        path = self.files / name
        path.write_text(content + "\n")
        return {"file": str(path)}

    def token(self) -> dict[str, Any]:
        """The value of ``proxyAuthToken``."""
        return {
            "tokenUrl": self.oauth.url("/token"),
            "clientId": "app",
            "clientSecretFrom": self.secret("client-secret", SECRET),
            "scope": "mail",
        }

    def master(self) -> dict[str, Any]:
        """The value of ``proxyMasterUser``."""
        return {"user": "proxy", "passwordFrom": self.secret("master", MASTER)}


@pytest.fixture(scope="module")
def oauth() -> Iterator[OAuthService]:
    with oauth_service("carol", SECRET) as service:
        yield service


@pytest.fixture(scope="module")
def world(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, tls: Certificates, oauth: OAuthService
) -> Iterator[World]:
    """Dovecot that accepts a client certificate, a master user and tokens."""
    folder = new_folder("dovecot-logins")
    files = new_folder("secrets")
    (folder / "masters").write_text(f"proxy:{{PLAIN}}{MASTER}\n")
    (folder / "oauth2").write_text(
        f"introspection_mode = post\nintrospection_url = {oauth.url('/introspect')}\n"
        "username_attribute = username\nactive_attribute = active\nactive_value = true\n"
        "tls_ca_cert_file = /dev/null\n"
    )
    lines = f"""
ssl = yes
ssl_cert = <{tls.proxy.certificate}
ssl_key = <{tls.proxy.key}
ssl_ca = <{tls.authority}
ssl_verify_client_cert = yes
ssl_require_crl = no
auth_ssl_username_from_cert = yes
auth_master_user_separator = *
auth_mechanisms = plain login xoauth2 oauthbearer external
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/masters
  master = yes
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {folder}/oauth2
}}
passdb {{
  driver = static
  mechanisms = external
  args = nopassword=y
  master = yes
}}
"""
    running = dovecots.start(needs("dovecot"), folder, ports, AT_SERVER, ports.take(), extra=lines)
    yield World(running, oauth, files)
    running.running.stop()


@pytest.fixture(scope="module")
def token_postfix(
    needs: Needs, new_folder: Callable[[str], Path], ports: Ports, world: World
) -> Iterator[Postfix]:
    """Postfix that asks this Dovecot."""
    running = postfixes.start(
        needs("postfix", by_root=True),
        new_folder("postfix-logins"),
        postfixes.take_ports(ports),
        DovecotPorts(world.dovecot.ports["lmtp"], world.dovecot.ports["sasl"]),
        AT_SERVER,
    )
    yield running
    running.stop()


StartProxy = Callable[..., tuple[Proxy, int]]


@pytest.fixture
def started(
    new_proxy: Callable[..., Proxy],
    service: AuthService,
    tls: Certificates,
    ports: Ports,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> StartProxy:
    """Start a proxy with one server in front of a port."""
    world.oauth.padding = 0
    for user, password in PASSWORDS.items():
        monkeypatch.setitem(service.passwords, user, password)

    def start(protocol: str, upstream: int, **directives: Any) -> tuple[Proxy, int]:
        port = ports.take()
        path = f"/logins-{port}"
        service.rules[path] = AuthRule(upstream)
        server = {
            "name": protocol,
            "protocol": {"submission": "smtp"}.get(protocol, protocol),
            "listen": [{"address": "127.0.0.1", "port": port}],
            "authHttp": service.url(path),
            "proxySsl": "Starttls",
            "proxySslName": "localhost",
            "proxySslTrustedCertificate": {"file": tls.authority},
            "proxySslSessionReuse": False,  # Dovecot 2.3 with ssl_verify_client_cert cannot resume
            "xclient": False,
            "proxySmtpGuard": False,  # tests have the address of the proxy
            "proxySmtpAuth": True,
            **directives,
        }
        return new_proxy(manifest([server], {"timeout": "20s"}, errorLog={"level": "debug"})), port

    return start


def log_in(protocol: str, port: int, user: str) -> None:
    """Log in as a client with a password, and log out."""
    with contextlib.ExitStack() as on_failure:
        if protocol == "imap":
            client = imaplib.IMAP4("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
            on_failure.callback(client.shutdown)
            client.login(user, PASSWORDS[user])
            assert client.select()[0] == "OK"
            client.logout()
        elif protocol == "pop3":
            pop = poplib.POP3("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
            on_failure.callback(pop.close)
            pop.user(user)
            assert pop.pass_(PASSWORDS[user]).startswith(b"+OK")
            assert len(pop.stat()) == 2
            pop.quit()
        on_failure.pop_all()
    if protocol in {"imap", "pop3"}:
        return
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS) as smtp:
        smtp.login(user, PASSWORDS[user])


def logged(world: World, protocol: str, *words: str) -> None:
    """Wait for the login in Dovecot's log."""
    eventually(lambda: world.dovecot.log_lines(f"{protocol}-login: Info: Login", *words), " ".join(words))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_password_is_sent_with_the_mechanism(
    world: World, started: StartProxy, protocol: str, mechanism: str
) -> None:
    _, port = started(protocol, world.dovecot.ports[protocol], proxyAuth=[mechanism])
    log_in(protocol, port, "alice")
    method = {"Plain": "PLAIN", "Login": "LOGIN", "Native": "PLAIN"}[mechanism]
    logged(world, protocol, "user=<alice>", f"method={method}", "TLS")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_master_user_logs_in_to_the_mailbox(
    world: World, started: StartProxy, protocol: str, mechanism: str
) -> None:
    """The client's password is unknown to Dovecot."""
    proxy, port = started(
        protocol, world.dovecot.ports[protocol], proxyAuth=[mechanism], proxyMasterUser=world.master()
    )
    log_in(protocol, port, "carol")
    logged(world, protocol, "user=<carol>")
    assert MASTER not in proxy.running.output_text()


def test_wrong_password_of_the_master_user_is_an_outage(world: World, started: StartProxy) -> None:
    wrong = {"user": "proxy", "passwordFrom": world.secret("wrong", "wrong password 9")}
    proxy, port = started(
        "imap", world.dovecot.ports["imap"], proxyMasterUser=wrong, proxyPassErrorMessage=True
    )
    client = imaplib.IMAP4("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    with pytest.raises(imaplib.IMAP4.error):
        client.login("carol", PASSWORDS["carol"])
    client.shutdown()
    assert "the proxy's own login" in proxy.event("upstream_failed")["reason"]
    assert "wrong password 9" not in proxy.running.output_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_certificate_of_the_proxy_logs_in_to_the_mailbox(
    world: World, started: StartProxy, protocol: str, tls: Certificates
) -> None:
    certificate = {"certificateFile": tls.alice.certificate, "keyFile": tls.alice.key}
    _, port = started(
        protocol, world.dovecot.ports[protocol], proxyAuth=["External"], proxySslCertificate=certificate
    )
    log_in(protocol, port, "carol")
    logged(world, protocol, "user=<carol>", "method=EXTERNAL")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", ["Xoauth2", "Oauthbearer"])
def test_token_logs_in_to_the_mailbox(
    world: World, started: StartProxy, protocol: str, mechanism: str
) -> None:
    proxy, port = started(
        protocol, world.dovecot.ports[protocol], proxyAuth=[mechanism], proxyAuthToken=world.token()
    )
    before = world.oauth.requests
    for _ in range(3):
        log_in(protocol, port, "carol")
    logged(world, protocol, "user=<carol>", f"method={mechanism.upper()}")
    assert world.oauth.requests - before == 1
    log = proxy.running.output_text()
    assert not any(secret in log for secret in (SECRET, "token-", PASSWORDS["carol"]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", ["Xoauth2", "Oauthbearer"])
def test_token_that_is_not_valid_any_more_is_replaced(
    world: World, started: StartProxy, protocol: str, mechanism: str
) -> None:
    """Dovecot sends its challenge with an error; the client notices nothing."""
    proxy, port = started(
        protocol, world.dovecot.ports[protocol], proxyAuth=[mechanism], proxyAuthToken=world.token()
    )
    log_in(protocol, port, "carol")
    world.oauth.valid.clear()
    log_in(protocol, port, "carol")
    assert proxy.event("token_refused")
    assert proxy.value("mailproxy_token_requests_total", result="ok") == 2


@pytest.mark.parametrize("mechanism", ["Xoauth2", "Oauthbearer"])
@pytest.mark.parametrize("padding", [0, 9000])
def test_token_logs_in_at_postfix(
    token_postfix: Postfix, world: World, started: StartProxy, mechanism: str, padding: int
) -> None:
    """Postfix accepts a response of 12288 bytes, and passes it on to Dovecot."""
    world.oauth.padding = padding
    directives = {"proxySsl": "Disabled", "proxyAuth": [mechanism], "proxyAuthToken": world.token()}
    _, port = started("smtp", token_postfix.ports["smtp"], **directives)
    text = b"Subject: token\r\n\r\nHello\r\n"
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_SECONDS) as client:
        client.login("carol", PASSWORDS["carol"])
        assert client.sendmail("carol@example.org", ["alice@example.org"], text) == {}
    method = f"sasl_method={mechanism.upper()}"
    eventually(lambda: token_postfix.log_lines(method, "sasl_username=carol"), "Postfix's log")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", ["Xoauth2", "Oauthbearer"])
def test_token_of_5900_bytes_logs_in_at_dovecot(
    world: World, started: StartProxy, protocol: str, mechanism: str
) -> None:
    """Dovecot 2.3 accepts 8192 bytes of base64."""
    world.oauth.padding = 5900
    directives = {"proxyAuth": [mechanism], "proxyAuthToken": world.token()}
    _, port = started(protocol, world.dovecot.ports[protocol], **directives)
    log_in(protocol, port, "carol")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_token_that_is_too_long_for_dovecot_is_an_outage(
    world: World, started: StartProxy, protocol: str
) -> None:
    world.oauth.padding = 9000
    directives = {"proxyAuth": ["Xoauth2"], "proxyAuthToken": world.token()}
    proxy, port = started(protocol, world.dovecot.ports[protocol], **directives)
    with pytest.raises((imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException, OSError)):
        log_in(protocol, port, "carol")
    event = proxy.event("upstream_failed", stage="login")
    assert "xxxxxxxx" not in str(event)
    assert proxy.event("session")["result"] == "upstream_failed"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_client_gets_the_error_of_dovecot_for_its_token(
    world: World,
    started: StartProxy,
    service: AuthService,
    protocol: str,
    mechanism: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The authentication service accepts the token, Dovecot does not."""
    ours = "smtp" if protocol == "submission" else protocol
    directives = {
        "proxyAuth": ["Xoauth2", "Oauthbearer"],
        "proxyPassErrorMessage": True,
        f"{ours}Auth": ["plain", "xoauth2", "oauthbearer"],
    }
    _, port = started(protocol, world.dovecot.ports[protocol], **directives)
    monkeypatch.setitem(service.passwords, "carol", "expired-token")
    messages = {
        "XOAUTH2": (b"user=carol\x01auth=Bearer expired-token\x01\x01", b""),
        "OAUTHBEARER": (b"n,a=carol,\x01auth=Bearer expired-token\x01\x01", b"AQ=="),
    }
    message, answer = messages[mechanism]
    command = {"imap": b"a AUTHENTICATE "}.get(protocol, b"AUTH ") + mechanism.encode() + b" "
    prefix, refused = {
        "imap": (b"+ ", b"a NO "),
        "pop3": (b"+ ", b"-ERR "),
        "submission": (b"334 ", b"535 "),
    }[protocol]
    with RawClient(port) as client:
        client.read_line()
        challenge = client.exchange(command + b64encode(message))
        assert challenge.startswith(prefix)
        assert b'"status"' in b64decode(challenge.removeprefix(prefix))
        assert client.exchange(answer).startswith(refused)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_dovecot_decides_about_the_token_of_a_client(
    world: World,
    new_proxy: Callable[..., Proxy],
    ports: Ports,
    tls: Certificates,
    protocol: str,
    mechanism: str,
) -> None:
    """With ``authMode: Upstream``: a refused token leaves the connection open, a valid one logs in."""
    ours = "smtp" if protocol == "submission" else protocol
    port, token = ports.take(), f"token-of-a-client-{mechanism}-{protocol}"
    group = {
        "name": "dovecot",
        "servers": [{"address": f"127.0.0.1:{world.dovecot.ports[protocol]}"}],
        "proxySsl": "Starttls",
        "proxySslName": "localhost",
        "proxySslTrustedCertificate": {"file": tls.authority},
        "proxySslSessionReuse": False,
        "proxyAuth": ["Xoauth2", "Oauthbearer"],
    }
    server = {
        "name": protocol,
        "protocol": ours,
        "listen": [{"address": "127.0.0.1", "port": port}],
        "routes": [{"domains": ["*"], "upstream": "dovecot"}],
        f"{ours}Auth": ["plain", "xoauth2", "oauthbearer"],
    }
    mail = {"authMode": "Upstream", "authFailureDelay": "100ms", "proxySmtpGuard": False}
    proxy = new_proxy(manifest([server], mail, upstreams=[group]))
    world.oauth.valid.add(token)

    def command(token: str) -> bytes:
        fields = {
            "XOAUTH2": f"user=carol\1auth=Bearer {token}\1\1",
            "OAUTHBEARER": f"n,a=carol,\1auth=Bearer {token}\1\1",
        }
        verb = {"imap": b"a AUTHENTICATE "}.get(protocol, b"AUTH ")
        return verb + mechanism.encode() + b" " + b64encode(fields[mechanism].encode())

    refused, accepted = {
        "imap": (b"a NO [AUTHENTICATIONFAILED] ", b"a OK "),
        "pop3": (b"-ERR [AUTH] ", b"+OK "),
        "submission": (b"535 5.7.8 ", b"235 "),
    }[protocol]
    with RawClient(port) as client:
        client.read_line()
        assert client.exchange(command("expired-token")).startswith(refused)
        assert client.exchange(command(token)).startswith(accepted)
    logged(world, protocol, "user=<carol>", f"method={mechanism}")
    assert token not in proxy.running.output_text()
