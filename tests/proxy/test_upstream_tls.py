# SPDX-License-Identifier: Apache-2.0
"""TLS to upstreams (``proxy_ssl``), with OpenSSL on the other side: each failure, no password in clear."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.enums import UpstreamTlsFailure
from mailproxy.tls.upstream_context import Peer as TlsPeer
from mailproxy.tls.upstream_context import build
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    Protocol,
    ProxySsl,
    Seconds,
    SendProxyProtocol,
    ServerConfig,
)
from support.configs import server
from support.loopback_worker import Builder, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.tls_authority import NOW, Authority, Issued
from support.upstream_tls import (
    GREETINGS,
    Connection,
    MailServer,
    Step,
    accept_login,
    mail_server,
    offer_tls,
    server_context,
    session,
)

PROTOCOLS: Final = tuple(Protocol)
MODES: Final = (ProxySsl.ENABLED, ProxySsl.STARTTLS)
NAME: Final = "mail.example.com"
PASSWORD: Final = b"correct-horse"
LOGINS: Final = {
    Protocol.IMAP: (b"a LOGIN alice correct-horse\r\n",),
    Protocol.POP3: (b"USER alice\r\n", b"PASS correct-horse\r\n"),
    Protocol.SMTP: (b"EHLO me.example\r\n", b"AUTH PLAIN " + b64encode(b"\0alice\0" + PASSWORD) + b"\r\n"),
}
SUCCESS: Final = {
    Protocol.IMAP: b"a OK logged in\r\n",
    Protocol.POP3: b"+OK logged in\r\n",
    Protocol.SMTP: b"235 2.0.0 OK\r\n",
}
INTERNAL_ERROR: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


def proxy(protocol: Protocol, mode: ProxySsl, authority: Authority, **directives: Any) -> Builder:
    """Return a builder of a server whose upstreams have ``NAME`` and certificates of the authority."""
    values: dict[str, Any] = {
        "proxy_ssl": mode,
        "proxy_ssl_name": NAME,
        "proxy_ssl_trusted_certificate": authority.file,
        "proxy_smtp_auth": True,
        "xclient": False,
        **directives,
    }

    def builder(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(protocol, auth_http=auth, listen=(listen,), **values)

    return builder


def grant(upstream: MailServer) -> bytes:
    return http_response(f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {upstream.port}\r\n")


async def log_in(w: LoopbackWorker, protocol: Protocol) -> tuple[Peer, bytes]:
    """Log in, and return the client with the last reply."""
    client = await w.client()
    reply = await client.read_line()
    for command in LOGINS[protocol]:
        reply = await client.exchange(command)
        while protocol is Protocol.SMTP and reply[3:4] == b"-":
            reply = await client.read_line()
    return client, reply


def failed(w: LoopbackWorker, protocol: Protocol) -> dict[UpstreamTlsFailure, int]:
    """Return the counted failures."""
    name = "mailproxy_upstream_tls_failures_total"
    counts = {each: w.value(name, protocol, each) for each in UpstreamTlsFailure}
    return {each: count for each, count in counts.items() if count}


def handshakes(w: LoopbackWorker, protocol: Protocol, resumed: str) -> int:
    found = w.value("mailproxy_upstream_tls_handshake_seconds", protocol, resumed)
    return sum(found[1:]) if found else 0


# --- logins -----------------------------------------------------------------------------------------


@every_protocol
@every_mode
def test_password_is_sent_inside_of_tls_only(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    with mail_server(session(protocol, mode), server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, mode, authority), grant(upstream)) as w:
                client, reply = await log_in(w, protocol)
                assert reply == SUCCESS[protocol]
                assert await client.read_to_eof() == b""
                assert handshakes(w, protocol, "false") == 1
                expiry = w.value("mailproxy_upstream_certificate_expiry_timestamp_seconds", protocol)
                assert expiry == issued.certificate.not_valid_after_utc.timestamp()

        run(play)
    secure, clear = bytes(upstream.connections[0].secure), upstream.received_in_clear()
    assert PASSWORD in secure or b64encode(b"\0alice\0" + PASSWORD) in secure
    assert b"alice" not in clear
    assert PASSWORD not in clear
    assert upstream.names == [NAME]


@every_protocol
@every_mode
def test_bytes_are_relayed_in_both_directions(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    data = b"".join(hashlib.sha512(bytes([number % 256, number // 256])).digest() for number in range(40_000))

    def swap(c: Connection) -> None:
        c.send(data)
        received = b""
        while len(received) < len(data):
            received += c.recv()
        c.send(hashlib.sha256(received).hexdigest().encode() + b"\r\n")

    with mail_server(session(protocol, mode, swap), server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, mode, authority), grant(upstream)) as w:
                client, reply = await log_in(w, protocol)
                assert reply == SUCCESS[protocol]
                assert await client.read_bytes(len(data)) == data
                assert await client.exchange(data) == hashlib.sha256(data).hexdigest().encode() + b"\r\n"
                assert await client.read_to_eof() == b""
                await w.wait_for_sessions()
                direction = "mailproxy_relayed_bytes_total"
                assert w.value(direction, protocol, "to_upstream") == len(data)

        run(play)


@every_protocol
def test_upstream_gets_the_end_of_the_client_as_close_notify(
    protocol: Protocol, authority: Authority, issued: Issued
) -> None:
    ends: list[bytes] = []

    def read_to_end(c: Connection) -> None:
        c.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # of an SSLSocket
        ends.append(c.recv())

    step = session(protocol, ProxySsl.ENABLED, read_to_end)
    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, ProxySsl.ENABLED, authority), grant(upstream)) as w:
                client, _ = await log_in(w, protocol)
                client.writer.write_eof()
                assert await client.read_to_eof() == b""
                await w.wait_for_sessions()

        run(play)
    assert ends == [b""]


@every_protocol
@every_mode
def test_proxy_header_comes_in_clear_before_tls(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    def step(c: Connection) -> None:
        assert c.read_line().startswith(b"PROXY TCP4 127.0.0.1 ")
        session(protocol, mode)(c)

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            made = proxy(protocol, mode, authority, proxy_protocol=SendProxyProtocol.V1)
            async with loopback_worker(made, grant(upstream)) as w:
                _, reply = await log_in(w, protocol)
                assert reply == SUCCESS[protocol]

        run(play)


def test_starttls_tag_differs_from_the_tag_of_the_client(authority: Authority, issued: Issued) -> None:
    def step(c: Connection) -> None:
        c.send(GREETINGS[Protocol.IMAP])
        assert c.answer(b"y1 OK\r\n") == b"y1 STARTTLS"
        c.start_tls()
        accept_login(Protocol.IMAP)(c)

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(
                proxy(Protocol.IMAP, ProxySsl.STARTTLS, authority), grant(upstream)
            ) as w:
                client = await w.client()
                await client.read_line()
                assert await client.exchange(b"x1 LOGIN alice correct-horse\r\n") == b"x1 OK logged in\r\n"

        run(play)


def test_capabilities_before_tls_are_forgotten(authority: Authority, issued: Issued) -> None:
    """LITERAL+ of the greeting in clear is not used after TLS."""

    def step(c: Connection) -> None:
        c.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+ STARTTLS] ready\r\n")
        c.answer(b"* CAPABILITY IMAP4rev1 LITERAL+\r\nx1 OK\r\n")
        c.start_tls()
        assert c.read_line() == b"a LOGIN {5}"

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(
                proxy(Protocol.IMAP, ProxySsl.STARTTLS, authority), grant(upstream)
            ) as w:
                await log_in(w, Protocol.IMAP)

        run(play)


def test_replies_to_starttls_may_come_byte_by_byte(authority: Authority, issued: Issued) -> None:
    def step(c: Connection) -> None:
        c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GREETINGS[Protocol.SMTP]:
            c.send(bytes([byte]))
        c.read_line()
        for byte in b"250-mail.example\r\n250 STARTTLS\r\n":
            c.send(bytes([byte]))
        c.read_line()
        for byte in b"220 go\r\n":
            c.send(bytes([byte]))
        c.start_tls()
        accept_login(Protocol.SMTP)(c)

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(
                proxy(Protocol.SMTP, ProxySsl.STARTTLS, authority), grant(upstream)
            ) as w:
                assert (await log_in(w, Protocol.SMTP))[1] == SUCCESS[Protocol.SMTP]

        run(play)


# --- names ------------------------------------------------------------------------------------------


@every_mode
def test_address_is_verified_without_a_name(mode: ProxySsl, authority: Authority) -> None:
    by_address = authority.issue(names=("127.0.0.1",))
    with mail_server(session(Protocol.POP3, mode), server_context(by_address)) as upstream:

        async def play() -> None:
            async with loopback_worker(
                proxy(Protocol.POP3, mode, authority, proxy_ssl_name=""), grant(upstream)
            ) as w:
                assert (await log_in(w, Protocol.POP3))[1] == SUCCESS[Protocol.POP3]

        run(play)
    assert upstream.names == [None], "an address is never sent in SNI (RFC 6066 section 3)"


def test_name_is_not_sent_without_proxy_ssl_server_name(authority: Authority, issued: Issued) -> None:
    with mail_server(session(Protocol.POP3, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            made = proxy(Protocol.POP3, ProxySsl.ENABLED, authority, proxy_ssl_server_name=False)
            async with loopback_worker(made, grant(upstream)) as w:
                assert (await log_in(w, Protocol.POP3))[1] == SUCCESS[Protocol.POP3]

        run(play)
    assert upstream.names == [None]


def test_nothing_is_verified_with_proxy_ssl_verify_off(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "CN=Stranger").issue(
        names=("other.example",), expires=NOW - dt.timedelta(1)
    )
    with mail_server(session(Protocol.POP3, ProxySsl.ENABLED), server_context(stranger)) as upstream:

        async def play() -> None:
            made = proxy(Protocol.POP3, ProxySsl.ENABLED, authority, proxy_ssl_verify=False)
            async with loopback_worker(made, grant(upstream)) as w:
                assert (await log_in(w, Protocol.POP3))[1] == SUCCESS[Protocol.POP3]

        run(play)
    assert upstream.names == [NAME]


def test_unix_socket_needs_a_name(authority: Authority, issued: Issued, tmp_path: Path) -> None:
    path = tmp_path / "mail"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        async def play() -> None:
            made = proxy(Protocol.POP3, ProxySsl.ENABLED, authority, proxy_ssl_name="")
            allowed = http_response(f"Auth-Status: OK\r\nAuth-Server: unix:{path}\r\n")
            async with loopback_worker(made, allowed) as w:
                assert (await log_in(w, Protocol.POP3))[1] == INTERNAL_ERROR[Protocol.POP3]
                assert failed(w, Protocol.POP3) == {UpstreamTlsFailure.NAME: 1}
                assert "set proxySslName" in w.read_log()

        run(play)


# --- failures ---------------------------------------------------------------------------------------

Certificates = Callable[[Authority, Path], Issued]


def another_authority(_: Authority, folder: Path) -> Issued:
    return Authority(folder, "CN=Stranger").issue(names=(NAME,))


BAD_CERTIFICATES: Final[dict[str, tuple[Certificates, UpstreamTlsFailure, str]]] = {
    "wrong name": (
        lambda authority, _: authority.issue(names=("other.example", "192.0.2.7")),
        UpstreamTlsFailure.NAME,
        "among its names (DNS:other.example, IP Address:192.0.2.7): set proxySslName",
    ),
    "name in the common name only": (
        lambda authority, _: authority.issue(f"CN={NAME}", names=()),
        UpstreamTlsFailure.NAME,
        "among its names (none): set proxySslName",
    ),
    "expired": (
        lambda authority, _: authority.issue(names=(NAME,), expires=NOW - dt.timedelta(days=1)),
        UpstreamTlsFailure.EXPIRED,
        "certificate has expired",
    ),
    "unknown authority": (another_authority, UpstreamTlsFailure.VERIFY, "set proxySslTrustedCertificate"),
    "self-signed": (
        lambda authority, _: authority.self_signed(f"CN={NAME}"),
        UpstreamTlsFailure.VERIFY,
        "self-signed certificate",
    ),
}


def test_names_of_a_certificate_in_the_log_are_limited(authority: Authority) -> None:
    many = authority.issue(names=tuple(f"host-{number}.example" for number in range(100)))
    step = refuses_login(Protocol.IMAP, ProxySsl.ENABLED)
    with mail_server(step, server_context(many)) as upstream:
        made = proxy(Protocol.IMAP, ProxySsl.ENABLED, authority)
        login_fails(made, Protocol.IMAP, upstream, UpstreamTlsFailure.NAME, "...): set proxySslName")


def refuses_login(protocol: Protocol, mode: ProxySsl) -> Step:
    """A session up to the handshake, which is expected to fail."""

    def step(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            offer_tls(protocol)(c)
        c.start_tls()
        c.recv()

    return step


def login_fails(
    builder: Builder, protocol: Protocol, upstream: MailServer, failure: UpstreamTlsFailure | None, text: str
) -> None:
    """Log in, expect a failure, and check that no credentials were sent."""

    async def play() -> None:
        async with loopback_worker(builder, grant(upstream)) as w:
            client, reply = await log_in(w, protocol)
            assert reply == INTERNAL_ERROR[protocol]
            assert await client.read_to_eof() == b""
            await w.wait_for_sessions()
            log = w.read_log()
            assert text in log.replace('\\"', '"')
            assert PASSWORD.decode() not in log
            assert failed(w, protocol) == ({} if failure is None else {failure: 1})
            if failure is not None:
                assert f"failure={failure}" in log
                assert w.value("mailproxy_upstream_errors_total", protocol, "tls") == 1

    run(play)
    assert b"alice" not in upstream.received()
    assert PASSWORD not in upstream.received()
    assert b64encode(b"\0alice\0" + PASSWORD) not in upstream.received()


@every_protocol
@every_mode
@pytest.mark.parametrize("case", BAD_CERTIFICATES)
def test_bad_certificate_is_rejected(
    protocol: Protocol, mode: ProxySsl, case: str, authority: Authority, tmp_path: Path
) -> None:
    issue, failure, text = BAD_CERTIFICATES[case]
    context = server_context(issue(authority, tmp_path))
    with mail_server(refuses_login(protocol, mode), context) as upstream:
        login_fails(proxy(protocol, mode, authority), protocol, upstream, failure, text)


@every_mode
def test_address_that_the_certificate_lacks_is_named_in_the_log(
    mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    text = f'"127.0.0.1" is not among its names (DNS:{NAME}): set proxySslName'
    with mail_server(refuses_login(Protocol.IMAP, mode), server_context(issued)) as upstream:
        made = proxy(Protocol.IMAP, mode, authority, proxy_ssl_name="")
        login_fails(made, Protocol.IMAP, upstream, UpstreamTlsFailure.NAME, text)


@every_mode
def test_revoked_certificate_is_rejected(mode: ProxySsl, authority: Authority, issued: Issued) -> None:
    revoked = authority.revocation_list(issued)
    with mail_server(refuses_login(Protocol.IMAP, mode), server_context(issued)) as upstream:
        made = proxy(Protocol.IMAP, mode, authority, proxy_ssl_crl=revoked)
        login_fails(made, Protocol.IMAP, upstream, UpstreamTlsFailure.VERIFY, "certificate revoked")


def test_chain_that_is_too_long_is_rejected(authority: Authority, tmp_path: Path) -> None:
    first = Authority(tmp_path, "CN=First", signer=authority)
    second = Authority(tmp_path, "CN=Second", signer=first)
    issued = second.issue(names=(NAME,))
    chain = Path(issued.files.certificate)
    chain.write_bytes(chain.read_bytes() + Path(second.file).read_bytes() + Path(first.file).read_bytes())
    text = "certificate chain too long"
    with mail_server(refuses_login(Protocol.IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:
        made = proxy(Protocol.IMAP, ProxySsl.ENABLED, authority)
        login_fails(made, Protocol.IMAP, upstream, UpstreamTlsFailure.VERIFY, text)
    with mail_server(session(Protocol.IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            deep = proxy(Protocol.IMAP, ProxySsl.ENABLED, authority, proxy_ssl_verify_depth=2)
            async with loopback_worker(deep, grant(upstream)) as w:
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]

        run(play)


def says(*lines: bytes) -> Step:
    """Send each of the lines, and read after it."""

    def step(c: Connection) -> None:
        for line in lines:
            c.send(line)
            c.read_line()

    return step


NOT_OFFERED: Final[dict[str, tuple[Protocol, Step]]] = {
    "IMAP greeting without STARTTLS": (Protocol.IMAP, says(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")),
    "IMAP PREAUTH": (Protocol.IMAP, says(b"* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n")),
    "IMAP NO": (Protocol.IMAP, offer_tls(Protocol.IMAP, go_ahead=b"x1 NO not now\r\n")),
    "IMAP BAD": (Protocol.IMAP, offer_tls(Protocol.IMAP, go_ahead=b"x1 BAD unknown\r\n")),
    "IMAP continuation": (Protocol.IMAP, offer_tls(Protocol.IMAP, go_ahead=b"+ go\r\n")),
    "IMAP another tag": (Protocol.IMAP, offer_tls(Protocol.IMAP, go_ahead=b"x11 OK\r\n")),
    "POP3 -ERR": (Protocol.POP3, offer_tls(Protocol.POP3, go_ahead=b"-ERR unknown\r\n")),
    "SMTP EHLO without STARTTLS": (Protocol.SMTP, says(GREETINGS[Protocol.SMTP], b"250-m\r\n250 SIZE\r\n")),
    "SMTP STARTTLS in another word": (Protocol.SMTP, says(GREETINGS[Protocol.SMTP], b"250 XSTARTTLS\r\n")),
    "SMTP EHLO 502": (Protocol.SMTP, says(GREETINGS[Protocol.SMTP], b"502 5.5.2 no\r\n")),
    "SMTP 454": (Protocol.SMTP, offer_tls(Protocol.SMTP, go_ahead=b"454 4.7.0 not now\r\n")),
    "SMTP 501": (Protocol.SMTP, offer_tls(Protocol.SMTP, go_ahead=b"501 5.5.4 no\r\n")),
}


@pytest.mark.parametrize("case", NOT_OFFERED)
def test_login_fails_without_starttls(case: str, authority: Authority, issued: Issued) -> None:
    protocol, step = NOT_OFFERED[case]
    with mail_server(step, server_context(issued)) as upstream:
        made = proxy(protocol, ProxySsl.STARTTLS, authority)
        login_fails(
            made,
            protocol,
            upstream,
            UpstreamTlsFailure.STRIPPED,
            "STARTTLS" if protocol is not Protocol.POP3 else "STLS",
        )


INJECTED: Final = {
    Protocol.IMAP: b"x1 OK begin TLS\r\n* CAPABILITY IMAP4rev1 LITERAL+\r\n",
    Protocol.POP3: b"+OK begin TLS\r\n+OK injected\r\n",
    Protocol.SMTP: b"220 2.0.0 begin TLS\r\n250 injected\r\n",
}


@every_protocol
@pytest.mark.parametrize("pause", [0.0, 0.2], ids=["in one segment", "in a later segment"])
def test_bytes_in_clear_behind_the_reply_to_starttls_end_the_login(
    protocol: Protocol, pause: float, authority: Authority, issued: Issued
) -> None:
    whole = INJECTED[protocol]
    first, rest = (whole, b"") if not pause else whole.split(b"\r\n", 1)

    def step(c: Connection) -> None:
        offer_tls(protocol, go_ahead=first + (b"\r\n" if pause else b""))(c)
        time.sleep(pause)
        if rest:
            c.send(rest)
        c.start_tls()
        c.recv()

    expected = UpstreamTlsFailure.PROTOCOL if pause else UpstreamTlsFailure.INJECTED
    text = "TLS handshake failed" if pause else "bytes in clear text after its reply"
    with mail_server(step, server_context(issued)) as upstream:
        login_fails(proxy(protocol, ProxySsl.STARTTLS, authority), protocol, upstream, expected, text)


def test_unread_bytes_in_clear_behind_the_reply_to_starttls_end_the_login(
    authority: Authority, issued: Issued
) -> None:
    """The reply fills ``proxy_buffer``: what follows is still in the kernel."""
    reply, rest = INJECTED[Protocol.POP3].split(b"\r\n", 1)
    step = offer_tls(Protocol.POP3, go_ahead=reply + b"\r\n" + rest)
    with mail_server(step, server_context(issued)) as upstream:
        made = proxy(Protocol.POP3, ProxySsl.STARTTLS, authority, proxy_buffer=len(reply) + 2)
        text = "bytes in clear text after its reply"
        login_fails(made, Protocol.POP3, upstream, UpstreamTlsFailure.INJECTED, text)


@pytest.mark.parametrize(
    ("protocol", "greeting"),
    [
        (Protocol.IMAP, b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n* OK half"),
        (Protocol.POP3, b"+OK ready\r\n+OK begin TLS\r\n"),
        (Protocol.SMTP, b"220 mail.example\r\n250 STARTTLS\r\n"),
    ],
)
def test_replies_that_come_before_their_commands_end_the_login(
    protocol: Protocol, greeting: bytes, authority: Authority, issued: Issued
) -> None:
    with mail_server(says(greeting), server_context(issued)) as upstream:
        made = proxy(protocol, ProxySsl.STARTTLS, authority)
        login_fails(made, protocol, upstream, UpstreamTlsFailure.INJECTED, "bytes in clear text")


UNAVAILABLE: Final = {
    Protocol.IMAP: (b"* BYE later\r\n", b"* BYE later\r\n"),
    Protocol.POP3: (b"-ERR [SYS/TEMP] later\r\n", b""),
    Protocol.SMTP: (b"421 4.3.2 later\r\n", b"421 4.3.2 later\r\n"),
}


@every_protocol
@every_mode
def test_unavailable_upstream_is_no_failure_of_tls(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    def step(c: Connection) -> None:
        if mode is ProxySsl.ENABLED:
            c.start_tls()
        c.send(UNAVAILABLE[protocol][0])

    with mail_server(step, server_context(issued)) as upstream:
        login_fails(proxy(protocol, mode, authority), protocol, upstream, None, "stage=greeting")


@pytest.mark.parametrize("protocol", [Protocol.IMAP, Protocol.SMTP])
def test_upstream_that_ends_at_starttls_is_no_failure_of_tls(
    protocol: Protocol, authority: Authority, issued: Issued
) -> None:
    step = offer_tls(protocol, go_ahead=UNAVAILABLE[protocol][1])
    with mail_server(step, server_context(issued)) as upstream:
        login_fails(proxy(protocol, ProxySsl.STARTTLS, authority), protocol, upstream, None, "stage=tls")


@every_protocol
@every_mode
def test_common_version_is_needed(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    context = server_context(issued)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with mail_server(refuses_login(protocol, mode), context) as upstream:
        made = proxy(protocol, mode, authority, proxy_ssl_protocols=frozenset({"TLSv1.3"}))
        login_fails(made, protocol, upstream, UpstreamTlsFailure.PROTOCOL, "TLS handshake failed")


@every_protocol
def test_upstream_that_speaks_no_tls_is_reported(
    protocol: Protocol, authority: Authority, issued: Issued
) -> None:
    """The usual mistake: ``Enabled`` with the port of the clear protocol."""
    with mail_server(says(GREETINGS[protocol]), server_context(issued)) as upstream:
        made = proxy(protocol, ProxySsl.ENABLED, authority)
        login_fails(made, protocol, upstream, UpstreamTlsFailure.PROTOCOL, "TLS handshake failed")


@every_protocol
@every_mode
def test_stalled_handshake_ends_after_timeout(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    def step(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            offer_tls(protocol)(c)
        while c.recv():
            pass

    with mail_server(step, server_context(issued)) as upstream:
        made = proxy(protocol, mode, authority, timeout=Seconds(0.5))
        login_fails(made, protocol, upstream, UpstreamTlsFailure.TIMEOUT, "TLS handshake timed out")


@every_protocol
@every_mode
def test_upstream_that_closes_in_the_handshake_is_reported(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    def step(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            offer_tls(protocol)(c)
        c.recv(5)

    with mail_server(step, server_context(issued)) as upstream:
        made = proxy(protocol, mode, authority)
        login_fails(made, protocol, upstream, UpstreamTlsFailure.REFUSED, "closed the connection")


def test_client_that_leaves_in_the_handshake_leaves_nothing(authority: Authority, issued: Issued) -> None:
    def step(c: Connection) -> None:
        c.recv(5)
        c.sock.settimeout(20)
        while c.recv():
            pass

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(
                proxy(Protocol.IMAP, ProxySsl.ENABLED, authority), grant(upstream)
            ) as w:
                client = await w.client()
                await client.read_line()
                await client.send(LOGINS[Protocol.IMAP][0])
                while not upstream.received():
                    await asyncio.sleep(0.01)
                client.reset()
                await w.wait_for_sessions()

        run(play)


# --- client certificates ----------------------------------------------------------------------------


def test_client_certificate_is_sent(authority: Authority, issued: Issued) -> None:
    own = authority.issue("CN=proxy", names=("proxy.example",), passphrase=b"opensesame")
    subjects: list[Any] = []

    def note_subject(c: Connection) -> None:
        assert isinstance(c.sock, ssl.SSLSocket)
        subjects.append((c.sock.getpeercert() or {})["subject"])

    context = server_context(issued, chain=authority.file)
    with mail_server(session(Protocol.IMAP, ProxySsl.ENABLED, note_subject), context) as upstream:

        async def play() -> None:
            made = proxy(
                Protocol.IMAP,
                ProxySsl.ENABLED,
                authority,
                proxy_ssl_certificate=own.files,
                proxy_ssl_password_file=authority.write("passphrases", b"wrong\nopensesame\n"),
            )
            async with loopback_worker(made, grant(upstream)) as w:
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]

        run(play)
    assert subjects == [((("commonName", "proxy"),),)]


def test_missing_client_certificate_ends_the_login(authority: Authority, issued: Issued) -> None:
    context = server_context(issued, chain=authority.file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # with TLS 1.3 the alert comes after the handshake
    with mail_server(refuses_login(Protocol.IMAP, ProxySsl.ENABLED), context) as upstream:
        made = proxy(Protocol.IMAP, ProxySsl.ENABLED, authority)
        login_fails(made, Protocol.IMAP, upstream, UpstreamTlsFailure.REFUSED, "TLS handshake failed")


# --- resumption -------------------------------------------------------------------------------------


@every_protocol
@every_mode
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(
    protocol: Protocol, mode: ProxySsl, version: ssl.TLSVersion, authority: Authority, issued: Issued
) -> None:
    context = server_context(issued)
    context.minimum_version = context.maximum_version = version
    with mail_server(session(protocol, mode), context) as upstream:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, mode, authority), grant(upstream)) as w:
                for _ in range(5):
                    client, reply = await log_in(w, protocol)
                    assert reply == SUCCESS[protocol]
                    client.close()
                    await w.wait_for_sessions()
                assert handshakes(w, protocol, "false") == 1
                assert handshakes(w, protocol, "true") == 4

        run(play)


def test_sessions_are_not_resumed_with_proxy_ssl_session_reuse_off(
    authority: Authority, issued: Issued
) -> None:
    with mail_server(session(Protocol.IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            made = proxy(Protocol.IMAP, ProxySsl.ENABLED, authority, proxy_ssl_session_reuse=False)
            async with loopback_worker(made, grant(upstream)) as w:
                for _ in range(3):
                    (await log_in(w, Protocol.IMAP))[0].close()
                    await w.wait_for_sessions()
                assert handshakes(w, Protocol.IMAP, "false") == 3

        run(play)


def config(authority: Authority, **directives: Any) -> ServerConfig:
    return proxy(Protocol.IMAP, ProxySsl.ENABLED, authority, **directives)(
        AuthHttp(host="127.0.0.1"), ListenConfig(port=143)
    )


def test_sessions_outlive_a_reload_without_changes(authority: Authority) -> None:
    first = build(config(authority))
    assert build(config(authority), previous=first) is first
    assert build(config(authority, ssl_ciphers="HIGH", timeout=Seconds(1.0)), previous=first) is first


def test_changed_directive_or_file_begins_without_sessions(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = build(config(authority))
    assert build(config(authority, proxy_ssl_name="other.example"), previous=first) is not first
    renewed = Authority(tmp_path, "CN=Renewed")
    Path(authority.file).write_bytes(Path(renewed.file).read_bytes())
    assert build(config(authority), previous=first) is not first


def test_sessions_are_kept_for_a_limited_number_of_upstreams(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.tls.upstream_context.MAX_SESSIONS", 2)
    tls, kept = build(config(authority)), ssl.create_default_context()
    del kept
    for port in (1, 2, 3):
        tls.remember(TlsPeer("192.0.2.1", port), f"session {port}")  # type: ignore[arg-type]  # any object is kept
    assert [tls.session_for(TlsPeer("192.0.2.1", port)) is not None for port in (1, 2, 3)] == [
        False,
        True,
        True,
    ]


# --- configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "problem"),
    [
        (
            {"proxy_ssl_trusted_certificate": "/nowhere"},
            'proxy_ssl_trusted_certificate: cannot read "/nowhere"',
        ),
        ({"proxy_ssl_crl": "/nowhere"}, 'proxy_ssl_crl: cannot read "/nowhere"'),
        ({"proxy_ssl_ciphers": "NONSENSE"}, "proxy_ssl_ciphers: SSL_CTX_set_cipher_list"),
        ({"proxy_ssl_protocols": frozenset({"SSLv2"})}, "proxy_ssl_protocols: "),
        ({"proxy_ssl_conf_command": (("Nonsense", "1"),)}, "proxy_ssl_conf_command[0]: SSL_CONF_cmd"),
    ],
)
def test_problem_names_its_directive(directives: dict[str, Any], problem: str, authority: Authority) -> None:
    with pytest.raises(ConfigError) as raised:
        build(config(authority, **directives))
    assert problem in str(raised.value)


def test_encrypted_key_without_passphrase_is_explained(authority: Authority) -> None:
    own = authority.issue("CN=proxy", passphrase=b"opensesame")
    with pytest.raises(ConfigError, match="name a file with its passphrase in proxy_ssl_password_file"):
        build(config(authority, proxy_ssl_certificate=own.files))
