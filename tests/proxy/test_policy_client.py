# SPDX-License-Identifier: Apache-2.0
"""The client of a policy server: its breaker, its queue, and how answers are read."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailproxy.context import WorkerContext
from mailproxy.enums import PolicyCommand, PolicyResult
from mailproxy.loop.worker_loop import WorkerLoop
from mailproxy.policy import policy_breaker, policy_client
from mailproxy.policy.policy_breaker import FAILURES, PAUSES, PolicyBreaker
from mailproxy.policy.policy_client import PolicyAnswer, PolicyClient, command_url, parse_answer
from mailproxy.protocols.types import Secret
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.policy_server import AuthPolicyServer
from support.loopback_worker import run
from support.policy_server import ALLOWED, HANG, Answer, PolicyServer, policy_server

Play = Callable[[PolicyClient, PolicyServer, WorkerMetrics], Any]


def play(test: Play, reply: Callable[[str], Answer] | Answer = ALLOWED, **fields: Any) -> None:
    async def bounded() -> None:
        tls, closes = fields.pop("tls", None), fields.pop("closes", False)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WorkerLoop)
        metrics = WorkerMetrics()
        null = os.open(os.devnull, os.O_WRONLY)
        context = WorkerContext(loop, loop.epoll, log=Log(null), metrics=metrics)
        async with policy_server(reply, tls=tls, closes=closes) as policy:
            known: dict[str, Any] = {"url": policy.url, "nonce_file": "/n", "timeout": 0.3}
            client = PolicyClient(context, AuthPolicyServer(**(known | fields)), Secret(b"n"))
            try:
                await test(client, policy, metrics)
            finally:
                await client.close()
                os.close(null)

    run(bounded)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://p:8084/", "http://p:8084/?command=allow"),
        ("http://p/policy", "http://p/policy?command=allow"),
        ("http://p/?a=b&", "http://p/?a=b&command=allow"),
        ("http://p/?a=b", "http://p/?a=b&command=allow"),
        ("http://p/?", "http://p/?command=allow"),
    ],
)
def test_command_is_appended_to_the_url(url: str, expected: str) -> None:
    assert command_url(url, PolicyCommand.ALLOW) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"status":0}', PolicyAnswer(PolicyResult.OK)),
        (b'{"status":-1,"msg":"no"}', PolicyAnswer(PolicyResult.REFUSED, message="no")),
        (b'{"status":3,"msg":5}', PolicyAnswer(PolicyResult.DELAYED, 3)),
        (b'{"status":1000000}', PolicyAnswer(PolicyResult.DELAYED, 15)),
        (b'{"status":0,"msg":"' + b"x" * 999 + b'"}', PolicyAnswer(PolicyResult.OK, message="x" * 200)),
    ],
)
def test_answers(body: bytes, expected: PolicyAnswer) -> None:
    assert parse_answer(body) == expected


JSON = b'{"status":0}'


@pytest.mark.parametrize(
    ("reply", "is_usable", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + JSON, True, 1),
        ([b"HTTP/1.1 200 O", b"K\r\nContent-Length: 12\r\n\r", b"\n" + JSON[:5], JSON[5:]], True, 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n" + JSON, True, 2),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 12\r\n\r\n" + JSON, True, 2),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + JSON + b"more", True, 2),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n%b\r\n7\r\n%b\r\n0\r\n\r\n"
            % (JSON[:5], JSON[5:]),
            True,
            1,
        ),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc", b"\r\n", JSON, b"\r\n0\r", b"\n\r\n"],
            True,
            1,
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n", False, 2),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", False, 2),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 16385\r\n\r\n", False, 2),
        (b"HTTP/1.1 200 OK\r\nX Y: z\r\nContent-Length: 12\r\n\r\n" + JSON, False, 2),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000, False, 2),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, 2),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, 2),
    ],
)
def test_responses_end_as_their_framing_tells(reply: Answer, is_usable: bool, connections: int) -> None:
    async def test(client: PolicyClient, policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        for _ in range(2):
            assert (await asked(client)).result is (PolicyResult.OK if is_usable else PolicyResult.INVALID)
        assert policy.connections == connections

    play(test, reply, timeout=5.0)


def test_response_without_a_length_ends_with_its_connection() -> None:
    async def test(client: PolicyClient, _policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        assert (await asked(client)).result is PolicyResult.OK

    play(test, b"HTTP/1.1 200 OK\r\n\r\n" + JSON, closes=True, timeout=5.0)


def test_requests_above_the_connection_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_client, "MAX_CONNECTIONS", 2)

    async def test(client: PolicyClient, policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        answers = await asyncio.gather(*(asked(client) for _ in range(20)))
        assert {each.result for each in answers} == {PolicyResult.OK}
        assert policy.connections == 2

    play(test, timeout=5.0)


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_client, "IDLE_SECONDS", 0.1)

    async def test(client: PolicyClient, policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        await asyncio.gather(asked(client), asked(client))
        while not all(writer.is_closing() for writer in policy.writers):
            await asyncio.sleep(0.01)
        assert (await asked(client)).result is PolicyResult.OK
        assert policy.connections == 3

    play(test, timeout=5.0)


async def asked(client: PolicyClient) -> PolicyAnswer:
    found: asyncio.Future[PolicyAnswer] = asyncio.get_running_loop().create_future()
    client.ask(b"{}", found.set_result)
    return await found


def test_reports_wait_in_a_queue_of_limited_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_client, "MAX_REPORTS", 10)

    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for number in range(25):
            client.report(b'{"n":%d}' % number)
        sent = 10 + policy_client.SENDERS
        assert metrics.policy_reports_dropped.value == 25 - sent
        reports = await policy.wait_for("report", sent)
        assert sorted(each["n"] for each in reports) == list(range(sent))
        assert policy.connections <= policy_client.SENDERS

    play(test)


def test_reports_are_dropped_while_the_server_does_not_respond() -> None:
    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for _ in range(20):
            client.report(b"{}")
        while metrics.policy_reports_dropped.value < 20:
            await asyncio.sleep(0.01)
        assert metrics.policy_breaker_open.value == 1
        assert len(policy.requests) == policy_client.SENDERS
        client.report(b"{}")
        assert metrics.policy_reports_dropped.value == 21

    play(test, HANG)


def test_close_sends_the_reports_that_wait() -> None:
    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for _ in range(20):
            client.report(b"{}")
        await client.close()
        assert len(policy.bodies("report")) == 20
        assert metrics.policy_reports_dropped.value == 0

    play(test, timeout=5.0)


def test_answer_of_a_closed_client_is_skipped() -> None:
    async def test(client: PolicyClient, policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        await client.close()
        assert (await asked(client)).result is PolicyResult.SKIPPED
        assert not policy.requests

    play(test)


@pytest.mark.parametrize("trusted", [True, False])
def test_https_server_needs_a_trusted_certificate(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    (authority if trusted else stranger).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)

    async def test(client: PolicyClient, policy: PolicyServer, _metrics: WorkerMetrics) -> None:
        assert (await asked(client)).result is (PolicyResult.OK if trusted else PolicyResult.UNAVAILABLE)
        assert len(policy.requests) == trusted

    play(test, tls=tls, timeout=5.0)


def test_breaker_opens_after_failures_in_a_row_and_at_once_after_a_timeout() -> None:
    breaker = PolicyBreaker()
    for _ in range(FAILURES - 1):
        assert not breaker.on_failure(0.0, is_timeout=False)
    assert not breaker.on_success()
    for _ in range(FAILURES - 1):
        assert not breaker.on_failure(0.0, is_timeout=False)
    assert breaker.on_failure(0.0, is_timeout=False)
    assert breaker.is_open
    assert PolicyBreaker().on_failure(0.0, is_timeout=True)


def test_response_4xx_fails_one_login_and_suspends_no_requests() -> None:
    """A client chooses what its request contains, so it could suspend the requests of all logins."""

    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for _ in range(FAILURES + 1):
            assert (await asked(client)).result is PolicyResult.INVALID
            client.report(b"{}")
            await policy.wait_for("report", 1)
        assert metrics.policy_breaker_open.value == 0
        assert len(policy.bodies("allow")) == FAILURES + 1

    play(test, b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n", timeout=5.0)


def test_probe_that_gets_4xx_ends_the_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_breaker, "PAUSES", (0.0,))

    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for _ in range(FAILURES):
            await asked(client)
        assert metrics.policy_breaker_open.value == 1
        policy.reply = lambda _: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
        while metrics.policy_breaker_open.value:
            await asked(client)
            await asyncio.sleep(0.02)
        policy.reply = lambda _: ALLOWED
        assert (await asked(client)).result is PolicyResult.OK

    play(test, b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n", timeout=5.0)


def test_retired_client_is_not_among_those_that_are_suspended() -> None:
    """Sessions of the old configuration may go on asking it."""

    async def test(client: PolicyClient, _policy: PolicyServer, metrics: WorkerMetrics) -> None:
        await asked(client)
        assert metrics.policy_breaker_open.value == 1
        client.retire()
        assert metrics.policy_breaker_open.value == 0
        assert (await asked(client)).result is PolicyResult.SKIPPED
        await client.close()
        assert metrics.policy_breaker_open.value == 0

    play(test, HANG)


def test_client_that_is_suspended_after_it_was_retired_is_not_counted() -> None:
    async def test(client: PolicyClient, _policy: PolicyServer, metrics: WorkerMetrics) -> None:
        client.retire()
        assert (await asked(client)).result is PolicyResult.TIMEOUT
        assert metrics.policy_breaker_open.value == 0

    play(test, HANG)


def test_open_breaker_admits_one_probe_after_each_pause() -> None:
    breaker, now = PolicyBreaker(), 100.0
    breaker.on_failure(now, is_timeout=True)
    for pause in (*PAUSES, PAUSES[-1]):
        assert not breaker.may_probe(now + pause - 0.1)
        now += pause
        assert breaker.may_probe(now)
        assert not breaker.may_probe(now)
        breaker.on_failure(now, is_timeout=True)  # of a login that was waiting
        assert not breaker.may_probe(now)
        breaker.on_failure(now, is_timeout=True, is_probe=True)
    assert breaker.on_success()
    assert not breaker.is_open
