# SPDX-License-Identifier: Apache-2.0
"""Sessions whose logins the upstream decides about (``auth_mode upstream``)."""

from __future__ import annotations

import asyncio
import gc
from base64 import b64decode, b64encode
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy.enums import CloseReason
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.types import Secret
from mailproxy.session import refusal_times
from mailproxy.session.refusal_times import RefusalTimes
from mailproxy.session.session import Session
from mailproxy_config.model import AuthMethod, Protocol, ProxySsl, Seconds
from mailproxy_config.upstream_groups import UpstreamSettings
from mailproxy_config.upstream_login import ProxyAuth
from support import invariants
from support.loopback_worker import LoopbackWorker, Peer, run
from support.routed_worker import routed_worker
from support.tls_authority import Authority
from support.upstream_tls import Connection, Step, mail_server, offer_tls, server_context

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
every_protocol = pytest.mark.parametrize("protocol", tuple(Protocol))
USER: Final = b"bob@example.org"
STRANGER: Final = b"bob@example.com"
"""No route leads to an upstream."""
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
MISCONFIGURED: Final = {**OUTAGE, IMAP: b"a NO [SERVERBUG] Account is temporarily unavailable.\r\n"}
SUCCESS: Final = {
    IMAP: b"a OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n",
    POP3: b"+OK Logged in\r\n",
    SMTP: b"235 2.0.0 OK\r\n",
}
# What an upstream sends: its greeting, and its reply to each command of a login.
REPLIES: Final = {
    IMAP: (b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hi\r\n", SUCCESS[IMAP]),
    POP3: (b"+OK hi\r\n", b"+OK\r\n", SUCCESS[POP3]),
    SMTP: (b"220 mx\r\n", b"250-mx\r\n250 AUTH PLAIN\r\n", b"334 \r\n", b"235 2.7.0 in\r\n"),
}
DENIAL: Final = {
    IMAP: b"a NO [AUTHENTICATIONFAILED] user unknown at mx17\r\n",
    POP3: b"-ERR [AUTH] user unknown at mx17\r\n",
    SMTP: b"535 5.7.8 user unknown at mx17\r\n",
}
NOOP: Final = {
    IMAP: (b"n NOOP\r\n", b"n OK completed\r\n"),
    POP3: (b"NOOP\r\n", b"+OK\r\n"),
    SMTP: (b"NOOP\r\n", b"250 2.0.0 OK\r\n"),
}
LINES_OF_LOGIN: Final = {IMAP: 3, POP3: 2, SMTP: 3}


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 0.01)


def proxy(protocol: Protocol, **directives: Any) -> AbstractAsyncContextManager[LoopbackWorker]:
    return routed_worker(protocol, **directives)


def commands(protocol: Protocol, user: bytes = USER, password: bytes = b"secret") -> tuple[bytes, ...]:
    if protocol is IMAP:
        return (b"a LOGIN %b %b\r\n" % (user, password),)
    if protocol is POP3:
        return b"USER %b\r\n" % user, b"PASS %b\r\n" % password
    return (b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + password) + b"\r\n",)


async def connect(w: LoopbackWorker) -> Peer:
    client = await w.client()
    await client.read_line()
    return client


async def send_login(
    client: Peer, protocol: Protocol, *, user: bytes = USER, password: bytes = b"secret", then: bytes = b""
) -> None:
    *first, last = commands(protocol, user, password)
    for command in first:
        assert await client.exchange(command) == b"+OK\r\n"
    await client.send(last + then)


async def answer(w: LoopbackWorker, protocol: Protocol, last: bytes | None = None) -> Peer:
    """Serve a login at the upstream, up to its last reply; return its connection."""
    upstream = await w.upstream.accept()
    *first, success = REPLIES[protocol]
    for reply in first:
        await upstream.exchange(reply)
    if protocol is IMAP:
        await upstream.read_lines(2)  # LOGIN has two literals
    await upstream.send(success if last is None else last)
    return upstream


async def is_relayed(client: Peer, upstream: Peer) -> bool:
    await client.send(b"up\r\n")
    await upstream.send(b"down\r\n")
    return (await upstream.read_line(), await client.read_line()) == (b"up\r\n", b"down\r\n")


