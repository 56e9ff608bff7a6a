# SPDX-License-Identifier: Apache-2.0
"""Sessions that stay open after an outage (``proxy_tempfail rfc5530``), and those that do not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.enums import CloseReason, Method, UpstreamStage
from mailproxy.errors import UpstreamError, UpstreamRefused
from mailproxy.loop.worker_loop import make_loop
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.tempfail import ResumableLogin, TempfailFrontend
from mailproxy.protocols.types import AuthAllowed, Client, Credentials, Secret
from mailproxy.session.session import Session
from mailproxy_config.model import (
    AuthHttp,
    AuthMethod,
    ImapId,
    ListenConfig,
    LogLevel,
    Protocol,
    ProxySsl,
    Seconds,
    SendIdentity,
    ServerConfig,
    StartTls,
    Tempfail,
    XclientMode,
)
from support import invariants
from support.configs import server
from support.fuzz import examples
from support.loopback_worker import GRANT, Builder, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.streams import abort
from support.tls_authority import DAY, NOW, Authority
from support.tls_identities import Identities
from support.upstream_tls import mail_server, server_context, session

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
GRANTED: Final = http_response(GRANT)
DENIED: Final = http_response("Auth-Status: Invalid login or password\r\nAuth-Wait: 0\r\n")
_PLAIN: Final = b"AUTH PLAIN " + b64encode(b"\0alice\0secret") + b"\r\n"
COMMANDS: Final = {
    IMAP: (b"a LOGIN alice secret\r\n",),
    POP3: (b"USER alice\r\n", b"PASS secret\r\n"),
    SMTP: (_PLAIN,),
}
OUTAGE: Final = {
    IMAP: b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n",
    POP3: b"-ERR [SYS/TEMP] Account is temporarily unavailable.\r\n",
    SMTP: b"454 4.7.0 Temporary authentication failure\r\n",
}
MISCONFIGURED: Final = {**OUTAGE, IMAP: b"a NO [SERVERBUG] Account is temporarily unavailable.\r\n"}
INTERNAL_ERROR: Final = {each: PROTOCOLS[each].internal_error for each in Protocol}
SUCCESS: Final = {IMAP: b"a OK in\r\n", POP3: b"+OK in\r\n", SMTP: b"235 2.0.0 OK\r\n"}
METHOD: Final = {IMAP: "password", POP3: "password", SMTP: "plain"}
NOOP: Final = {
    IMAP: (b"n NOOP\r\n", b"n OK completed\r\n"),
    POP3: (b"NOOP\r\n", b"+OK\r\n"),
    SMTP: (b"NOOP\r\n", b"250 2.0.0 OK\r\n"),
}
# What an upstream sends: its greeting, and its reply to each command of a login.
REPLIES: Final = {
    IMAP: (b"* OK ready\r\n", b"+ go on\r\n", b"+ go on\r\n", SUCCESS[IMAP]),
    POP3: (b"+OK ready\r\n", b"+OK\r\n", SUCCESS[POP3]),
    SMTP: (b"220 mx\r\n", b"250 mx\r\n", b"235 2.7.0 in\r\n"),
}
every_protocol = pytest.mark.parametrize("protocol", tuple(Protocol))


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(tmp_path_factory.mktemp("identities"))


def proxy(protocol: Protocol, **directives: Any) -> Builder:
    values: dict[str, Any] = {
        "proxy_tempfail": Tempfail.RFC5530,
        "error_log": LogLevel.INFO,
        "proxy_smtp_auth": True,
        "xclient": False,
        **directives,
    }

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(protocol, **{"auth_http": auth, "listen": (listen,), **values})

    return build


async def connect(w: LoopbackWorker, protocol: Protocol) -> Peer:
    client = await w.client()
    await client.read_line()
    if protocol is SMTP:
        await hello(client)
    return client


async def hello(client: Peer) -> None:
    reply = await client.exchange(b"EHLO me.example\r\n")
    while reply[3:4] == b"-":
        reply = await client.read_line()


async def send_login(client: Peer, protocol: Protocol, *, then: bytes = b"") -> None:
    commands = COMMANDS[protocol]
    for command in commands[:-1]:
        assert await client.exchange(command) == b"+OK\r\n"
    await client.send(commands[-1] + then)


async def serve_login(w: LoopbackWorker, protocol: Protocol) -> Peer:
    """Accept a login at the upstream."""
    upstream = await w.upstream.accept()
    for reply in REPLIES[protocol][:-1]:
        await upstream.exchange(reply)
    await upstream.send(REPLIES[protocol][-1])
    return upstream


async def log_in_again(w: LoopbackWorker, client: Peer, protocol: Protocol) -> Peer:
    """Log in on the same connection, and check that the relay works in both directions."""
    await send_login(client, protocol)
    upstream = await serve_login(w, protocol)
    assert await client.read_line() == SUCCESS[protocol]
    assert await relay(client, upstream) == (b"up\r\n", b"down\r\n")
    return upstream


async def relay(client: Peer, upstream: Peer) -> tuple[bytes, bytes]:
    await client.send(b"up\r\n")
    await upstream.send(b"down\r\n")
    return await upstream.read_line(), await client.read_line()


async def finish(w: LoopbackWorker, client: Peer, upstream: Peer) -> None:
    client.close()
    assert await upstream.read_to_eof() == b""
    upstream.close()
    await invariants.wait_until_idle(w.app, w.metrics)


def logins(w: LoopbackWorker, protocol: Protocol) -> dict[str, int]:
    """Return the counted results of logins."""
    found = invariants.series(w.metrics, "mailproxy_logins_total")
    return {result: count for (name, _, result), count in found.items() if name == protocol}


# --- outages of the upstream ------------------------------------------------------------------------


Failing = Callable[[LoopbackWorker, Protocol], Awaitable[object]]


def dies_after(count: int) -> Failing:
    """Close the connection after so many replies."""

    async def fail(w: LoopbackWorker, protocol: Protocol) -> None:
        upstream = await w.upstream.accept()
        for reply in REPLIES[protocol][:count]:
            await upstream.exchange(reply)
        upstream.close()

    return fail


def resets_after(count: int) -> Failing:
    async def fail(w: LoopbackWorker, protocol: Protocol) -> None:
        upstream = await w.upstream.accept()
        for reply in REPLIES[protocol][:count]:
            await upstream.exchange(reply)
        upstream.reset()

    return fail


def replies(count: int, by_protocol: dict[Protocol, bytes]) -> Failing:
    """Send another reply instead of the one with this number, from the end if it is negative."""

    async def fail(w: LoopbackWorker, protocol: Protocol) -> Peer:
        upstream = await w.upstream.accept()
        for reply in REPLIES[protocol][:count]:
            await upstream.exchange(reply)
        await upstream.send(by_protocol[protocol])
        return upstream

    return fail


async def is_silent(w: LoopbackWorker, protocol: Protocol) -> Peer:
    return await w.upstream.accept()


async def stops_before_last_reply(w: LoopbackWorker, protocol: Protocol) -> Peer:
    upstream = await w.upstream.accept()
    for reply in REPLIES[protocol][:-1]:
        await upstream.exchange(reply)
    return upstream


OUTAGES: Final[dict[str, Failing]] = {
    "closes before the greeting": dies_after(0),
    "closes after the greeting": dies_after(1),
    "closes before the last reply": dies_after(-1),
    "resets before the greeting": resets_after(0),
    "resets before the last reply": resets_after(-1),
    "refuses in its greeting": replies(
        0, {IMAP: b"* BYE [UNAVAILABLE] no\r\n", POP3: b"-ERR [SYS/PERM] no\r\n", SMTP: b"554 5.3.2 no\r\n"}
    ),
    "sends no greeting of its protocol": replies(0, dict.fromkeys(Protocol, b"HTTP/1.1 400 Bad\r\n")),
    "sends a greeting without an end": replies(0, dict.fromkeys(Protocol, b"x" * 5000)),
    "refuses for a time": replies(
        -1,
        {
            IMAP: b"* 1 EXISTS\r\na NO [UNAVAILABLE] down\r\n",
            POP3: b"-ERR [SYS/TEMP] down\r\n",
            SMTP: b"454 4.7.0 down\r\n",
        },
    ),
    "refuses for a time with other codes": replies(
        -1, {IMAP: b"a no [inuse] x\r\n", POP3: b"-ERR [IN-USE] x\r\n", SMTP: b"451-4.3.0 a\r\n451 b\r\n"}
    ),
    "ends the session": replies(
        -1, {IMAP: b"* BYE no\r\n", POP3: b"-ERR [LOGIN-DELAY] no\r\n", SMTP: b"421 4.3.2 no\r\n"}
    ),
    "sends no reply of its protocol": replies(-1, {IMAP: b"z OK\r\n", POP3: b"what\r\n", SMTP: b"999 x\r\n"}),
}


@every_protocol
@pytest.mark.parametrize("failing", OUTAGES.values(), ids=OUTAGES)
def test_client_logs_in_after_an_outage_of_the_upstream(protocol: Protocol, failing: Failing) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await failing(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            assert w.value("mailproxy_sessions_active", protocol, "preauth") == 1
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]
            upstream = await log_in_again(w, client, protocol)
            await finish(w, client, upstream)
            counted = logins(w, protocol)
            assert counted.pop("success") == 1
            assert counted in ({"upstream_failed": 1}, {"upstream_refused": 1})
            log = w.read_log()
            assert log.count("upstream_failed") == 1
            assert "result=success" in log
            assert sum(invariants.series(w.metrics, "mailproxy_upstream_errors_total").values()) == 1
            invariants.check_counters(w.metrics, log)

    run(play)


@every_protocol
def test_client_logs_in_after_a_refused_connection(protocol: Protocol) -> None:
    async def play() -> None:
        unused = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
        port = unused.sockets[0].getsockname()[1]
        unused.close()
        refused = http_response(GRANT.format(port=port))
        async with loopback_worker(proxy(protocol), refused, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            await finish(w, client, await log_in_again(w, client, protocol))
            assert "connecting failed: Connection refused" in w.read_log()

    run(play)


@every_protocol
def test_client_logs_in_after_no_socket_could_be_made(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes while the frontend's generator is just over."""

    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            monkeypatch.setattr("mailproxy.session.upstream._TYPE", 77)
            await send_login(client, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            monkeypatch.undo()
            await finish(w, client, await log_in_again(w, client, protocol))

    run(play)


@every_protocol
@pytest.mark.parametrize("failing", [is_silent, stops_before_last_reply])
def test_client_logs_in_after_a_timeout_of_the_upstream(protocol: Protocol, failing: Failing) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, timeout=Seconds(1.0)), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            slow: Any = await failing(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            assert await slow.read_to_eof() == b""
            await finish(w, client, await log_in_again(w, client, protocol))
            assert sum(logins(w, protocol).values()) == 2

    run(play)


@every_protocol
def test_timeout_starts_anew_after_an_outage(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, timeout=Seconds(0.5)), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await is_silent(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]
            assert await client.read_to_eof() == b""
            await invariants.wait_until_idle(w.app, w.metrics)
            name = "mailproxy_connections_closed_total"
            assert w.value(name, protocol, protocol, CloseReason.PREAUTH_TIMEOUT) == 1

    run(play)


@pytest.mark.parametrize(
    ("protocol", "directives", "offer"),
    [
        (IMAP, {"proxy_imap_guard": True}, b"* OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE] hi\r\n"),
        (SMTP, {}, b"250-mx\r\n250-XCLIENT NAME ADDR LOGIN\r\n250 SIZE\r\n"),
    ],
)
def test_client_logs_in_after_a_guard_refused_the_upstream(
    protocol: Protocol, directives: dict[str, Any], offer: bytes
) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, **directives), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            if protocol is SMTP:
                await upstream.exchange(REPLIES[SMTP][0])
            await upstream.send(offer)
            assert await client.read_line() == MISCONFIGURED[protocol]
            await finish(w, client, await log_in_again(w, client, protocol))

    run(play)


