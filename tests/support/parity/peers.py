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

from support.parity.dialogue import OutputPart, PeerAction, PeerOutput
from support.streams import abort

_CLIENT: Final = re.compile(rb"\r\nClient-IP: ([^\r]*)\r\n")
_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PAUSE: Final = 0.004


class Activity:
    """Signals events of a run, so that a test can wait until there are no more."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None
        self.busy = 0

    def signal(self) -> None:
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
        timeout = first
        while await self.next(timeout) or self.busy:
            timeout = quiet


@dataclass
class UpstreamConnection:
    """The bytes that one upstream connection received."""

    data: bytes = b""
    is_closed: bool = False


@dataclass
class DialogueRun:
    """One run of a dialogue with one program, as its peers use it."""

    ip: str
    port: int
    auth: list[PeerOutput]
    upstream: tuple[PeerOutput, ...]
    header: int
    activity: Activity = field(default_factory=Activity)
    requests: list[bytes] = field(default_factory=list)
    upstreams: list[UpstreamConnection] = field(default_factory=list)
    auth_outputs_sent: int = 0
    port6: int = 0
    socket: str = ""

    def replace_placeholders(self, data: bytes) -> bytes:
        """Return bytes with the placeholders replaced by addresses and ports."""
        words = {"ip": self.ip, "port": str(self.port), "port6": str(self.port6), "socket": self.socket}
        for word, value in words.items():
            data = data.replace(f"@{word}@".encode(), value.encode())
        return data

    def next_auth_output(self) -> PeerOutput:
        """Return the next response of the authentication service; ``CLOSE`` after the last one."""
        self.auth_outputs_sent += 1
        return (
            self.auth[self.auth_outputs_sent - 1]
            if self.auth_outputs_sent <= len(self.auth)
            else PeerAction.CLOSE
        )


class Peers:
    """The authentication service and the upstreams of one program."""

    def __init__(self) -> None:
        self.runs: dict[str, DialogueRun] = {}
        self.exclusive_run: DialogueRun | None = None
        self.unassigned: list[bytes] = []
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
            match = _CLIENT.search(request)
            run = self.runs.get(match[1].decode("latin-1") if match else "") or self.exclusive_run
            if run is None:
                self.unassigned.append(request)
            else:
                run.requests.append(request)
                run.activity.signal()
                output = run.next_auth_output()
                await _send_output(run, output, writer)
                if output is PeerAction.SILENT:
                    await reader.read()
        writer.close()

    # -- upstreams

    async def _serve_upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("sockname")
        ip = name if isinstance(name, str) else name[0]
        run = self.runs.get(ip) or (None if ip.startswith("127.") else self.exclusive_run)
        if run is None:
            self.unassigned.append(b"upstream " + ip.encode())
            writer.close()
            return
        connection = UpstreamConnection()
        run.upstreams.append(connection)
        run.activity.signal()
        try:
            await _run_upstream(run, connection, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            connection.is_closed = True
            run.activity.signal()
            writer.close()


async def _run_upstream(
    run: DialogueRun,
    connection: UpstreamConnection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    if run.header:
        connection.data += await _read_proxy_header(run.header, reader)
    script = iter(run.upstream)
    await _send_output(run, next(script, PeerAction.SILENT), writer)
    while True:
        line = await reader.readline()
        connection.data += line
        run.activity.signal()
        if not line.endswith(b"\n"):
            return
        await _send_output(run, next(script, PeerAction.SILENT), writer)


async def _read_proxy_header(version: int, reader: asyncio.StreamReader) -> bytes:
    if version == 1:
        return await reader.readline()
    head = await reader.readexactly(16)
    if not head.startswith(_V2):
        return head
    return head + await reader.readexactly(struct.unpack("!H", head[14:])[0])


async def _send_output(run: DialogueRun, output: PeerOutput, writer: asyncio.StreamWriter) -> None:
    parts: tuple[OutputPart, ...] = output if isinstance(output, tuple) else (output,)
    run.activity.busy += 1
    try:
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            elif isinstance(part, bytes):
                writer.write(run.replace_placeholders(part))
                await writer.drain()
                if len(parts) > 1:
                    await asyncio.sleep(_PAUSE)
            elif part is PeerAction.SILENT:
                continue
            elif part is PeerAction.CLOSE:
                writer.close()
                raise ConnectionAbortedError
            else:
                _reset_on_close(writer)
                abort(writer)
                raise ConnectionAbortedError
    finally:
        run.activity.busy -= 1
        run.activity.signal()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
