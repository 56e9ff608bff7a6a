# SPDX-License-Identifier: Apache-2.0
"""Headers with more facts for the authentication service (``auth_http_facts``)."""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.facts import facts_headers, traceparent
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.enums import Method
from mailproxy.protocols.types import (
    AuthRequest,
    Client,
    ClientCertificate,
    Credentials,
    ProxyAddresses,
    Secret,
    TlsInfo,
)
from mailproxy_config.model import AuthHttp, ListenConfig, Protocol, ServerConfig, VerifyClient
from support import configs
from support.loopback_worker import http_response, loopback_worker, run
from support.tls_authority import Authority

SESSION: Final = "0f3a-1c"
TRACE: Final = hashlib.sha256(SESSION.encode()).hexdigest()
OF_SESSION: Final = f"X-Session-ID: {SESSION}\r\ntraceparent: 00-{TRACE[:32]}-{TRACE[32:48]}-01".encode()


def client(address: str = "192.0.2.1", *, tls: TlsInfo | None = None) -> Client:
    return Client(address, 4711, "198.51.100.7", 993, tls=tls, session_id=SESSION)


def request(of: Client, *headers: tuple[bytes, Secret | bytes], **directives: Any) -> bytes:
    values: dict[str, Any] = {"auth_http_facts": True, **directives}
    template = RequestTemplate(configs.server(Protocol.IMAP, **values), headers, keep_alive=False)
    return template.render(AuthRequest(Credentials(Method.PLAIN, b"u", Secret(b"p")), 1, of))


def test_facts_follow_the_headers_of_nginx() -> None:
    assert request(client(), (b"X-Key", b"k")).endswith(
        b"\r\nClient-IP: 192.0.2.1"
        b"\r\nClient-Port: 4711\r\nServer-Addr: 198.51.100.7\r\nServer-Port: 993\r\n"
        + OF_SESSION
        + b"\r\nX-Key: k\r\n\r\n"
    )


def test_no_fact_is_sent_without_the_directive() -> None:
    with_facts, without = request(client()), request(client(), auth_http_facts=False)
    assert without == with_facts.replace(facts_headers(client()), b"")
    for name in (b"Client-Port", b"Server-Addr", b"Server-Port", b"X-Session-ID", b"traceparent"):
        assert name not in without


def test_server_name_is_sent_with_tls() -> None:
    of = client(tls=TlsInfo("TLSv1.3", "c", server_name=b"mail.example"))
    assert request(of).endswith(OF_SESSION + b"\r\nAuth-SSL-Server-Name: mail.example\r\n\r\n")
    assert b"Auth-SSL-Server-Name" not in request(client(tls=TlsInfo("TLSv1.3", "c")))


@pytest.mark.parametrize("name", [b"a\r\nAuth-User: root", b"a b", b"", b"\xc3\xa4.example", b"x" * 254])
def test_server_name_that_is_no_host_name_is_left_out(name: bytes) -> None:
    rendered = request(client(tls=TlsInfo("TLSv1.3", "c", server_name=name)))
    assert b"Server-Name" not in rendered
    assert b"root" not in rendered


def test_fingerprint_is_that_of_the_certificate(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue(names=("client.example",))
    pem = Path(issued.files.certificate).read_bytes()
    pem = pem[: pem.index(b"-----END CERTIFICATE-----") + len(b"-----END CERTIFICATE-----\n")]
    sent = ClientCertificate(b"CN=c", b"CN=CA", b"0A", b"ab" * 20, pem, b"c")
    of = client(tls=TlsInfo("TLSv1.3", "c", certificate=sent))
    rendered = request(of, ssl_verify_client=VerifyClient.OPTIONAL)

    expected = issued.certificate.fingerprint(hashes.SHA256()).hex().encode()
    assert b"\r\nAuth-SSL-Fingerprint: " + b"ab" * 20 + b"\r\n" in rendered
    assert rendered.endswith(b"\r\nAuth-SSL-Fingerprint-SHA256: " + expected + b"\r\n\r\n")
    assert b"SHA256" not in request(client(tls=TlsInfo("TLSv1.3", "c")))


def test_addresses_are_those_of_a_believed_proxy_header() -> None:
    of = Client("203.0.113.9", 5555, "10.0.0.1", 143, session_id=SESSION)
    of.proxied = ProxyAddresses(b"203.0.113.9", b"203.0.113.1", 5555, 993)
    of.proxied_destination = ("203.0.113.1", 993)
    assert facts_headers(of).startswith(
        b"\r\nClient-Port: 5555\r\nServer-Addr: 203.0.113.1\r\nServer-Port: 993\r\n"
    )


def test_client_of_a_unix_socket_has_no_ports() -> None:
    of = Client("unix:", 0, "unix:/run/imap.sock", 0, session_id=SESSION)
    assert facts_headers(of) == b"\r\nServer-Addr: unix:/run/imap.sock\r\n" + OF_SESSION
    assert facts_headers(Client("unix:", session_id=SESSION)) == b"\r\n" + OF_SESSION


def test_trace_context_is_the_same_for_all_requests_of_a_session() -> None:
    assert traceparent(client()) == traceparent(client("192.0.2.2"))
    other = client()
    other.session_id = "0f3a-1d"
    assert traceparent(client()) != traceparent(other)
    assert re.fullmatch(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01", traceparent(client()))


@given(name=st.binary(max_size=300))
def test_no_byte_of_a_client_ends_a_header(name: bytes) -> None:
    lines = facts_headers(client(tls=TlsInfo("TLSv1.3", "c", server_name=name)))
    assert re.fullmatch(rb"(?:\r\n[A-Za-z0-9-]+: [!-~]+)+", lines)


def test_facts_of_a_tls_client_reach_the_service(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own, of_client = authority.issue(names=("mail.example",)), authority.issue(names=("client.example",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.file)
    context.load_cert_chain(of_client.files.certificate, of_client.files.key)

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(
            Protocol.IMAP,
            auth_http=auth,
            auth_http_facts=True,
            listen=(replace(listen, ssl=True),),
            ssl_certificate=(own.files,),
            ssl_verify_client=VerifyClient.OPTIONAL,
            ssl_client_certificate=authority.file,
        )

    async def play() -> None:
        async with loopback_worker(build, http_response("Auth-Status: No\r\n")) as w:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", w.port, ssl=context, server_hostname="mail.example"
            )
            await reader.readline()
            port = writer.get_extra_info("sockname")[1]
            writer.write(b"a LOGIN alice secret\r\n")
            assert await reader.readline() == b"a NO No\r\n"
            writer.close()
            [sent] = w.auth.requests
            fingerprint = of_client.certificate.fingerprint(hashes.SHA256()).hex().encode()
            for line in (
                b"Client-Port: %d" % port,
                b"Server-Addr: 127.0.0.1",
                b"Server-Port: %d" % w.port,
                b"Auth-SSL-Server-Name: mail.example",
                b"Auth-SSL-Fingerprint-SHA256: " + fingerprint,
            ):
                assert b"\r\n" + line + b"\r\n" in sent
            [session] = re.findall(rb"X-Session-ID: ([0-9a-f-]+)", sent)
            assert f"session {session.decode()} imap" in w.read_log()

    run(play)