@every_protocol
@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
@pytest.mark.parametrize("is_expired", [False, True])
def test_client_logs_in_after_a_certificate_of_the_upstream_was_renewed(
    protocol: Protocol, mode: ProxySsl, is_expired: bool, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    name = "mail.example.com"
    if is_expired:
        bad = authority.issue(names=(name,), expires=NOW - DAY)
    else:
        bad = authority.issue(names=("other.example.com",))
    good = authority.issue(names=(name,))
    build = proxy(
        protocol,
        proxy_ssl=mode,
        proxy_ssl_name=name,
        proxy_ssl_trusted_certificate=authority.file,
    )
    with (
        mail_server(session(protocol, mode), server_context(bad)) as first,
        mail_server(session(protocol, mode), server_context(good)) as second,
    ):

        async def play() -> None:
            grants = [http_response(GRANT.format(port=each.port)) for each in (first, second)]
            async with loopback_worker(build, *grants) as w:
                client = await connect(w, protocol)
                await send_login(client, protocol)
                assert await client.read_line() == MISCONFIGURED[protocol]
                await send_login(client, protocol)
                reply = await client.read_line()
                assert reply.startswith((b"a OK", b"+OK", b"235"))

        run(play)
    assert b"secret" not in first.received()


# --- outages of the authentication service ----------------------------------------------------------


NO_HTTP: Final = b"\x00\x01\r\n\r\n"
UNUSABLE: Final = {
    "HTTP status 502": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    "no upstream": http_response("Auth-Status: OK\r\n"),
    "no address": http_response("Auth-Status: OK\r\nAuth-Server: a b\r\nAuth-Port: 1\r\n"),
    "no HTTP": NO_HTTP,
    "a control character": http_response("Auth-Status: no\x07\r\n"),
}


@every_protocol
@pytest.mark.parametrize("response", UNUSABLE.values(), ids=UNUSABLE)
def test_client_logs_in_after_an_unusable_response_of_the_service(
    protocol: Protocol, response: bytes
) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), response, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            assert w.value("mailproxy_sessions_active", protocol, "preauth") == 1
            await finish(w, client, await log_in_again(w, client, protocol))
            counted = logins(w, protocol)
            assert counted.pop("success") == 1
            assert counted in ({"unavailable": 1}, {"invalid_response": 1})
            log = w.read_log()
            assert log.count("authorization_failed") == 1
            invariants.check_counters(w.metrics, log)

    run(play)