def logins(w: LoopbackWorker, protocol: Protocol) -> dict[str, int]:
    found = invariants.series(w.metrics, "mailproxy_logins_total")
    return {result: count for (name, _, result), count in found.items() if name == protocol and count}


def upstream_errors(w: LoopbackWorker) -> int:
    return int(sum(invariants.series(w.metrics, "mailproxy_upstream_errors_total").values()))


# --- refusals ---------------------------------------------------------------------------------------


@every_protocol
def test_refused_login_keeps_connection_and_the_next_one_connects_anew(protocol: Protocol) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol, password=b"wrong-one")
            refusing = await answer(w, protocol, DENIAL[protocol])
            assert await client.read_line() == REFUSED[protocol]
            assert await refusing.read_to_eof() == b""
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]
            await send_login(client, protocol)
            upstream = await answer(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]
            assert await is_relayed(client, upstream)
            client.close()
            await upstream.read_to_eof()
            upstream.close()
            await invariants.wait_until_idle(w.app, w.metrics)
            assert logins(w, protocol) == {"upstream_denied": 1, "success": 1}
            assert upstream_errors(w) == 0
            log = w.read_log()
            assert "login_denied" in log
            assert "upstream_failed" not in log
            assert "user unknown at mx17" in log
            assert "wrong-one" not in log
            assert "result=success" in log
            invariants.check_counters(w.metrics, log)

    run(play)


@every_protocol
def test_login_without_a_route_gets_the_reply_to_a_wrong_password(protocol: Protocol) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol, user=STRANGER)
            assert await client.read_line() == REFUSED[protocol]
            await send_login(client, protocol)
            upstream = await answer(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]
            assert await is_relayed(client, upstream)
            assert logins(w, protocol) == {"denied": 1, "success": 1}
            assert "no route for this login name" in w.read_log()

    run(play)


@every_protocol
def test_empty_password_is_refused_before_the_upstream(protocol: Protocol) -> None:
    empty = {
        IMAP: b'a LOGIN bob@example.org ""\r\n',
        POP3: b"AUTH PLAIN " + b64encode(b"\0" + USER + b"\0") + b"\r\n",
        SMTP: b"AUTH PLAIN " + b64encode(b"\0" + USER + b"\0") + b"\r\n",
    }

    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            assert await client.exchange(empty[protocol]) == REFUSED[protocol]
            assert w.upstream.accepted.empty()

    run(play)


@every_protocol
@pytest.mark.parametrize(
    "user",
    [
        b"bob@example.org@example.org",
        b"@@example.org",
        b"x" * 250 + b"@example.org",
        "bob@exämple.org".encode(),  # A-labels are compared
    ],
)
def test_name_that_can_be_no_login_is_refused_before_the_upstream(protocol: Protocol, user: bytes) -> None:
    async def play() -> None:
        async with proxy(protocol, pop3_client_buffer=4096) as w:
            client = await connect(w)
            await send_login(client, protocol, user=user)
            assert await client.read_line() == REFUSED[protocol]
            assert w.upstream.accepted.empty()

    run(play)


@every_protocol
@pytest.mark.parametrize("user", [b"Bob@EXAMPLE.Org", "jörg@Example.org".encode()])
def test_domain_is_compared_without_case_and_the_upstream_gets_the_name_as_sent(
    protocol: Protocol, user: bytes
) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol, user=user)
            peer = await w.upstream.accept()
            sent = b""
            for reply in REPLIES[protocol][:-1]:
                await peer.send(reply)
                sent = await peer.read_line()
            lines = [sent, *(await peer.read_lines(2) if protocol is IMAP else ())]
            name = {IMAP: user, POP3: b"secret", SMTP: b"\0%b\0secret" % user}[protocol]
            assert (b64encode(name) if protocol is SMTP else name) in b"".join(lines)

    run(play)


@every_protocol
@pytest.mark.parametrize("has_route", [True, False])
def test_refusals_count_towards_max_errors(protocol: Protocol, has_route: bool) -> None:
    async def play() -> None:
        async with proxy(protocol, max_errors=2) as w:
            client = await connect(w)
            for _ in range(2):
                await send_login(client, protocol, user=USER if has_route else STRANGER)
                if has_route:
                    await answer(w, protocol, DENIAL[protocol])
                assert await client.read_line() == REFUSED[protocol]
            assert await client.read_to_eof() == b""
            await w.wait_for_sessions()
            closed = w.value("mailproxy_connections_closed_total", protocol, protocol, CloseReason.MAX_ERRORS)
            assert closed == 1

    run(play)


