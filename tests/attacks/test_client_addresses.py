# SPDX-License-Identifier: Apache-2.0
"""Values that a client chooses must not start a line of a request or of a command."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mailproxy.auth_http.request import RequestTemplate
from mailproxy.enums import Method
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.sansio import Send
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy.protocols.types import (
    AuthAllowed,
    AuthRequest,
    Client,
    ClientCertificate,
    Credentials,
    Envelope,
    ProxyAddresses,
    Secret,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy.session.accept import Listener
from mailproxy_config.model import Protocol, SendProxyProtocol, VerifyClient
from support import configs
from support.checked_worker import LOGINS, checked_worker, read_until_closed, server_builder
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, run

HOSTILE = "x\r\nInjected: yes\r\n\r\nMAIL FROM:<evil@example.org>\r\n\0"


async def connect_from(w: LoopbackWorker, folder: Path, name: str) -> Peer:
    """Connect to the server through a UNIX socket, from a socket with this name."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "listening"))
    listening.listen()
    listening.setblocking(False)
    app = w.app
    listener = Listener(app.context, "unix", listening, app.listeners[0].default, {})
    app.listeners.append(listener)
    listener.open()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fsencode(folder) + b"/" + name.encode())
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, str(folder / "listening"))
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    w.writers.append(writer)
    return Peer(reader, writer)


@pytest.mark.parametrize("protocol", Protocol, ids=str)
def test_client_socket_path_reaches_neither_service_nor_upstream(protocol: Protocol, tmp_path: Path) -> None:
    async def play() -> None:
        async with checked_worker(
            server_builder(protocol, xclient=True), http_response("Auth-Status: no\r\n")
        ) as w:
            client = await connect_from(w, tmp_path, "x\r\nInjected: yes\r\n\r\nGET ")
            await client.read_line()
            await client.send(LOGINS[protocol])
            assert b"no\r\n" in await read_until_closed(client)
            (request,) = w.auth.requests
            assert b"\r\nClient-IP: unix:\r\n" in request
            assert b"Injected" not in request
            assert "Injected" not in w.read_log()

    run(play)


def test_client_socket_path_does_not_reach_xclient(tmp_path: Path) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(Protocol.SMTP, xclient=True), http_response(GRANT)) as w:
            client = await connect_from(w, tmp_path, "x\r\nQUIT\r\n")
            await client.read_line()
            await client.send(LOGINS[Protocol.SMTP])
            upstream = await w.upstream.accept()
            await upstream.send(b"220 hello\r\n")
            await upstream.read_line()
            command = await upstream.exchange(b"250 hello\r\n")
            assert command.startswith(b"XCLIENT ADDR=unix: ")
            client.close()
            upstream.close()

    run(play)


def texts(value: object, path: str = "") -> Iterator[tuple[object, str, type]]:
    """Return each text field of a value, as its owner, its name and its type."""
    if is_dataclass(value):
        for field in fields(value):
            inner = getattr(value, field.name)
            if type(inner) in (str, bytes, Secret):
                yield value, field.name, type(inner)
            else:
                yield from texts(inner, f"{path}.{field.name}")


def request() -> AuthRequest:
    certificate = ClientCertificate(b"CN=c", b"CN=i", b"01", b"ab" * 20, b"pem", b"c")
    tls = TlsInfo(
        "TLSv1.3", "TLS_AES_256_GCM_SHA384", server_name=b"mx", alpn=b"smtp", certificate=certificate,
        verify_code=18, verify_error=b"self-signed", own_signature=b"RSA-SHA256", own_key=b"RSA2048",
    )  # fmt: skip
    proxied = ProxyAddresses(b"192.0.2.1", b"192.0.2.2", 1, 2)
    client = Client("192.0.2.1", 1, "192.0.2.2", 25, proxied=proxied, tls=tls, host=b"c.example")
    credentials = Credentials(Method.CRAM_MD5, b"u", Secret(b"p"), b"<1.2@mx>")
    return AuthRequest(credentials, 1, client, Envelope(b"c.example", b"MAIL FROM:<a>", b"RCPT TO:<b>"))


CHOSEN = sorted({(type(holder).__name__, name) for holder, name, _ in texts(request())})
NOT_CHOSEN = {
    ("Client", "address"),  # from the kernel, or parsed from a PROXY header: never a path
    ("TlsInfo", "version"),  # a string constant of OpenSSL
    ("TlsInfo", "cipher"),
    ("ClientCertificate", "serial"),  # hexadecimal digits
    ("ClientCertificate", "fingerprint"),
}


@pytest.mark.parametrize(("holder", "name"), [one for one in CHOSEN if one not in NOT_CHOSEN])
def test_no_request_field_starts_a_new_line(holder: str, name: str) -> None:
    server = configs.server(
        Protocol.SMTP, ssl_verify_client=VerifyClient.OPTIONAL_NO_CA, auth_http_pass_client_cert=True
    )
    template = RequestTemplate(server, (), keep_alive=True)
    made = request()
    before = template.render(made).count(b"\n")
    for value, field, kind in list(texts(made)):
        if (type(value).__name__, field) == (holder, name):
            hostile: Any = HOSTILE if kind is str else HOSTILE.encode()
            setattr(value, field, Secret(hostile) if kind is Secret else hostile)
    assert template.render(made).count(b"\n") == before


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "unix:"])
@pytest.mark.parametrize("sends", [SendProxyProtocol.V1, SendProxyProtocol.DISABLED])
def test_smtp_upstream_commands_are_single_lines(address: str, sends: SendProxyProtocol) -> None:
    server = configs.server(Protocol.SMTP, proxy_protocol=sends, proxy_smtp_auth=False)
    client = Client(address, 1, "unix:" if address == "unix:" else address, 25, host=b"c.example")
    granted = UpstreamLogin(AuthAllowed("192.0.2.9", 25, HOSTILE.encode()), Method.PLAIN, helo=b"c.example")
    dialogue = SmtpUpstream(server).log_in(client, granted)
    sent: list[bytes] = [outbound_header(server, client)]
    replies = iter([b"220 hello\r\n"])
    reply: Any = None
    while True:
        try:
            action = dialogue.send(reply)
        except StopIteration:
            break
        reply = None
        if isinstance(action, Send):
            sent.append(action.data)
        else:
            reply = next(replies, b"250 fine\r\n")
    assert len([line for line in sent if line.startswith(b"XCLIENT ADDR=")]) == 1
    assert all(line.count(b"\n") == 1 for line in sent if line)