@every_protocol
def test_client_logs_in_after_a_timeout_of_the_service(protocol: Protocol) -> None:
    async def late(_: bytes) -> bytes:
        await asyncio.sleep(30)
        return b""

    async def play() -> None:
        build = proxy(protocol, auth_http_timeout=Seconds(0.3))
        async with loopback_worker(build, late, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            await finish(w, client, await log_in_again(w, client, protocol))
            assert logins(w, protocol) == {"timeout": 1, "success": 1}

    run(play)


@every_protocol
def test_client_logs_in_after_the_service_was_down(protocol: Protocol) -> None:
    async def play() -> None:
        unused = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
        port = unused.sockets[0].getsockname()[1]
        unused.close()
        await unused.wait_closed()

        def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
            return proxy(protocol)(AuthHttp(host="127.0.0.1", port=port, uri="/"), listen)

        async with loopback_worker(build, GRANTED) as w:
            client = await connect(w, protocol)
            for _ in range(2):
                await send_login(client, protocol)
                assert await client.read_line() == OUTAGE[protocol]
            service = await asyncio.start_server(w.auth.serve, "127.0.0.1", port)
            try:
                await finish(w, client, await log_in_again(w, client, protocol))
            finally:
                service.close()
            assert logins(w, protocol) == {"unavailable": 2, "success": 1}

    run(play)


@every_protocol
def test_login_that_is_denied_ends_the_session(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), DENIED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            assert b"Invalid login or password" in await client.read_to_eof()

    run(play)


# --- what is no outage ------------------------------------------------------------------------------

REFUSALS: Final = {
    IMAP: (b"a NO [AUTHENTICATIONFAILED] no\r\n", b"a BAD no\r\n", b"a NO UNAVAILABLE\r\n", b"a NO no\r\n"),
    POP3: (b"-ERR [AUTH] no\r\n", b"-ERR no\r\n", b"-ERR no [SYS/TEMP]\r\n"),
    SMTP: (b"535 5.7.8 no\r\n", b"500 454 no\r\n", b"550-4.7.0 no\r\n550 no\r\n"),
}


@every_protocol
@pytest.mark.parametrize("is_passed_on", [False, True])
@pytest.mark.parametrize("number", range(3))
def test_refusal_by_the_upstream_ends_the_session_as_in_nginx(
    protocol: Protocol, is_passed_on: bool, number: int
) -> None:
    refusal = REFUSALS[protocol][number]

    async def play() -> None:
        build = proxy(protocol, proxy_pass_error_message=is_passed_on)
        async with loopback_worker(build, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await replies(-1, {protocol: refusal})(w, protocol)
            expected = refusal if is_passed_on else INTERNAL_ERROR[protocol]
            assert await client.read_to_eof() == expected
            assert logins(w, protocol) == {"upstream_denied": 1}

    run(play)


TEMPORARY: Final = {
    IMAP: b"a NO [UNAVAILABLE] x\r\n",
    POP3: b"-ERR [SYS/TEMP] x\r\n",
    SMTP: b"454 4.7.0 x\r\n",
}


@every_protocol
@pytest.mark.parametrize("tempfail", tuple(Tempfail))
def test_temporary_refusal_is_passed_on_with_nginx_words_only(protocol: Protocol, tempfail: Tempfail) -> None:
    async def play() -> None:
        build = proxy(protocol, proxy_pass_error_message=True, proxy_tempfail=tempfail)
        async with loopback_worker(build, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await replies(-1, TEMPORARY)(w, protocol)
            if tempfail is Tempfail.NGINX:
                assert await client.read_to_eof() == TEMPORARY[protocol]
                assert logins(w, protocol) == {"upstream_refused": 1}
            else:
                assert await client.read_line() == OUTAGE[protocol]
                assert logins(w, protocol) == {"upstream_refused": 1}

    run(play)


@every_protocol
def test_outage_ends_the_session_with_nginx_words(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, proxy_tempfail=Tempfail.NGINX), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await dies_after(0)(w, protocol)
            assert await client.read_to_eof() == INTERNAL_ERROR[protocol]

    run(play)


@every_protocol
def test_class_without_it_is_used_with_nginx_words(protocol: Protocol) -> None:
    nginx = PROTOCOLS[protocol].frontend_for(server(protocol))(Client("192.0.2.1"))
    assert type(nginx) is PROTOCOLS[protocol].frontend(nginx.server)
    build = PROTOCOLS[protocol].frontend_for(server(protocol, proxy_tempfail=Tempfail.RFC5530))
    assert isinstance(build(Client("192.0.2.1")), TempfailFrontend)


@every_protocol
def test_internal_error_ends_the_session(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[object]:
        raise ZeroDivisionError
        yield

    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            (served,) = w.app._servers.values()
            monkeypatch.setattr(type(served.upstream), "log_in", broken)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            await upstream.send(REPLIES[protocol][0])
            assert await client.read_to_eof() == INTERNAL_ERROR[protocol]
            assert "internal_error" in w.read_log()

    run(play)


@pytest.mark.parametrize(
    ("protocol", "directives", "replies"),
    [
        (IMAP, {"proxy_id": SendIdentity.REQUIRED}, (b"* OK [CAPABILITY IMAP4rev1] hi\r\n",)),
        (POP3, {"proxy_pop3_xclient": SendIdentity.REQUIRED}, (b"+OK hi\r\n", b"-ERR what\r\n")),
        (SMTP, {"xclient": True, "xclient_mode": XclientMode.REQUIRED}, (b"220 mx\r\n", b"250 mx\r\n")),
    ],
)
def test_upstream_without_what_is_required_is_a_fault_of_the_configuration(
    protocol: Protocol, directives: dict[str, Any], replies: tuple[bytes, ...]
) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, **directives), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            for reply in replies[:-1]:
                await upstream.exchange(reply)
            await upstream.send(replies[-1])
            assert await client.read_line() == MISCONFIGURED[protocol]
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]

    run(play)


# --- limits -----------------------------------------------------------------------------------------


@every_protocol
@pytest.mark.parametrize("limit", [1, 3])
def test_max_errors_ends_the_session(protocol: Protocol, limit: int) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, max_errors=limit), GRANTED) as w:
            client = await connect(w, protocol)
            for _ in range(limit):
                await send_login(client, protocol)
                await dies_after(0)(w, protocol)
                assert await client.read_line() == OUTAGE[protocol]
            assert await client.read_to_eof() == b""
            client.close()
            await invariants.wait_until_idle(w.app, w.metrics)
            closed = invariants.series(w.metrics, "mailproxy_connections_closed_total")
            assert closed == {(protocol.value, protocol.value, "max_errors"): 1}
            log = w.read_log()
            assert "client logged in too often during an outage" in log
            assert "attempts=" + str(limit) in log
            invariants.check_counters(w.metrics, log)

    run(play)


