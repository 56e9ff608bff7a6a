# SPDX-License-Identifier: Apache-2.0
"""``openssl s_client`` and ``curl``: STARTTLS, ALPN and client certificates with independent code."""

from __future__ import annotations

from typing import Final

import pytest

from mailproxy_config.model import CertificateFiles
from support.needs import Needs
from support.servers.auth_service import AuthService
from support.servers.certificates import Certificates
from support.servers.dovecot import Dovecot
from support.servers.postfix import Postfix
from support.servers.programs import run_program
from support.servers.shared_proxy import SharedProxy

pytestmark = pytest.mark.interop

LOGIN: Final = {
    "imap": "a LOGIN carol christmas\nb LOGOUT\n",
    "pop3": "USER carol\nPASS christmas\nQUIT\n",
    "smtp": "EHLO client.example.org\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\nQUIT\n",
}
LOGGED_IN: Final = {"imap": "a OK", "pop3": "+OK Logged in.", "smtp": "235 2.0.0 OK"}


def s_client(
    needs: Needs,
    tls: Certificates,
    port: int,
    *options: str,
    lines: str = "",
    certificate_name: CertificateFiles | None = None,
) -> str:
    """Connect, send lines, and return all output until the server closes the connection."""
    certificate = (
        []
        if certificate_name is None
        else ["-cert", certificate_name.certificate, "-key", certificate_name.key]
    )
    return run_program(
        [
            needs("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", tls.authority,
            "-verify_return_error", "-crlf", "-ign_eof", *certificate, *options,
        ],
        stdin=lines,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_openssl_logs_in_after_starttls(
    needs: Needs, postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, protocol: str, version: str
) -> None:
    options = ("-starttls", protocol, version)
    output = s_client(needs, tls, shared_proxy.ports[protocol], *options, lines=LOGIN[protocol])
    assert "Verify return code: 0 (ok)" in output
    assert LOGGED_IN[protocol] in output


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_openssl_negotiates_alpn(
    needs: Needs, postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, protocol: str
) -> None:
    port = shared_proxy.ports[f"{protocol}s"]
    output = s_client(needs, tls, port, "-alpn", f"h2,{protocol}", lines=LOGIN[protocol])
    assert f"ALPN protocol: {protocol}" in output
    assert LOGGED_IN[protocol] in output


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_unknown_alpn_protocol_is_rejected(
    needs: Needs, shared_proxy: SharedProxy, tls: Certificates, protocol: str
) -> None:
    output = s_client(needs, tls, shared_proxy.ports[f"{protocol}s"], "-alpn", "http/1.1")
    assert "no application protocol" in output


def test_openssl_resumes_a_session(needs: Needs, shared_proxy: SharedProxy, tls: Certificates) -> None:
    """``-reconnect`` resumes the session five times, with its ticket."""
    output = s_client(needs, tls, shared_proxy.ports["pop3s"], "-tls1_2", "-reconnect", lines="QUIT\n")
    assert output.count("Reused, TLSv1.2") == 5


@pytest.mark.parametrize(
    ("listener", "certificate_name", "greeting"),
    [
        ("imap-required-tls", "alice", "* OK IMAP4 ready"),
        ("imap-required-tls", None, "* BYE No required SSL certificate"),
        ("imap-required-tls", "stranger", "* BYE SSL certificate error"),
        ("pop3-optional-tls", "alice", "+OK POP3 ready"),
        ("pop3-optional-tls", None, "+OK POP3 ready"),
        ("pop3-optional-tls", "stranger", "-ERR SSL certificate error"),
        ("smtp-no-ca-tls", "alice", "220 front.example.org"),
        ("smtp-no-ca-tls", None, "220 front.example.org"),
        ("smtp-no-ca-tls", "stranger", "220 front.example.org"),
    ],
)
def test_client_certificate_is_checked_by_ssl_verify_client(
    needs: Needs,
    shared_proxy: SharedProxy,
    tls: Certificates,
    listener: str,
    certificate_name: str | None,
    greeting: str,
) -> None:
    client_certificate = None if certificate_name is None else getattr(tls, certificate_name)
    lines = "a LOGOUT\n" if listener.startswith("imap") else "QUIT\n"
    output = s_client(
        needs, tls, shared_proxy.ports[listener], lines=lines, certificate_name=client_certificate
    )
    assert f"\n{greeting}" in output.replace("\r", "")


@pytest.mark.parametrize(
    ("protocol", "listener", "lines", "verify_result"),
    [
        ("imap", "imap-required", "a AUTHENTICATE EXTERNAL\nYWxpY2U=\nb LOGOUT\n", "SUCCESS"),
        ("pop3", "pop3-optional", "AUTH EXTERNAL\nYWxpY2U=\nQUIT\n", "SUCCESS"),
        ("smtp", "smtp-no-ca", "EHLO x\nAUTH EXTERNAL YWxpY2U=\nQUIT\n", "SUCCESS"),
    ],
)
def test_external_logs_in_with_the_client_certificate(
    needs: Needs,
    postfix: Postfix,
    shared_proxy: SharedProxy,
    tls: Certificates,
    service: AuthService,
    protocol: str,
    listener: str,
    lines: str,
    verify_result: str,
) -> None:
    """The client certificate of the handshake after STARTTLS is the only credential."""
    output = s_client(
        needs,
        tls,
        shared_proxy.ports[listener],
        "-starttls",
        protocol,
        lines=lines,
        certificate_name=tls.alice,
    )
    assert LOGGED_IN[protocol] in output
    auth_request = service.latest_request(f"/{listener}")
    assert (auth_request["auth-method"], auth_request["auth-ssl-verify"]) == ("external", verify_result)
    assert auth_request["auth-ssl-subject"] == "CN=alice,O=Example"
    assert auth_request["auth-ssl-issuer"] == "CN=Test CA"


def test_untrusted_certificate_is_reported_to_the_auth_service(
    needs: Needs, postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates, service: AuthService
) -> None:
    """Verification fails; the authentication service gets the result and the subject, and decides."""
    lines = "EHLO x\nAUTH PLAIN AGNhcm9sAGNocmlzdG1hcw==\nQUIT\n"
    output = s_client(
        needs, tls, shared_proxy.ports["smtp-no-ca-tls"], lines=lines, certificate_name=tls.stranger
    )
    assert LOGGED_IN["smtp"] in output
    auth_request = service.latest_request("/smtp-no-ca")
    assert auth_request["auth-ssl-verify"].startswith("FAILED:self-signed certificate")
    assert auth_request["auth-ssl-subject"] == "CN=mallory"


def curl(needs: Needs, tls: Certificates, user: str, url: str, *options: str, lines: str = "") -> str:
    """Run curl; ``--ssl-reqd`` makes it fail where TLS is not available."""
    command = [
        needs("curl"), "--silent", "--show-error", "--max-time", "20", "--cacert", tls.authority,
        "--user", user, *options, url,
    ]  # fmt: skip
    return run_program(command, stdin=lines)


@pytest.mark.parametrize(
    ("listener", "scheme", "path", "options", "expected"),
    [
        ("imap", "imap", "", ["-X", "STATUS INBOX (MESSAGES)"], "* STATUS INBOX (MESSAGES "),
        ("imap", "imap", "", ["--login-options", "AUTH=CRAM-MD5"], '* LIST (\\HasNoChildren) "." INBOX'),
        ("imaps", "imaps", "", ["--login-options", "AUTH=LOGIN"], '"." INBOX'),
        ("pop3", "pop3", "", ["-X", "CAPA"], "PIPELINING"),
        ("pop3", "pop3", "", ["--login-options", "AUTH=CRAM-MD5", "-X", "UIDL"], ""),
        ("pop3", "pop3", "", ["--login-options", "AUTH=LOGIN", "-X", "UIDL"], ""),
        ("pop3s", "pop3s", "", ["--login-options", "AUTH=PLAIN", "-X", "CAPA"], "PIPELINING"),
    ],
)
def test_curl_reads_mail(
    needs: Needs,
    dovecot: Dovecot,
    shared_proxy: SharedProxy,
    tls: Certificates,
    listener: str,
    scheme: str,
    path: str,
    options: list[str],
    expected: str,
) -> None:
    url = f"{scheme}://localhost:{shared_proxy.ports[listener]}/{path}"
    required = [] if scheme.endswith("s") else ["--ssl-reqd"]
    output = curl(needs, tls, "carol:christmas", url, *required, *options)
    assert expected in output
    assert "curl: (" not in output


def test_curl_sends_a_message(
    needs: Needs, postfix: Postfix, shared_proxy: SharedProxy, tls: Certificates
) -> None:
    url = f"smtps://localhost:{shared_proxy.ports['smtps']}/client.example.org"
    envelope = ["--mail-from", "carol@example.org", "--mail-rcpt", "carol@example.org", "--upload-file", "-"]
    output = curl(needs, tls, "carol:christmas", url, *envelope, lines="Subject: from curl\n\nhello\n")
    assert output == ""
