# SPDX-License-Identifier: Apache-2.0
"""Directives and parameters without an effect that a client can observe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from support.parity.dialogue import GRANT, IMAP_OK, Dialogue, Step, Tls
from support.parity.server_blocks import Block

_PAIR: Final = "ssl_certificate @server_cert@; ssl_certificate_key @server_key@;"

BLOCKS: Final = (
    Block("imap-proxy-on", "imap", "proxy on;"),
    Block("imap-buffers", "imap", "imap_client_buffer 8k; proxy_buffer 8k; smtp_client_buffer 8k;"),
    Block("imap-bind", "imap", listen="bind backlog=5"),
    Block("imap-bytes", "imap", listen="rcvbuf=16k sndbuf=64k"),
    Block("imap-kept-alive", "imap", listen="so_keepalive=30m::10"),
    Block("imap-alive-on", "imap", listen="so_keepalive=on"),
    Block("imap-alive-off", "imap", listen="so_keepalive=off"),
    Block("imap-only-6", "imap", listen="ipv6only=on", via="ipv6"),
    Block("imap-multipath", "imap", listen="multipath", since=(1, 29, 7)),
    Block(
        "imap-compressed", "imap", f"{_PAIR} ssl_certificate_compression on;", listen="ssl", since=(1, 29, 1)
    ),
)


def _dialogues() -> Iterator[Dialogue]:
    for block in BLOCKS:
        first: tuple[Step, ...] = (Tls(),) if block.listen == "ssl" else ()
        yield Dialogue(
            name=f"with {block.name.removeprefix('imap-')}",
            block=block.name,
            area="settings without a visible effect",
            steps=(*first, b"a1 LOGIN user pass\r\n", b"x\r\n"),
            auth=(GRANT,),
            upstream=IMAP_OK,
            via=block.via,
            since=block.since,
            check=lambda record: "" if record.client.endswith(b"* relayed\r\n") else "it did not log in",
        )


DIALOGUES: Final = tuple(_dialogues())
