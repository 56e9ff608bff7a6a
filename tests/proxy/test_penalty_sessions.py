# SPDX-License-Identifier: Apache-2.0
"""Failed logins and blocks over sockets: replies, metrics and log of sessions."""

from __future__ import annotations

import asyncio
import gc
from base64 import b64encode
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from mailproxy.penalty import pod_state
from mailproxy.penalty.rules import PenaltyRules
from mailproxy_config.failed_logins import AuthBlock
from mailproxy_config.model import (
    AuthHttp,
    AuthMethod,
    ListenConfig,
    LogLevel,
    Protocol,
    ServerConfig,
    Tempfail,
)
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run

DENIED: Final = http_response("Auth-Status: Invalid login\r\n")
LATER: Final = http_response("Auth-Status: Later\r\nAuth-Error-Code: 451 4.3.0\r\n")
GRANTED: Final = http_response(GRANT)
LOGIN: Final = {
    Protocol.IMAP: b"a LOGIN bob %b\r\n",
    Protocol.POP3: b"USER bob\r\nPASS %b\r\n",
    Protocol.SMTP: b"AUTH PLAIN %b\r\n",
}
BLOCK: Final = AuthBlock(failures=2, window=60.0, seconds=60.0, maximum=60.0)
FAILED: Final = "mailproxy_auth_failed_credentials_total"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_state, "RULES", PenaltyRules(waits=(0.0, 0.04, 0.08, 0.15, 0.15)))


def play(
    protocol: Protocol,
    test: Callable[[LoopbackWorker], Coroutine[Any, Any, None]],
    *responses: Any,
    listen: dict[str, Any] | None = None,
    **directives: Any,
) -> None:
    def build(auth: AuthHttp, on: ListenConfig) -> ServerConfig:
        where = ListenConfig(address=on.address, port=on.port, **(listen or {}))
        known = {
            "auth_http": auth,
            "listen": (where,),
            "auth_failure_delay": 0.02,
            "error_log": LogLevel.INFO,
        }
        return server(protocol, **(known | directives))

    async def bounded() -> None:
        async with loopback_worker(build, *responses, drain=0.1) as w:
            await test(w)

    run(bounded)


async def greeted(w: LoopbackWorker, protocol: Protocol) -> Peer:
    client = await w.client()
    await client.read_line()
    return client


async def log_in(client: Peer, protocol: Protocol, password: bytes) -> bytes:
    """Send a login, and return the reply to it."""
    secret = b64encode(b"\0bob\0" + password) if protocol is Protocol.SMTP else password
    await client.send(LOGIN[protocol] % secret)
    if protocol is Protocol.POP3:
        await client.read_line()
    return await client.read_line()


async def refuse_upstream(w: LoopbackWorker, protocol: Protocol, reply: bytes) -> None:
    """Be a mail server that refuses the login."""
    upstream = await w.upstream.accept()
    if protocol is Protocol.IMAP:
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        await upstream.exchange(b"+ go\r\n")
        await upstream.exchange(b"+ go\r\n")
    else:
        await upstream.send(b"+OK ready\r\n")
        await upstream.read_line()
        await upstream.exchange(b"+OK\r\n")
    await upstream.send(reply)


REPLIES: Final = {
    Protocol.IMAP: b"a NO Invalid login\r\n",
    Protocol.POP3: b"-ERR Invalid login\r\n",
    Protocol.SMTP: b"535 5.7.0 Invalid login\r\n",
}


@pytest.mark.parametrize("protocol", Protocol)
def test_refused_login_gets_its_reply_and_the_next_one_is_delayed(protocol: Protocol) -> None:
    async def test(w: LoopbackWorker) -> None:
        for number in range(2):
            client = await greeted(w, protocol)
            assert await log_in(client, protocol, b"guess%d" % number) == REPLIES[protocol]
            assert await client.read_to_eof() == b""
        assert w.value(FAILED, "new") == 2
        assert w.value("mailproxy_auth_penalties_total", "delayed") == 1
        assert w.value("mailproxy_auth_penalty_waiting") == 0
        await w.wait_for_sessions()
        [event] = [line for line in w.read_log().splitlines() if " auth_penalty " in line]
        assert 'user="bob" action=delayed penalty=1' in event

    play(protocol, test, DENIED, auth_penalty=True)


TEMPORARY: Final = {
    Protocol.IMAP: b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n",
    Protocol.POP3: b"-ERR [SYS/TEMP] Account is temporarily unavailable.\r\n",
    Protocol.SMTP: b"454 4.7.0 Temporary authentication failure\r\n",
}


