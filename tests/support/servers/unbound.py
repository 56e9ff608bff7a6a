# SPDX-License-Identifier: Apache-2.0
"""Unbound, with only the records of one test."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.servers.programs import Running

_CONFIGURATION: Final = """
server:
  directory: "{folder}"
  pidfile: ""
  username: ""
  chroot: ""
  use-syslog: no
  verbosity: 1
  interface: 127.0.0.1@{port}
  access-control: 127.0.0.0/8 allow
  do-ip6: no
  module-config: "iterator"
  local-zone: "." refuse
{zones}
{records}
remote-control:
  control-enable: no
"""


@dataclass
class Unbound:
    """A running Unbound; ``address`` is its value for the directive ``resolver``."""

    port: int
    running: Running

    @property
    def address(self) -> str:
        """Return its address for ``resolver``."""
        return f"127.0.0.1:{self.port}"


def start(path: str, folder: Path, port: int, zones: Iterable[str], records: Iterable[str]) -> Unbound:
    """Start Unbound.

    Args:
        path: The path of the program.
        folder: An empty folder.
        port: The port on 127.0.0.1, for UDP and TCP.
        zones: The zones it serves completely; it refuses queries for other zones.
        records: Its records, as lines of a zone file with fully qualified names.
    """
    configuration = _CONFIGURATION.format(
        folder=folder,
        port=port,
        zones="\n".join(f"  local-zone: '{zone}' static" for zone in zones),
        records="\n".join(f"  local-data: '{record}'" for record in records),
    )
    (folder / "unbound.conf").write_text(configuration)
    command = [path, "-d", "-p", "-c", str(folder / "unbound.conf")]
    unbound = Unbound(port, Running(command, output=folder / "output"))
    try:
        unbound.running.eventually(lambda: _answers(port), "answers")
    except AssertionError:
        unbound.running.stop()
        raise
    return unbound


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect(("127.0.0.1", port))
            sock.send(struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\0" + struct.pack("!HH", 1, 1))
            return bool(sock.recv(512))
        except OSError:
            return False
