# SPDX-License-Identifier: Apache-2.0
"""A DNS server on loopback, over UDP and TCP, with replies that the test sets; and a lookup to await."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from mailproxy.dns import Resolver
from support.servers.programs import Ports

RECORD_TYPES: Final = {"A": 1, "CNAME": 5, "PTR": 12, "TXT": 16, "AAAA": 28, "DNAME": 39}
_TYPE_NAMES: Final = {number: kind for kind, number in RECORD_TYPES.items()}

NXDOMAIN, SERVFAIL, FORMERR, NOTIMP, REFUSED, NOTAUTH = 3, 2, 1, 4, 5, 9


@dataclass(frozen=True)
class Record:
    """One answer record.  An empty ``owner`` is the name in the query."""

    kind: str
    data: bytes
    ttl: int = 60
    owner: bytes = b""


@dataclass(frozen=True)
class DnsReply:
    """A reply; the default is an empty ``NOERROR``."""

    records: tuple[Record, ...] = ()
    code: int = 0
    truncated: bool = False
    """UDP only: set TC and leave out the records, so that only TCP has them."""
    wrong_id: bool = False
    silent: bool = False
    garbage: bool = False


def wire(name: str | Sequence[bytes]) -> bytes:
    """Encode a name, given as text or as labels of any bytes."""
    labels = [label.encode() for label in name.split(".") if label] if isinstance(name, str) else name
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def ptr_record(name: str | Sequence[bytes], ttl: int = 60) -> Record:
    return Record("PTR", wire(name), ttl)


def cname_record(name: str, ttl: int = 60) -> Record:
    return Record("CNAME", wire(name), ttl)


def address_record(address: str, ttl: int = 60, owner: str = "") -> Record:
    """An ``A`` or ``AAAA`` record, by the look of the address."""
    ip = ipaddress.ip_address(address)
    return Record("A" if ip.version == 4 else "AAAA", ip.packed, ttl, wire(owner) if owner else b"")


def reply_with(*records: Record) -> DnsReply:
    return DnsReply(records)


@dataclass
class DnsServer:
    """Replies by name and type; the reply to other names is ``NXDOMAIN``.

    Attributes:
        zone: The reply for each name and type; of several replies each is used once, the last repeatedly.
        default_reply: The reply to other queries.
        queries: The queries so far: transport, name, type.
    """

    zone: dict[tuple[str, str], DnsReply | list[DnsReply]] = field(default_factory=dict)
    default_reply: DnsReply = DnsReply(code=NXDOMAIN)
    queries: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)
    port: int = 0
    host: str = "127.0.0.1"
    _query_received: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        """Its address for the directive ``resolver``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def set_ptr(self, reverse: str, *records: Record) -> None:
        self.zone[reverse, "PTR"] = reply_with(*records)

    def query_types(self) -> list[str]:
        """The types of the queries, in order."""
        return [kind for _, _, kind in self.queries]

    async def wait_for_queries(self, times: int) -> None:
        """Wait until so many queries have arrived."""
        while len(self.queries) < times:
            self._query_received.clear()
            await self._query_received.wait()

    def reply_to(self, message: bytes, transport: str) -> bytes | None:
        """Return the reply to send, if any."""
        name, end = _parse_query(message)
        kind = _TYPE_NAMES.get(struct.unpack_from("!H", message, end)[0], "?")
        self.queries.append((transport, name, kind))
        self.headers.append(message[:12])
        self._query_received.set()
        reply = self.zone.get((name.lower(), kind), self.default_reply)
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        return _reply_message(message, end + 4, reply, transport)


@asynccontextmanager
async def dns_server(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[DnsServer]:
    """Serve on one port of ``host``, a free one unless it is given, UDP and TCP."""
    server = DnsServer(host=host)

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                message = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                reply = server.reply_to(message, "tcp")
                if reply is not None:
                    writer.write(len(reply).to_bytes(2) + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    port = port or free_port(host)
    streams = await asyncio.start_server(over_tcp, host, port)
    server.port = port
    loop = asyncio.get_running_loop()
    datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), (host, port))
    try:
        yield server
    finally:
        datagrams.close()
        streams.close()
        await asyncio.sleep(0)


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port of ``host`` that is free for UDP and TCP, and which no outgoing connection takes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = Ports().take()
        with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family) as tcp:
            try:
                udp.bind((host, port))
                tcp.bind((host, port))
            except OSError:
                continue
            return port


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._server.reply_to(data, "udp")
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def _parse_query(message: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1


def _reply_message(queries: bytes, end: int, reply: DnsReply, transport: str) -> bytes | None:
    if reply.silent:
        return None
    cut = reply.truncated and transport == "udp"
    number = int.from_bytes(queries[:2]) ^ reply.wrong_id
    records = () if cut else reply.records
    head = struct.pack("!HHHHHH", number, 0x8180 | cut << 9 | reply.code, 1, len(records), 0, 0)
    body = b"".join(
        (record.owner or b"\xc0\x0c")
        + struct.pack("!HHIH", RECORD_TYPES[record.kind], 1, record.ttl, len(record.data))
        + record.data
        for record in records
    )
    return head + queries[12:end] + (b"\xc0" if reply.garbage else b"") + body


async def client_name(resolver: Resolver, address: str) -> bytes:
    """Wait for the confirmed name of a client."""
    name: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    resolver.look_up(address, name.set_result)
    return await name
