# SPDX-License-Identifier: Apache-2.0
"""Sessions in which a trusted client names the original one: trust, log, chains of workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mailproxy.protocols.frontend import Frontend
from mailproxy.protocols.imap.id_frontend import ImapIdFrontend
from mailproxy.protocols.imap.trusted import ImapTrustedFrontend
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.trusted_frontend import TrustedFrontend
from mailproxy.protocols.types import Client
from mailproxy.session.named_client import frontend_factory
from mailproxy_config.model import (
    AuthHttp,
    ImapId,
    ListenConfig,
    LogLevel,
    Protocol,
    SendIdentity,
    ServerConfig,
    Tempfail,
    XclientMode,
)
from support import configs
from support.loopback_worker import GRANT, Builder, LoopbackWorker, http_response, loopback_worker, run

GRANTED = http_response(GRANT)
DENIED = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")
ID = b'i ID ("x-originating-ip" "192.0.2.7" "x-originating-port" "51512" "x-session-id" "k3Xp0vY")\r\n'


def built(protocol: Protocol, *, proxy_header: bool = False, **directives: object) -> Builder:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        listen = ListenConfig(address=listen.address, port=listen.port, proxy_protocol=proxy_header)
        known = {
            "error_log": LogLevel.INFO,
            "auth_http": auth,
            "listen": (listen,),
            "real_ip_command": True,
            "set_real_ip_from": ("127.0.0.0/8", "192.0.2.1", "unix:"),
        }
        return configs.server(protocol, **(known | directives))

    return build


async def denied_login(w: LoopbackWorker, *before: bytes) -> str:
    """Send lines and a login that is denied, and return the log's line of the session."""
    client = await w.client()
    await client.send(b"".join(before) + b"a LOGIN u p\r\n")
    assert await client.reader.readuntil(b"a NO no\r\n")
    client.close()
    await w.wait_for_sessions()
    (line,) = [line for line in w.read_log().splitlines() if " session " in line]
    return line


def test_named_client_is_in_request_and_log() -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, auth_http_facts=True), DENIED) as w:
            line = await denied_login(w, ID)
            assert b"\r\nClient-IP: 192.0.2.7\r\n" in w.auth.requests[0]
            assert b"\r\nClient-Port: 51512\r\n" in w.auth.requests[0]
            assert b"k3Xp0vY" not in w.auth.requests[0]
            assert " client=192.0.2.7:51512 proxied named_by=127.0.0.1 received_session=k3Xp0vY " in line

    run(play)


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)])
def test_client_that_is_not_trusted_names_nobody(trusted: tuple[str, ...]) -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, set_real_ip_from=trusted), DENIED) as w:
            line = await denied_login(w, ID)
            assert b"\r\nClient-IP: 127.0.0.1\r\n" in w.auth.requests[0]
            assert " client=127.0.0.1:" in line
            assert "proxied" not in line

    run(play)


def test_directive_off_trusts_nobody() -> None:
    async def play() -> None:
        build = built(Protocol.IMAP, real_ip_command=False, imap_id_command=ImapId.ANSWER)
        async with loopback_worker(build, DENIED) as w:
            line = await denied_login(w, ID)
            assert b"\r\nClient-IP: 127.0.0.1\r\n" in w.auth.requests[0]
            assert " client=127.0.0.1:" in line

    run(play)


@pytest.mark.parametrize(
    ("source", "address"),
    [("192.0.2.1", b"192.0.2.7"), ("192.0.2.2", b"192.0.2.2")],
    ids=["trusted", "other"],
)
def test_address_of_the_proxy_header_decides(source: str, address: bytes) -> None:
    async def play() -> None:
        async with loopback_worker(built(Protocol.IMAP, proxy_header=True), DENIED) as w:
            line = await denied_login(w, f"PROXY TCP4 {source} 198.51.100.1 5 143\r\n".encode(), ID)
            assert b"\r\nClient-IP: " + address + b"\r\n" in w.auth.requests[0]
            assert ("named_by=192.0.2.1" in line) is (source == "192.0.2.1")
            assert f" client={address.decode()}:" in line

    run(play)


def test_client_of_a_unix_socket_is_named(tmp_path: Path) -> None:
    async def play() -> None:

        path = str(tmp_path / "imap")
        build = built(Protocol.IMAP)
        async with loopback_worker(build, DENIED, unix_path=path) as w:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(ID + b"a LOGIN u p\r\n")
            assert await reader.readuntil(b"a NO no\r\n")
            writer.close()
            await w.wait_for_sessions()
            assert " client=192.0.2.7:51512 proxied named_by=unix: " in w.read_log()

    run(play)


