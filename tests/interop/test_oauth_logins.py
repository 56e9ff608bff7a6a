# SPDX-License-Identifier: Apache-2.0
"""curl and Python's libraries log in with access tokens, which the proxy and a real Dovecot validate."""

from __future__ import annotations

import contextlib
import imaplib
import poplib
import smtplib
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.needs import Needs
from support.servers import dovecot as dovecots
from support.servers import proxy as proxies
from support.servers.auth_service import AuthRequest, AuthRule, AuthService, Headers, auth_service
from support.servers.dovecot import Dovecot
from support.servers.programs import Ports, eventually
from support.servers.proxy import Proxy, manifest
from support.token_issuer import KEY_IDS, Issuer, JwksServer, http_response, jwks_server

pytestmark = pytest.mark.interop

ISSUER: Final = Issuer()
USER: Final = "bob@example.org"
METHODS: Final = ("XOAUTH2", "OAUTHBEARER")
PROTOCOLS: Final = ("imap", "pop3", "smtp")


class TokenRouter(AuthService):
    """Sends logins with valid tokens to the mail server, and denies all others."""

    def response_headers(self, request: AuthRequest) -> Headers:
        """Return the headers of the response; the token stays the password."""
        if request.headers.get("auth-token-issuer") != ISSUER.name:
            return [("Auth-Status", "no passwords here")]
        rule = self.rules[request.path]
        return [("Auth-Status", "OK"), ("Auth-Server", rule.address), ("Auth-Port", str(rule.port))]


@dataclass
class Places:
    proxy: Proxy
    dovecot: Dovecot
    service: AuthService
    keys: JwksServer
    ports: dict[str, int]

    def url(self, protocol: str, method: str) -> str:
        return f"{protocol}://127.0.0.1:{self.ports[f'{protocol}-{method}']}/"


@pytest.fixture(scope="module")
def token_dovecot(needs: Needs, new_folder: Callable[[str], Path], ports: Ports) -> Iterator[Dovecot]:
    """Dovecot that validates tokens itself, with the public keys in files."""
    folder = new_folder("dovecot-oauth")
    keys = folder / "keys"
    for algorithm in ("RS256", "ES256"):
        file = keys / "thunderbird" / algorithm / KEY_IDS[algorithm]
        file.parent.mkdir(parents=True)
        public = ISSUER.private(algorithm).public_key()
        file.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path in (keys, *keys.rglob("*")):
        path.chmod(0o755)
    settings = folder / "oauth2.conf"
    settings.write_text(
        "introspection_mode = local\n"
        f"local_validation_key_dict = fs:posix:prefix={keys}/\n"
        f"issuers = {ISSUER.name}\n"
        "username_attribute = email\n"
        "scope = openid\n"
    )
    settings.chmod(0o644)
    extra = (
        "auth_username_format = %Lu\n"
        "auth_mechanisms = plain login xoauth2 oauthbearer\n"
        "passdb {\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer plain login\n"
        f"  args = {settings}\n}}\n"
    )
    relay = ports.take()
    running = dovecots.start(needs("dovecot"), new_folder("dovecot-tokens"), ports, {}, relay, extra=extra)
    yield running
    running.running.stop()


@pytest.fixture(scope="module")
def places(token_dovecot: Dovecot, new_folder: Callable[[str], Path], ports: Ports) -> Iterator[Places]:
    with (
        auth_service({}, kind=TokenRouter) as service,
        jwks_server(http_response(ISSUER.jwks("RS256", "ES256"))) as keys,
    ):
        names = [f"{protocol}-{method}" for protocol in PROTOCOLS for method in METHODS]
        listeners = ports.take_all(*names)
        servers = [
            {
                "name": name.lower(),
                "protocol": name[:4],
                "listen": [{"address": "127.0.0.1", "port": listeners[name]}],
                "authHttp": service.url(f"/{name[:4]}"),
                f"{name[:4]}Auth": ["plain", name[5:].lower()],
            }
            for name in names
        ]
        for protocol in PROTOCOLS:
            port = token_dovecot.ports["submission" if protocol == "smtp" else protocol]
            service.rules[f"/{protocol}"] = AuthRule(port)
        mail = {
            "authMode": "Jwt",
            "oauthIssuers": [
                {
                    "issuer": ISSUER.name,
                    "jwksUri": keys.uri,
                    "audiences": ["mail"],
                    "tokenType": "Keycloak",
                    "scope": "openid",
                }
            ],
            "proxySmtpAuth": True,
            "xclient": False,
            "proxySmtpGuard": False,
        }
        proxy = proxies.start(new_folder("oauth-proxy"), manifest(servers, mail))
        yield Places(proxy, token_dovecot, service, keys, listeners)
        proxy.stop()


@contextlib.contextmanager
def connected(places: Places) -> Iterator[imaplib.IMAP4]:
    """Connect to a server that closes the connection after a refusal."""
    imap = imaplib.IMAP4("127.0.0.1", places.ports["imap-XOAUTH2"])
    try:
        yield imap
    finally:
        imap.shutdown()