@every_protocol
@pytest.mark.parametrize("has_route", [True, False])
def test_commands_sent_ahead_of_a_refusal_are_executed_after_it(protocol: Protocol, has_route: bool) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            noop, completed = NOOP[protocol]
            again = b"".join(commands(protocol))
            await send_login(client, protocol, user=USER if has_route else STRANGER, then=noop + again + noop)
            if has_route:
                await answer(w, protocol, DENIAL[protocol])
            assert await client.read_line() == REFUSED[protocol]
            assert await client.read_line() == completed
            if protocol is POP3:
                assert await client.read_line() == b"+OK\r\n"
            upstream = await answer(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]
            assert await upstream.read_line() == noop

    run(play)


def test_login_with_literals_is_refused_and_repeated() -> None:
    async def play() -> None:
        async with proxy(IMAP) as w:
            client = await connect(w)
            for last, reply in ((DENIAL[IMAP], REFUSED[IMAP]), (None, SUCCESS[IMAP])):
                assert await client.exchange(b"a LOGIN {15}\r\n") == b"+ OK\r\n"
                await client.send(b"bob@example.org {8+}\r\nse cret!\r\n")
                await answer(w, IMAP, last)
                assert await client.read_line() == reply

    run(play)


@every_protocol
def test_authenticate_plain_is_refused_and_repeated(protocol: Protocol) -> None:
    word, prefix = (b"a AUTHENTICATE PLAIN", b"+") if protocol is IMAP else (b"AUTH PLAIN", b"+")
    prefix = b"334" if protocol is SMTP else prefix

    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            for last, reply in ((DENIAL[protocol], REFUSED[protocol]), (None, SUCCESS[protocol])):
                assert (await client.exchange(word + b"\r\n")).startswith(prefix)
                await client.send(b64encode(b"\0" + USER + b"\0secret") + b"\r\n")
                await answer(w, protocol, last)
                assert await client.read_line() == reply

    run(play)


def test_refusal_has_the_tag_of_its_command() -> None:
    async def play() -> None:
        async with proxy(IMAP) as w:
            client = await connect(w)
            await client.send(b"first LOGIN bob@example.org x\r\n")
            await answer(w, IMAP, b"first NO no\r\n")
            assert (await client.read_line()).startswith(b"first NO [AUTHENTICATIONFAILED] ")
            await client.send(b"second LOGIN bob@example.com x\r\n")
            assert (await client.read_line()).startswith(b"second NO [AUTHENTICATIONFAILED] ")

    run(play)


def test_pop3_lists_its_response_codes() -> None:
    async def play() -> None:
        async with proxy(POP3) as w:
            client = await connect(w)
            listed = [await client.exchange(b"CAPA\r\n")]
            while listed[-1] != b".\r\n":
                listed.append(await client.read_line())
            assert b"RESP-CODES\r\n" in listed
            assert b"AUTH-RESP-CODE\r\n" in listed

    run(play)


# --- the verdict table ------------------------------------------------------------------------------

