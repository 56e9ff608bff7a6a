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
from mailproxy.policy import policy_client
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
        tls = fields.pop("tls", None)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WorkerLoop)
        metrics = WorkerMetrics()
        null = os.open(os.devnull, os.O_WRONLY)
        context = WorkerContext(loop, loop.epoll, log=Log(null), metrics=metrics)
        async with policy_server(reply, tls=tls) as policy:
            known = {"url": policy.url, "nonce_file": "/n", "timeout": 0.3}
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


def test_reports_wait_in_a_queue_of_limited_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_client, "MAX_REPORTS", 10)

    async def test(client: PolicyClient, policy: PolicyServer, metrics: WorkerMetrics) -> None:
        for number in range(25):
            client.report(b'{"n":%d}' % number)
        assert metrics.policy_reports_dropped.value == 15
        reports = await policy.wait_for("report", 10)
        assert sorted(each["n"] for each in reports) == list(range(10))
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
        found: asyncio.Future[PolicyAnswer] = asyncio.get_running_loop().create_future()
        client.ask(b"{}", found.set_result)
        assert (await found).result is PolicyResult.SKIPPED
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
        found: asyncio.Future[PolicyAnswer] = asyncio.get_running_loop().create_future()
        client.ask(b"{}", found.set_result)
        assert (await found).result is (PolicyResult.OK if trusted else PolicyResult.UNAVAILABLE)
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
