# SPDX-License-Identifier: Apache-2.0
"""A marked password on every path: only the authentication service and the upstream get it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Final

import pytest

from mailproxy_config.model import AuthMethod, LogLevel, Protocol, Seconds
from support.checked_worker import checked_worker, read_until_closed, server_builder
from support.loopback_worker import GRANT, LoopbackWorker, Response, http_response, run

MARK: Final = b"HuNtEr2sEcReT"
TRACES: Final = (MARK, b64encode(MARK)[:-2], b64encode(b"\0" + MARK)[2:-4], b64encode(b"a" + MARK)[2:-4])
"""The password in plain text, and the part of its base64 that is the same at any offset."""
METHODS: Final = {
    Protocol.IMAP: frozenset({AuthMethod.PLAIN, AuthMethod.LOGIN, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    Protocol.POP3: frozenset({AuthMethod.PLAIN, AuthMethod.APOP, AuthMethod.CRAM_MD5, AuthMethod.EXTERNAL}),
    Protocol.SMTP: frozenset(AuthMethod) - {AuthMethod.APOP},
}


def b64(data: bytes) -> bytes:
    return b64encode(data)


def lines(protocol: Protocol) -> list[bytes]:
    """Return each way to send a password, valid and invalid."""
    verb = b"a AUTHENTICATE " if protocol is Protocol.IMAP else b"AUTH "
    digest = (MARK * 3)[:32]
    shared = [
        verb + b"PLAIN " + b64(b"\0alice\0" + MARK),
        verb + b"PLAIN\r\n" + b64(b"\0alice\0" + MARK),
        verb + b"PLAIN " + b64(b"\0alice\0" + MARK) + b" more words than there may be at all",
        verb + b"PLAIN " + b64(b"\0alice\0\r\n" + MARK),
        verb + b"PLAIN " + MARK + b"!",
        verb + b"LOGIN " + b64(b"alice") + b"\r\n" + b64(MARK),
        verb + b"LOGIN\r\n" + b64(b"alice") + b"\r\n" + b64(MARK),
        verb + b"LOGIN\r\n" + b64(b"alice") + b"\r\n!" + b64(MARK),
        verb + b"LOGIN\r\n" + b64(b"alice") + b"\r\n" + b64(MARK) + b"\r",
        verb + b"CRAM-MD5\r\n" + b64(b"alice " + digest),
        verb + b"CRAM-MD5\r\n" + b64(b"alice " + MARK),
        verb + b"XOAUTH2 " + b64(MARK),
    ]
    return (
        shared
        + {
            Protocol.IMAP: [
                b"a LOGIN alice " + MARK,
                b'a LOGIN "alice" "' + MARK + b'"',
                b"a LOGIN {5+}\r\nalice {%d+}\r\n%b" % (len(MARK), MARK),
                b"a LOGIN alice " + MARK + b" " + MARK + b" " + MARK,
                b'a LOGIN alice "' + MARK,
                b"a LOGIN alice " + MARK + b"\0",
                b"alice " + MARK,
            ],
            Protocol.POP3: [
                b"USER alice\r\nPASS " + MARK,
                b"USER alice\r\nPASS " + MARK + b"\0",
                b"PASS " + MARK,
                b"APOP alice " + MARK,
                b"PASSWORD " + MARK,
            ],
            Protocol.SMTP: [b"PASS " + MARK, b"AUTH\0PLAIN " + MARK],
        }[protocol]
    )


OUTCOMES: Final[dict[str, Response]] = {
    "denied": http_response("Auth-Status: no\r\n"),
    "denied with a wait": http_response("Auth-Status: no\r\nAuth-Wait: 1\r\n"),
    "an upstream that is not there": http_response(
        "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n"
    ),
    "an upstream that hangs up": http_response(GRANT),
    "another password": http_response(f"{GRANT}Auth-User: bob\r\nAuth-Pass: {MARK.decode()}\r\n"),
    "nonsense": b"HTTP/1.1 200 OK\r\nAuth-Pass: " + MARK + b"\0\r\n\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\n" + MARK + b": _\r\nb_d: x\r\n\r\n",
    "no address": b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: " + MARK + b"\r\nAuth-Port: 1\r\n\r\n",
    "no port": b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: "
    + MARK
    + b"\r\n\r\n",
    "nothing": b"",
}


CASES: Final = [
    *((LogLevel.DEBUG, outcome) for outcome in OUTCOMES),
    *((level, "denied") for level in LogLevel if level is not LogLevel.DEBUG),
]


@pytest.mark.parametrize("protocol", Protocol, ids=str)
@pytest.mark.parametrize(("level", "outcome"), CASES)
def test_no_password_is_logged_or_measured_or_sent_back(
    protocol: Protocol, level: LogLevel, outcome: str
) -> None:
    build = server_builder(
        protocol,
        None,
        **{f"{protocol.value}_auth": METHODS[protocol]},
        error_log=level,
        timeout=Seconds(1.0),
        auth_http_timeout=Seconds(1.0),
        proxy_smtp_auth=True,
        proxy_pass_error_message=True,
    )

    async def play() -> None:
        async with checked_worker(build, OUTCOMES[outcome], closes=outcome == "nothing") as w:
            hanging_up = asyncio.ensure_future(_hang_up(w))  # noqa: TID251 - cancelled below
            replies = await asyncio.gather(*(_send_and_read(w, line) for line in lines(protocol)))
            hanging_up.cancel()
            visible = b"".join([*replies, w.read_log().encode(), repr(w.metrics.snapshot()).encode()])
            assert not [trace for trace in TRACES if trace in visible]
            assert any(MARK in request or MARK[:10] in request for request in w.auth.requests)

    run(play)


async def _send_and_read(w: LoopbackWorker, line: bytes) -> bytes:
    client = await w.client()
    client.writer.write(line + b"\r\n")
    client.writer.write_eof()
    return await read_until_closed(client)


async def _hang_up(w: LoopbackWorker) -> None:
    while True:
        upstream = await w.upstream.accept()
        await upstream.send(b"nonsense\r\n")
        upstream.close()