VERDICTS: Final = [
    (IMAP, b"a NO no\r\n", REFUSED),
    (IMAP, b"a no [authenticationfailed] no\r\n", MISCONFIGURED | {IMAP: OUTAGE[IMAP]}),
    (IMAP, b"a NO [AUTHENTICATIONFAILED] no\r\n", REFUSED),
    (IMAP, b"a NO [NONEXISTENT] no such user\r\n", REFUSED),
    (IMAP, b"a NO [REFERRAL imap://mx17.internal/] go there\r\n", REFUSED),
    (IMAP, b"a BAD no\r\n", REFUSED),
    (IMAP, b"* 1 EXISTS\r\n* NO hm\r\na NO no\r\n* BYE gone\r\n", REFUSED),
    (IMAP, b"a NO [EXPIRED] Change it\r\n", {IMAP: b"a NO [EXPIRED] Change it\r\n"}),
    (IMAP, b"a NO [contactadmin] Locked\r\n", {IMAP: b"a NO [CONTACTADMIN] Locked\r\n"}),
    (IMAP, b"a NO [CONTACTADMIN]\r\n", {IMAP: b"a NO [CONTACTADMIN] Authentication failed.\r\n"}),
    (IMAP, b"a NO [EXPIRED] \x1b[2J\r\n", REFUSED),
    (IMAP, b"a NO [EXPIRED] caf\xc3\xa9\r\n", REFUSED),
    (IMAP, b"a NO [UNAVAILABLE] no\r\n", OUTAGE),
    (IMAP, b"a NO [INUSE] no\r\n", OUTAGE),
    (IMAP, b"a NO [SERVERBUG] no\r\n", OUTAGE),
    (IMAP, b"a NO [LIMIT] no\r\n", OUTAGE),
    (IMAP, b"* BYE [UNAVAILABLE] no\r\n", OUTAGE),
    (IMAP, b"* BYE no\r\n", OUTAGE),
    (IMAP, b"b OK in\r\n", OUTAGE),
    (IMAP, b"+ go on\r\n", OUTAGE),
    (IMAP, b"a NO [PRIVACYREQUIRED] Plaintext authentication disallowed\r\n", MISCONFIGURED),
    (POP3, b"-ERR no\r\n", REFUSED),
    (POP3, b"-ERR [AUTH] no\r\n", REFUSED),
    (POP3, b"-ERR [SYS/PERM] no\r\n", REFUSED),
    (POP3, b"-ERR [SYS/TEMP] no\r\n", OUTAGE),
    (POP3, b"-ERR [IN-USE] no\r\n", OUTAGE),
    (POP3, b"-ERR [LOGIN-DELAY] no\r\n", OUTAGE),
    (POP3, b"what\r\n", OUTAGE),
    (SMTP, b"535 5.7.8 no\r\n", REFUSED),
    (SMTP, b"534-5.7.9 a\r\n534 5.7.9 b\r\n", REFUSED),
    (SMTP, b"500 5.5.6 line too long\r\n", REFUSED),
    (SMTP, b"501 5.5.2 no base64\r\n", REFUSED),
    (SMTP, b"550 5.7.1 no\r\n", REFUSED),
    (SMTP, b"454 4.7.0 no\r\n", OUTAGE),
    (SMTP, b"432 4.7.12 no\r\n", OUTAGE),
    (SMTP, b"421 4.3.2 no\r\n", OUTAGE),
    (SMTP, b"250 2.0.0 ok\r\n", OUTAGE),
    (SMTP, b"999 no\r\n", OUTAGE),
]


@pytest.mark.parametrize(("protocol", "last", "expected"), VERDICTS)
def test_reply_of_the_upstream_is_a_refusal_or_an_outage(
    protocol: Protocol, last: bytes, expected: dict[Protocol, bytes]
) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol)
            await answer(w, protocol, last)
            reply = await client.read_line()
            assert reply == expected[protocol]
            is_outage = reply in (OUTAGE[protocol], MISCONFIGURED[protocol])
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]
            counted = logins(w, protocol)
            assert counted in (
                ({"upstream_failed": 1}, {"upstream_refused": 1}) if is_outage else ({"upstream_denied": 1},)
            )
            assert upstream_errors(w) == int(is_outage)
            log = w.read_log()
            assert ("upstream_failed" in log) == is_outage
            assert ("login_denied" in log) != is_outage

    run(play)


@pytest.mark.parametrize(
    ("protocol", "greeting"),
    [
        (IMAP, b"* PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n"),
        (IMAP, b"* OK [CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS] hi\r\n"),
    ],
)
def test_greeting_of_imap_upstream_is_a_configuration_error(protocol: Protocol, greeting: bytes) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            await upstream.send(greeting)
            assert await client.read_line() == MISCONFIGURED[protocol]
            assert await upstream.read_to_eof() == b""
            assert logins(w, protocol).keys() <= {"upstream_failed", "upstream_refused"}

    run(play)


@every_protocol
@pytest.mark.parametrize("count", [0, 1, -1])
def test_upstream_that_closes_the_connection_is_an_outage(protocol: Protocol, count: int) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            for reply in REPLIES[protocol][:count]:
                await upstream.exchange(reply)
            upstream.close()
            assert await client.read_line() == OUTAGE[protocol]
            await send_login(client, protocol)
            await answer(w, protocol)
            assert await client.read_line() == SUCCESS[protocol]

    run(play)


