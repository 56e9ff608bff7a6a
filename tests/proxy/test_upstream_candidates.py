# SPDX-License-Identifier: Apache-2.0
"""Logins at several addresses: what is tried again, where, how often; credentials reach one address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pytest

from mailproxy.protocols.types import UpstreamAddress, UpstreamLogin
from mailproxy.session.session import Session
from mailproxy.session.upstream import UpstreamConnection
from mailproxy.session.upstream_candidates import UpstreamAttempts, connector
from mailproxy_config.model import NextUpstream, Protocol, ProxySsl, Seconds, SendProxyProtocol
from mailproxy_config.upstream_login import ProxyAuth
from support.candidates import (
    BEFORE_LOGIN,
    INTERNAL_ERROR,
    LOGINS,
    STAGES,
    SUCCESS,
    Died,
    address,
    dies_in,
    has_stage,
    log_in,
    plain_session,
    proxy,
    refused_addresses,
    refuses,
    saw_credentials,
    tries,
    use_addresses,
)
from support.configs import server
from support.dead_peers import stop_acknowledging
from support.loopback_worker import http_response, loopback_worker, run
from support.tls_authority import Authority, Issued
from support.upstream_tls import GREETINGS, Connection, MailServer, Step, mail_server, server_context, session

PROTOCOLS: Final = tuple(Protocol)
NAME: Final = "mail.example.com"
GRANT: Final = http_response("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n")
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
CASES: Final = [
    (protocol, mode, stage)
    for protocol in PROTOCOLS
    for mode in ProxySsl
    for stage in STAGES
    if has_stage(protocol, mode, stage)
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


@contextlib.contextmanager
def upstreams(issued: Issued, *steps: Step) -> Iterator[list[MailServer]]:
    """Run several mail servers."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(mail_server(step, server_context(issued))) for step in steps]


def tls_directives(mode: ProxySsl, authority: Authority) -> dict[str, Any]:
    return {
        "proxy_ssl": mode,
        "proxy_ssl_name": NAME,
        "proxy_ssl_trusted_certificate": authority.file,
    }


def accepted(protocol: Protocol, mode: ProxySsl) -> Step:
    return plain_session(protocol) if mode is ProxySsl.DISABLED else session(protocol, mode)


# --- what is chosen -----------------------------------------------------------------------------------


@every_protocol
def test_server_without_these_directives_connects_once(protocol: Protocol) -> None:
    assert connector(server(protocol), UpstreamConnection) == UpstreamConnection
    words = frozenset({NextUpstream.CONNECT})
    repeated = server(protocol, proxy_next_upstream=words)
    assert connector(repeated, UpstreamConnection) == UpstreamAttempts.connect
    limited = server(protocol, proxy_connect_timeout=Seconds(1.0))
    assert connector(limited, UpstreamConnection) == UpstreamAttempts.connect


