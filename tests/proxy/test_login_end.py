# SPDX-License-Identifier: Apache-2.0
"""Refused passwords in the log: their number, and their fingerprints (``log_password_fingerprint``)."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from mailproxy.enums import Method
from mailproxy.net import shared_memory
from mailproxy.net.shared_memory import SharedMemory
from mailproxy.policy.password_fingerprint import PasswordFingerprints
from mailproxy.protocols.types import Credentials, Secret
from mailproxy_config.model import AuthHttp, AuthMethod, ListenConfig, LogLevel, Protocol, ServerConfig
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, http_response, loopback_worker, run

GRANTED = http_response(GRANT)
WAITED = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n")
DENIED = http_response("Auth-Status: no\r\n")
XOAUTH2 = b"a AUTHENTICATE XOAUTH2 dXNlcj1ib2IBYXV0aD1CZWFyZXIgdG9rZW4BAQ==\r\n"


def play(test: Any, *responses: bytes, **directives: Any) -> str:
    log = ""

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        known = {"auth_http": auth, "listen": (listen,), "error_log": LogLevel.INFO}
        return server(Protocol.IMAP, **(known | directives))

    async def bounded() -> None:
        nonlocal log
        async with loopback_worker(build, *responses, drain=0.1) as w:
            await test(w)
            await w.wait_for_sessions()
            log = w.read_log()

    run(bounded)
    return log


async def guess(w: LoopbackWorker, *lines: bytes) -> None:
    client = await w.client()
    await client.read_line()
    for line in lines:
        await client.exchange(line)
    client.close()


def fingerprints(log: str, event: str) -> list[str]:
    return [found[1] for found in re.finditer(rf" {event} .* pwfp=([0-9a-f]+)", log)]


def test_same_password_of_several_users_has_the_same_fingerprint() -> None:
    async def test(w: LoopbackWorker) -> None:
        await guess(w, b"a LOGIN bob s3cr3t-word\r\n")
        await guess(w, b"a LOGIN eve s3cr3t-word\r\n")
        await guess(w, b"a LOGIN bob other\r\n")

    log = play(test, DENIED, log_password_fingerprint=True)
    first, second, third = fingerprints(log, "session")
    assert first == second != third
    assert fingerprints(log, "login_denied") == [first, second, third]
    assert "s3cr3t-word" not in log


def test_refused_passwords_of_one_session_are_counted() -> None:
    async def test(w: LoopbackWorker) -> None:
        await guess(w, b"a LOGIN bob one\r\n", b"a LOGIN bob two\r\n")

    log = play(test, WAITED, DENIED)
    assert " attempts=2 password_failures=2 result=denied " in log
    assert "pwfp" not in log


def test_accepted_password_has_no_fingerprint() -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await w.client()
        await client.read_line()
        await client.send(b"a LOGIN bob right\r\n")
        upstream = await w.upstream.accept()
        for reply in (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n"):
            await upstream.exchange(reply)
        await upstream.send(b"a OK done\r\n")
        await client.read_line()
        client.close()
        upstream.close()

    log = play(test, GRANTED, log_password_fingerprint=True)
    assert " result=success " in log
    assert "pwfp" not in log
    assert "password_failures" not in log


@pytest.mark.parametrize(
    ("line", "response"),
    [
        (XOAUTH2, DENIED),
        (b"a LOGIN bob s3cr3t-word\r\n", b"HTTP/1.1 500 oops\r\n\r\n"),
        (
            b"a LOGIN bob s3cr3t-word\r\n",
            http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n"),
        ),
    ],
)
def test_refused_token_and_outage_are_no_password_failures(line: bytes, response: bytes) -> None:
    async def test(w: LoopbackWorker) -> None:
        await guess(w, line)

    methods = frozenset({AuthMethod.PLAIN, AuthMethod.XOAUTH2})
    log = play(test, response, imap_auth=methods, log_password_fingerprint=True)
    assert " session " in log
    assert "password_failures" not in log
    assert "pwfp" not in log


@pytest.mark.parametrize("method", [Method.APOP, Method.CRAM_MD5, Method.XOAUTH2, Method.EXTERNAL])
def test_only_passwords_in_clear_text_have_fingerprints(method: Method) -> None:
    maker = PasswordFingerprints(SharedMemory())
    assert maker.make(Credentials(method, b"bob", Secret(b"digest"))) == ""
    assert maker.make(Credentials(Method.PLAIN, b"bob")) == ""


def test_all_workers_of_a_pod_have_the_same_key() -> None:
    first, second = shared_memory.create(), shared_memory.create()
    try:
        key = SharedMemory(first).random_key()
        assert SharedMemory(first).random_key() == key
        assert SharedMemory(second).random_key() != key
        assert SharedMemory().random_key() != SharedMemory().random_key()
    finally:
        os.close(first)
        os.close(second)