@every_protocol
def test_outages_and_syntax_errors_count_together(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, max_errors=3), GRANTED) as w:
            client = await connect(w, protocol)
            await client.exchange(b"what is this\r\n")
            await send_login(client, protocol)
            await dies_after(0)(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            await client.exchange(b"what is this\r\n")
            assert await client.read_to_eof() == b""

    run(play)


@every_protocol
def test_outages_of_the_service_count_towards_max_errors(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol, max_errors=2), NO_HTTP) as w:
            client = await connect(w, protocol)
            for _ in range(2):
                await send_login(client, protocol)
                assert await client.read_line() == OUTAGE[protocol]
            assert await client.read_to_eof() == b""
            assert [b"Auth-Login-Attempt: 1" in w.auth.requests[0], len(w.auth.requests)] == [True, 2]

    run(play)


# --- pipelining, drain, the client's end ------------------------------------------------------------


@every_protocol
def test_pipelined_commands_after_the_failed_login_are_executed_once(protocol: Protocol) -> None:
    noop, reply = NOOP[protocol]

    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol, then=noop + noop)
            upstream = await w.upstream.accept()
            await client.send(noop)  # not read before the upstream has failed
            await asyncio.sleep(0.05)
            upstream.close()
            assert await client.read_line() == OUTAGE[protocol]
            assert await client.read_lines(3) == [reply] * 3
            await finish(w, client, await log_in_again(w, client, protocol))

    run(play)


