# SPDX-License-Identifier: Apache-2.0
"""Vulnerabilities of nginx that docs/security.md lists."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl

import pytest

from mailproxy_config.model import AuthMethod, Protocol, VerifyClient
from support.checked_worker import checked_worker, server_builder
from support.loopback_worker import Peer, http_response, run
from support.tls_authority import Authority
from support.tls_peers import client_context, connect_once, server_tls

WAIT = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")
CHALLENGED = frozenset({AuthMethod.PLAIN, AuthMethod.CRAM_MD5, AuthMethod.APOP})


def test_repeated_smtp_transaction_sends_only_its_own_envelope() -> None:
    """CVE-2025-53859: with ``smtp_auth none`` and ``Auth-Wait``, nginx sent memory to auth_http."""

    async def play() -> None:
        build = server_builder(Protocol.SMTP, smtp_auth=frozenset({AuthMethod.NONE}))
        async with checked_worker(build, WAIT) as w:
            client = await w.client()
            await client.read_line()
            await client.exchange(b"HELO x\r\n")
            for number in range(3):
                await client.exchange(b"MAIL FROM:<a%d@x>\r\n" % number)
                await client.exchange(b"RCPT TO:<b%d@x>\r\n" % number)
                await client.exchange(b"RSET\r\n")
            assert len(w.auth.requests) == 3
            for number, request in enumerate(w.auth.requests):
                fields = dict(line.split(b": ", 1) for line in request.split(b"\r\n")[1:-2])
                assert fields[b"Auth-User"] == fields[b"Auth-Pass"] == b""
                assert fields[b"Auth-SMTP-Helo"] == b"x"
                assert fields[b"Auth-SMTP-From"] == b"MAIL FROM:<a%d@x>" % number
                assert fields[b"Auth-SMTP-To"] == b"RCPT TO:<b%d@x>" % number

    run(play)


async def cram_md5(protocol: Protocol, client: Peer) -> bytes:
    """Log in with CRAM-MD5, and return the reply."""
    command = b"a AUTHENTICATE" if protocol is Protocol.IMAP else b"AUTH"
    challenge = (await client.exchange(command + b" CRAM-MD5\r\n")).split()[1]
    digest = hmac.new(b"secret", base64.b64decode(challenge), hashlib.md5).hexdigest()
    return await client.exchange(base64.b64encode(b"alice " + digest.encode()) + b"\r\n")


@pytest.mark.parametrize("protocol", Protocol)
def test_cram_md5_after_auth_wait(protocol: Protocol) -> None:
    """CVE-2026-27651: the second login with CRAM-MD5 ended the worker of nginx."""

    async def play() -> None:
        methods = CHALLENGED if protocol is Protocol.POP3 else CHALLENGED - {AuthMethod.APOP}
        build = server_builder(protocol, **{f"{protocol}_auth": methods})
        async with checked_worker(build, WAIT, WAIT, http_response("Auth-Status: OK\r\n")) as w:
            client = await w.client()
            await client.read_line()
            for attempt in (1, 2, 3):
                assert await cram_md5(protocol, client)
                request = w.auth.requests[-1]
                assert re.search(rb"\r\nAuth-Pass: [0-9a-f]{32}\r\n", request)
                assert b"Auth-Login-Attempt: %d\r\n" % attempt in request

    run(play)


def test_apop_after_auth_wait() -> None:
    """CVE-2026-27651, with APOP."""

    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3, pop3_auth=CHALLENGED), WAIT) as w:
            client = await w.client()
            await client.read_line()
            for _ in range(2):
                assert await client.exchange(b"APOP alice " + b"0" * 32 + b"\r\n") == b"-ERR no\r\n"
                assert await cram_md5(Protocol.POP3, client) == b"-ERR no\r\n"
            for request in w.auth.requests:
                assert re.search(rb"\r\nAuth-Pass: [0-9a-f]{32}\r\n", request)

    run(play)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_session_is_not_resumed_at_a_server_with_client_certificates(
    tmp_path_factory: pytest.TempPathFactory, version: ssl.TLSVersion
) -> None:
    """CVE-2025-23419: a session of one server block was valid at another that requires certificates."""
    authority = Authority(tmp_path_factory.mktemp("ca"))
    ours = authority.issue()
    asking = {"ssl_verify_client": VerifyClient.REQUIRED, "ssl_client_certificate": authority.file}
    lax, strict = server_tls(ours), server_tls(ours, **asking)
    context = client_context()
    context.minimum_version = context.maximum_version = version
    for first, second in ((lax, strict), (strict, lax)):
        _, session = connect_once(first, context)
        info, _ = connect_once(second, context, session=session)
        assert not info.resumed
        assert info.certificate is None