# --- the line in the sand ---------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "mode", "stage"), CASES)
def test_credentials_reach_one_upstream_when_the_first_dies(
    protocol: Protocol, mode: ProxySsl, stage: str, authority: Authority, issued: Issued
) -> None:
    with upstreams(issued, dies_in(protocol, mode, stage), accepted(protocol, mode)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(protocol, **tls_directives(mode, authority)), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                _, reply = await log_in(w, protocol)
                is_committed = stage in {"login", "password"}
                assert reply == (INTERNAL_ERROR if is_committed else SUCCESS)[protocol]
                assert tries(w, protocol) == ({"final": 1} if is_committed else {"next": 1, "success": 1})
                log = w.read_log()
                assert ("upstream_try_failed" in log) is not is_committed
                if not is_committed:
                    assert f"next=127.0.0.1:{second.port}" in log
                assert "correct-horse" not in log

        run(play)
    is_committed = stage in {"login", "password"}
    # An IMAP server gets the length of the user name first, and dies then.
    assert saw_credentials(first) is (is_committed and (protocol is not Protocol.IMAP or stage == "password"))
    assert len(second.connections) == (0 if is_committed else 1)
    assert saw_credentials(second) is not is_committed


SASL_ACCEPTED: Final = {
    Protocol.IMAP: b"a OK in\r\n",
    Protocol.POP3: b"+OK in\r\n",
    Protocol.SMTP: b"235 in\r\n",
}
SASL_LISTS: Final = {
    Protocol.IMAP: ((b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n", b"AUTHENTICATE PLAIN "),),
    Protocol.POP3: ((b"+OK ready\r\n", b"CAPA"), (b"+OK\r\nSASL PLAIN\r\n.\r\n", b"AUTH PLAIN ")),
    Protocol.SMTP: ((b"220 mta\r\n", b"EHLO "), (b"250-mta\r\n250 AUTH PLAIN\r\n", b"AUTH PLAIN ")),
}


@every_protocol
def test_sasl_credentials_reach_one_upstream_when_the_first_dies(protocol: Protocol, issued: Issued) -> None:
    def dies_after_credentials(c: Connection) -> None:
        for reply, command in SASL_LISTS[protocol]:
            c.send(reply)
            assert command in c.read_line()

    with upstreams(issued, dies_after_credentials, plain_session(protocol)) as (first, second):

        async def play() -> None:
            made = proxy(protocol, proxy_next_upstream=frozenset(NextUpstream), proxy_auth=(ProxyAuth.PLAIN,))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]
                assert tries(w, protocol) == {"final": 1}

        run(play)
    assert len(first.connections) == 1
    assert second.connections == []


@every_protocol
def test_sasl_login_is_tried_elsewhere_before_its_credentials(protocol: Protocol, issued: Issued) -> None:
    def accepts_sasl(c: Connection) -> None:
        for reply, command in SASL_LISTS[protocol]:
            c.send(reply)
            assert command in c.read_line()
        c.send(SASL_ACCEPTED[protocol])

    dies = dies_in(protocol, ProxySsl.DISABLED, "greeting")
    with upstreams(issued, dies, accepts_sasl) as (first, second):

        async def play() -> None:
            words = frozenset({NextUpstream.GREETING})
            made = proxy(protocol, proxy_next_upstream=words, proxy_auth=(ProxyAuth.PLAIN,))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                _, reply = await log_in(w, protocol)
                assert b"OK" in reply.upper()
                assert tries(w, protocol) == {"next": 1, "success": 1}

        run(play)
    assert (len(first.connections), len(second.connections)) == (1, 1)


@every_protocol
def test_login_without_the_failure_among_its_directives_is_tried_once(
    protocol: Protocol, issued: Issued
) -> None:
    steps = dies_in(protocol, ProxySsl.DISABLED, "greeting"), plain_session(protocol)
    with upstreams(issued, *steps) as (first, second):

        async def play() -> None:
            words = frozenset({NextUpstream.CONNECT, NextUpstream.HELLO, NextUpstream.UNAVAILABLE})
            async with loopback_worker(proxy(protocol, proxy_next_upstream=words), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]
                assert tries(w, protocol) == {"final": 1}

        run(play)
    assert second.connections == []


@every_protocol
def test_only_the_first_item_is_used_without_proxy_next_upstream(protocol: Protocol, issued: Issued) -> None:
    with upstreams(issued, plain_session(protocol)) as (second,), refused_addresses(1) as (first,):

        async def play() -> None:
            async with loopback_worker(proxy(protocol, proxy_next_upstream=frozenset()), GRANT) as w:
                use_addresses(w, [first, address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]

        run(play)
    assert second.connections == []


REFUSALS: Final = {
    Protocol.IMAP: b"TAG NO [AUTHENTICATIONFAILED] no\r\n",
    Protocol.POP3: b"-ERR [AUTH] no\r\n",
    Protocol.SMTP: b"535 5.7.8 no\r\n",
}


@every_protocol
def test_refused_password_is_final(protocol: Protocol, issued: Issued) -> None:
    steps = refuses(protocol, REFUSALS[protocol]), plain_session(protocol)
    with upstreams(issued, *steps) as (first, second):

        async def play() -> None:
            made = proxy(protocol, proxy_next_upstream=frozenset(NextUpstream), proxy_pass_error_message=True)
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                reply = (await log_in(w, protocol))[1]
                assert reply == REFUSALS[protocol].replace(b"TAG", b"a")
                assert tries(w, protocol) == {"final": 1}

        run(play)
    assert len(first.connections) == 1
    assert second.connections == []


@every_protocol
@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
def test_certificate_error_is_final(
    protocol: Protocol, mode: ProxySsl, authority: Authority, issued: Issued
) -> None:
    other = authority.issue(names=("other.example",))
    with (
        mail_server(dies_in(protocol, mode, "login"), server_context(other)) as first,
        mail_server(session(protocol, mode), server_context(issued)) as second,
    ):

        async def play() -> None:
            async with loopback_worker(proxy(protocol, **tls_directives(mode, authority)), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]
                assert tries(w, protocol) == {"final": 1}
                assert w.app.context.upstream_health.unhealthy() == 0

        run(play)
    assert second.connections == []
    assert not saw_credentials(first)


STRIPPED: Final = {
    Protocol.IMAP: b"x1 BAD no such command\r\n",
    Protocol.POP3: b"-ERR no such command\r\n",
    Protocol.SMTP: b"250 mail.example\r\n",
}


@every_protocol
def test_missing_starttls_is_final(protocol: Protocol, authority: Authority, issued: Issued) -> None:
    def stripped(c: Connection) -> None:
        c.send(GREETINGS[protocol])
        c.answer(STRIPPED[protocol])
        c.recv()

    mode = ProxySsl.STARTTLS
    with upstreams(issued, stripped, session(protocol, mode)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(protocol, **tls_directives(mode, authority)), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]
                assert tries(w, protocol) == {"final": 1}

        run(play)
    assert second.connections == []
    assert not saw_credentials(first)


BUSY: Final = {
    Protocol.IMAP: b"* BYE too busy\r\n",
    Protocol.POP3: b"-ERR too busy\r\n",
    Protocol.SMTP: b"554 5.3.2 no service\r\n",
}


@every_protocol
def test_refused_connection_in_the_greeting_is_tried_elsewhere(protocol: Protocol, issued: Issued) -> None:
    def busy(c: Connection) -> None:
        c.send(BUSY[protocol])
        c.recv()

    with upstreams(issued, busy, plain_session(protocol)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(protocol), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == SUCCESS[protocol]
                assert "reply=" in w.read_log()

        run(play)


def test_greeting_of_another_protocol_is_final(issued: Issued) -> None:
    def wrong(c: Connection) -> None:
        c.send(b"220 mail.example ESMTP\r\n")
        c.recv()

    with upstreams(issued, wrong, plain_session(Protocol.IMAP)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, Protocol.IMAP))[1] == INTERNAL_ERROR[Protocol.IMAP]

        run(play)
    assert second.connections == []


@pytest.mark.parametrize(("reply", "is_tried"), [(b"421 4.3.2 later\r\n", True), (b"550 no\r\n", False)])
def test_refused_ehlo_is_tried_elsewhere_only_if_it_is_temporary(
    reply: bytes, is_tried: bool, issued: Issued
) -> None:
    def refusing(c: Connection) -> None:
        c.send(GREETINGS[Protocol.SMTP])
        c.answer(reply)
        c.recv()

    with upstreams(issued, refusing, plain_session(Protocol.SMTP)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.SMTP), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                expected = SUCCESS if is_tried else INTERNAL_ERROR
                assert (await log_in(w, Protocol.SMTP))[1] == expected[Protocol.SMTP]

        run(play)
    assert len(second.connections) == is_tried


def test_ehlo_after_xclient_is_not_tried_elsewhere(issued: Issued) -> None:
    """XCLIENT has the name and the address of the client."""

    def dying(c: Connection) -> None:
        c.send(GREETINGS[Protocol.SMTP])
        assert c.answer(b"250-mail.example\r\n250 XCLIENT\r\n").startswith(b"EHLO")
        assert c.answer(b"220 again\r\n").startswith(b"XCLIENT")
        assert c.read_line() == b"EHLO me.example"
        raise Died

    with upstreams(issued, dying, plain_session(Protocol.SMTP)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.SMTP, xclient=True), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, Protocol.SMTP))[1] == INTERNAL_ERROR[Protocol.SMTP]
                assert tries(w, Protocol.SMTP) == {"final": 1}

        run(play)
    assert second.connections == []


@pytest.mark.parametrize("refused", [b"MAIL", b"RCPT"])
def test_envelope_is_not_tried_elsewhere(refused: bytes, issued: Issued) -> None:
    """Not with ``Unavailable`` either, which is about AUTH."""

    def temporary(c: Connection) -> None:
        c.send(GREETINGS[Protocol.SMTP])
        c.answer(b"250 mail.example\r\n")
        if refused == b"RCPT":
            c.answer(b"250 ok\r\n")
            c.read_line()
            raise Died
        assert c.answer(b"451 4.3.0 later\r\n").startswith(refused)
        c.recv()

    with upstreams(issued, temporary, plain_session(Protocol.SMTP)) as (first, second):

        async def play() -> None:
            words = frozenset(NextUpstream)
            made = proxy(
                Protocol.SMTP,
                proxy_next_upstream=words,
                smtp_auth=frozenset({"none"}),
                proxy_smtp_auth=False,
            )
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                client = await w.client()
                await client.read_line()
                await client.exchange(b"HELO me\r\n")
                await client.exchange(b"MAIL FROM:<a@x>\r\n")
                assert await client.exchange(b"RCPT TO:<b@x>\r\n") == INTERNAL_ERROR[Protocol.SMTP]

        run(play)
    assert len(first.connections) == 1
    assert second.connections == []


# --- Unavailable ------------------------------------------------------------------------------------

TEMPORARY: Final = {
    Protocol.IMAP: b"* OK still here\r\nTAG NO [UNAVAILABLE] later\r\n",
    Protocol.POP3: b"-ERR [SYS/TEMP] later\r\n",
    Protocol.SMTP: b"454 4.7.0 later\r\n",
}


def once_unavailable(protocol: Protocol) -> Step:
    steps = [refuses(protocol, TEMPORARY[protocol])]

    def step(c: Connection) -> None:
        (steps.pop() if steps else plain_session(protocol))(c)

    return step


@every_protocol
def test_unavailable_login_is_tried_again_at_the_same_address(protocol: Protocol, issued: Issued) -> None:
    with upstreams(issued, once_unavailable(protocol), plain_session(protocol)) as (first, second):

        async def play() -> None:
            made = proxy(protocol, proxy_next_upstream=frozenset(NextUpstream))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                started = asyncio.get_running_loop().time()
                assert (await log_in(w, protocol))[1] == SUCCESS[protocol]
                assert asyncio.get_running_loop().time() - started >= 1.0
                assert tries(w, protocol) == {"next": 1, "success": 1}
                assert f"next=127.0.0.1:{first.port}" in w.read_log()

        run(play)
    assert len(first.connections) == 2
    assert second.connections == []


@every_protocol
def test_unavailable_login_is_final_unless_asked_for(protocol: Protocol, issued: Issued) -> None:
    with upstreams(issued, once_unavailable(protocol), plain_session(protocol)) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(protocol), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == INTERNAL_ERROR[protocol]

        run(play)
    assert len(first.connections) == 1
    assert second.connections == []


def test_login_that_was_unavailable_stays_at_its_address(issued: Issued) -> None:
    """The second try dies in the greeting: the third one is made at the same address."""
    protocol = Protocol.IMAP
    steps = [
        refuses(protocol, TEMPORARY[protocol]),
        dies_in(protocol, ProxySsl.DISABLED, "greeting"),
        plain_session(protocol),
    ]

    def step(c: Connection) -> None:
        steps.pop(0)(c)

    with upstreams(issued, step, plain_session(protocol)) as (first, second):

        async def play() -> None:
            made = proxy(protocol, proxy_next_upstream=frozenset(NextUpstream))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, protocol))[1] == SUCCESS[protocol]

        run(play)
    assert len(first.connections) == 3
    assert second.connections == []