@pytest.fixture
def curl(needs: Needs, places: Places) -> Callable[..., subprocess.CompletedProcess[str]]:
    program = needs("curl")

    # With both methods curl takes OAUTHBEARER, so each listener has one of them.
    def run(protocol: str, method: str, token: bytes, *options: str) -> subprocess.CompletedProcess[str]:
        command = [program, "--silent", "--show-error", "--max-time", "30", "--verbose"]
        command += ["--user", f"{USER}:", "--oauth2-bearer", token.decode()]
        command += [*options, places.url(protocol, method)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
@pytest.mark.parametrize("initial", [(), ("--sasl-ir",)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_curl_logs_in(
    places: Places, curl: Any, protocol: str, method: str, initial: tuple[str, ...], algorithm: str
) -> None:
    done = curl(protocol, method, ISSUER.token(algorithm), *initial)
    if protocol == "smtp":  # Dovecot's submission service has no relay for the command after the login
        assert "< 235 " in done.stderr
    else:
        assert done.returncode == 0, done.stderr
    request = places.service.latest_request(f"/{protocol}")
    assert (request.user, request["auth-method"]) == (USER, method.lower())
    login = {"imap": "imap-login", "pop3": "pop3-login", "smtp": "submission-login"}[protocol]
    assert places.dovecot.log_lines(f"{login}: Info: Login: user=<{USER}>")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_curl_reports_the_refusal_of_an_expired_token(
    places: Places, curl: Any, protocol: str, method: str
) -> None:
    before = len(places.service.requests)
    done = curl(protocol, method, ISSUER.token(exp=1))
    assert done.returncode == 67, done.stderr  # CURLE_LOGIN_DENIED
    assert len(places.service.requests) == before


def test_python_logs_in_and_mail_is_readable(places: Places) -> None:
    token = ISSUER.token()
    message = b"user=%b\1auth=Bearer %b\1\1" % (USER.encode(), token)
    with imaplib.IMAP4("127.0.0.1", places.ports["imap-XOAUTH2"]) as imap:
        imap.authenticate("XOAUTH2", lambda _: message)
        assert imap.select()[0] == "OK"
    pop3 = poplib.POP3("127.0.0.1", places.ports["pop3-XOAUTH2"])
    assert pop3._shortcmd("AUTH XOAUTH2 " + b64encode(message).decode()).startswith(b"+OK")  # type: ignore[attr-defined]
    pop3.quit()
    with smtplib.SMTP("127.0.0.1", places.ports["smtp-XOAUTH2"]) as smtp:
        smtp.ehlo()
        code, _ = smtp.auth("XOAUTH2", lambda _=None: message.decode())
        assert code == 235


def test_python_reads_the_error_of_a_refused_token(places: Places) -> None:
    challenges: list[bytes] = []

    def respond(challenge: bytes) -> bytes:
        challenges.append(challenge)
        return message if not challenge else b""

    message = b"user=%b\1auth=Bearer %b\1\1" % (USER.encode(), ISSUER.token(aud="other"))
    with imaplib.IMAP4("127.0.0.1", places.ports["imap-XOAUTH2"]) as imap:
        with pytest.raises(imaplib.IMAP4.error, match="Invalid token"):
            imap.authenticate("XOAUTH2", respond)
        assert b'"status":"invalid_token"' in challenges[-1]
        # The connection stays: the client may log in with another token.
        valid = b"user=\1auth=Bearer %b\1\1" % ISSUER.token()
        imap.authenticate("XOAUTH2", lambda _: valid)


def test_dovecot_refuses_a_token_that_only_the_proxy_accepts(places: Places) -> None:
    """Dovecot has keys for one client only."""
    token = ISSUER.token("RS256", azp="unknown-to-dovecot")
    message = b"user=%b\1auth=Bearer %b\1\1" % (USER.encode(), token)
    with connected(places) as imap, pytest.raises(imaplib.IMAP4.error):
        imap.authenticate("XOAUTH2", lambda _: message)
    eventually(lambda: places.proxy.event("upstream_failed", stage="login"), "upstream_failed")


def test_password_is_for_the_service_to_decide(places: Places) -> None:
    with connected(places) as imap, pytest.raises(imaplib.IMAP4.error, match="no passwords here"):
        imap.login(USER, "secret")


def test_metrics_and_log_have_results_and_no_token(places: Places) -> None:
    with imaplib.IMAP4("127.0.0.1", places.ports["imap-XOAUTH2"]) as imap:
        token = ISSUER.token(exp=1)
        with pytest.raises(imaplib.IMAP4.error):
            imap.authenticate("XOAUTH2", lambda _: b"user=\1auth=Bearer %b\1\1" % token)
    event = places.proxy.event("token_refused", reason="expired")
    assert event["issuer"] == ISSUER.name
    assert places.proxy.value("mailproxy_oauth_validations_total", result="expired") >= 1
    assert places.proxy.value("mailproxy_oauth_jwks_fetches_total", result="ok") >= 1
    log = places.proxy.running.output_text()
    assert token.decode() not in log
    assert b64decode(token.split(b".")[2] + b"==", b"-_").hex() not in log


def test_keys_are_fetched_once_for_all_logins(places: Places) -> None:
    assert len(places.keys.requests) == 1
