# SPDX-License-Identifier: Apache-2.0
"""``limit_conn`` and ``limit_preauth`` of logins that fail at the upstream, over sockets."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.limits.zones import ConnZone
from mailproxy.session import refusal_times
from mailproxy_config.limits import LimitConn, LimitConnZone
from mailproxy_config.model import AuthHttp, AuthMode, ListenConfig, Protocol, ServerConfig, Tempfail
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.routed_worker import routed_worker

USER: Final = LimitConnZone(zone="user", key="$remote_user", size=65536)
LIMITS: Final = {"limit_conn_zone": (USER,), "limit_conn": (LimitConn(zone="user", connections=1),)}
REFUSED: Final = b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
BCRYPT: Final = "$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS"
UNAVAILABLE: Final = b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n"
WRONG: Final = b"a NO [AUTHENTICATIONFAILED] no\r\n"
RIGHT: Final = b"a OK done\r\n"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 0.01)


def counts(w: LoopbackWorker) -> dict[str, int]:
    """Return how many sessions each zone counts."""
    limits = w.app.authenticators._limits
    assert limits is not None
    return {spec.zone: zone.held for spec, zone in limits._zones.items() if isinstance(zone, ConnZone)}


async def greeted(w: LoopbackWorker) -> Peer:
    client = await w.client()
    assert (await client.read_line()).startswith(b"* OK")
    return client


async def login(w: LoopbackWorker, client: Peer, reply: bytes) -> Peer:
    """Log in up to the reply of the upstream; returns the upstream."""
    await client.send(b"a LOGIN bob@example.org secret\r\n")
    upstream = await w.upstream.accept()
    for line in (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n"):
        await upstream.exchange(line)
    await upstream.send(reply)
    return upstream


def play(test: Callable[[LoopbackWorker], Coroutine[Any, Any, None]], **directives: Any) -> None:
    async def bounded() -> None:
        async with routed_worker(Protocol.IMAP, **directives) as w:
            await test(w)

    run(bounded)


def test_login_that_the_upstream_refuses_takes_no_session_of_its_user() -> None:
    async def test(w: LoopbackWorker) -> None:
        idle = [await greeted(w) for _ in range(2)]
        for client in idle:
            await login(w, client, WRONG)
            assert await client.read_line() == REFUSED
            assert counts(w) == {"user": 0}
        client = await greeted(w)
        await login(w, client, RIGHT)
        assert await client.read_line() == RIGHT
        assert counts(w) == {"user": 1}
        await idle[0].send(b"a LOGIN bob@example.org secret\r\n")
        assert await idle[0].read_to_eof() == b"a NO [UNAVAILABLE] Too many connections\r\n"

    play(test, **LIMITS)


def test_login_that_the_upstream_refuses_stays_a_connection_before_the_login() -> None:
    async def test(w: LoopbackWorker) -> None:
        clients = [await greeted(w) for _ in range(2)]
        for client in clients:
            await login(w, client, WRONG)
            assert await client.read_line() == REFUSED
        assert counts(w) == {"limit_preauth": 2}
        assert await (await w.client()).read_to_eof() == b""
        await login(w, clients[0], RIGHT)
        assert await clients[0].read_line() == RIGHT
        assert counts(w) == {"limit_preauth": 1}
        await greeted(w)

    play(test, limit_preauth=2)


def test_login_during_an_outage_of_the_upstream_takes_no_session_of_its_user() -> None:
    """The authentication service has allowed it."""

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        values: dict[str, Any] = {"xclient": False, "proxy_tempfail": Tempfail.RFC5530, **LIMITS}
        return server(Protocol.IMAP, auth_http=auth, listen=(listen,), **values)

    async def test() -> None:
        async with loopback_worker(build, http_response(GRANT), drain=0.05) as w:
            client = await greeted(w)
            (await login(w, client, b"* BYE\r\n")).close()
            assert await client.read_line() == UNAVAILABLE
            assert counts(w) == {"user": 0}
            await login(w, client, RIGHT)
            assert await client.read_line() == RIGHT
            assert counts(w) == {"user": 1}

    run(test)


def test_login_with_a_verified_password_is_no_connection_before_the_login(tmp_path: Path) -> None:
    """With ``auth_mode static`` the password is known to be right before an upstream is connected to."""
    users = tmp_path / "users"
    users.write_text(f"bob@example.org:{BCRYPT}\n")

    async def test(w: LoopbackWorker) -> None:
        client = await greeted(w)
        assert counts(w) == {"limit_preauth": 1}
        await client.send(b"a LOGIN bob@example.org correct-horse\r\n")
        await w.upstream.accept()
        assert counts(w) == {"limit_preauth": 0}

    play(test, limit_preauth=1, auth_mode=AuthMode.STATIC, auth_user_file=str(users))