@every_protocol
def test_pipelined_login_after_the_failed_one_succeeds(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol, then=b"".join(COMMANDS[protocol]) + b"ahead\r\n")
            await dies_after(1)(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            if protocol is POP3:
                assert await client.read_line() == b"+OK\r\n"
            upstream = await serve_login(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]
            assert await upstream.read_line() == b"ahead\r\n"
            assert await relay(client, upstream) == (b"up\r\n", b"down\r\n")
            await finish(w, client, upstream)

    run(play)


@every_protocol
def test_pipelined_commands_after_an_outage_of_the_service_are_executed_once(protocol: Protocol) -> None:
    noop, reply = NOOP[protocol]

    async def play() -> None:
        async with loopback_worker(proxy(protocol), NO_HTTP, GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol, then=noop + noop)
            assert await client.read_line() == OUTAGE[protocol]
            assert await client.read_lines(2) == [reply] * 2
            await finish(w, client, await log_in_again(w, client, protocol))

    run(play)


SHUTDOWN: Final = {each: PROTOCOLS[each].shutdown for each in Protocol}


@every_protocol
def test_drain_during_the_login_ends_the_session_after_an_outage(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(w.app.drain(10.0))
                await asyncio.sleep(0.05)
                upstream.close()
                assert await client.read_to_eof() == OUTAGE[protocol] + SHUTDOWN[protocol]
                client.close()

    run(play)


@every_protocol
def test_drain_after_an_outage_ends_the_session(protocol: Protocol) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            await dies_after(0)(w, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(w.app.drain(10.0))
                assert await client.read_to_eof() == SHUTDOWN[protocol]
                client.close()

    run(play)


@every_protocol
@pytest.mark.parametrize("leave", [Peer.close, Peer.reset])
def test_client_that_left_during_an_outage_leaves_nothing(
    protocol: Protocol, leave: Callable[[Peer], None]
) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(protocol), GRANTED) as w:
            client = await connect(w, protocol)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            leave(client)
            upstream.close()
            await invariants.wait_until_idle(w.app, w.metrics)
            invariants.check_counters(w.metrics, w.read_log())

    run(play)


@every_protocol
def test_client_that_does_not_read_is_closed(protocol: Protocol) -> None:
    """The reply to a failed login waits for the client like every other."""

    async def play() -> None:
        build = proxy(protocol, timeout=Seconds(0.5), max_errors=10**6)
        async with loopback_worker(build, NO_HTTP) as w:
            client = await connect(w, protocol)
            (session,) = w.app.context.live
            assert isinstance(session, Session)
            await send_login(client, protocol)
            assert await client.read_line() == OUTAGE[protocol]
            session._outgoing = b"x" * 30_000_000
            await client.send(NOOP[protocol][0])
            await invariants.wait_until_idle(w.app, w.metrics)

    run(play)


# --- TLS with the client, SASL ----------------------------------------------------------------------


def test_starttls_session_goes_on_after_an_outage(identities: Identities) -> None:
    build = proxy(IMAP, starttls=StartTls.ONLY, ssl_certificate=(identities.server,))

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client = await connect(w, IMAP)
            assert await client.exchange(b"s STARTTLS\r\n") == b"s OK completed\r\n"
            await client.writer.start_tls(identities.client("none"))
            await send_login(client, IMAP, then=NOOP[IMAP][0])
            await dies_after(2)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP]
            assert await client.read_line() == NOOP[IMAP][1]
            assert (await client.exchange(b"s STARTTLS\r\n")) == b"s BAD invalid command\r\n"
            upstream = await log_in_again(w, client, IMAP)
            assert client.writer.get_extra_info("ssl_object") is not None
            await finish(w, client, upstream)

    run(play)


def test_implicit_tls_session_reads_what_tls_has_buffered(identities: Identities) -> None:
    """Commands that arrived in one TLS record with the login, more than the client buffer holds."""
    context = identities.client("none")

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        secure = ListenConfig(address=listen.address, port=listen.port, ssl=True)
        return proxy(IMAP, ssl_certificate=(identities.server,), imap_client_buffer=512)(auth, secure)

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            reader, writer = await asyncio.open_connection("127.0.0.1", w.port, ssl=context)
            w.writers.append(writer)
            client = Peer(reader, writer)
            await client.read_line()
            await send_login(client, IMAP, then=NOOP[IMAP][0] * 400)
            await dies_after(0)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP]
            assert await client.read_lines(400) == [NOOP[IMAP][1]] * 400
            await finish(w, client, await log_in_again(w, client, IMAP))

    assert isinstance(context, ssl.SSLContext)
    run(play)


