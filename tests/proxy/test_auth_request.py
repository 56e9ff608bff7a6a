# SPDX-License-Identifier: Apache-2.0
"""The bytes of a request to the authentication service."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.request import RequestTemplate
from mailproxy.enums import Method
from mailproxy.protocols.types import (
    AuthRequest,
    Client,
    ClientCertificate,
    Credentials,
    Envelope,
    ProxyAddresses,
    Secret,
    TlsInfo,
)
from mailproxy_config.model import AuthHttp, Protocol, VerifyClient
from support.configs import server

SALT = b"<805173193.1795355166@mx>"
LOCAL = AuthHttp(host="127.0.0.1", port=80, uri="/")


def template(
    protocol: Protocol = Protocol.IMAP, *, keep_alive: bool = False, **directives: Any
) -> RequestTemplate:
    return RequestTemplate(server(protocol, **directives), (), keep_alive=keep_alive)


def plain(user: bytes = b"john", password: bytes = b"secret") -> Credentials:
    return Credentials(Method.PASSWORD, user, Secret(password))


def certificate() -> ClientCertificate:
    return ClientCertificate(
        subject=b"CN=client,O=Ex\\, Inc",
        issuer=b"CN=CA",
        serial=b"0A1B",
        fingerprint=b"ab" * 20,
        pem=b"-----BEGIN CERTIFICATE-----\nAB+/=\n-----END CERTIFICATE-----\n",
        common_name=b"client",
    )


def test_imap_login_in_clear_with_a_configured_header() -> None:
    rendered_request = RequestTemplate(
        server(Protocol.IMAP), [(b"X-Auth-Key", Secret(b"secret_string"))], keep_alive=False
    )
    request = AuthRequest(plain(password=b"pass word"), 1, Client("192.0.2.42", 40000))
    assert rendered_request.render(request) == (
        b"GET /cgi-bin/nginxauth.cgi HTTP/1.0\r\n"
        b"Host: localhost\r\n"
        b"Auth-Method: plain\r\n"
        b"Auth-User: john\r\n"
        b"Auth-Pass: pass%20word\r\n"
        b"Auth-Protocol: imap\r\n"
        b"Auth-Login-Attempt: 1\r\n"
        b"Client-IP: 192.0.2.42\r\n"
        b"X-Auth-Key: secret_string\r\n"
        b"\r\n"
    )


def test_smtp_cram_md5_over_tls() -> None:
    client = Client("192.0.2.42", tls=TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    digest = Secret(b"b913a602c7eda7a495b4e6e7334d3890")
    request = AuthRequest(Credentials(Method.CRAM_MD5, b"john", digest, SALT), 2, client)
    assert template(Protocol.SMTP, auth_http=LOCAL).render(request) == (
        b"GET / HTTP/1.0\r\n"
        b"Host: 127.0.0.1\r\n"
        b"Auth-Method: cram-md5\r\n"
        b"Auth-User: john\r\n"
        b"Auth-Pass: b913a602c7eda7a495b4e6e7334d3890\r\n"
        b"Auth-Salt: <805173193.1795355166@mx>\r\n"
        b"Auth-Protocol: smtp\r\n"
        b"Auth-Login-Attempt: 2\r\n"
        b"Client-IP: 192.0.2.42\r\n"
        b"Client-Host: [UNAVAILABLE]\r\n"
        b"Auth-SSL: on\r\n"
        b"Auth-SSL-Protocol: TLSv1.3\r\n"
        b"Auth-SSL-Cipher: TLS_AES_256_GCM_SHA384\r\n"
        b"\r\n"
    )


def test_smtp_without_authentication_behind_a_balancer() -> None:
    proxied = ProxyAddresses(b"192.0.2.1", b"192.0.2.2", 56324, 25)
    client = Client("10.0.0.7", proxied=proxied, host=b"mail.example.net")
    envelope = Envelope(b"mail.example.net", b"MAIL FROM:<>", b"RCPT TO:<postmaster@example.org>")
    request = AuthRequest(Credentials(Method.NONE), 1, client, envelope)
    assert template(Protocol.SMTP, auth_http=LOCAL).render(request) == (
        b"GET / HTTP/1.0\r\n"
        b"Host: 127.0.0.1\r\n"
        b"Auth-Method: none\r\n"
        b"Auth-User: \r\n"
        b"Auth-Pass: \r\n"
        b"Auth-Protocol: smtp\r\n"
        b"Auth-Login-Attempt: 1\r\n"
        b"Client-IP: 10.0.0.7\r\n"
        b"Client-Host: mail.example.net\r\n"
        b"Proxy-Protocol-Addr: 192.0.2.1\r\n"
        b"Proxy-Protocol-Port: 56324\r\n"
        b"Proxy-Protocol-Server-Addr: 192.0.2.2\r\n"
        b"Proxy-Protocol-Server-Port: 25\r\n"
        b"Auth-SMTP-Helo: mail.example.net\r\n"
        b"Auth-SMTP-From: MAIL FROM:<>\r\n"
        b"Auth-SMTP-To: RCPT TO:<postmaster@example.org>\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (Method.PASSWORD, b"plain"),
        (Method.PLAIN, b"plain"),
        (Method.LOGIN, b"plain"),
        (Method.CRAM_MD5, b"cram-md5"),
        (Method.APOP, b"apop"),
        (Method.EXTERNAL, b"external"),
        (Method.NONE, b"none"),
    ],
)
def test_auth_method_names_are_those_of_nginx(method: Method, word: bytes) -> None:
    rendered = template().render(AuthRequest(Credentials(method), 1, Client("192.0.2.1")))
    assert b"Auth-Method: " + word + b"\r\nAuth-User: \r\nAuth-Pass: \r\n" in rendered


def test_keepalive_request_differs_only_in_http_1_1() -> None:
    request = AuthRequest(plain(), 1, Client("192.0.2.1"))
    kept = template(keep_alive=True).render(request)
    assert kept.startswith(b"GET /cgi-bin/nginxauth.cgi HTTP/1.1\r\n")
    assert kept.replace(b"HTTP/1.1", b"HTTP/1.0") == template().render(request)


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"a b%c", b"a%20b%25c"),
        (b"\x00\t\r\n\x1f", b"%00%09%0D%0A%1F"),
        (b'\x7f\xe4"+=/&?', b'\x7f\xe4"+=/&?'),
        (b"", b""),
    ],
)
def test_user_and_password_are_escaped_as_in_nginx(raw: bytes, escaped: bytes) -> None:
    rendered = template().render(AuthRequest(plain(raw, raw), 1, Client("192.0.2.1")))
    assert b"Auth-User: %b\r\nAuth-Pass: %b\r\n" % (escaped, escaped) in rendered


@pytest.mark.parametrize(
    ("where", "start"),
    [
        (AuthHttp(host="auth", uri="?q=1"), b"GET /?q=1 HTTP/1.0\r\nHost: auth\r\n"),
        (AuthHttp(host="[::1]", port=9000, uri="/x"), b"GET /x HTTP/1.0\r\nHost: [::1]\r\n"),
        (AuthHttp(host="localhost", unix_path="/run/a", uri="/"), b"GET / HTTP/1.0\r\nHost: localhost\r\n"),
        (AuthHttp(host="auth", uri=""), b"GET / HTTP/1.0\r\nHost: auth\r\n"),
    ],
)
def test_host_has_no_port_and_target_begins_with_a_slash(where: AuthHttp, start: bytes) -> None:
    assert template(auth_http=where).render(AuthRequest(plain(), 1, Client("192.0.2.1"))).startswith(start)


VERDICTS = [
    # tls                                                                       line or nothing
    (TlsInfo("TLSv1.2", "X"), b"\r\nAuth-SSL-Verify: NONE\r\n\r\n"),
    (
        TlsInfo("TLSv1.2", "X", certificate=certificate()),
        b"\r\nAuth-SSL-Verify: SUCCESS\r\nAuth-SSL-Subject: ",
    ),
    (
        TlsInfo(
            "TLSv1.2", "X", certificate=certificate(), verify_code=18, verify_error=b"self-signed certificate"
        ),
        b"\r\nAuth-SSL-Verify: FAILED:self-signed certificate\r\nAuth-SSL-Subject: ",
    ),
]


@pytest.mark.parametrize(("tls", "line"), VERDICTS)
def test_auth_ssl_verify_header(tls: TlsInfo, line: bytes) -> None:
    rendered_request = template(ssl_verify_client=VerifyClient.OPTIONAL_NO_CA)
    assert line in rendered_request.render(AuthRequest(plain(), 1, Client("192.0.2.1", tls=tls)))


def test_client_certificate_headers() -> None:
    client = Client("192.0.2.1", tls=TlsInfo("TLSv1.2", "X", certificate=certificate()))
    request = AuthRequest(plain(), 1, client)
    described = (
        b"\r\nAuth-SSL-Verify: SUCCESS"
        b"\r\nAuth-SSL-Subject: CN=client,O=Ex\\, Inc"
        b"\r\nAuth-SSL-Issuer: CN=CA"
        b"\r\nAuth-SSL-Serial: 0A1B"
        b"\r\nAuth-SSL-Fingerprint: " + b"ab" * 20
    )
    passed = b"\r\nAuth-SSL-Cert: -----BEGIN%20CERTIFICATE-----%0AAB+/=%0A-----END%20CERTIFICATE-----%0A"
    wanted: dict[str, Any] = {"ssl_verify_client": VerifyClient.REQUIRED}
    assert template(**wanted).render(request).endswith(described + b"\r\n\r\n")
    both = template(**wanted, auth_http_pass_client_cert=True).render(request)
    assert both.endswith(described + passed + b"\r\n\r\n")


def test_no_certificate_headers_without_ssl_verify_client() -> None:
    client = Client("192.0.2.1", tls=TlsInfo("TLSv1.2", "X", certificate=certificate()))
    assert b"Verify" not in template().render(AuthRequest(plain(), 1, client))


def test_client_ip_of_unix_and_mapped_clients() -> None:
    assert b"\r\nClient-IP: unix:\r\n" in template().render(AuthRequest(plain(), 1, Client("unix:")))
    mapped = Client("::ffff:192.0.2.1")
    assert b"\r\nClient-IP: ::ffff:192.0.2.1\r\n" in template().render(AuthRequest(plain(), 1, mapped))


@pytest.mark.parametrize("text", ["%", "%b%d", "a%20b", "%%"])
def test_configured_values_are_sent_literally(text: str) -> None:
    data = text.encode()
    where = AuthHttp(host=text, uri=f"/{text}")
    rendered_request = RequestTemplate(
        server(Protocol.IMAP, auth_http=where), [(data, data)], keep_alive=True
    )
    rendered = rendered_request.render(AuthRequest(plain(b"%b%d", b"100 %"), 1, Client("192.0.2.1")))
    assert rendered.startswith(b"GET /%b HTTP/1.1\r\nHost: %b\r\n" % (data, data))
    assert rendered.endswith(b"\r\nClient-IP: 192.0.2.1\r\n%b: %b\r\n\r\n" % (data, data))
    assert b"\r\nAuth-User: %25b%25d\r\nAuth-Pass: 100%20%25\r\n" in rendered


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-Key", b"a\r\nAuth-User: root"),
        (b"X-Key", b"a\nb"),
        (b"X-Key", Secret(b"a\0b")),
        (b"X Key", b"a"),
        (b"X-Key:", b"a"),
        (b"", b"a"),
    ],
)
def test_configured_header_with_a_line_break_is_refused(name: bytes, value: Secret | bytes) -> None:
    with pytest.raises(ValueError, match="auth_http_header") as refusal:
        RequestTemplate(server(Protocol.IMAP), [(name, value)], keep_alive=True)
    assert "root" not in str(refusal.value)


@pytest.mark.parametrize("where", [AuthHttp(host="a\r\nb"), AuthHttp(host="a", uri="/\n")])
def test_address_with_a_line_break_is_refused(where: AuthHttp) -> None:
    with pytest.raises(ValueError, match="auth_http"):
        template(auth_http=where)


@given(st.binary(), st.binary(), st.binary(), st.binary(), st.binary())
def test_client_input_never_begins_a_header_line(
    user: bytes, password: bytes, helo: bytes, mail: bytes, host: bytes
) -> None:
    client = Client("192.0.2.1", host=host, proxied=ProxyAddresses(host, helo, 1, 2))
    credentials = Credentials(Method.APOP, user, Secret(password), helo)
    rendered = template(Protocol.SMTP).render(AuthRequest(credentials, 1, client, Envelope(helo, mail, mail)))
    head, blank, rest = rendered.partition(b"\r\n\r\n")
    assert (blank, rest) == (b"\r\n\r\n", b"")
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n") == 16
    assert b"\0" not in head
