# SPDX-License-Identifier: Apache-2.0
"""The upstream's error for a client's token: who gets it, and how the session goes on."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import pytest

from mailproxy.enums import LoginResult, Method
from mailproxy.errors import UpstreamRefused
from mailproxy_config.model import AuthHttp, AuthMethod, ListenConfig, Protocol, ServerConfig, Tempfail
from mailproxy_config.upstream_login import ProxyAuth
from support import configs
from support.loopback_worker import Builder, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.upstream_logins import play

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
ERROR: Final = b64encode(b'{"status":"invalid_token","openid-configuration":"https://as.example"}')
MESSAGES: Final = {
    "XOAUTH2": b64encode(b"user=bob\x01auth=Bearer a-token\x01\x01"),
    "OAUTHBEARER": b64encode(b"n,a=bob,\x01auth=Bearer a-token\x01\x01"),
}
ANSWERS: Final = {"XOAUTH2": b"\r\n", "OAUTHBEARER": b"AQ==\r\n"}
REFUSALS: Final = {
    IMAP: b"a NO [AUTHENTICATIONFAILED] token expired\r\n",
    POP3: b"-ERR [AUTH] token expired\r\n",
    SMTP: b"535 5.7.8 token expired\r\n",
}
CHALLENGES: Final = {IMAP: b"+ %b\r\n", POP3: b"+ %b\r\n", SMTP: b"334 %b\r\n"}
INVALID: Final = {
    IMAP: b"a BAD invalid command\r\n",
    POP3: b"-ERR invalid command\r\n",
    SMTP: b"500 5.5.1 Invalid command\r\n",
}
INTERNAL_ERROR: Final = {
    IMAP: b"* BAD internal server error\r\n",
    POP3: b"-ERR internal server error\r\n",
    SMTP: b"451 4.3.2 Internal server error\r\n",
}
GRANT: Final = http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n")
every_protocol = pytest.mark.parametrize("protocol", [IMAP, POP3, SMTP])
every_mechanism = pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])


def proxy(protocol: Protocol, **directives: Any) -> Builder:
    methods = frozenset({AuthMethod.PLAIN, AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})
    values: dict[str, Any] = {
        f"{protocol}_auth": methods,
        "proxy_auth": (ProxyAuth.XOAUTH2, ProxyAuth.OAUTHBEARER, ProxyAuth.PLAIN),
        "proxy_pass_error_message": True,
        "xclient": False,
        **directives,
    }

    def builder(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(protocol, auth_http=auth, listen=(listen,), **values)

    return builder


async def authenticate(w: LoopbackWorker, client: Peer, protocol: Protocol, mechanism: str) -> Peer:
    """Send the client's token, up to the command at the upstream; return the upstream's connection."""
    word = mechanism.encode()
    prefix = b"a AUTHENTICATE " if protocol is IMAP else b"AUTH "
    await client.send(prefix + word + b" " + MESSAGES[mechanism] + b"\r\n")
    peer = await w.upstream.accept()
    if protocol is IMAP:
        await peer.send(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=%b] hi\r\n" % word)
    elif protocol is POP3:
        await peer.send(b"+OK hi\r\n")
        assert await peer.read_line() == b"CAPA\r\n"
        await peer.send(b"+OK\r\nSASL %b\r\n.\r\n" % word)
    else:
        await peer.send(b"220 hi\r\n")
        assert (await peer.read_line()).startswith(b"EHLO ")
        await peer.send(b"250-hi\r\n250 AUTH %b\r\n" % word)
    assert MESSAGES[mechanism] in await peer.read_line()
    return peer


async def refuse(peer: Peer, protocol: Protocol, mechanism: str) -> None:
    """Refuse the token as RFC 7628 has it."""
    await peer.send(CHALLENGES[protocol] % ERROR)
    assert await peer.read_line() == ANSWERS[mechanism]
    await peer.send(REFUSALS[protocol])


@every_protocol
@every_mechanism
def test_client_gets_the_challenge_of_the_upstream_and_its_refusal(
    protocol: Protocol, mechanism: str
) -> None:
    async def drive() -> None:
        async with loopback_worker(proxy(protocol), GRANT) as w:
            client = await w.client()
            await client.read_line()
            await refuse(await authenticate(w, client, protocol, mechanism), protocol, mechanism)
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(ANSWERS[mechanism])
            assert await client.read_to_eof() == REFUSALS[protocol]
            method = Method[mechanism]
            assert w.value("mailproxy_logins_total", protocol, method, LoginResult.UPSTREAM_DENIED) == 1
            assert "a-token" not in w.read_log()

    run(drive)


@every_protocol
def test_session_goes_on_after_another_response_to_the_challenge(protocol: Protocol) -> None:
    """It has no second greeting, and the next login is another one."""

    async def drive() -> None:
        async with loopback_worker(proxy(protocol), GRANT, GRANT) as w:
            client = await w.client()
            await client.read_line()
            await refuse(await authenticate(w, client, protocol, "OAUTHBEARER"), protocol, "OAUTHBEARER")
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(b"*\r\n")
            assert await client.read_line() == INVALID[protocol]
            await refuse(await authenticate(w, client, protocol, "XOAUTH2"), protocol, "XOAUTH2")
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(b"\r\n")
            assert await client.read_to_eof() == REFUSALS[protocol]

    run(drive)


@every_protocol
@pytest.mark.parametrize("is_of_upstream", [True, False])
def test_another_response_to_the_challenge_counts_towards_max_errors(
    protocol: Protocol, is_of_upstream: bool
) -> None:
    denial = http_response(f"Auth-Status: bad token\r\nAuth-Error-SASL: {ERROR.decode()}\r\n")

    async def drive() -> None:
        response = GRANT if is_of_upstream else denial
        async with loopback_worker(proxy(protocol, max_errors=1), response) as w:
            client = await w.client()
            await client.read_line()
            if is_of_upstream:
                peer = await authenticate(w, client, protocol, "OAUTHBEARER")
                await refuse(peer, protocol, "OAUTHBEARER")
            else:
                command = b"a AUTHENTICATE" if protocol is IMAP else b"AUTH"
                await client.send(command + b" OAUTHBEARER " + MESSAGES["OAUTHBEARER"] + b"\r\n")
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(b"*\r\n")
            assert await client.read_to_eof() == INVALID[protocol]

    run(drive)


@every_protocol
def test_response_may_be_sent_ahead(protocol: Protocol) -> None:
    async def drive() -> None:
        async with loopback_worker(proxy(protocol), GRANT) as w:
            client = await w.client()
            await client.read_line()
            peer = await authenticate(w, client, protocol, "OAUTHBEARER")
            await client.send(b"AQ==\r\n")
            await refuse(peer, protocol, "OAUTHBEARER")
            assert await client.read_to_eof() == CHALLENGES[protocol] % ERROR + REFUSALS[protocol]

    run(drive)


@every_protocol
def test_response_that_is_too_long_ends_the_session(protocol: Protocol) -> None:
    async def drive() -> None:
        async with loopback_worker(proxy(protocol), GRANT) as w:
            client = await w.client()
            await client.read_line()
            await refuse(await authenticate(w, client, protocol, "OAUTHBEARER"), protocol, "OAUTHBEARER")
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(b"x" * 70000 + b"\r\n")
            assert await client.read_line() == INVALID[protocol]

    run(drive)


@every_protocol
def test_client_gets_no_challenge_without_proxy_pass_error_message(protocol: Protocol) -> None:
    async def drive() -> None:
        async with loopback_worker(proxy(protocol, proxy_pass_error_message=False), GRANT) as w:
            client = await w.client()
            await client.read_line()
            await refuse(await authenticate(w, client, protocol, "XOAUTH2"), protocol, "XOAUTH2")
            assert await client.read_to_eof() == INTERNAL_ERROR[protocol]

    run(drive)


@every_protocol
@pytest.mark.parametrize("tempfail", Tempfail)
def test_refusal_without_a_challenge_is_passed_on_alone(protocol: Protocol, tempfail: Tempfail) -> None:
    async def drive() -> None:
        async with loopback_worker(proxy(protocol, proxy_tempfail=tempfail), GRANT) as w:
            client = await w.client()
            await client.read_line()
            peer = await authenticate(w, client, protocol, "XOAUTH2")
            await peer.send(REFUSALS[protocol])
            assert await client.read_to_eof() == REFUSALS[protocol]

    run(drive)


@every_protocol
def test_outage_and_refused_token_of_one_session(protocol: Protocol) -> None:
    """With ``proxy_tempfail rfc5530``, too, only a refusal leads to the challenge."""

    async def drive() -> None:
        async with loopback_worker(proxy(protocol, proxy_tempfail=Tempfail.RFC5530), GRANT, GRANT) as w:
            client = await w.client()
            await client.read_line()
            peer = await authenticate(w, client, protocol, "XOAUTH2")
            peer.writer.close()
            words = {IMAP: b"a NO [UNAVAILABLE]", POP3: b"-ERR [SYS/TEMP]", SMTP: b"454 "}
            assert (await client.read_line()).startswith(words[protocol])
            await refuse(await authenticate(w, client, protocol, "XOAUTH2"), protocol, "XOAUTH2")
            assert await client.read_line() == CHALLENGES[protocol] % ERROR
            await client.send(b"\r\n")
            assert await client.read_to_eof() == REFUSALS[protocol]

    run(drive)


@pytest.mark.parametrize(
    ("challenge", "token_error"),
    [
        (b"+ " + ERROR + b"\r\n", ERROR),
        (b"* OK note\r\n+ " + ERROR + b"\r\n", ERROR),
        (b"+ " + ERROR + b"\n", ERROR),
        (b"+ \r\n", b""),
        (b"+\r\n", b""),
        (b"+ not base64!\r\n", b""),
        (b"+ " + b"A" * 5000 + b"\r\n", b""),
    ],
)
def test_only_base64_is_a_challenge_for_the_client(challenge: bytes, token_error: bytes) -> None:
    greeting = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\r\n"
    replies = (greeting, challenge, REFUSALS[IMAP])
    played = play(IMAP, *replies, method=Method.XOAUTH2, proxy_auth=(ProxyAuth.XOAUTH2,), proxy_buffer=8192)
    assert isinstance(played.error, UpstreamRefused)
    assert played.error.token_error == token_error


@pytest.mark.parametrize("reply", [b"a NO [UNAVAILABLE] later\r\n", b"* BYE gone\r\n"])
def test_outage_after_the_challenge_is_no_refusal_of_the_token(reply: bytes) -> None:
    greeting = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\r\n"
    replies = (greeting, b"+ " + ERROR + b"\r\n", reply)
    played = play(IMAP, *replies, method=Method.XOAUTH2, proxy_auth=(ProxyAuth.XOAUTH2,))
    assert isinstance(played.error, UpstreamRefused)
    assert played.error.token_error == b""
