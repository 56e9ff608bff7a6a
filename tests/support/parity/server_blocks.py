# SPDX-License-Identifier: Apache-2.0
"""The server blocks that dialogues are played on, and the ``nginx.conf`` that contains all of them.

nginx and the proxy read the same text; only the addresses in it differ.
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
        name: Its name in dialogues.
        protocol: ``imap``, ``pop3`` or ``smtp``.
        directives: Its directives except ``listen`` and ``protocol``.
        listen: Parameters of ``listen``.
        via: The kind of address it listens on: ``tcp``, ``ipv6`` or ``unix``.
        since: The first version of nginx with these directives; an older one does not get the block.
    """

    name: str
    protocol: str
    directives: str = ""
    listen: str = ""
    via: str = "tcp"
    since: tuple[int, ...] = ()


@dataclass(frozen=True)
class ProgramAddresses:
    """The addresses, ports and folder of one program.

    Attributes:
        here: The address that the program listens on.
        auth: The port of the authentication service at this address.
        dead: A port at this address where nothing listens.
        dns: The port of the name server at this address.
        folder: The folder for UNIX sockets, process id files and logs.
        ports: The port of each block.
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


def render(
    blocks: Sequence[Block], addresses: ProgramAddresses, *, load: str, certificates: dict[str, str]
) -> str:
    """Return the text of the configuration."""
    text = _HEAD.format(
        load=load, folder=addresses.folder, name=NAME, here=addresses.here, auth=addresses.auth
    )
    for block in blocks:
        directives = block.directives
        files = {name: f'"{path}"' for name, path in certificates.items()}
        words = {**files, "here": addresses.here, "dead": str(addresses.dead), "dns": str(addresses.dns)}
        words |= {"auth": str(addresses.auth)}
        for word, value in words.items():
            directives = directives.replace(f"@{word}@", value)
        address = listen_address(block, addresses)
        text += f"    server {{ listen {address} {block.listen}; protocol {block.protocol}; {directives} }}\n"
    return text + "}\n"


def listen_address(block: Block, addresses: ProgramAddresses) -> str:
    """Return the address of a block, as an argument of ``listen``."""
    if block.via == "unix":
        return f"unix:{addresses.folder}/{block.name}.sock"
    host = "[::1]" if block.via == "ipv6" else addresses.here
    return f"{host}:{addresses.ports[block.name]}"
