# SPDX-License-Identifier: Apache-2.0
"""The cluster's DNS server: A records of Services (RFC 1035)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from threading import Thread
from typing import Final

from support.process_node.network import NODE_ADDRESS

DOMAIN: Final = "cluster.local"
_A: Final = 1
_NAME_ERROR: Final = 3
_SECONDS: Final = 5


class NameServer:
    """Answers on UDP port 53 of the node.

    Attributes:
        addresses: The addresses of each name, without the domain.
    """

    def __init__(self) -> None:
        self.addresses: Mapping[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((NODE_ADDRESS, 53))
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            try:
                answer = self._answer(query)
            except (IndexError, UnicodeDecodeError, struct.error):
                continue
            self._socket.sendto(answer, client)

    def _answer(self, query: bytes) -> bytes:
        labels, position = [], 12
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode("ascii").lower())
            position += 1 + length
        question = query[12 : position + 5]
        [kind] = struct.unpack("!H", query[position + 1 : position + 3])
        name = ".".join(labels)
        known = self.addresses.get(name.removesuffix(f".{DOMAIN}")) if name.endswith(DOMAIN) else None
        code = _NAME_ERROR if known is None else 0
        found = (known or []) if kind == _A else []
        records = b"".join(
            struct.pack("!HHHIH", 0xC00C, _A, 1, _SECONDS, 4) + socket.inet_aton(one) for one in found
        )
        # A response (QR) with authority (AA), and recursion as it was asked for.
        [asked] = struct.unpack("!H", query[2:4])
        flags = 0x8480 | (asked & 0x0100) | code
        return query[:2] + struct.pack("!HHHHH", flags, 1, len(found), 0, 0) + question + records


def resolv_conf(namespace: str) -> str:
    """Return ``/etc/resolv.conf`` of the pods of a namespace, as the kubelet writes it."""
    search = f"{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    return f"search {search}\nnameserver {NODE_ADDRESS}\noptions ndots:5\n"