@pytest.mark.parametrize("protocol", Protocol)
def test_login_that_may_not_wait_gets_a_temporary_error_and_is_closed(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_state, "RULES", PenaltyRules(waits=(0.0, 0.2), longest_wait=0.05))

    async def test(w: LoopbackWorker) -> None:
        await log_in(await greeted(w, protocol), protocol, b"guess")
        client = await greeted(w, protocol)
        assert await log_in(client, protocol, b"right") == TEMPORARY[protocol]
        assert await client.read_to_eof() == b""
        assert len(w.auth.requests) == 1
        await w.wait_for_sessions()
        assert w.value("mailproxy_logins_total", str(protocol), METHODS[protocol], "temporary") == 1

    play(protocol, test, DENIED, auth_penalty=True)


METHODS: Final = {Protocol.IMAP: "password", Protocol.POP3: "password", Protocol.SMTP: "plain"}


def test_user_who_logged_in_is_not_delayed_after_others_failed() -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a LOGIN bob right\r\n")
        upstream = await w.upstream.accept()
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        await upstream.exchange(b"+ go\r\n")
        await upstream.exchange(b"+ go\r\n")
        await upstream.send(b"a OK done\r\n")
        assert await client.read_line() == b"a OK done\r\n"
        other = await greeted(w, Protocol.IMAP)
        await other.exchange(b"a LOGIN eve guess\r\n")
        again = await greeted(w, Protocol.IMAP)
        assert await log_in(again, Protocol.IMAP, b"typo") == REPLIES[Protocol.IMAP]
        assert w.value("mailproxy_auth_penalties_total", "known") == 1
        assert w.value("mailproxy_auth_penalties_total", "delayed") == 0

    play(Protocol.IMAP, test, GRANTED, DENIED, auth_penalty=True)


@pytest.mark.parametrize("tempfail", Tempfail)
@pytest.mark.parametrize(
    ("protocol", "reply", "is_failed"),
    [
        (Protocol.IMAP, b"a NO [AUTHENTICATIONFAILED] no\r\n", True),
        (Protocol.IMAP, b"a NO [UNAVAILABLE] later\r\n", False),
        (Protocol.IMAP, b"* BYE no\r\n", False),
        (Protocol.IMAP, b"?\r\n", False),
        (Protocol.POP3, b"-ERR [AUTH] no\r\n", True),
        (Protocol.POP3, b"-ERR [SYS/TEMP] later\r\n", False),
    ],
)
def test_only_a_refusal_of_credentials_by_the_mail_server_is_a_failed_login(
    protocol: Protocol, reply: bytes, is_failed: bool, tempfail: Tempfail
) -> None:
    """In the login metrics, the log line of the session, and the penalty."""

    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, protocol)
        secret = LOGIN[protocol] % b"guess"
        await client.send(secret)
        if protocol is Protocol.POP3:
            await client.read_line()
        await refuse_upstream(w, protocol, reply)
        assert await client.read_line()
        client.close()
        await w.wait_for_sessions()
        assert w.value(FAILED, "new") == is_failed
        assert w.value("mailproxy_logins_total", str(protocol), "password", "upstream_denied") == is_failed
        line = w.read_log().splitlines()[-1]
        assert ("result=upstream_denied" in line) == is_failed

    directives = {"proxy_pass_error_message": True, "proxy_tempfail": tempfail}
    play(protocol, test, GRANTED, auth_penalty=True, auth_block=AuthBlock(failures=10), **directives)


