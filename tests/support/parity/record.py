# SPDX-License-Identifier: Apache-2.0
"""What left a proxy while a dialogue was played."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """Everything that others got to see, normalised.

    Attributes:
        turns: What the client heard in each step, the first before it said anything.
        ending: How the client's connection stood when the last step was played:
            ``open``, ``eof``, ``notified`` (TLS said goodbye first) or ``reset``.
        afterwards: How it ended when the client then left; empty where it had ended.
        tls: What each handshake settled, or how it failed.
        requests: What the authorization service was asked.
        upstreams: What each connection to the upstream carried.
        upstream_endings: Whether these were ``closed`` at the end.
        questions: What the name server was asked.
    """

    turns: tuple[bytes, ...]
    ending: str
    afterwards: str
    tls: tuple[str, ...]
    requests: tuple[bytes, ...]
    upstreams: tuple[bytes, ...]
    upstream_endings: tuple[str, ...]
    questions: tuple[tuple[str, str], ...] = ()

    @property
    def client(self) -> bytes:
        """All that the client heard."""
        return b"".join(self.turns)