@every_protocol
def test_upstream_that_accepts_and_closes_ends_the_session(protocol: Protocol) -> None:
    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol, then=b"MAIL FROM:<a@example.org>\r\n")
            (await answer(w, protocol)).close()
            assert await client.read_to_eof() == SUCCESS[protocol]

    run(play)


@pytest.mark.parametrize("reply", [b"235 2.7.0 in\r\n", b"250 ok\r\n", b"503 5.5.1 no\r\n", b"454 no\r\n"])
def test_no_mail_is_relayed_without_235_to_credentials(reply: bytes) -> None:
    async def play() -> None:
        async with proxy(SMTP) as w:
            client = await connect(w)
            mail = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n"
            await send_login(client, SMTP, then=mail)
            upstream = await w.upstream.accept()
            for each in REPLIES[SMTP][:2]:
                await upstream.exchange(each)
            await upstream.send(reply)
            assert await client.read_line() == OUTAGE[SMTP]
            assert await upstream.read_to_eof() == b""
            assert (await client.read_line()).startswith(b"530 5.7.1 ")
            assert (await client.read_line()).startswith(b"503 5.5.1 ")

    run(play)


def test_mail_before_the_login_is_refused() -> None:
    async def play() -> None:
        async with proxy(SMTP) as w:
            client = await connect(w)
            assert (await client.exchange(b"MAIL FROM:<a@example.org>\r\n")).startswith(b"530 5.7.1 ")
            assert w.upstream.accepted.empty()

    run(play)


@every_protocol
def test_outages_and_refusals_together_are_limited_by_max_errors(protocol: Protocol) -> None:
    async def play() -> None:
        async with proxy(protocol, max_errors=3) as w:
            client = await connect(w)
            await send_login(client, protocol)
            (await w.upstream.accept()).close()
            assert await client.read_line() == OUTAGE[protocol]
            await send_login(client, protocol, user=STRANGER)
            assert await client.read_line() == REFUSED[protocol]
            await send_login(client, protocol)
            await answer(w, protocol, DENIAL[protocol])
            assert await client.read_line() == REFUSED[protocol]
            assert await client.read_to_eof() == b""

    run(play)


# --- TLS with the upstream --------------------------------------------------------------------------


def decide(protocol: Protocol, mode: ProxySsl) -> Step:
    """An upstream that refuses the password ``wrong``."""

    def step(c: Connection) -> None:
        if mode is ProxySsl.STARTTLS:
            offer_tls(protocol)(c)
        c.start_tls()
        greeting, *replies, success = REPLIES[protocol]
        if mode is ProxySsl.ENABLED:
            c.send(greeting)
        elif protocol is IMAP:
            replies = [b"+ go on\r\n"] * 2  # it has sent no capabilities inside of TLS
        for reply in replies:
            c.answer(reply)
        line = c.read_line()
        while protocol is IMAP and line not in (b"right", b"wrong"):
            line = c.read_line()
        is_wrong = b"wrong" in (b64decode(line) if protocol is SMTP else line)
        c.send(DENIAL[protocol] if is_wrong else success)

    return step


