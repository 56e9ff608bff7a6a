# SPDX-License-Identifier: Apache-2.0
"""The scripted peers of a program, the authentication service and the upstreams, which record everything.

A run of a dialogue is identified by the client's address: requests contain it,
and upstreams listen at it.  A dialogue that cannot be identified this way is played alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.parity.dialogue import Part, Special, Speech
from support.streams import abort

_CLIENT: Final = re.compile(rb"\r\nClient-IP: ([^\r]*)\r\n")
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PAUSE: Final = 0.004


class Activity:
    """Signals events of a run, so that a test can wait until there are no more."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None
        self.busy = 0

    def stir(self) -> None:
        """Signal an event."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self, seconds: float) -> bool:
        """Wait for the next event; return whether it occurred within the timeout."""
        waiting = self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await waiting
        except TimeoutError:
            return False
        return True

    async def settle(self, first: float, quiet: float) -> None:
        """Wait until there are no more events."""
        patience = first
        while await self.next(patience) or self.busy:
            patience = quiet


@dataclass
class Heard:
    """The bytes that one upstream connection received."""

    data: bytes = b""
    is_closed: bool = False


@dataclass
class Playing:
    """One run of a dialogue with one program, as its peers use it."""

    ip: str
    port: int
    auth: list[Speech]
    upstream: tuple[Speech, ...]
    header: int
    activity: Activity = field(default_factory=Activity)
    requests: list[bytes] = field(default_factory=list)
    upstreams: list[Heard] = field(default_factory=list)
    asked: int = 0
    port6: int = 0
    socket: str = ""

    def filled(self, data: bytes) -> bytes:
        """Return bytes with the placeholders replaced by addresses and ports."""
        words = {"ip": self.ip, "port": str(self.port), "port6": str(self.port6), "socket": self.socket}
        for word, value in words.items():
            data = data.replace(f"@{word}@".encode(), value.encode())
        return data

    def next_answer(self) -> Speech:
        """Return the next response of the authentication service; ``CLOSE`` after the last one."""
        self.asked += 1
        return self.auth[self.asked - 1] if self.asked <= len(self.auth) else Special.CLOSE


class Peers:
    """The authentication service and the upstreams of one program."""

    def __init__(self) -> None:
        self.playings: dict[str, Playing] = {}
        self.alone: Playing | None = None
        self.strays: list[bytes] = []
        self._servers: list[asyncio.Server] = []
        self.upstream_port = 0
        self.upstream_port6 = 0
        self.upstream_socket = ""

    async def start(self, here: str, auth: int, folder: Path) -> None:
        """Listen for requests at one address, and as upstreams at all, at ``::1``, and at a UNIX socket."""
        self.upstream_socket = f"{folder}/upstream.sock"
        self._servers = [
            await asyncio.start_server(self._serve_request, here, auth, limit=1 << 20),
            await asyncio.start_server(self._serve_upstream, "0.0.0.0", 0, limit=1 << 20),
            await asyncio.start_server(self._serve_upstream, "::1", 0, limit=1 << 20),
            await asyncio.start_unix_server(self._serve_upstream, self.upstream_socket, limit=1 << 20),
        ]
        self.upstream_port = self._servers[1].sockets[0].getsockname()[1]
        self.upstream_port6 = self._servers[2].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()

    # -- the authentication service

    async def _serve_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            request = await reader.readuntil(b"\r\n\r\n")
            named = _CLIENT.search(request)
            playing = self.playings.get(named[1].decode("latin-1") if named else "") or self.alone
            if playing is None:
                self.strays.append(request)
            else:
                playing.requests.append(request)
                playing.activity.stir()
                answer = playing.next_answer()
                await _say(playing, answer, writer)
                if answer is Special.SILENT:
                    await reader.read()
        writer.close()

    # -- upstreams

    async def _serve_upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("sockname")
        ip = name if isinstance(name, str) else name[0]
        playing = self.playings.get(ip) or (None if ip.startswith("127.") else self.alone)
        if playing is None:
            self.strays.append(b"upstream " + ip.encode())
            writer.close()
            return
        heard = Heard()
        playing.upstreams.append(heard)
        playing.activity.stir()
        try:
            await _converse(playing, heard, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            heard.is_closed = True
            playing.activity.stir()
            writer.close()


async def _converse(
    playing: Playing, heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if playing.header:
        heard.data += await _header(playing.header, reader)
    script = iter(playing.upstream)
    await _say(playing, next(script, Special.SILENT), writer)
    while True:
        line = await reader.readline()
        heard.data += line
        playing.activity.stir()
        if not line.endswith(b"\n"):
            return
        await _say(playing, next(script, Special.SILENT), writer)


async def _header(version: int, reader: asyncio.StreamReader) -> bytes:
    if version == 1:
        return await reader.readline()
    head = await reader.readexactly(16)
    if not head.startswith(_V2):
        return head
    return head + await reader.readexactly(struct.unpack("!H", head[14:])[0])


async def _say(playing: Playing, speech: Speech, writer: asyncio.StreamWriter) -> None:
    parts: tuple[Part, ...] = speech if isinstance(speech, tuple) else (speech,)
    playing.activity.busy += 1
    try:
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            elif isinstance(part, bytes):
                writer.write(playing.filled(part))
                await writer.drain()
                if len(parts) > 1:
                    await asyncio.sleep(_PAUSE)
            elif part is Special.SILENT:
                continue
            elif part is Special.CLOSE:
                writer.close()
                raise ConnectionAbortedError
            else:
                _linger_no_more(writer)
                abort(writer)
                raise ConnectionAbortedError
    finally:
        playing.activity.busy -= 1
        playing.activity.stir()


def _linger_no_more(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
