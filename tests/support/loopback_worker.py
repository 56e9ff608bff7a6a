# SPDX-License-Identifier: Apache-2.0
"""A worker on loopback, with an authentication service and an upstream that a test controls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mailproxy.app import App
from mailproxy.loop.worker_loop import WorkerLoop, make_loop
from mailproxy.net.listen_plan import plan_sockets
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.users.user_files import load_users
from mailproxy.users.user_list import UserList
from mailproxy_config.model import AuthHttp, ListenConfig, LogLevel, ProxyConfig, Seconds, ServerConfig
from support.streams import abort

T = TypeVar("T")
TEST_SECONDS: Final = 40.0
"""Seconds after which a test fails."""

GRANT: Final = "Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n"


def run(coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a test's coroutine on a worker's loop, within ``TEST_SECONDS``."""

    async def bounded() -> T:
        async with asyncio.timeout(TEST_SECONDS):
            return await coroutine()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(bounded())


@dataclass
class Peer:
    """One side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_line(self) -> bytes:
        """Read a line, its end included; empty at the end of the connection."""
        return await self.reader.readline()

    async def read_lines(self, count: int) -> list[bytes]:
        """Read so many lines."""
        return [await self.read_line() for _ in range(count)]

    async def read_bytes(self, count: int) -> bytes:
        """Read exactly so many bytes."""
        return await self.reader.readexactly(count)

    async def read_to_eof(self) -> bytes:
        """Read up to the end of the connection."""
        return await self.reader.read()

    async def send(self, data: bytes) -> None:
        """Send, and wait until the kernel has accepted the bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def exchange(self, data: bytes) -> bytes:
        """Send, and read a line."""
        await self.send(data)
        return await self.read_line()

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()

    def reset(self) -> None:
        """Break the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        abort(self.writer)


Response = bytes | tuple[bytes, bytes] | Callable[[bytes], bytes | Awaitable[bytes]]
"""Bytes, bytes in two parts with a pause between, or a function of the request."""


@dataclass
class AuthServer:
    """An authentication service: sends its responses in order, the last one for ever; records requests.

    Attributes:
        closes: Whether each connection ends after one response, as with HTTP/1.0.
        connections: Number of connections that were accepted.
    """

    responses: list[Response]
    closes: bool = False
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                http_response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
                for data in http_response if isinstance(http_response, tuple) else (http_response,):
                    made = data if isinstance(data, bytes) else data(self.requests[-1])
                    writer.write(made if isinstance(made, bytes) else await made)
                    await writer.drain()
                    await asyncio.sleep(0.05 if isinstance(http_response, tuple) else 0)
                if self.closes:
                    break
        writer.close()


def http_response(head: str, *, body: bytes = b"") -> bytes:
    """Return an HTTP/1.1 response that keeps its connection alive."""
    return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Upstream:
    """An upstream whose connections the test serves."""

    port: int = 0
    accepted: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection to the test."""
        self.writers.append(writer)
        await self.accepted.put(Peer(reader, writer))

    async def accept(self) -> Peer:
        """Return the next connection."""
        return await self.accepted.get()


@dataclass
class LoopbackWorker:
    """A worker, its authentication service and its upstream.

    Attributes:
        port: The port of its server; 0 for a UNIX socket.
        read_log: Returns the lines that were logged since the last call.
        writers: The connections of the test's clients.
    """

    app: App
    config: ProxyConfig
    metrics: WorkerMetrics
    auth: AuthServer
    upstream: Upstream
    port: int
    read_log: Callable[[], str]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def client(self, *, host: str = "127.0.0.1") -> Peer:
        """Connect to the first server."""
        reader, writer = await asyncio.open_connection(host, self.port)
        self.writers.append(writer)
        return Peer(reader, writer)

    async def wait_for_sessions(self, sessions: int = 0) -> None:
        """Wait until there are so many sessions."""
        while self.app.sessions != sessions:
            await asyncio.sleep(0.005)

    def value(self, family: str, *labels: str) -> Any:
        """Return the value of a metric, or 0."""
        for found, value in self.metrics.snapshot()["series"].get(family, []):
            if tuple(found) == labels:
                return value
        return 0


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Wait until an aborted connection is closed.

    On Python 3.14 ``wait_closed`` does not return after a failed TLS handshake.
    """
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), 1.0)


def listening_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a listening socket as the supervisor makes it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind((host, port))
    sock.listen(128)
    sock.setblocking(False)
    return sock


def listening_unix_socket(path: str) -> socket.socket:
    """Return a listening UNIX socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(128)
    sock.setblocking(False)
    return sock


Builder = Callable[[AuthHttp, ListenConfig], ServerConfig]


@contextlib.asynccontextmanager
async def loopback_worker(
    build: Builder,
    *responses: Response,
    closes: bool = False,
    limit: int = 512,
    drain: float = 1.0,
    auth_tls: ssl.SSLContext | None = None,
    unix_path: str = "",
    others: Sequence[Builder] = (),
) -> AsyncIterator[LoopbackWorker]:
    """Run a worker with one server, or several of which the first one listens.

    Args:
        build: Returns the configuration of the server, for the address of the service and the listener.
        responses: The responses of the authentication service; ``{port}`` is the upstream's port.
        closes: Whether the service closes each connection after one response.
        limit: ``worker_connections``.
        drain: Seconds that sessions have at the end.
        auth_tls: The TLS context of the service.
        unix_path: The server listens on this UNIX socket instead of a TCP port.
        others: Return the configurations of further servers, also for the listener of the first one.
    """
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WorkerLoop)
    upstream = Upstream()
    auth = AuthServer(list(responses), closes=closes)
    servers = [
        await asyncio.start_server(upstream.serve, "127.0.0.1", 0),
        await asyncio.start_server(auth.serve, "127.0.0.1", 0, ssl=auth_tls),
    ]
    upstream.port, auth.port = (server.sockets[0].getsockname()[1] for server in servers)
    auth.responses = [
        response.replace(b"{port}", str(upstream.port).encode()) if isinstance(response, bytes) else response
        for response in auth.responses
    ]
    read, write = os.pipe()
    os.set_blocking(read, False)
    metrics = WorkerMetrics()
    log = Log(write, LogFormat.TEXT, LogLevel.INFO)
    app = App(log=log, metrics=metrics)
    sock = listening_unix_socket(unix_path) if unix_path else listening_socket()
    port = 0 if unix_path else sock.getsockname()[1]
    listen = ListenConfig(address=f"unix:{unix_path}" if unix_path else "127.0.0.1", port=port)
    service = AuthHttp(host="127.0.0.1", port=auth.port, tls=auth_tls is not None)
    built = tuple(each(service, listen) for each in (build, *others))
    config = ProxyConfig(servers=built, worker_connections=limit)
    sockets = {planned.key: [sock] for planned in plan_sockets(config, {})[:1]}
    users = {path: UserList(file.fileno()) for path, file in load_users(config, {}).files.items()}
    await app.apply(config, sockets, names={}, ticket_keys={}, users=users)

    def read_log() -> str:
        log.flush()
        with contextlib.suppress(BlockingIOError):
            return os.read(read, 1 << 20).decode()
        return ""

    w = LoopbackWorker(app, config, metrics, auth, upstream, port, read_log)
    try:
        yield w
    finally:
        await app.drain(Seconds(drain if app.sessions else 0.0))
        for auth_or_upstream in servers:
            auth_or_upstream.close()
        for writer in (*w.writers, *upstream.writers, *auth.writers):
            abort(writer)
            await _closed(writer)
        os.close(write)
        os.close(read)
