# SPDX-License-Identifier: Apache-2.0
"""The levels before inheritance."""

from __future__ import annotations

from mailproxy_config.directives import Level, ServerBlock
from mailproxy_config.model import ListenConfig, Protocol

_EMPTY = Level(values={}, given=frozenset())


def test_what_a_server_says_of_itself() -> None:
    own = Level(
        values={"listen": (ListenConfig(port=143),), "protocol": Protocol.IMAP},
        given=frozenset({"listen", "protocol"}),
    )
    server = ServerBlock(name="a", path="spec.servers[0]", own=own, level=_EMPTY)
    assert (server.listen, server.protocol) == ((ListenConfig(port=143),), Protocol.IMAP)


def test_a_server_may_say_nothing() -> None:
    server = ServerBlock(name="a", path="spec.servers[0]", own=_EMPTY, level=_EMPTY)
    assert (server.listen, server.protocol) == ((), None)