def test_apop_challenge_is_kept() -> None:
    build = proxy(POP3, pop3_auth=frozenset({AuthMethod.APOP}))
    granted = http_response(GRANT + "Auth-Pass: secret\r\n")
    digest = b"0" * 32

    async def play() -> None:
        async with loopback_worker(build, granted) as w:
            client = await w.client()
            greeting = await client.read_line()
            challenge = greeting[greeting.index(b"<") :].strip()
            await client.send(b"APOP alice " + digest + b"\r\n")
            await dies_after(0)(w, POP3)
            assert await client.read_line() == OUTAGE[POP3]
            await client.send(b"APOP alice " + digest + b"\r\n")
            upstream = await serve_login(w, POP3)
            assert await client.read_line() == SUCCESS[POP3]
            await finish(w, client, upstream)
            assert [b"Auth-Salt: " + challenge + b"\r\n" in each for each in w.auth.requests] == [True, True]
            assert b"Auth-Login-Attempt: 2" in w.auth.requests[1]

    run(play)


def test_cram_md5_challenge_is_kept() -> None:
    build = proxy(SMTP, smtp_auth=frozenset({AuthMethod.CRAM_MD5}))
    granted = http_response(GRANT + "Auth-Pass: secret\r\n")
    response = b64encode(b"alice " + b"0" * 32) + b"\r\n"

    async def play() -> None:
        async with loopback_worker(build, granted) as w:
            client = await connect(w, SMTP)
            first = await client.exchange(b"AUTH CRAM-MD5\r\n")
            await client.send(response)
            await dies_after(1)(w, SMTP)
            assert await client.read_line() == OUTAGE[SMTP]
            assert await client.exchange(b"AUTH CRAM-MD5\r\n") == first
            await client.send(response)
            upstream = await serve_login(w, SMTP)
            assert await client.read_line() == SUCCESS[SMTP]
            await finish(w, client, upstream)

    run(play)


def test_reply_has_the_tag_of_the_failed_command() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(IMAP), GRANTED) as w:
            client = await connect(w, IMAP)
            assert await client.exchange(b"x AUTHENTICATE PLAIN\r\n") == b"+ \r\n"
            await client.send(b64encode(b"\0alice\0secret") + b"\r\ny NOOP\r\n")
            await dies_after(0)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP].replace(b"a ", b"x ", 1)
            assert await client.read_line() == b"y OK completed\r\n"
            await client.send(b'z LOGIN {5}\r\nalice "secret"\r\n')
            assert await client.read_line() == b"+ OK\r\n"
            await dies_after(0)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP].replace(b"a ", b"z ", 1)

    run(play)


# --- SMTP without authentication --------------------------------------------------------------------

ENVELOPE_OUTAGE: Final = b"451 4.3.0 Mail server is temporarily unavailable\r\n"


def envelope(**directives: Any) -> Builder:
    return proxy(SMTP, smtp_auth=frozenset({AuthMethod.NONE}), proxy_smtp_auth=False, **directives)


async def serve_envelope(w: LoopbackWorker) -> Peer:
    upstream = await w.upstream.accept()
    await upstream.exchange(b"220 mx\r\n")
    assert await upstream.exchange(b"250 mx\r\n") == b"MAIL FROM:<a@x>\r\n"
    assert await upstream.exchange(b"250 sender\r\n") == b"RCPT TO:<c@y>\r\n"
    await upstream.send(b"250 recipient\r\n")
    return upstream


def test_recipient_fails_for_a_time_and_another_is_accepted() -> None:
    async def play() -> None:
        async with loopback_worker(envelope(), GRANTED) as w:
            client = await connect(w, SMTP)
            assert await client.exchange(b"MAIL FROM:<a@x>\r\n") == b"250 2.0.0 OK\r\n"
            await client.send(b"RCPT TO:<b@y>\r\n")
            await dies_after(1)(w, SMTP)
            assert await client.read_line() == ENVELOPE_OUTAGE
            await client.send(b"RCPT TO:<c@y>\r\n")
            upstream = await serve_envelope(w)
            assert await client.read_line() == b"250 recipient\r\n"
            assert await relay(client, upstream) == (b"up\r\n", b"down\r\n")
            await finish(w, client, upstream)

    run(play)