@pytest.mark.parametrize("tempfail", Tempfail)
@pytest.mark.parametrize(
    "response", [LATER, b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_outage_of_the_authentication_service_is_no_failed_login(response: bytes, tempfail: Tempfail) -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.SMTP)
        assert (await log_in(client, Protocol.SMTP, b"right"))[:1] == b"4"
        client.close()
        await w.wait_for_sessions()
        assert w.value(FAILED, "new") == 0
        assert w.value("mailproxy_logins_total", "smtp", "plain", "denied") == 0
        assert "result=denied" not in w.read_log()

    directives = {"auth_block": AuthBlock(failures=1), "proxy_tempfail": tempfail}
    play(Protocol.SMTP, test, response, auth_penalty=True, **directives)


@pytest.mark.parametrize("method", [b"XOAUTH2", b"OAUTHBEARER"])
def test_refused_token_counts_once_despite_its_challenge(method: bytes) -> None:
    token = {
        b"XOAUTH2": b"user=bob\1auth=Bearer x\1\1",
        b"OAUTHBEARER": b"n,a=bob,\1auth=Bearer x\1\1",
    }
    error = b64encode(b'{"status":"invalid_token"}').decode()
    response = http_response(f"Auth-Status: Expired\r\nAuth-Error-SASL: {error}\r\n")

    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.IMAP)
        line = b"a AUTHENTICATE %b %b\r\n" % (method, b64encode(token[method]))
        assert await client.exchange(line) == b"+ " + error.encode() + b"\r\n"
        assert (
            await client.exchange(b"AQ==\r\n" if method == b"OAUTHBEARER" else b"\r\n") == b"a NO Expired\r\n"
        )
        assert (w.value(FAILED, "new"), w.value(FAILED, "repeated")) == (1, 0)

    methods = frozenset({AuthMethod.XOAUTH2, AuthMethod.OAUTHBEARER})
    play(Protocol.IMAP, test, response, auth_penalty=True, imap_auth=methods)


def test_client_of_a_blocked_address_is_closed_at_accept() -> None:
    async def test(w: LoopbackWorker) -> None:
        for number in range(2):
            client = await greeted(w, Protocol.IMAP)
            await log_in(client, Protocol.IMAP, b"guess%d" % number)
        blocked = await w.client()
        assert await blocked.read_to_eof() == b""
        assert w.value("mailproxy_limit_rejections_total", "imap", "blocked", "enforce") == 1
        assert w.value("mailproxy_auth_addresses_blocked_total") == 1
        assert w.value("mailproxy_connections_active", "imap", "imap") == w.app.sessions
        log = w.read_log()
        assert "address_blocked" in log
        assert "client=127.0.0.1" in log

    play(Protocol.IMAP, test, DENIED, auth_block=BLOCK)


def test_address_in_the_proxy_header_is_blocked_and_not_the_balancer() -> None:
    async def through(w: LoopbackWorker, address: bytes) -> Peer:
        client = await w.client()
        await client.send(b"PROXY TCP4 %b 192.0.2.9 5000 143\r\n" % address)
        return client

    async def test(w: LoopbackWorker) -> None:
        for number in range(2):
            client = await through(w, b"198.51.100.1")
            await client.read_line()
            await log_in(client, Protocol.IMAP, b"guess%d" % number)
        blocked = await through(w, b"198.51.100.1")
        assert await blocked.read_to_eof() == b""
        other = await through(w, b"198.51.100.2")
        assert (await other.read_line()).startswith(b"* OK")
        assert w.value("mailproxy_limit_rejections_total", "imap", "blocked", "enforce") == 1
        other.close()
        await w.wait_for_sessions()
        assert "client=198.51.100.1" in w.read_log()

    listen = {"proxy_protocol": True}
    play(
        Protocol.IMAP,
        test,
        DENIED,
        listen=listen,
        auth_block=BLOCK,
        set_real_ip_from=("127.0.0.0/8",),
    )


def test_records_survive_a_reload() -> None:
    async def test(w: LoopbackWorker) -> None:
        await log_in(await greeted(w, Protocol.IMAP), Protocol.IMAP, b"guess")
        [old] = w.app._servers.values()
        state = old.auth._state  # type: ignore[attr-defined]
        await w.app.apply(w.config, {}, names={}, ticket_keys={})
        [new] = w.app._servers.values()
        assert new is not old
        assert new.auth._state is state  # type: ignore[attr-defined]

    play(Protocol.IMAP, test, DENIED, auth_penalty=True)


def test_server_without_these_directives_has_the_authentication_service_alone() -> None:
    async def test(w: LoopbackWorker) -> None:
        [found] = w.app._servers.values()
        assert found.auth in w.app.authenticators.auth_clients.values()
        assert found.blocks is None
        assert w.app.authenticators._penalties is None

    play(Protocol.IMAP, test, DENIED, auth_failure_delay=None)


def test_pop3_lists_response_codes_where_logins_may_get_a_temporary_error() -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.POP3)
        await client.send(b"CAPA\r\n")
        lines = []
        while (line := await client.read_line()) != b".\r\n":
            lines.append(line)
        assert b"RESP-CODES\r\n" in lines

    play(Protocol.POP3, test, DENIED, auth_penalty=True)


