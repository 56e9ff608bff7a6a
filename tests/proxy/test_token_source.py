# SPDX-License-Identifier: Apache-2.0
"""The cache of access tokens: when a token is requested, and which one a login gets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from mailproxy.context import WorkerContext
from mailproxy.enums import TokenResult
from mailproxy.errors import TokenUnavailable
from mailproxy.loop.worker_loop import WorkerLoop
from mailproxy.oauth.token_request import TokenAnswer, TokenRequestError
from mailproxy.oauth.token_source import TokenSource
from mailproxy.protocols.types import Secret
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import LogLevel
from mailproxy_config.upstream_login import ProxyAuthToken, TokenGrant
from support.loopback_worker import run

CONFIG = ProxyAuthToken(token_url="https://login.example/t", client_id="app", client_secret_file="/s")
REFUSED = TokenRequestError("refused", TokenResult.REFUSED, is_misconfigured=True)
DOWN = TokenRequestError("down", TokenResult.UNAVAILABLE)


class Login:
    """A login that waits for a token."""

    def __init__(self) -> None:
        self.got: list[Secret | TokenUnavailable] = []

    def on_token(self, token: Secret | TokenUnavailable) -> None:
        self.got.append(token)


@dataclass
class World:
    """A source with a clock and a token service of the test."""

    config: ProxyAuthToken = CONFIG
    now: float = 1000.0
    outcomes: list[TokenAnswer | Exception] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, WorkerLoop)
        self.metrics = WorkerMetrics()
        self.pipe, write = os.pipe()
        self.log = Log(write, LogFormat.TEXT, LogLevel.DEBUG)
        context = WorkerContext(loop, loop.epoll, log=self.log, metrics=self.metrics)
        self.source = TokenSource(
            context, self.config, Secret(b"s3cret"), Secret(b"r0"), fetch=self.fetch, clock=lambda: self.now
        )
        self.source.servers = frozenset({"imap"})
        self.gate.set()
        self.write = write

    async def fetch(self, url: str, fields: Mapping[str, str]) -> TokenAnswer:
        assert url == self.config.token_url
        self.forms.append(dict(fields))
        await self.gate.wait()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def get(self) -> Secret | TokenUnavailable:
        """Log in: the token, or the error."""
        login = Login()
        try:
            token = self.source.get(login)
        except TokenUnavailable as error:
            return error
        while token is None and not login.got:
            await asyncio.sleep(0)
        return token if token is not None else login.got[0]

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def read_log(self) -> str:
        self.log.flush()
        os.set_blocking(self.pipe, False)
        try:
            return os.read(self.pipe, 1 << 16).decode()
        except BlockingIOError:
            return ""

    async def close(self) -> None:
        await self.source.close()
        os.close(self.write)
        os.close(self.pipe)


def play(test: Callable[[World], Coroutine[Any, Any, None]], config: ProxyAuthToken = CONFIG) -> None:
    async def inner() -> None:
        world = World(config)
        try:
            await test(world)
        finally:
            await world.close()

    run(inner)


def answer(token: bytes, seconds: float = 3600.0, refresh: bytes | None = None) -> TokenAnswer:
    return TokenAnswer(Secret(token), seconds, None if refresh is None else Secret(refresh))


def test_token_is_requested_once_for_all_logins() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1")]
        w.gate.clear()
        logins = [Login() for _ in range(50)]
        assert {w.source.get(login) for login in logins} == {None}
        await w.settle()
        w.gate.set()
        await w.settle()
        assert [login.got for login in logins] == [[Secret(b"t1")]] * 50
        assert w.source.get(Login()) == Secret(b"t1")
        assert len(w.forms) == 1
        assert "token_received" in w.read_log()

    play(test)


def test_token_is_replaced_two_minutes_before_it_expires() -> None:
    """Nobody waits for the new one."""

    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1"), answer(b"t2")]
        await w.get()
        w.now += 3600 - 121
        assert (w.source.get(Login()), len(w.forms)) == (Secret(b"t1"), 1)
        w.now += 1
        assert w.source.get(Login()) == Secret(b"t1")
        await w.settle()
        assert (w.source.get(Login()), len(w.forms)) == (Secret(b"t2"), 2)

    play(test)


def test_token_of_a_short_lifetime_is_used_for_half_of_it() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1", 60.0), answer(b"t2", 60.0)]
        await w.get()
        w.now += 29
        assert (w.source.get(Login()), len(w.forms)) == (Secret(b"t1"), 1)
        w.now += 1
        w.source.get(Login())
        await w.settle()
        assert len(w.forms) == 2

    play(test)


def test_old_token_is_used_until_it_expires_while_the_service_is_down() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1"), *[DOWN] * 20, answer(b"t2")]
        await w.get()
        for _ in range(110):
            w.now += 1
            assert await w.get() == Secret(b"t1")
        w.now = 1000.0 + 3600 - 119
        for _ in range(118):
            assert await w.get() == Secret(b"t1")
            await w.settle()
            w.now += 1
        assert len(w.forms) <= 9, "a pause of up to 30 seconds between failures"
        w.now += 2
        error = await w.get()
        assert isinstance(error, TokenUnavailable)
        assert not error.is_misconfigured
        while w.outcomes:
            w.now += 31
            result = await w.get()
        assert result == Secret(b"t2")

    play(test)


def test_login_after_a_failure_fails_at_once_for_a_moment() -> None:
    async def test(w: World) -> None:
        w.outcomes = [REFUSED, answer(b"t1")]
        first, second = await w.get(), await w.get()
        for error in (first, second):
            assert isinstance(error, TokenUnavailable)
            assert error.is_misconfigured
        assert len(w.forms) == 1
        w.now += 1
        assert await w.get() == Secret(b"t1")
        assert w.metrics.token_requests[TokenResult.REFUSED].value == 1
        assert w.metrics.token_requests[TokenResult.OK].value == 1

    play(test)


def test_lifetime_counts_from_the_request() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1", 100.0), answer(b"t2")]
        w.gate.clear()
        login = Login()
        w.source.get(login)
        await w.settle()
        w.now += 60
        w.gate.set()
        await w.settle()
        assert login.got == [Secret(b"t1")]
        w.now += 41
        assert await w.get() == Secret(b"t2")

    play(test)


def test_request_that_hangs_ends_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy.oauth.token_source.REQUEST_SECONDS", 0.05)

    async def test(w: World) -> None:
        w.gate.clear()
        error = await w.get()
        assert "did not answer in time" in str(error)
        assert w.metrics.token_requests[TokenResult.TIMEOUT].value == 1

    play(test)


def test_cancelled_login_gets_nothing() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1")]
        login, other = Login(), Login()
        w.source.get(login)
        w.source.get(other)
        w.source.cancel(login)
        await w.settle()
        assert (login.got, other.got) == ([], [Secret(b"t1")])

    play(test)


def test_refused_token_is_replaced_once_in_a_minute() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1"), answer(b"t2"), answer(b"t3")]
        first = await w.get()
        assert w.source.refuse(first)
        assert await w.get() == Secret(b"t2")
        assert not w.source.refuse(Secret(b"t2")), "the cause may be one mailbox"
        assert (await w.get(), len(w.forms)) == (Secret(b"t2"), 2)
        w.now += 61
        assert w.source.refuse(Secret(b"t2"))
        assert await w.get() == Secret(b"t3")

    play(test)


def test_refusals_of_the_same_token_cause_one_request() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1"), answer(b"t2")]
        first = await w.get()
        assert w.source.refuse(first)
        assert await w.get() == Secret(b"t2")
        assert w.source.refuse(first), "a newer token is there"
        assert (await w.get(), len(w.forms)) == (Secret(b"t2"), 2)

    play(test)


def test_refused_token_is_used_again_if_no_other_can_be_had() -> None:
    """It may be good for other mailboxes."""

    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1"), DOWN]
        w.source.refuse(await w.get())
        assert await w.get() == Secret(b"t1")

    play(test)


def test_rotated_refresh_token_is_used_and_logged() -> None:
    config = ProxyAuthToken(
        token_url="https://login.example/t",
        client_id="app",
        grant=TokenGrant.REFRESH_TOKEN,
        refresh_token_file="/r",
    )

    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1", 60.0, b"r1"), answer(b"t2", 60.0, b"r1")]
        await w.get()
        w.now += 61
        await w.get()
        assert [sent["refresh_token"] for sent in w.forms] == ["r0", "r1"]
        log = w.read_log()
        assert log.count("refresh_token_changed") == 1
        assert not any(secret in log for secret in ("s3cret", "r0", "r1", "t1", "t2"))

    play(test, config)


def test_secrets_are_in_no_log_and_no_representation() -> None:
    async def test(w: World) -> None:
        w.outcomes = [REFUSED, answer(b"t0k3n", 60.0)]
        error = await w.get()
        w.now += 10
        await w.get()
        log = w.read_log()
        assert "login.example" in log
        state = {name: value for name, value in vars(w.source).items() if name != "_fetch"}
        shown = log + repr(error) + repr(state)
        assert not any(secret in shown for secret in ("s3cret", "t0k3n", "r0"))

    play(test)


def test_expiry_is_a_metric_of_each_server() -> None:
    async def test(w: World) -> None:
        w.outcomes = [answer(b"t1")]
        await w.get()
        series = w.metrics.snapshot()["series"]
        assert [labels for labels, _ in series["mailproxy_token_expiry_timestamp_seconds"]] == [("imap",)]
        assert "mailproxy_token_request_duration_seconds" in series

    play(test)
