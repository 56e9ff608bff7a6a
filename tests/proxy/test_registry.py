# SPDX-License-Identifier: Apache-2.0
"""The table of protocols."""

from __future__ import annotations

import pytest

from mailproxy.protocols.registry import PROTOCOLS, MailProtocol
from mailproxy_config.model import Protocol


def test_registry_has_every_protocol_of_configuration() -> None:
    assert set(PROTOCOLS) == set(Protocol)
    assert all(name is protocol.name for name, protocol in PROTOCOLS.items())


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        (Protocol.IMAP, (b"* BAD internal server error", b"* BYE ", b"* BYE ")),
        (Protocol.POP3, (b"-ERR internal server error", b"-ERR ", b"-ERR ")),
        (Protocol.SMTP, (b"451 4.3.2 Internal server error", b"421 4.3.2 ", b"421 4.3.2 ")),
    ],
)
def test_error_replies_of_each_protocol(name: Protocol, starts: tuple[bytes, bytes, bytes]) -> None:
    protocol: MailProtocol = PROTOCOLS[name]
    for reply, start in zip((protocol.internal_error, protocol.shutdown, protocol.busy), starts, strict=True):
        assert reply.startswith(start)
        assert reply.endswith(b"\r\n")
        assert reply.count(b"\r\n") == reply.count(b"\n") == reply.count(b"\r") == 1
