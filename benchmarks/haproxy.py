# SPDX-License-Identifier: Apache-2.0
"""HAProxy in TCP mode as a peer: it relays without a dialogue, which is the floor for relaying."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

PROGRAM: Final = "haproxy"
PACKAGES: Final = "haproxy"
LISTENERS: Final = ("imap", "imaps")

_CONFIGURATION: Final = """
global
  maxconn {connections}
  nbthread {threads}
  stats socket {folder}/haproxy.socket
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""
_LISTEN: Final = """
listen {name}
  bind 127.0.0.1:{port} {tls}
  server upstream 127.0.0.1:{upstream}
"""


def configuration(
    folder: Path, listeners: Mapping[str, int], upstream: int, *, threads: int, open_files: int
) -> str:
    """Return ``haproxy.cfg``; TLS ends here, plain bytes are spliced.

    Args:
        folder: Has ``ecdsa.crt`` and ``ecdsa.key``; ``ecdsa.pem`` is written from them.
        listeners: The port of each of ``LISTENERS``.
        upstream: The port of the IMAP upstream.
        threads: Threads of the one worker process.
        open_files: The limit of open files, of which each connection takes two (and two for its pipe).
    """
    pem = folder / "ecdsa.pem"
    pem.write_text((folder / "ecdsa.crt").read_text() + (folder / "ecdsa.key").read_text())
    tls = f"ssl crt {pem} ssl-min-ver TLSv1.2"
    head = _CONFIGURATION.format(connections=(open_files - 500) // 5 * 2, threads=threads, folder=folder)
    return head + "".join(
        _LISTEN.format(name=name, port=listeners[name], tls=tls if name == "imaps" else "", upstream=upstream)
        for name in LISTENERS
    )