# --- tries and time ---------------------------------------------------------------------------------


def test_login_succeeds_with_three_dead_of_four(issued: Issued) -> None:
    with upstreams(issued, plain_session(Protocol.IMAP)) as (last,), refused_addresses(3) as dead:

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP, proxy_next_upstream_tries=4), GRANT) as w:
                use_addresses(w, [*dead, address(last)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"next": 3, "success": 1}
                assert w.read_log().count("upstream_try_failed") == 3

        run(play)


def test_tries_are_limited(issued: Issued) -> None:
    with upstreams(issued, plain_session(Protocol.IMAP)) as (last,), refused_addresses(3) as dead:

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w:
                use_addresses(w, [*dead, address(last)])
                assert (await log_in(w, Protocol.IMAP))[1] == INTERNAL_ERROR[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"next": 2, "exhausted": 1}
                log = w.read_log()
                assert f"upstream=127.0.0.1:{dead[2].port}" in log.rpartition("upstream_failed")[2]

        run(play)
    assert last.connections == []


def test_one_address_is_tried_again_after_a_second(issued: Issued) -> None:
    steps = [dies_in(Protocol.POP3, ProxySsl.DISABLED, "greeting")] * 2 + [plain_session(Protocol.POP3)]

    def flapping(c: Connection) -> None:
        steps.pop(0)(c)

    with upstreams(issued, flapping) as (upstream,):

        async def play() -> None:
            grant = http_response(
                f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {upstream.port}\r\n"
            )
            async with loopback_worker(proxy(Protocol.POP3), grant) as w:
                started = asyncio.get_running_loop().time()
                assert (await log_in(w, Protocol.POP3))[1] == SUCCESS[Protocol.POP3]
                assert asyncio.get_running_loop().time() - started >= 2.0

        run(play)


def test_time_of_all_tries_is_limited(issued: Issued) -> None:
    """The second try would begin after the time."""
    with upstreams(issued, dies_in(Protocol.POP3, ProxySsl.DISABLED, "greeting")) as (upstream,):

        async def play() -> None:
            made = proxy(Protocol.POP3, proxy_next_upstream_timeout=Seconds(0.5))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(upstream)])
                assert (await log_in(w, Protocol.POP3))[1] == INTERNAL_ERROR[Protocol.POP3]
                assert tries(w, Protocol.POP3) == {"timeout": 1}

        run(play)
    assert len(upstream.connections) == 1