def test_one_worker_sends_the_client_to_the_next_one() -> None:
    async def play() -> None:
        second = built(Protocol.IMAP, proxy_id=SendIdentity.REQUIRED)
        first = built(
            Protocol.IMAP, proxy_id=SendIdentity.REQUIRED, set_real_ip_from=(), real_ip_command=False
        )
        async with loopback_worker(second, GRANTED) as inner:
            grant = GRANT.replace("{port}", str(inner.port))
            async with loopback_worker(first, http_response(grant)) as outer:
                client = await outer.client()
                port = client.writer.get_extra_info("sockname")[1]
                await client.send(b'i ID ("name" "Mutt")\r\na LOGIN u p\r\n')
                upstream = await inner.upstream.accept()
                await upstream.send(b"* OK [CAPABILITY IMAP4rev1 ID LITERAL+] ready\r\n")
                line = await upstream.read_line()
                await upstream.send(b"* ID NIL\r\n%b OK done\r\n" % line.split()[0])
                assert await upstream.reader.readuntil(b"}\r\nu {1+}\r\np\r\n")
                await upstream.send(b"a OK in\r\n")
                assert await client.reader.readuntil(b"a OK in\r\n")
                client.close()
                upstream.close()
                await outer.wait_for_sessions()
                await inner.wait_for_sessions()
                (session,) = [row.split()[3] for row in outer.read_log().splitlines() if " session " in row]
                assert b' ID ("name" "Mutt" "x-session-id" "' + session.encode() + b'" ' in line
                assert b'"x-originating-ip" "127.0.0.1" "x-originating-port" "%d" ' % port in line
                assert b'"x-connected-port" "%d" "x-proxy-ttl" "5" ' % outer.port in line
                log = inner.read_log()
                assert (
                    f" client=127.0.0.1:{port} proxied named_by=127.0.0.1 received_session={session} " in log
                )

    run(play)


def test_one_worker_sends_the_smtp_client_to_the_next_one() -> None:
    async def play() -> None:
        common = {
            "xclient": True,
            "xclient_mode": XclientMode.REQUIRED,
            "proxy_smtp_auth": True,
            "proxy_pass_error_message": True,
        }
        second = built(Protocol.SMTP, **common)
        first = built(Protocol.SMTP, set_real_ip_from=(), real_ip_command=False, **common)
        async with loopback_worker(second, DENIED) as inner:
            grant = GRANT.replace("{port}", str(inner.port))
            async with loopback_worker(first, http_response(grant)) as outer:
                client = await outer.client()
                port = client.writer.get_extra_info("sockname")[1]
                await client.send(b"EHLO original.example\r\nAUTH PLAIN AHUAcA==\r\n")
                assert await client.reader.readuntil(b"535 5.7.0 no\r\n")
                client.close()
                await outer.wait_for_sessions()
                await inner.wait_for_sessions()
                assert f" client=127.0.0.1:{port} proxied named_by=127.0.0.1 " in inner.read_log()

    run(play)


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("tempfail", list(Tempfail))
@pytest.mark.parametrize("max_commands", [0, 10])
def test_trusted_frontend_has_the_other_directives_too(
    protocol: Protocol, tempfail: Tempfail, max_commands: int
) -> None:
    config = configs.server(
        protocol, real_ip_command=True, proxy_tempfail=tempfail, max_commands=max_commands
    )
    factory = frontend_factory(PROTOCOLS[protocol], config, TrustedPeers(["10.0.0.0/8"]))
    trusted, other = factory(Client("10.0.0.5", 1)), factory(Client("192.0.2.1", 1))
    assert isinstance(trusted, TrustedFrontend)
    assert not isinstance(other, TrustedFrontend)
    assert bool(max_commands) is hasattr(trusted, "commands_left")
    assert (tempfail is Tempfail.RFC5530) is hasattr(trusted, "run_after")
    assert not hasattr(trusted, "__dict__")


def test_frontend_is_made_directly_where_the_directive_is_off() -> None:
    config = configs.server(Protocol.IMAP)
    factory = frontend_factory(PROTOCOLS[Protocol.IMAP], config, TrustedPeers(["10.0.0.0/8"]))
    assert getattr(factory, "func", None) is PROTOCOLS[Protocol.IMAP].frontend(config)


@pytest.mark.parametrize(
    ("given", "trusted", "other"),
    [
        (None, ImapTrustedFrontend, ImapIdFrontend),
        (ImapId.ANSWER, ImapTrustedFrontend, ImapIdFrontend),
        (ImapId.IGNORE, ImapTrustedFrontend, None),
    ],
)
def test_imap_id_ignore_applies_to_other_clients_only(
    given: ImapId | None, trusted: type[Frontend], other: type[Frontend] | None
) -> None:
    config = configs.server(Protocol.IMAP, real_ip_command=True, imap_id_command=given)
    factory = frontend_factory(PROTOCOLS[Protocol.IMAP], config, TrustedPeers(["10.0.0.5"]))
    assert type(factory(Client("10.0.0.5"))) is trusted
    assert isinstance(factory(Client("192.0.2.1")), ImapIdFrontend) is (other is not None)
    assert b" ID " in factory(Client("10.0.0.5")).config.capabilities


def test_room_of_trusted_clients() -> None:
    peers = TrustedPeers(["10.0.0.5"])
    expected = {Protocol.IMAP: (4096, 8192), Protocol.POP3: (512, 1024), Protocol.SMTP: (4096, 4096)}
    for protocol, (other, trusted) in expected.items():
        factory = frontend_factory(PROTOCOLS[protocol], configs.server(protocol, real_ip_command=True), peers)
        assert factory(Client("192.0.2.1")).config.limit == other
        assert factory(Client("10.0.0.5")).config.limit == trusted
