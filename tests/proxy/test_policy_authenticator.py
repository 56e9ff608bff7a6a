# SPDX-License-Identifier: Apache-2.0
"""Logins with a policy server, over sockets in the three protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.auth_http.client import AuthHttpClient
from mailproxy.auth_http.pending_request import PendingRequest
from mailproxy.enums import Method, PolicyResult
from mailproxy.policy import policy_authenticator, policy_client
from mailproxy.policy.policy_request import password_hash
from mailproxy.policy_clients import read_header
from mailproxy.protocols.types import AuthDenied, AuthRequest, Client, Credentials, Secret
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import (
    AuthHttp,
    AuthMethod,
    ListenConfig,
    LogLevel,
    Protocol,
    ServerConfig,
    Tempfail,
)
from mailproxy_config.policy_server import AuthPolicyServer
from support.configs import server
from support.loopback_worker import GRANT, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.policy_server import ALLOWED, HANG, Answer, PolicyServer, answer, policy_server

NONCE: Final = b"nonce-of-the-test"
GRANTED: Final = http_response(GRANT)
DENIED: Final = http_response("Auth-Status: Invalid login or password\r\nAuth-Wait: 1\r\n")
LOGIN: Final = {
    Protocol.IMAP: b"a LOGIN bob@example.org s3cr3t-word\r\n",
    Protocol.POP3: b"USER bob@example.org\r\nPASS s3cr3t-word\r\n",
    Protocol.SMTP: b"AUTH PLAIN AGJvYkBleGFtcGxlLm9yZwBzM2NyM3Qtd29yZA==\r\n",
}
REFUSED: Final = {
    Protocol.IMAP: b"a NO Invalid login or password\r\n",
    Protocol.POP3: b"-ERR Invalid login or password\r\n",
    Protocol.SMTP: b"535 5.7.0 Invalid login or password\r\n",
}
OUTAGE: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
SECRET: Final = "s3cr3t-word"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_authenticator, "REFUSAL_WAIT", 0.01)


Play = Callable[[LoopbackWorker, PolicyServer], Any]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a test with a worker whose server block has a policy server."""
    nonce, header = tmp_path / "nonce", tmp_path / "header"
    nonce.write_bytes(NONCE + b"\n")
    header.write_bytes(b"key-of-the-test\n")

    def played(
        test: Play,
        reply: Callable[[str], Answer] | Answer = ALLOWED,
        *,
        protocol: Protocol = Protocol.IMAP,
        responses: tuple[Any, ...] = (GRANTED,),
        directives: dict[str, Any] | None = None,
        closes: bool = False,
        **fields: Any,
    ) -> None:
        async def bounded() -> None:
            async with policy_server(reply, closes=closes) as policy:
                known = {"url": policy.url, "nonce_file": str(nonce)}
                if fields.pop("with_header", False):
                    known |= {"header_name": "X-API-Key", "header_file": str(header)}
                configured = AuthPolicyServer(**(known | fields))

                def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
                    values = {"auth_http": auth, "listen": (listen,), "auth_policy_server": configured}
                    return server(
                        protocol,
                        **(values | {"xclient": False, "error_log": LogLevel.INFO} | (directives or {})),
                    )

                async with loopback_worker(build, *responses, drain=0.1) as w:
                    await test(w, policy)

        run(bounded)

    return played


async def greeted(w: LoopbackWorker) -> Peer:
    client = await w.client()
    await client.read_line()
    return client


async def login(w: LoopbackWorker, protocol: Protocol = Protocol.IMAP) -> Peer:
    client = await greeted(w)
    await client.send(LOGIN[protocol])
    if protocol is Protocol.POP3:
        await client.read_line()
    return client