def test_try_in_progress_ends_with_the_time_of_all_tries(issued: Issued) -> None:
    def silent(c: Connection) -> None:
        c.recv()

    with upstreams(issued, silent, plain_session(Protocol.POP3)) as (first, second):

        async def play() -> None:
            made = proxy(Protocol.POP3, proxy_next_upstream_timeout=Seconds(0.3))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, Protocol.POP3))[1] == INTERNAL_ERROR[Protocol.POP3]
                assert tries(w, Protocol.POP3) == {"timeout": 1}

        run(play)
    assert second.connections == []


@contextlib.contextmanager
def silent_address(host: str = "127.0.0.1", port: int = 0) -> Iterator[UpstreamAddress]:
    """An address that drops all connection requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening:
        stop_acknowledging(listening)
        yield UpstreamAddress(host, listening.getsockname()[1])


@every_protocol
def test_address_that_does_not_answer_is_left_after_proxy_connect_timeout(
    protocol: Protocol, issued: Issued
) -> None:
    with upstreams(issued, plain_session(protocol)) as (second,), silent_address() as first:

        async def play() -> None:
            made = proxy(protocol, proxy_connect_timeout=Seconds(0.3))
            async with loopback_worker(made, GRANT) as w:
                use_addresses(w, [first, address(second)])
                assert (await log_in(w, protocol))[1] == SUCCESS[protocol]
                assert "stage=connect" in w.read_log()

        run(play)


def test_proxy_connect_timeout_limits_connecting_to_a_single_address() -> None:
    with silent_address() as silent:

        async def play() -> None:
            grant = http_response(
                f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {silent.port}\r\n"
            )
            made = proxy(Protocol.IMAP, proxy_next_upstream=frozenset(), proxy_connect_timeout=Seconds(0.2))
            async with loopback_worker(made, grant) as w:
                assert (await log_in(w, Protocol.IMAP))[1] == INTERNAL_ERROR[Protocol.IMAP]
                assert "connecting failed: Connection timed out" in w.read_log()

        run(play)


def test_greeting_may_come_later_than_proxy_connect_timeout(issued: Issued) -> None:
    def slow(c: Connection) -> None:
        with contextlib.suppress(TimeoutError):
            c.sock.settimeout(0.5)
            c.recv()
        c.sock.settimeout(30)
        plain_session(Protocol.IMAP)(c)

    with upstreams(issued, slow) as (upstream,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP, proxy_connect_timeout=Seconds(0.1)), GRANT) as w:
                use_addresses(w, [address(upstream)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"success": 1}

        run(play)


# --- addresses of one name --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [frozenset(), BEFORE_LOGIN])
@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_second_address_of_a_name_is_used_while_the_first_still_connects(
    host: str, words: frozenset[NextUpstream], issued: Issued
) -> None:
    with (
        upstreams(issued, plain_session(Protocol.IMAP)) as (second,),
        silent_address(host, second.port) as silent,
    ):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP, proxy_next_upstream=words), GRANT) as w:
                first = UpstreamAddress(silent.address, silent.port, NAME)
                use_addresses(w, [first, address(second, NAME)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"abandoned": 1, "success": 1}
                assert w.app.context.upstream_health.unhealthy() == 0
                await log_in(w, Protocol.IMAP)

        run(play)


@pytest.mark.parametrize("words", [frozenset(), BEFORE_LOGIN])
def test_second_address_of_a_name_is_used_at_once_when_the_first_refuses(
    words: frozenset[NextUpstream], issued: Issued
) -> None:
    with upstreams(issued, plain_session(Protocol.IMAP)) as (second,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP, proxy_next_upstream=words), GRANT) as w:
                first = UpstreamAddress("127.0.0.2", second.port, NAME)
                use_addresses(w, [first, address(second, NAME)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"next": 1, "success": 1}

        run(play)


def test_all_addresses_of_a_name_refuse() -> None:
    with refused_addresses(1) as (refused,):

        async def play() -> None:
            made = proxy(Protocol.IMAP, proxy_next_upstream=frozenset())
            async with loopback_worker(made, GRANT) as w:
                hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
                use_addresses(w, [UpstreamAddress(host, refused.port, NAME) for host in hosts])
                assert (await log_in(w, Protocol.IMAP))[1] == INTERNAL_ERROR[Protocol.IMAP]
                assert sum(tries(w, Protocol.IMAP).values()) == 3

        run(play)


def test_address_that_loses_the_race_gets_no_proxy_header(issued: Issued) -> None:
    """Both are connected at nearly the same time; the one that is not used received nothing."""

    def greeted(c: Connection) -> None:
        assert c.read_line().startswith(b"PROXY TCP4 ")
        plain_session(Protocol.IMAP)(c)

    with (
        upstreams(issued, greeted) as (second,),
        socket.create_server(("127.0.0.2", second.port)) as slow,
    ):
        stop_acknowledging(slow)

        async def play() -> None:
            made = proxy(Protocol.IMAP, proxy_next_upstream=frozenset(), proxy_protocol=SendProxyProtocol.V1)
            async with loopback_worker(made, GRANT) as w:
                first = UpstreamAddress("127.0.0.2", second.port, NAME)
                use_addresses(w, [first, address(second, NAME)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]

        run(play)
    assert len(second.connections) == 1


def test_proxy_header_is_sent_in_each_try(issued: Issued) -> None:
    headers = []

    def dying(c: Connection) -> None:
        headers.append(c.read_line())
        raise Died

    def accepting(c: Connection) -> None:
        headers.append(c.read_line())
        plain_session(Protocol.IMAP)(c)

    with upstreams(issued, dying, accepting) as (first, second):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V1), GRANT) as w:
                use_addresses(w, [address(first), address(second)])
                assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]

        run(play)
    assert len(headers) == 2
    assert all(header.startswith(b"PROXY TCP4 127.0.0.1 ") for header in headers)


# --- an upstream that resets the connection at once -------------------------------------------------


@pytest.mark.parametrize("words", [frozenset(), BEFORE_LOGIN])
def test_connection_that_is_reset_before_the_proxy_header_fails_once(
    words: frozenset[NextUpstream], authority: Authority
) -> None:
    """The PROXY header cannot be sent any more when the connection is noticed."""
    listening = socket.create_server(("127.0.0.1", 0))
    where = UpstreamAddress("127.0.0.1", listening.getsockname()[1])

    async def play() -> None:
        made = proxy(
            Protocol.IMAP,
            proxy_next_upstream=words,
            proxy_next_upstream_tries=1,
            proxy_protocol=SendProxyProtocol.V1,
            **tls_directives(ProxySsl.ENABLED, authority),
        )
        async with loopback_worker(made, GRANT) as w:

            def connect(virtual: Session, login: UpstreamLogin) -> UpstreamAttempts | UpstreamConnection:
                grant = replace(login.grant, address=where.address, port=where.port)
                begun = virtual.server.connect_address(virtual, replace(login, grant=grant))
                virtual.context.epoll.defer(listening.close)  # resets what was not accepted
                return begun

            for virtual_server in w.app._servers.values():
                virtual_server.connect = connect
            assert (await log_in(w, Protocol.IMAP))[1] == INTERNAL_ERROR[Protocol.IMAP]
            await w.wait_for_sessions()
            log = w.read_log()
            assert log.count(" upstream_failed ") == 1
            assert " internal_error " not in log
            assert ("stage=greeting" in log) is bool(words)

    run(play)


# --- health -----------------------------------------------------------------------------------------


def test_address_that_failed_three_times_is_last_in_order(issued: Issued) -> None:
    with upstreams(issued, plain_session(Protocol.IMAP)) as (second,), refused_addresses(1) as (first,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w:
                use_addresses(w, [first, address(second)])
                for _ in range(5):
                    assert (await log_in(w, Protocol.IMAP))[1] == SUCCESS[Protocol.IMAP]
                assert tries(w, Protocol.IMAP) == {"next": 3, "success": 5}
                assert w.app.context.upstream_health.unhealthy() == 1

        run(play)


def test_recovered_address_is_used_again(issued: Issued) -> None:
    """Its failures are forgotten with the first login that it accepts, here one at which it is last."""
    protocol = Protocol.IMAP
    with upstreams(issued, plain_session(protocol)) as (second,), refused_addresses(1) as (other,):

        async def play() -> None:
            async with loopback_worker(proxy(protocol), GRANT) as w:
                health = w.app.context.upstream_health
                use_addresses(w, [address(second), other])
                for _ in range(3):
                    health.failed(address(second))
                assert health.unhealthy() == 1
                assert (await log_in(w, protocol))[1] == SUCCESS[protocol]
                assert tries(w, protocol) == {"next": 1, "success": 1}
                assert health.unhealthy() == 0

        run(play)


@every_protocol
def test_refused_password_clears_the_failures_of_an_address(protocol: Protocol, issued: Issued) -> None:
    with upstreams(issued, refuses(protocol, REFUSALS[protocol])) as (upstream,):

        async def play() -> None:
            async with loopback_worker(proxy(protocol), GRANT) as w:
                health = w.app.context.upstream_health
                for _ in range(3):
                    health.failed(address(upstream))
                use_addresses(w, [address(upstream)])
                await log_in(w, protocol)
                assert health.unhealthy() == 0

        run(play)


# --- the client leaves, the worker drains -----------------------------------------------------------


def test_client_that_leaves_between_tries_ends_them(issued: Issued) -> None:
    step = dies_in(Protocol.POP3, ProxySsl.DISABLED, "greeting")
    with upstreams(issued, step) as (upstream,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.POP3), GRANT) as w:
                use_addresses(w, [address(upstream)])
                client = await w.client()
                await client.read_line()
                await client.exchange(LOGINS[Protocol.POP3][0])
                await client.send(LOGINS[Protocol.POP3][1])
                while tries(w, Protocol.POP3) != {"next": 1}:
                    await asyncio.sleep(0.01)
                client.reset()
                await w.wait_for_sessions()
                await asyncio.sleep(1.2)

        run(play)
    assert len(upstream.connections) == 1


def test_client_that_leaves_while_two_addresses_connect_leaves_no_connection() -> None:
    with silent_address() as first, silent_address("127.0.0.2", first.port):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w:
                hosts = ("127.0.0.1", "127.0.0.2")
                use_addresses(w, [UpstreamAddress(host, first.port, NAME) for host in hosts])
                client = await w.client()
                await client.read_line()
                await client.send(LOGINS[Protocol.IMAP][0])
                while len(w.app.context.timers.waiting()) < 2:
                    await asyncio.sleep(0.01)
                client.reset()
                await w.wait_for_sessions()
                assert tries(w, Protocol.IMAP) == {"abandoned": 2}
                assert w.app.context.timers.waiting() == []

        run(play)


def test_login_between_tries_is_completed_when_the_worker_drains(issued: Issued) -> None:
    steps = [dies_in(Protocol.IMAP, ProxySsl.DISABLED, "greeting"), plain_session(Protocol.IMAP)]

    def flapping(c: Connection) -> None:
        steps.pop(0)(c)

    with upstreams(issued, flapping) as (upstream,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w, asyncio.TaskGroup() as tasks:
                use_addresses(w, [address(upstream)])
                client = await w.client()
                await client.read_line()
                await client.send(LOGINS[Protocol.IMAP][0])
                while tries(w, Protocol.IMAP) != {"next": 1}:
                    await asyncio.sleep(0.01)
                draining = tasks.create_task(w.app.drain(10.0))
                assert await client.read_line() == SUCCESS[Protocol.IMAP]
                client.close()
                await draining

        run(play)


def test_aborted_worker_ends_the_tries(issued: Issued) -> None:
    step = dies_in(Protocol.IMAP, ProxySsl.DISABLED, "greeting")
    with upstreams(issued, step) as (upstream,):

        async def play() -> None:
            async with loopback_worker(proxy(Protocol.IMAP), GRANT) as w:
                use_addresses(w, [address(upstream)])
                client = await w.client()
                await client.read_line()
                await client.send(LOGINS[Protocol.IMAP][0])
                while tries(w, Protocol.IMAP) != {"next": 1}:
                    await asyncio.sleep(0.01)
                w.app.stop()
                assert w.app.sessions == 0
                assert await client.read_to_eof() == b""

        run(play)
    assert len(upstream.connections) == 1


# --- many logins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_logins_with_three_dead_of_four_never_get_an_error(protocol: Protocol, issued: Issued) -> None:
    """Of 300 logins, 30 at a time, each succeeds; the dead addresses are soon last in order."""
    logins = 300
    with upstreams(issued, plain_session(protocol)) as (last,), refused_addresses(3) as dead:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, proxy_next_upstream_tries=4), GRANT) as w:
                use_addresses(w, [*dead, address(last)])
                replies: list[bytes] = []

                async def several() -> None:
                    for _ in range(logins // 30):
                        client, reply = await log_in(w, protocol)
                        replies.append(reply)
                        client.close()

                async with asyncio.TaskGroup() as tasks:
                    for _ in range(30):
                        tasks.create_task(several())
                assert replies == [SUCCESS[protocol]] * logins
                counted = tries(w, protocol)
                assert counted["success"] == logins
                assert counted.keys() == {"next", "success"}
                assert counted["next"] < logins
                assert w.app.context.upstream_health.unhealthy() == 3

        run(play)


async def accept_pop3(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETINGS[Protocol.POP3])
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        for reply in (b"+OK\r\n", SUCCESS[Protocol.POP3]):
            await reader.readuntil(b"\r\n")
            writer.write(reply)
        await reader.read()
    writer.close()


def test_logins_survive_a_restart_of_the_only_upstream() -> None:
    """100 logins while it is down for two seconds: each is tried until it is up again."""

    async def play() -> None:
        upstream = await asyncio.start_server(accept_pop3, "127.0.0.1", 0)
        port = upstream.sockets[0].getsockname()[1]
        grant = http_response(f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n")
        async with loopback_worker(proxy(Protocol.POP3, proxy_next_upstream_tries=16), grant) as w:
            assert (await log_in(w, Protocol.POP3))[1] == SUCCESS[Protocol.POP3]
            upstream.close()
            async with asyncio.TaskGroup() as tasks:
                logins = [tasks.create_task(log_in(w, Protocol.POP3)) for _ in range(100)]
                while tries(w, Protocol.POP3).get("next", 0) < 200:
                    await asyncio.sleep(0.01)
                upstream = await asyncio.start_server(accept_pop3, "127.0.0.1", port)
            assert [task.result()[1] for task in logins] == [SUCCESS[Protocol.POP3]] * 100
            assert tries(w, Protocol.POP3).keys() == {"next", "success"}
        upstream.close()

    run(play)