def test_users_log_in_while_passwords_are_guessed_from_many_addresses() -> None:
    """The small version of ``benchmarks/guessing.py``; no user is refused or asked for a password."""
    guesses, users = 60, 6

    def decide(request: bytes) -> bytes:
        return allowed if b"Auth-Pass: right\r\n" in request else DENIED

    allowed = b""

    async def mail_server(w: LoopbackWorker) -> None:
        while True:
            upstream = await w.upstream.accept()
            await upstream.send(b"* OK ready\r\n")
            await upstream.read_line()
            await upstream.exchange(b"+ go\r\n")
            await upstream.exchange(b"+ go\r\n")
            await upstream.send(b"a OK done\r\n")

    async def login(w: LoopbackWorker, address: str, user: str, password: bytes) -> bytes:
        client = await w.client()
        await client.send(b"PROXY TCP4 %b 192.0.2.9 5000 143\r\n" % address.encode())
        await client.read_line()
        reply = await client.exchange(b"a LOGIN %b %b\r\n" % (user.encode(), password))
        client.close()
        return reply

    async def test(w: LoopbackWorker) -> None:
        nonlocal allowed
        allowed = GRANTED.replace(b"{port}", b"%d" % w.upstream.port)
        attackers = [
            login(w, f"10.0.0.{number}", f"user{number % users}", b"guess%d" % number)
            for number in range(guesses)
        ]
        honest = [login(w, f"198.51.100.{number}", f"user{number}", b"right") for number in range(users)]
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(mail_server(w))
            refused, found = await asyncio.gather(asyncio.gather(*attackers), asyncio.gather(*honest))
            serving.cancel()
        assert set(found) == {b"a OK done\r\n"}
        assert set(refused) == {REPLIES[Protocol.IMAP]}
        await w.wait_for_sessions()
        assert w.value(FAILED, "new") == guesses
        assert w.value("mailproxy_logins_total", "imap", "password", "success") == users
        assert w.value("mailproxy_auth_penalty_waiting") == 0

    play(
        Protocol.IMAP,
        test,
        decide,
        listen={"proxy_protocol": True},
        auth_penalty=True,
        set_real_ip_from=("127.0.0.0/8",),
    )


End = Callable[[LoopbackWorker, Peer], None]
ENDS: Final[dict[str, End]] = {
    "reset": lambda _, client: client.reset(),
    "abort": lambda w, _: session_of(w).abort(),
    "internal error": lambda w, _: session_of(w).on_internal_error(),
    "forced": lambda w, _: session_of(w).force_close(),
}


def session_of(w: LoopbackWorker) -> Any:
    [session] = w.app.context.live
    return session


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_session_that_ends_during_the_login_at_the_mail_server_gives_its_turn_back(
    end: str, is_known: bool
) -> None:
    async def test(w: LoopbackWorker) -> None:
        if is_known:
            await log_in_at_upstream(w)
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a LOGIN bob right\r\n")
        upstream = await w.upstream.accept()
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        ENDS[end](w, client)
        client.close()
        while w.app.context.live:
            await asyncio.sleep(0.01)
        await log_in_at_upstream(w)
        assert (w.value(FAILED, "new"), w.value("mailproxy_auth_penalty_waiting")) == (0, 0)

    gc.collect()
    gc.disable()  # the turn must not wait for the garbage collector
    try:
        play(Protocol.IMAP, test, GRANTED, auth_penalty=True)
    finally:
        gc.enable()


async def log_in_at_upstream(w: LoopbackWorker) -> None:
    client = await greeted(w, Protocol.IMAP)
    await client.send(b"a LOGIN bob right\r\n")
    await refuse_upstream(w, Protocol.IMAP, b"a OK done\r\n")
    assert await client.read_line() == b"a OK done\r\n"
    client.close()
    await w.wait_for_sessions()


def test_drain_during_the_login_at_the_mail_server_ends_the_turn_with_the_login() -> None:
    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w, Protocol.IMAP)
        await client.send(b"a LOGIN bob right\r\n")
        upstream = await w.upstream.accept()
        await upstream.send(b"* OK ready\r\n")
        await upstream.read_line()
        session = session_of(w)
        attempt = session._login.grant.attempt
        session.drain()
        assert attempt.turn is not None
        await upstream.exchange(b"+ go\r\n")
        await upstream.exchange(b"+ go\r\n")
        await upstream.send(b"a OK done\r\n")
        assert await client.read_line() == b"a OK done\r\n"
        assert attempt.turn is None

    play(Protocol.IMAP, test, GRANTED, auth_penalty=True)
