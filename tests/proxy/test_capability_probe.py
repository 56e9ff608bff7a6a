# SPDX-License-Identifier: Apache-2.0
"""Probes of upstreams: whatever an upstream sends, there is a result or an error, and nothing of a client.

Probes over sockets are in ``test_upstream_capabilities.py``.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method
from mailproxy.errors import PeerClosed, PeerTimedOut, UpstreamError
from mailproxy.protocols.capability_probe import CapabilityProbe
from mailproxy.protocols.imap.capability_probe import ImapCapabilityProbe
from mailproxy.protocols.sansio import Receive, Send
from mailproxy.protocols.smtp.capability_probe import SmtpCapabilityProbe
from mailproxy.protocols.types import AuthAllowed, Client, Secret, UpstreamLogin, UpstreamLoginResult
from mailproxy_config.model import ByteCount, Protocol, ProxySsl
from support.configs import server

CLIENT = Client("192.0.2.99")
LOGIN = UpstreamLogin(AuthAllowed("192.0.2.10", 1, b"alice", Secret(b"MARK3D")), Method.NONE, tag=b"x0")
SENT = re.compile(
    rb"(?:(?:x[012] (?:STARTTLS|CAPABILITY|LOGOUT)|EHLO mail\.example\.com|STARTTLS|QUIT)\r\n)*"
)


def probe(protocol: Protocol, mode: ProxySsl = ProxySsl.DISABLED) -> CapabilityProbe:
    """Make a probe that reads at most 256 bytes of a response."""
    kind = ImapCapabilityProbe if protocol is Protocol.IMAP else SmtpCapabilityProbe
    return kind(server(protocol, proxy_ssl=mode, proxy_buffer=ByteCount(256), xclient=False))


def ask(asked: CapabilityProbe, pieces: list[bytes]) -> tuple[bytes, UpstreamLoginResult | UpstreamError]:
    """Send these pieces to a probe, then close; return what it sent, and its result."""
    generator = asked.log_in(CLIENT, LOGIN)
    sent, answer = b"", None
    try:
        while True:
            effect: Any = generator.throw(PeerClosed()) if answer == b"" else generator.send(answer)
            answer = None
            if isinstance(effect, Send):
                sent += effect.data
            elif isinstance(effect, Receive):
                answer = pieces.pop(0)[: effect.limit] if pieces else b""
    except StopIteration as finished:
        result: UpstreamLoginResult = finished.value
        return sent, result
    except UpstreamError as error:
        return sent, error


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(
            [
                *(
                    b"* OK\r\n",
                    b"* CAPABILITY IMAP4rev1\r\nx2 OK\r\n",
                    b"x1 OK\r\n",
                    b"* BYE\r\n",
                    b"x2 NO\r\n",
                ),
                *(b"220 a\r\n", b"250-a\r\n", b"250 STARTTLS\r\n", b"421 a\r\n", b"* PREAUTH\r\n", b"\n"),
            ]
        ),
    ).filter(len),
    max_size=8,
)


@pytest.mark.parametrize("protocol", [Protocol.IMAP, Protocol.SMTP])
@given(pieces=PIECES, mode=st.sampled_from(ProxySsl))
def test_any_response_leads_to_a_result_or_an_error(
    protocol: Protocol, pieces: list[bytes], mode: ProxySsl
) -> None:
    sent, result = ask(probe(protocol, mode), pieces)
    assert SENT.fullmatch(sent)
    assert isinstance(result, (UpstreamLoginResult, UpstreamError))


@pytest.mark.parametrize(
    ("protocol", "pieces", "reply"),
    [
        (Protocol.IMAP, [b"* OK\r\n", b"* CAPABILITY IMAP4rev1 A\r\nx2 OK\r\n"], b"IMAP4rev1 A"),
        (Protocol.IMAP, [b"* OK [CAPABILITY B]\r\n", b"* 1 EXISTS\r\n* capability A\r\nx2 OK\r\n"], b"A"),
        (Protocol.IMAP, [b"* OK\r\n", b"x2 BAD\r\n"], b""),
        (Protocol.SMTP, [b"220 a\r\n", b"250-a\r\n250 SIZE\r\n"], b"250-a\r\n250 SIZE\r\n"),
    ],
)
def test_capabilities_are_returned(protocol: Protocol, pieces: list[bytes], reply: bytes) -> None:
    _, result = ask(probe(protocol), pieces)
    assert result == reply


@pytest.mark.parametrize(
    ("protocol", "pieces"),
    [
        (Protocol.IMAP, [b"* OK [CAPABILITY IMAP4rev1]\r\n"]),
        (Protocol.IMAP, [b"* OK\r\n", b"x1 NO\r\n"]),
        (Protocol.IMAP, [b"* OK\r\n", b"x1 OK\r\n* CAPABILITY IMAP4rev2\r\n"]),
        (Protocol.SMTP, [b"220 a\r\n", b"250 a\r\n"]),
        (Protocol.SMTP, [b"220 a\r\n", b"250 STARTTLS\r\n", b"220 go\r\n250 CHUNKING\r\n"]),
    ],
)
def test_nothing_is_read_in_clear_where_starttls_is_configured(
    protocol: Protocol, pieces: list[bytes]
) -> None:
    sent, result = ask(probe(protocol, ProxySsl.STARTTLS), pieces)
    assert isinstance(result, UpstreamError)
    assert b"CAPABILITY" not in sent


def test_upstream_that_does_not_respond_to_logout_has_responded() -> None:
    generator = probe(Protocol.IMAP).log_in(CLIENT, LOGIN)
    for answer in (None, b"* OK\r\n", None, b"* CAPABILITY IMAP4rev1\r\nx2 OK\r\n", None):
        effect = generator.send(answer)
    assert isinstance(effect, Receive)
    with pytest.raises(StopIteration) as finished:
        generator.throw(PeerTimedOut())
    assert finished.value.value == b"IMAP4rev1"
