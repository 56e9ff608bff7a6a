# SPDX-License-Identifier: Apache-2.0
"""Everything that a program sent while a dialogue was played."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """Everything that a program sent, normalised.

    Attributes:
        turns: What the client received in each step; the first is before it sends anything.
        ending: The state of the client's connection after the last step:
            ``open``, ``eof``, ``notified`` (a TLS close_notify first) or ``reset``.
        afterwards: How it ended when the client then disconnected; empty if it had already ended.
        tls: The negotiated parameters of each handshake, or its error.
        requests: The requests to the authentication service.
        upstreams: What each connection to the upstream received.
        upstream_endings: Whether each was ``closed`` or ``open`` at the end.
        dns_queries: The queries to the name server.
    """

    turns: tuple[bytes, ...]
    ending: str
    afterwards: str
    tls: tuple[str, ...]
    requests: tuple[bytes, ...]
    upstreams: tuple[bytes, ...]
    upstream_endings: tuple[str, ...]
    dns_queries: tuple[tuple[str, str], ...] = ()

    @property
    def client(self) -> bytes:
        """All bytes that the client received."""
        return b"".join(self.turns)