@every_protocol
@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
def test_upstream_decides_inside_of_tls(protocol: Protocol, mode: ProxySsl, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue(names=("mail.example.com",))
    settings = UpstreamSettings(
        proxy_ssl=mode,
        proxy_ssl_name="mail.example.com",
        proxy_ssl_trusted_certificate=str(authority.file),
    )
    with mail_server(decide(protocol, mode), server_context(certificate)) as server:

        async def play() -> None:
            async with proxy(protocol, port=server.port, settings=settings) as w:
                client = await connect(w)
                await send_login(client, protocol, password=b"wrong")
                assert await client.read_line() == REFUSED[protocol]
                await send_login(client, protocol, password=b"right")
                assert await client.read_line() == SUCCESS[protocol]

        run(play)
        clear = server.received_in_clear()
        assert not any(secret in clear for secret in (b"bob", b"right", b"wrong", b"AUTH", b"LOGIN"))
        assert len(server.connections) == 2


# --- tokens -----------------------------------------------------------------------------------------


@every_protocol
@pytest.mark.parametrize("passes_error", [True, False])
def test_token_is_sent_as_a_token_and_its_error_is_passed_on_if_allowed(
    protocol: Protocol, passes_error: bool
) -> None:
    error = b64encode(b'{"status":"invalid_token"}')
    message = b64encode(b"user=bob@example.org\x01auth=Bearer a-token\x01\x01")
    directives: dict[str, Any] = {
        f"{protocol}_auth": frozenset({AuthMethod.PLAIN, AuthMethod.XOAUTH2}),
        "proxy_auth": (ProxyAuth.XOAUTH2, ProxyAuth.NATIVE),
        "proxy_pass_error_message": passes_error,
    }
    first = {
        IMAP: (b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\r\n",),
        POP3: (b"+OK hi\r\n", b"+OK\r\nUSER\r\nSASL XOAUTH2\r\n.\r\n"),
        SMTP: (b"220 hi\r\n", b"250-hi\r\n250 AUTH XOAUTH2\r\n", b"334 \r\n"),
    }[protocol]
    challenge = (b"334 " if protocol is SMTP else b"+ ") + error + b"\r\n"

    async def play() -> None:
        async with proxy(protocol, **directives) as w:
            client = await connect(w)
            prefix = b"a AUTHENTICATE XOAUTH2 " if protocol is IMAP else b"AUTH XOAUTH2 "
            await client.send(prefix + message + b"\r\n")
            upstream = await w.upstream.accept()
            for reply in first[:-1]:
                await upstream.exchange(reply)
            assert message in await upstream.exchange(first[-1])
            assert await upstream.exchange(challenge) == b"\r\n"
            await upstream.send(DENIAL[protocol])
            if passes_error:
                assert await client.read_line() == challenge
                await client.send(b"\r\n")
            assert await client.read_line() == REFUSED[protocol]
            assert await client.exchange(NOOP[protocol][0]) == NOOP[protocol][1]
            assert "a-token" not in w.read_log()

    run(play)


@every_protocol
def test_refused_token_counts_whatever_the_client_sends_after_the_challenge(protocol: Protocol) -> None:
    """Else one connection could try any number of tokens."""
    error = b64encode(b'{"status":"invalid_token"}')
    message = b64encode(b"user=bob@example.org\x01auth=Bearer a-token\x01\x01")
    directives = {
        f"{protocol}_auth": frozenset({AuthMethod.XOAUTH2}),
        "proxy_auth": (ProxyAuth.XOAUTH2,),
        "proxy_pass_error_message": True,
        "max_errors": 2,
    }
    first = {
        IMAP: (b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\r\n",),
        POP3: (b"+OK hi\r\n", b"+OK\r\nUSER\r\nSASL XOAUTH2\r\n.\r\n"),
        SMTP: (b"220 hi\r\n", b"250-hi\r\n250 AUTH XOAUTH2\r\n", b"334 \r\n"),
    }[protocol]
    challenge = (b"334 " if protocol is SMTP else b"+ ") + error + b"\r\n"

    async def play() -> None:
        async with proxy(protocol, **directives) as w:
            client = await connect(w)
            for _ in range(2):
                prefix = b"a AUTHENTICATE XOAUTH2 " if protocol is IMAP else b"AUTH XOAUTH2 "
                await client.send(prefix + message + b"\r\n")
                upstream = await w.upstream.accept()
                for reply in first:
                    await upstream.exchange(reply)
                await upstream.exchange(challenge)
                await upstream.send(DENIAL[protocol])
                assert await client.read_line() == challenge
                await client.send(b"nonsense\r\n")
                assert (await client.read_line())[:5] in {b"a BAD", b"-ERR ", b"500 5"}
            assert await client.read_to_eof() == b""
            assert "reason=max_errors" in w.read_log()

    run(play)


# --- when the reply is sent -------------------------------------------------------------------------


@pytest.mark.parametrize("has_route", [True, False])
def test_client_that_leaves_before_the_reply_ends_the_session(
    has_route: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 30.0)

    async def play() -> None:
        async with proxy(IMAP) as w:
            client = await connect(w)
            await send_login(client, IMAP, user=USER if has_route else STRANGER)
            if has_route:
                await answer(w, IMAP, DENIAL[IMAP])
                await w.upstream.writers[0].drain()
            while not logins(w, IMAP):
                await asyncio.sleep(0.005)
            client.reset()
            await w.wait_for_sessions()

    run(play)


@every_protocol
def test_draining_proxy_does_not_wait_for_the_reply(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 30.0)

    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol, user=STRANGER)
            while not logins(w, protocol):
                await asyncio.sleep(0.005)
            await w.app.drain(Seconds(5.0))
            assert await client.read_to_eof() == PROTOCOLS[protocol].shutdown

    run(play)


@pytest.mark.parametrize("has_route", [True, False])
def test_password_is_not_kept_while_the_reply_waits(has_route: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a refusal by the upstream; of one without an upstream the frontend keeps the last command."""
    monkeypatch.setattr(refusal_times, "MIN_SECONDS", 30.0)

    async def play() -> None:
        async with proxy(IMAP) as w:
            client = await connect(w)
            password = b"Pass-" + b"0123456789" * 3
            await send_login(client, IMAP, password=password, user=USER if has_route else STRANGER)
            if has_route:
                await answer(w, IMAP, DENIAL[IMAP])
            while not logins(w, IMAP):
                await asyncio.sleep(0.005)
            gc.collect()
            held = [each for each in gc.get_objects() if isinstance(each, Session)]
            assert len(held) == 1
            assert not [each for each in _reachable(held[0]) if isinstance(each, Secret)]

    run(play)


def _reachable(start: object) -> list[object]:
    """Return what a session and its generators refer to, without the worker's shared parts."""
    found: dict[int, object] = {}
    waiting: list[object] = [start._generator] if isinstance(start, Session) else []
    while waiting:
        each = waiting.pop()
        if id(each) in found:
            continue
        found[id(each)] = each
        frame = getattr(each, "gi_frame", None)
        inner = getattr(each, "gi_yieldfrom", None)
        waiting += [*(frame.f_locals.values() if frame is not None else ()), *([inner] if inner else ())]
        slots = {name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())}
        if type(each).__module__.startswith("mailproxy.protocols"):
            waiting += [getattr(each, name) for name in slots if hasattr(each, name)]
    return list(found.values())


@every_protocol
def test_refusals_with_and_without_an_upstream_wait_alike(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask the same object, with their own time."""
    asked: list[tuple[bool, float]] = []

    def seconds_left(_: RefusalTimes, elapsed: float, *, is_upstream: bool, minimum: None) -> float:
        asked.append((is_upstream, elapsed))
        return 0.0

    monkeypatch.setattr(RefusalTimes, "seconds_left", seconds_left)

    async def play() -> None:
        async with proxy(protocol) as w:
            client = await connect(w)
            await send_login(client, protocol)
            upstream = await w.upstream.accept()
            await asyncio.sleep(0.2)
            w.upstream.accepted.put_nowait(upstream)
            await answer(w, protocol, DENIAL[protocol])
            assert await client.read_line() == REFUSED[protocol]
            await send_login(client, protocol, user=STRANGER)
            assert await client.read_line() == REFUSED[protocol]

    run(play)
    (first, slow), (second, fast) = asked
    assert (first, second) == (True, False)
    assert slow >= 0.2
    assert fast < 0.2


@pytest.mark.parametrize("has_route", [True, False])
def test_auth_failure_delay_is_the_minimum_and_comes_once(
    has_route: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delay of failed logins with an authentication service is not added to it."""
    asked: list[tuple[float | None, float]] = []

    def seconds_left(_: RefusalTimes, elapsed: float, *, is_upstream: bool, minimum: float | None) -> float:
        asked.append((minimum, elapsed))
        return 0.0

    monkeypatch.setattr(RefusalTimes, "seconds_left", seconds_left)

    async def play() -> None:
        async with proxy(IMAP, auth_failure_delay=20.0) as w:
            client = await connect(w)
            await send_login(client, IMAP, user=USER if has_route else STRANGER)
            if has_route:
                await answer(w, IMAP, DENIAL[IMAP])
            assert await client.read_line() == REFUSED[IMAP]
            assert w.value("mailproxy_auth_failed_credentials_total", "new") == 1

    run(play)
    ((minimum, elapsed),) = asked
    assert minimum == 20.0
    assert elapsed < 20.0
