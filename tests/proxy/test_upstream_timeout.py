# SPDX-License-Identifier: Apache-2.0
"""Upstreams that are silent in some stage of the login: what is logged, and whether another is tried."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.model import Protocol, ProxySsl, Seconds
from mailproxy_config.upstream_login import ProxyAuth
from support.candidates import (
    BEFORE_LOGIN,
    INTERNAL_ERROR,
    STAGES,
    SUCCESS,
    address,
    dies_in,
    has_stage,
    log_in,
    plain_session,
    proxy,
    stalls_in,
    tries,
    use_addresses,
)
from support.loopback_worker import http_response, loopback_worker, run
from support.tls_authority import Authority, Issued
from support.upstream_tls import Connection, Step, mail_server, server_context, session

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
NAME: Final = "mail.example.com"
TIMEOUT: Final = Seconds(0.5)
TIMED_OUT: Final = 'reason="upstream timed out"'
CLOSED: Final = 'reason="upstream closed the connection"'
CASES: Final = [
    (protocol, ProxySsl.STARTTLS if stage == "starttls" else ProxySsl.DISABLED, stage)
    for protocol in Protocol
    for stage in STAGES
    if stage != "tls" and has_stage(protocol, ProxySsl.STARTTLS, stage)
]
every_stage = pytest.mark.parametrize(("protocol", "mode", "stage"), CASES)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


def directives(mode: ProxySsl, authority: Authority, **others: Any) -> dict[str, Any]:
    return {
        "proxy_ssl": mode,
        "proxy_ssl_name": NAME,
        "proxy_ssl_trusted_certificate": authority.file,
        "timeout": TIMEOUT,
        **others,
    }


def grant(port: int) -> bytes:
    return http_response(f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n")


def log_of_failed_login(protocol: Protocol, step: Step, issued: Issued, **values: Any) -> str:
    """Log in at one mail server, which fails, and return the log."""
    logs = []
    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            async with loopback_worker(proxy(protocol, **values), grant(upstream.port)) as w:
                _, reply = await log_in(w, protocol)
                assert reply == INTERNAL_ERROR[protocol]
                logs.append(w.read_log())

        run(play)
    return logs[0]


@every_stage
def test_upstream_that_is_silent_is_logged_as_timed_out(
    protocol: Protocol, mode: ProxySsl, stage: str, authority: Authority, issued: Issued
) -> None:
    values = directives(mode, authority, proxy_next_upstream=frozenset())
    log = log_of_failed_login(protocol, stalls_in(protocol, mode, stage), issued, **values)
    assert TIMED_OUT in log
    assert CLOSED not in log


@every_stage
def test_upstream_that_closes_is_not_logged_as_timed_out(
    protocol: Protocol, mode: ProxySsl, stage: str, authority: Authority, issued: Issued
) -> None:
    values = directives(mode, authority, proxy_next_upstream=frozenset())
    log = log_of_failed_login(protocol, dies_in(protocol, mode, stage), issued, **values)
    assert CLOSED in log
    assert "timed out" not in log


SASL: Final[dict[Protocol, tuple[tuple[bytes, bytes], ...]]] = {
    IMAP: ((b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n", b"a AUTHENTICATE PLAIN "),),
    POP3: ((b"+OK ready\r\n", b"CAPA"), (b"+OK\r\nSASL PLAIN\r\n.\r\n", b"AUTH PLAIN ")),
    SMTP: ((b"220 mta\r\n", b"EHLO "), (b"250-mta\r\n250 AUTH PLAIN\r\n", b"AUTH PLAIN ")),
}


@pytest.mark.parametrize("protocol", Protocol)
def test_upstream_that_is_silent_after_sasl_is_logged_as_timed_out(
    protocol: Protocol, authority: Authority, issued: Issued
) -> None:
    def step(c: Connection) -> None:
        for reply, command in SASL[protocol]:
            c.send(reply)
            assert c.read_line().startswith(command)
        while c.recv():
            pass

    values = directives(ProxySsl.DISABLED, authority, proxy_auth=(ProxyAuth.PLAIN,))
    log = log_of_failed_login(protocol, step, issued, **values)
    assert TIMED_OUT in log
    assert "stage=login" in log


@every_stage
def test_silent_upstream_is_tried_elsewhere_only_before_the_credentials(
    protocol: Protocol, mode: ProxySsl, stage: str, authority: Authority, issued: Issued
) -> None:
    """The same as for an upstream that closes the connection (``test_upstream_candidates``)."""
    accepts = plain_session(protocol) if mode is ProxySsl.DISABLED else session(protocol, mode)
    context = server_context(issued)
    with (
        mail_server(stalls_in(protocol, mode, stage), context) as first,
        mail_server(accepts, context) as last,
    ):

        async def play() -> None:
            values = directives(mode, authority, proxy_next_upstream=BEFORE_LOGIN)
            async with loopback_worker(proxy(protocol, **values), grant(first.port)) as w:
                use_addresses(w, [address(first), address(last)])
                _, reply = await log_in(w, protocol)
                is_committed = stage in {"login", "password"}
                assert reply == (INTERNAL_ERROR if is_committed else SUCCESS)[protocol]
                assert tries(w, protocol) == ({"final": 1} if is_committed else {"next": 1, "success": 1})
                event = "upstream_failed" if is_committed else "upstream_try_failed"
                [line] = [line for line in w.read_log().splitlines() if f" {event} " in line]
                assert TIMED_OUT in line

        run(play)
    assert len(last.connections) == (0 if stage in {"login", "password"} else 1)