async def upstream_accepts(w: LoopbackWorker, *, result: bytes = b"a OK done\r\n") -> Peer:
    """Let the proxy log in at an IMAP server."""
    upstream = await w.upstream.accept()
    for reply in (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n"):
        await upstream.exchange(reply)
    await upstream.send(result)
    return upstream


def requests(w: LoopbackWorker, command: str, result: str) -> int:
    found: int = w.value("mailproxy_policy_requests_total", command, result)
    return found


def test_requests_are_those_of_dovecot_byte_for_byte(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        upstream = await upstream_accepts(w)
        assert await client.read_line() == b"a OK done\r\n"
        await policy.wait_for("report")
        before, after, report = policy.requests
        head, body = before
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /?command=allow HTTP/1.1"
        assert b"Content-Type: application/json" in lines
        assert b"X-API-Key: key-of-the-test" in lines
        session = policy.bodies("allow")[0]["session_id"]
        assert body == (
            b'{"device_id":"","fail_type":"","login":"bob@example.org","protocol":"imap",'
            b'"pwhash":"0ddb","remote":"127.0.0.1","session_id":"%b","tls":false}' % session.encode()
        )
        assert after == before
        assert report[0].startswith(b"POST /?command=report HTTP/1.1\r\n")
        assert report[1] == body[:-1] + b',"success":true,"policy_reject":false}'
        assert policy.connections == 1
        upstream.close()
        client.close()
        await w.wait_for_sessions()
        assert f" session {session} " in w.read_log()

    play(test, with_header=True)


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("status", [-1, -2])
def test_refusal_has_the_reply_of_a_wrong_password(
    play: Callable[..., None], protocol: Protocol, status: int
) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w, protocol)
        assert await client.read_line() == REFUSED[protocol]
        assert not w.auth.requests
        (report,) = await policy.wait_for("report")
        assert (report["success"], report["policy_reject"]) == (False, True)
        assert requests(w, "allow", "refused") == 1
        client.close()
        await w.wait_for_sessions()
        log = w.read_log()
        assert " policy_refused session=" in log
        assert ' reason="too \\u0001 many"' in log
        assert "login_denied" not in log
        assert " stage=policy " in log
        assert " result=denied" in log
        assert "password_failures" not in log
        assert SECRET not in log

    play(test, answer(status, msg="too \x01 many"), protocol=protocol)


def test_refused_client_may_log_in_again_until_max_errors(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert await client.read_line() == REFUSED[Protocol.IMAP]
        assert await client.exchange(LOGIN[Protocol.IMAP]) == REFUSED[Protocol.IMAP]
        assert await client.read_to_eof() == b""
        assert len(policy.bodies("allow")) == 2

    play(test, answer(-1), directives={"max_errors": 2})


def test_positive_status_delays_before_the_check_only(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_client, "MAX_WAIT", 1)

    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        await policy.wait_for("allow")
        await asyncio.sleep(0.3)
        assert not w.auth.requests
        await upstream_accepts(w)
        assert await client.read_line() == b"a OK done\r\n"
        assert len(policy.bodies("allow")) == 2
        assert requests(w, "allow", "delayed") == 2

    play(test, answer(600))


def test_client_that_leaves_during_a_delay_is_not_checked(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        await policy.wait_for("allow")
        client.reset()
        await w.wait_for_sessions()
        assert not w.auth.requests
        assert not policy.bodies("report")

    play(test, answer(15))


def test_client_that_leaves_during_a_question_is_not_checked(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        await policy.wait_for("allow")
        client.reset()
        await w.wait_for_sessions()
        assert not w.auth.requests
        assert w.value("mailproxy_policy_breaker_open") == 0

    play(test, HANG, timeout=15.0)


def test_login_that_is_allowed_may_be_refused_after_the_check(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert await client.read_line() == REFUSED[Protocol.IMAP]
        assert len(w.auth.requests) == 1
        assert w.upstream.accepted.empty()
        (report,) = await policy.wait_for("report")
        assert (report["success"], report["policy_reject"]) == (False, True)
        assert w.value("mailproxy_logins_total", "imap", "password", "denied") == 1

    play(test, answer(-1), check_before=False)


@pytest.mark.parametrize(
    ("fields", "commands"),
    [
        ({"check_before": False}, ["allow", "report"]),
        ({"check_after": False}, ["allow", "report"]),
        ({"report": False}, ["allow", "allow"]),
        ({"check_before": False, "check_after": False}, ["report"]),
    ],
)
def test_each_request_can_be_switched_off(
    play: Callable[..., None], fields: dict[str, bool], commands: list[str]
) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        await upstream_accepts(w)
        assert await client.read_line() == b"a OK done\r\n"
        while len(policy.requests) < len(commands):
            await asyncio.sleep(0.005)
        found = ["report" if b"command=report" in head else "allow" for head, _ in policy.requests]
        assert found == commands

    play(test, **fields)


def test_wrong_password_is_reported_after_the_service_and_after_the_upstream(
    play: Callable[..., None],
) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert await client.read_line() == REFUSED[Protocol.IMAP]
        await policy.wait_for("report", 1)
        await client.send(LOGIN[Protocol.IMAP])
        upstream = await upstream_accepts(w, result=b"a NO [AUTHENTICATIONFAILED] no\r\n")
        await client.read_to_eof()
        reports = await policy.wait_for("report", 2)
        assert [(each["success"], each["policy_reject"]) for each in reports] == [(False, False)] * 2
        assert len(policy.bodies("allow")) == 3  # nothing is asked after a denial
        upstream.close()
        client.close()
        await w.wait_for_sessions()
        assert " password_failures=2 " in w.read_log()

    play(test, responses=(DENIED, GRANTED))


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 500 oops\r\nContent-Length: 0\r\n\r\n",
        http_response("Auth-Status: OK\r\n"),
        http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n"),
    ],
)
def test_outage_is_no_failed_login(play: Callable[..., None], response: bytes) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert await client.read_line() == OUTAGE[Protocol.IMAP]
        client.close()
        await w.wait_for_sessions()
        assert not policy.bodies("report")
        assert "password_failures" not in w.read_log()

    play(test, responses=(response,))


BAD: Final[dict[str, tuple[Answer, PolicyResult]]] = {
    "500": (answer(0, code="500 oops"), PolicyResult.UNAVAILABLE),
    "401": (answer(0, code="401 no"), PolicyResult.INVALID),
    "redirect": (
        b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        PolicyResult.INVALID,
    ),
    "no HTTP": (b"hello\r\n\r\n", PolicyResult.INVALID),
    "closed": (b"", PolicyResult.UNAVAILABLE),
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", PolicyResult.INVALID),
    "list": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", PolicyResult.INVALID),
    "deep": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9000,
        PolicyResult.INVALID,
    ),
    "text": (answer("0"), PolicyResult.INVALID),
    "truth": (answer(True), PolicyResult.INVALID),
    "fraction": (answer(0.5), PolicyResult.INVALID),
    "null": (answer(None), PolicyResult.INVALID),
    "long number": (
        b'HTTP/1.1 200 OK\r\nContent-Length: 5011\r\n\r\n{"status":' + b"9" * 5000 + b"}",
        PolicyResult.INVALID,
    ),
    "megabytes": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + b" " * 8_000_000,
        PolicyResult.INVALID,
    ),
    "hangs": (HANG, PolicyResult.TIMEOUT),
    "slow bytes": ([b"HTTP/1.1 200 OK\r\n"] + [b"X-A: b\r\n"] * 1000, PolicyResult.TIMEOUT),
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.parametrize("reject", [False, True])
def test_failure_of_the_server_is_never_a_failed_login(
    play: Callable[..., None], name: str, reject: bool
) -> None:
    reply, result = BAD[name]

    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        if reject:
            assert await client.read_line() == OUTAGE[Protocol.IMAP]
            assert not w.auth.requests
        else:
            await upstream_accepts(w)
            assert await client.read_line() == b"a OK done\r\n"
        client.close()
        await w.wait_for_sessions()
        assert requests(w, "allow", result) >= 1
        log = w.read_log()
        assert f" error policy_server_failed service=127.0.0.1:{policy.port} result={result} " in log
        assert "password_failures" not in log
        assert w.value("mailproxy_logins_total", "imap", "password", "denied") == 0
        if reject:
            assert " authorization_failed " in log
            assert f"service=127.0.0.1:{policy.port}" in log

    play(
        test, reply, reject_on_fail=reject, timeout=0.3, report=False, check_after=False, closes=reply == b""
    )


def test_outage_with_tempfail_keeps_the_connection(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert (await client.read_line()).startswith(b"a NO [UNAVAILABLE]")
        assert (await client.exchange(b"b NOOP\r\n")).startswith(b"b OK")

    play(test, answer(0, code="503 x"), reject_on_fail=True, directives={"proxy_tempfail": Tempfail.RFC5530})


def test_dead_server_delays_logins_once(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        assert await client.read_line() == REFUSED[Protocol.IMAP]
        assert w.value("mailproxy_policy_breaker_open") == 1
        clients = await asyncio.gather(*(login(w) for _ in range(50)))
        for each in clients:
            assert await each.read_line() == REFUSED[Protocol.IMAP]
        assert requests(w, "allow", "skipped") == 50
        assert requests(w, "allow", "timeout") == 1
        assert len(policy.bodies("allow")) <= 2  # the second one is a probe, which no login waits for
        assert w.value("mailproxy_policy_reports_dropped_total") >= 50

    denied = http_response("Auth-Status: Invalid login or password\r\n")
    play(test, HANG, timeout=0.5, responses=(denied,))


def test_server_that_responds_again_is_asked_again(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy.policy.policy_breaker.PAUSES", (0.0,))
    replies: list[Answer] = [HANG]

    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        assert await (await login(w)).read_line() == REFUSED[Protocol.IMAP]
        replies[0] = answer(-1)
        assert await (await login(w)).read_line() == REFUSED[Protocol.IMAP]  # of the service: a probe is sent
        while w.value("mailproxy_policy_breaker_open"):
            await asyncio.sleep(0.005)
        served = len(w.auth.requests)
        assert await (await login(w)).read_line() == REFUSED[Protocol.IMAP]
        assert len(w.auth.requests) == served == 2
        assert " policy_server_recovered " in w.read_log()

    denied = http_response("Auth-Status: Invalid login or password\r\n")
    play(test, lambda _: replies[0], timeout=0.3, report=False, responses=(denied,))


def test_connection_that_the_server_has_closed_is_replaced(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        for _ in range(3):
            assert await (await login(w)).read_line() == REFUSED[Protocol.IMAP]
        assert requests(w, "allow", "refused") == 3
        assert policy.connections >= 3

    play(test, answer(-1), closes=True, report=False)


def test_deferred_login_is_asked_about_once(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await login(w)
        await upstream_accepts(w)
        assert await client.read_line() == b"a OK done\r\n"
        (report,) = await policy.wait_for("report")
        first, after = policy.bodies("allow")
        assert first == after
        assert report["pwhash"] == first["pwhash"]  # of the client's password, not of the service's

    deferred = http_response("Auth-Status: WAIT\r\nAuth-Wait: 1\r\nAuth-Pass: another\r\n")
    play(test, responses=(deferred, GRANTED))


def test_mail_without_a_login_is_not_asked_about(play: Callable[..., None]) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        client = await greeted(w)
        await client.exchange(b"HELO client\r\n")
        await client.exchange(b"MAIL FROM:<a@b>\r\n")
        await client.send(b"RCPT TO:<c@d>\r\n")
        await w.upstream.accept()
        assert not policy.requests

    play(test, protocol=Protocol.SMTP, directives={"smtp_auth": frozenset({AuthMethod.NONE})})


def test_header_with_a_line_break_is_refused_at_load(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(b"a\r\nX-Other: b\n")
    with pytest.raises(ConfigError, match="control character"):
        read_header("imap", "auth_policy_server", str(file))


def test_changed_nonce_is_used_after_a_reload_and_the_old_client_is_closed(
    play: Callable[..., None], tmp_path: Path
) -> None:
    async def test(w: LoopbackWorker, policy: PolicyServer) -> None:
        assert await (await login(w)).read_line() == REFUSED[Protocol.IMAP]
        (tmp_path / "nonce").write_bytes(b"another nonce")
        for _ in range(2):  # the client is closed by the reload after the one that has replaced it
            await w.app.apply(w.config, {}, names={}, ticket_keys={})
        while not policy.writers[0].is_closing():
            await asyncio.sleep(0.005)
        server = next(iter(w.app._servers.values()))
        assert isinstance(server.auth, policy_authenticator.PolicyAuthenticator)
        found: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        request = AuthRequest(Credentials(Method.PLAIN, b"bob", Secret(b"x")), 1, Client("192.0.2.1"))
        pending = PendingRequest(found.set_result, b"", request, server.config, {}, 0.0, SessionRecord())
        server.auth.send(pending)
        assert isinstance(await found, AuthDenied)
        expected = password_hash(Secret(b"another nonce"), request.credentials)
        assert policy.bodies("allow")[-1]["pwhash"] == expected

    play(test, answer(-1), report=False)


def test_request_after_an_answer_starts_at_the_time_of_the_poll(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    send = AuthHttpClient.send

    def recorded(self: AuthHttpClient, request: PendingRequest) -> None:
        seconds.append(self.context.epoll.now - request.started)  # what a failure at once would record
        send(self, request)

    monkeypatch.setattr(AuthHttpClient, "send", recorded)

    async def test(w: LoopbackWorker, _: PolicyServer) -> None:
        await login(w)
        await upstream_accepts(w)

    play(test)
    assert len(seconds) == 1
    assert seconds[0] >= 0.0
