# SPDX-License-Identifier: Apache-2.0
"""Sessions whose logins the proxy decides about with a list of users (``auth_mode static``)."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.session import refusal_times
from mailproxy.users import password_pool
from mailproxy_config.model import AuthMode, Protocol
from mailproxy_config.upstream_login import ProxyAuth, ProxyMasterUser
from support import invariants
from support.loopback_worker import LoopbackWorker, Peer, run
from support.routed_worker import routed_worker

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
every_protocol = pytest.mark.parametrize("protocol", tuple(Protocol))
# Of the password "correct-horse".
BCRYPT: Final = "$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS"
USER: Final = b"bob@example.org"
PASSWORD: Final = b"correct-horse"
REFUSED: Final = {
    IMAP: b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n",
    POP3: b"-ERR [AUTH] Authentication failed.\r\n",
    SMTP: b"535 5.7.8 Authentication failed.\r\n",
}
OUTAGE: Final = {
    IMAP: b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n",
    POP3: b"-ERR [SYS/TEMP] Account is temporarily unavailable.\r\n",
    SMTP: b"454 4.7.0 Temporary authentication failure\r\n",
}
SUCCESS: Final = {
    IMAP: b"a OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n",
    POP3: b"+OK Logged in\r\n",
    SMTP: b"235 2.0.0 OK\r\n",
}
# What an upstream sends, and what it gets before each reply but the first.
DIALOGUE: Final = {
    IMAP: (
        (b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hi\r\n", SUCCESS[IMAP]),
        (b"a LOGIN {15+}\r\nbob@example.org {13+}\r\ncorrect-horse\r\n",),
    ),
    POP3: (
        (b"+OK hi\r\n", b"+OK\r\n", SUCCESS[POP3]),
        (b"USER bob@example.org\r\n", b"PASS correct-horse\r\n"),
    ),
    SMTP: (
        (b"220 mx\r\n", b"250-mx\r\n250 AUTH PLAIN\r\n", b"235 2.7.0 in\r\n"),
        (
            b"EHLO mail.example.com\r\n",
            b"AUTH PLAIN " + b64encode(b"\0bob@example.org\0correct-horse") + b"\r\n",
        ),
    ),
}


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 0.01)


@pytest.fixture
def users(tmp_path: Path) -> str:
    file = tmp_path / "users"
    file.write_text(f"bob@example.org:{BCRYPT}\nann@example.com:{BCRYPT}\n")
    return str(file)


def proxy(protocol: Protocol, users: str, **directives: Any) -> AbstractAsyncContextManager[LoopbackWorker]:
    values: dict[str, Any] = {"auth_mode": AuthMode.STATIC, "auth_user_file": users, "proxy_smtp_auth": True}
    if protocol is SMTP:
        values["proxy_auth"] = (ProxyAuth.PLAIN,)
    return routed_worker(protocol, **values | directives)


def command(protocol: Protocol, user: bytes = USER, password: bytes = PASSWORD) -> bytes:
    if protocol is IMAP:
        return b'a LOGIN %b "%b"\r\n' % (user, password)
    return b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + password) + b"\r\n"


async def connect(w: LoopbackWorker) -> Peer:
    client = await w.client()
    await client.read_line()
    return client


def findings(w: LoopbackWorker) -> dict[str, int]:
    found = invariants.series(w.metrics, "mailproxy_password_verifications_total")
    return {result: int(count) for (result,), count in found.items() if count}


def logins(w: LoopbackWorker) -> dict[str, int]:
    found = invariants.series(w.metrics, "mailproxy_logins_total")
    return {result: int(count) for (_, _, result), count in found.items() if count}


async def wait_for_pending(w: LoopbackWorker, number: int) -> None:
    while w.value("mailproxy_password_verifications_pending") != number:
        await asyncio.sleep(0.01)


@every_protocol
def test_right_password_is_sent_to_upstream_of_the_route(protocol: Protocol, users: str) -> None:
    async def play() -> None:
        async with proxy(protocol, users) as w:
            client = await connect(w)
            await client.send(command(protocol))
            upstream = await w.upstream.accept()
            [greeting, *replies], expected = DIALOGUE[protocol]
            await upstream.send(greeting)
            for sent, reply in zip(expected, replies, strict=True):
                assert await upstream.read_bytes(len(sent)) == sent
                await upstream.send(reply)
            assert await client.read_line() == SUCCESS[protocol]
            await client.send(b"up\r\n")
            assert await upstream.read_line() == b"up\r\n"
            assert (findings(w), logins(w)) == ({"right": 1}, {"success": 1})
            assert sum(w.metrics.password_seconds.counts) == 1
            assert w.auth.requests == []
            assert "correct-horse" not in w.read_log()

    run(play)


@every_protocol
def test_refusals_are_alike_and_reach_no_upstream(protocol: Protocol, users: str) -> None:
    wrong = [
        command(protocol, password=b"correct-horsf"),
        command(protocol, user=b"zoe@example.org"),
        command(protocol, user=b"BOB@example.org"),
        command(protocol, user=b"ann@example.com"),  # the password is right; there is no route
        command(protocol, user=b"b@b@example.org"),
        command(protocol, password=b""),
        command(protocol, password=b"x" * 600),
    ]

    async def play() -> None:
        async with proxy(protocol, users, max_errors=20, pop3_client_buffer=4096) as w:
            client = await connect(w)
            for each in wrong:
                assert await client.exchange(each) == REFUSED[protocol]
            assert w.upstream.accepted.empty()
            assert findings(w) == {"wrong": 1, "unknown_user": 3, "right": 1}
            assert logins(w) == {"denied": len(wrong)}
            log = w.read_log()
            for reason in ("wrong password", "unknown user", "no route for this login name"):
                assert reason in log
            assert "correct-hors" not in log

    run(play)


@every_protocol
def test_full_queue_is_an_outage_and_no_failed_login(
    protocol: Protocol, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    verify = password_pool.verify_password

    def blocking(hashed: bytes, password: bytes) -> bool:
        go_on.wait(30)
        return verify(hashed, password)

    monkeypatch.setattr(password_pool, "verify_password", blocking)
    monkeypatch.setattr(password_pool, "MAX_PENDING", 3)

    async def play() -> None:
        async with proxy(protocol, users) as w:
            waiting = [await connect(w) for _ in range(3)]
            for number, client in enumerate(waiting, 1):
                await client.send(command(protocol, password=b"wrong"))
                await wait_for_pending(w, number)
            client = await connect(w)
            assert await client.exchange(command(protocol)) == OUTAGE[protocol]
            assert findings(w) == {"queue_full": 1}
            assert logins(w) == {"unavailable": 1}
            # One that waits for a thread is dropped with its client.
            waiting.pop().reset()
            await wait_for_pending(w, 2)
            await client.send(command(protocol))
            go_on.set()
            for each in waiting:
                assert await each.read_line() == REFUSED[protocol]
            await w.upstream.accept()
            assert findings(w) == {"queue_full": 1, "wrong": 2, "right": 1}
            await wait_for_pending(w, 0)

    try:
        run(play)
    finally:
        go_on.set()


def test_unknown_user_costs_a_verification_like_those_of_most_users(
    users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[bytes] = []

    def recording(hashed: bytes, _: bytes) -> bool:
        verified.append(hashed)
        return True  # even then an unknown user is refused

    monkeypatch.setattr(password_pool, "verify_password", recording)

    async def play() -> None:
        async with proxy(IMAP, users) as w:
            client = await connect(w)
            assert await client.exchange(command(IMAP, user=b"zoe@example.org")) == REFUSED[IMAP]

    run(play)
    [hashed] = verified
    assert hashed.startswith(b"$2y$05$")
    assert hashed != BCRYPT.encode()


def test_error_of_the_library_is_an_outage(users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(password_pool, "verify_password", failing)

    async def play() -> None:
        async with proxy(IMAP, users) as w:
            client = await connect(w)
            assert await client.exchange(command(IMAP)) == OUTAGE[IMAP]
            assert (findings(w), logins(w)) == ({"error": 1}, {"unavailable": 1})
            assert "MemoryError" in w.read_log()

    run(play)


def test_event_loop_goes_on_while_a_password_is_verified(users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(password_pool, "verify_password", lambda *_: go_on.wait(30))

    async def play() -> None:
        async with proxy(IMAP, users) as w:
            waiting, other = await connect(w), await connect(w)
            await waiting.send(command(IMAP, user=b"zoe@example.org"))
            assert await other.exchange(b"n NOOP\r\n") == b"n OK completed\r\n"
            go_on.set()
            assert await waiting.read_line() == REFUSED[IMAP]

    run(play)


def test_master_user_logs_in_after_the_password_was_verified(users: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("master-password")
    master = ProxyMasterUser(user="proxy", password_file=str(secret))

    async def play() -> None:
        async with proxy(IMAP, users, proxy_master_user=master, proxy_auth=(ProxyAuth.PLAIN,)) as w:
            client = await connect(w)
            assert await client.exchange(command(IMAP, password=b"wrong")) == REFUSED[IMAP]
            assert w.upstream.accepted.empty()
            await client.send(command(IMAP))
            upstream = await w.upstream.accept()
            sent = await upstream.exchange(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi\r\n")
            assert b64encode(b"bob@example.org\0proxy\0master-password") in sent
            assert PASSWORD not in sent

    run(play)


def test_no_more_than_two_passwords_are_verified_at_a_time(
    users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: set[int] = set()
    most: list[int] = []
    go_on = threading.Event()

    def blocking(*_: object) -> bool:
        running.add(threading.get_ident())
        go_on.wait(30)
        most.append(len(running))
        return False

    monkeypatch.setattr(password_pool, "verify_password", blocking)

    async def play() -> None:
        async with proxy(IMAP, users) as w:
            clients = [await connect(w) for _ in range(5)]
            for number, client in enumerate(clients, 1):
                await client.send(command(IMAP))
                await wait_for_pending(w, number)
            go_on.set()
            for client in clients:
                assert await client.read_line() == REFUSED[IMAP]

    run(play)
    assert (len(most), max(most)) == (5, 2)
