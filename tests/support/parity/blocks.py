# SPDX-License-Identifier: Apache-2.0
"""The servers that dialogues are played on, and the ``nginx.conf`` that has them all.

nginx and the proxy read the same text; only the addresses in it are their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAME: Final = "mx.example.test"


@dataclass(frozen=True)
class Block:
    """One ``server {}``.

    Attributes:
        name: How dialogues call it.
        protocol: ``imap``, ``pop3`` or ``smtp``.
        directives: What stands in it besides ``listen`` and ``protocol``.
        listen: Parameters of ``listen``.
        via: Where it listens: ``tcp``, ``ipv6`` or ``unix``.
        since: The version of nginx that knows these directives; an older one does not get the block.
    """

    name: str
    protocol: str
    directives: str = ""
    listen: str = ""
    via: str = "tcp"
    since: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a subject finds everything.

    Attributes:
        here: The address that it listens on.
        auth: The port of the authorization service there.
        dead: A port there where nobody listens.
        dns: The port of the name server there.
        folder: For UNIX sockets, process numbers and logs.
        ports: The ports of the blocks.
    """

    here: str
    auth: int
    dead: int
    dns: int
    folder: Path
    ports: dict[str, int]


_HEAD: Final = """\
{load}worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 4096; }}
mail {{
    server_name {name};
    auth_http {here}:{auth}/auth;
    auth_http_timeout 20s;
    ssl_protocols TLSv1.2 TLSv1.3;
    timeout 20s;
    proxy_timeout 60s;
"""


def render(blocks: Sequence[Block], place: Place, *, load: str, certificates: dict[str, str]) -> str:
    """Write the configuration."""
    text = _HEAD.format(load=load, folder=place.folder, name=NAME, here=place.here, auth=place.auth)
    for block in blocks:
        directives = block.directives
        files = {name: f'"{path}"' for name, path in certificates.items()}
        words = {**files, "here": place.here, "dead": str(place.dead), "dns": str(place.dns)}
        words |= {"auth": str(place.auth)}
        for word, value in words.items():
            directives = directives.replace(f"@{word}@", value)
        address = listen_address(block, place)
        text += f"    server {{ listen {address} {block.listen}; protocol {block.protocol}; {directives} }}\n"
    return text + "}\n"


def listen_address(block: Block, place: Place) -> str:
    """Where a block listens, as ``listen`` takes it."""
    if block.via == "unix":
        return f"unix:{place.folder}/{block.name}.sock"
    host = "[::1]" if block.via == "ipv6" else place.here
    return f"{host}:{place.ports[block.name]}"