def test_pipelined_transaction_fails_for_a_time_as_a_whole() -> None:
    async def play() -> None:
        async with loopback_worker(envelope(), NO_HTTP, GRANTED) as w:
            client = await connect(w, SMTP)
            await client.send(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\nRSET\r\nDATA\r\n")
            assert await client.read_lines(5) == [
                b"250 2.0.0 OK\r\n",
                ENVELOPE_OUTAGE,
                ENVELOPE_OUTAGE,
                b"250 2.0.0 OK\r\n",
                b"500 5.5.1 Invalid command\r\n",
            ]
            assert await client.exchange(b"MAIL FROM:<a@x>\r\n") == b"250 2.0.0 OK\r\n"
            await client.send(b"RCPT TO:<c@y>\r\n")
            await finish(w, client, await serve_envelope(w))

    run(play)


@pytest.mark.parametrize(("reply", "is_outage"), [(b"451 later\r\n", True), (b"550 5.1.0 no\r\n", False)])
def test_sender_that_the_upstream_refuses_for_good_is_no_outage(reply: bytes, is_outage: bool) -> None:
    async def play() -> None:
        async with loopback_worker(envelope(proxy_pass_error_message=True), GRANTED) as w:
            client = await connect(w, SMTP)
            await client.exchange(b"MAIL FROM:<a@x>\r\n")
            await client.send(b"RCPT TO:<b@y>\r\n")
            upstream = await w.upstream.accept()
            await upstream.exchange(b"220 mx\r\n")
            await upstream.exchange(b"250 mx\r\n")
            await upstream.send(reply)
            assert await client.read_line() == (ENVELOPE_OUTAGE if is_outage else reply)
            if is_outage:
                assert await client.exchange(*NOOP[SMTP][:1]) == NOOP[SMTP][1]
            else:
                assert await client.read_to_eof() == b""

    run(play)


def test_auth_has_its_own_words_beside_transactions_without() -> None:
    build = proxy(SMTP, smtp_auth=frozenset({AuthMethod.NONE, AuthMethod.PLAIN}))

    async def play() -> None:
        async with loopback_worker(build, GRANTED) as w:
            client = await connect(w, SMTP)
            await client.exchange(b"MAIL FROM:<a@x>\r\n")
            await client.send(b"RCPT TO:<b@y>\r\n")
            await dies_after(0)(w, SMTP)
            assert await client.read_line() == ENVELOPE_OUTAGE
            await send_login(client, SMTP)
            await dies_after(0)(w, SMTP)
            assert await client.read_line() == OUTAGE[SMTP]

    run(play)


# --- capabilities -----------------------------------------------------------------------------------


async def capabilities(client: Peer) -> list[bytes]:
    lines = [await client.exchange(b"CAPA\r\n")]
    while lines[-1] != b".\r\n":
        lines.append(await client.read_line())
    return lines[1:-1]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (("TOP", "UIDL"), [b"TOP", b"UIDL", b"RESP-CODES", b"AUTH-RESP-CODE"]),
        (("resp-codes", "TOP"), [b"resp-codes", b"TOP", b"AUTH-RESP-CODE"]),
        (("RESP-CODES", "AUTH-RESP-CODE"), [b"RESP-CODES", b"AUTH-RESP-CODE"]),
    ],
)
def test_capa_lists_response_codes_once(listed: tuple[str, ...], expected: list[bytes]) -> None:
    async def play() -> None:
        async with loopback_worker(proxy(POP3, pop3_capabilities=listed), GRANTED) as w:
            client = await connect(w, POP3)
            lines = [line.strip() for line in await capabilities(client)]
            assert lines == [*expected, b"SASL PLAIN LOGIN"]

    run(play)


def test_capa_lists_no_response_codes_with_nginx_words() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(POP3, proxy_tempfail=Tempfail.NGINX), GRANTED) as w:
            client = await connect(w, POP3)
            assert not [line for line in await capabilities(client) if b"RESP-CODE" in line]

    run(play)


# --- the classes ------------------------------------------------------------------------------------


def resumable(protocol: Protocol) -> ResumableLogin:
    frontend = PROTOCOLS[protocol].frontend_for(server(protocol, proxy_tempfail=Tempfail.RFC5530))(
        Client("192.0.2.1")
    )
    if protocol is IMAP:
        frontend.handle_command(b"a LOGIN alice secret")
    request = frontend.auth_request(Credentials(Method.PLAIN, b"alice", Secret(b"secret")))
    login = frontend.upstream_login(request, AuthAllowed("192.0.2.2", 1, b"alice", Secret(b"secret")))
    assert isinstance(login, ResumableLogin)
    return login


VARIANTS: Final[dict[str, tuple[Protocol, dict[str, Any]]]] = {
    "imap_id_command": (IMAP, {"imap_id_command": ImapId.ANSWER}),
    "smtp_auth_command": (SMTP, {"smtp_auth_command": False, "smtp_auth": frozenset({AuthMethod.NONE})}),
    "max_commands": (POP3, {"max_commands": 5}),
}


@pytest.mark.parametrize(("protocol", "directives"), VARIANTS.values(), ids=VARIANTS)
def test_class_of_another_directive_is_kept(protocol: Protocol, directives: dict[str, Any]) -> None:
    tempfail = server(protocol, proxy_tempfail=Tempfail.RFC5530, **directives)
    frontend = PROTOCOLS[protocol].frontend_for(tempfail)(Client("192.0.2.1"))
    assert isinstance(frontend, PROTOCOLS[protocol].tempfail_frontend)
    assert isinstance(frontend, PROTOCOLS[protocol].frontend(tempfail))
    again = PROTOCOLS[protocol].frontend_for(tempfail)(Client("192.0.2.1"))
    assert type(again) is type(frontend)
    assert not hasattr(frontend, "__dict__")


def test_client_that_has_sent_id_logs_in_after_an_outage() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(IMAP, imap_id_command=ImapId.ANSWER), GRANTED) as w:
            client = await connect(w, IMAP)
            await client.send(b'i ID ("name" "x")\r\n')
            assert await client.read_lines(2) == [b"* ID NIL\r\n", b"i OK ID completed.\r\n"]
            await send_login(client, IMAP)
            await dies_after(0)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP]
            await finish(w, client, await log_in_again(w, client, IMAP))

    run(play)


def test_commands_before_and_after_an_outage_count_towards_max_commands() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(IMAP, max_commands=3), GRANTED) as w:
            client = await connect(w, IMAP)
            assert await client.exchange(NOOP[IMAP][0]) == NOOP[IMAP][1]
            await send_login(client, IMAP)
            await dies_after(0)(w, IMAP)
            assert await client.read_line() == OUTAGE[IMAP]
            assert await client.exchange(NOOP[IMAP][0]) == NOOP[IMAP][1]
            assert await client.exchange(NOOP[IMAP][0]) == b"n BAD invalid command\r\n"
            assert await client.read_to_eof() == b""

    run(play)


@every_protocol
def test_client_with_a_token_logs_in_after_an_outage_of_the_service(protocol: Protocol) -> None:
    tokens = {
        f"{protocol}_auth": frozenset({AuthMethod.XOAUTH2}),
        "proxy_smtp_auth": False,
    }
    message = b64encode(b"user=alice\x01auth=Bearer token\x01\x01") + b"\r\n"
    login = {IMAP: b"a AUTHENTICATE XOAUTH2 ", POP3: b"AUTH XOAUTH2 ", SMTP: b"AUTH XOAUTH2 "}[protocol]
    denied = http_response("Auth-Status: no\r\nAuth-Wait: 1\r\nAuth-Error-SASL: e30=\r\n")

    async def play() -> None:
        async with loopback_worker(proxy(protocol, **tokens), NO_HTTP, denied) as w:
            client = await connect(w, protocol)
            assert await client.exchange(login + message) == OUTAGE[protocol]
            assert (await client.exchange(login + message)).endswith(b" e30=\r\n")
            assert b" no\r\n" in await client.exchange(b"\r\n")
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]

    run(play)


@every_protocol
def test_login_can_be_resumed_after_an_outage_only(protocol: Protocol) -> None:
    login = resumable(protocol)
    assert login.method is Method.PLAIN
    outage = UpstreamError("upstream timed out", stage=UpstreamStage.LOGIN)
    assert login.resume(outage) is not None
    for refusal in REFUSALS[protocol]:
        error = UpstreamRefused(refusal, stage=UpstreamStage.LOGIN, is_denial=True)
        assert login.resume(error) is None
    error = UpstreamRefused(TEMPORARY[protocol], stage=UpstreamStage.LOGIN, is_denial=True)
    assert login.resume(error) is not None


# --- many clients -----------------------------------------------------------------------------------


ASKS_FOR_PASSWORD: Final = (b"a BAD", b"* B", b"-ERR int", b"-ERR [AUTH", b"535", b"451 4.3.2")


class Restarting:
    """An upstream that is stopped and started again, and clients that log in until they succeed."""

    def __init__(self, protocol: Protocol, clients: int) -> None:
        self.protocol = protocol
        self.clients = clients
        self.replies: Counter[bytes] = Counter()
        self._places = asyncio.Semaphore(50)
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies = REPLIES[self.protocol]
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError):
            for reply in replies[:-1]:
                writer.write(reply)
                await reader.readline()
            writer.write(replies[-1])
            await reader.read()
        self._writers.discard(writer)
        writer.close()

    async def log_in(self, w: LoopbackWorker) -> None:
        async with self._places:
            client = await connect(w, self.protocol)
            reply = b""
            while reply != SUCCESS[self.protocol]:
                await send_login(client, self.protocol)
                reply = await client.read_line()
                assert not reply.startswith(ASKS_FOR_PASSWORD)
                self.replies[reply] += 1
                if reply == OUTAGE[self.protocol]:
                    await asyncio.sleep(0.02)
            client.close()

    async def restart(self, first: asyncio.Server) -> None:
        """Stop the upstream after a third of the logins, and start it again after a hundred have failed."""
        port = first.sockets[0].getsockname()[1]
        while self.replies[SUCCESS[self.protocol]] < self.clients // 3:
            await asyncio.sleep(0.002)
        first.close()
        for writer in self._writers:
            abort(writer)
        while self.replies[OUTAGE[self.protocol]] < 100:
            await asyncio.sleep(0.002)
        self.second = await asyncio.start_server(self.serve, "127.0.0.1", port)


@pytest.mark.generated
@every_protocol
def test_no_client_is_asked_for_a_password_while_the_only_upstream_restarts(protocol: Protocol) -> None:
    """With ``make fuzz``: 10,000 logins by each protocol."""
    clients = examples(500)

    async def play() -> None:
        everyone = Restarting(protocol, clients)
        upstream = await asyncio.start_server(everyone.serve, "127.0.0.1", 0)
        granted = http_response(GRANT.format(port=upstream.sockets[0].getsockname()[1]))
        async with loopback_worker(proxy(protocol, max_errors=10**6), granted, limit=4096) as w:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(everyone.restart(upstream))
                for _ in range(clients):
                    tasks.create_task(everyone.log_in(w))
            await invariants.wait_until_idle(w.app, w.metrics)
            assert everyone.replies.keys() == {SUCCESS[protocol], OUTAGE[protocol]}
            assert logins(w, protocol) == {
                "success": clients,
                "upstream_failed": everyone.replies[OUTAGE[protocol]],
            }
            everyone.second.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(play())
