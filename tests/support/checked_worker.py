# SPDX-License-Identifier: Apache-2.0
"""A worker on loopback that is checked at the end: no resources of its sessions may be left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from mailproxy_config.model import AuthHttp, ListenConfig, LogLevel, Protocol, ServerConfig
from support import invariants
from support.configs import server
from support.loopback_worker import Builder, LoopbackWorker, Peer, Response, http_response, loopback_worker
from support.streams import abort
from support.tls_identities import Identities

DENIED: Final = http_response("Auth-Status: no\r\n")
GREETINGS: Final = {
    Protocol.IMAP: b"* OK IMAP4 ready\r\n",
    Protocol.POP3: b"+OK POP3 ready\r\n",
    Protocol.SMTP: b"220 mail.example.com ESMTP ready\r\n",
}
INTERNAL_ERRORS: Final = {
    Protocol.IMAP: b"* BAD internal server error\r\n",
    Protocol.POP3: b"-ERR internal server error\r\n",
    Protocol.SMTP: b"451 4.3.2 Internal server error\r\n",
}
LOGINS: Final = {
    Protocol.IMAP: b"a LOGIN alice secret\r\n",
    Protocol.POP3: b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
    Protocol.SMTP: b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n",
}
"""Commands that log in alice, whose password is ``secret``."""
UPSTREAMS: Final = {
    Protocol.IMAP: (
        (b"* OK hello\r\n", b"a LOGIN {5}\r\n"),
        (b"+\r\n", b"alice {6}\r\n"),
        (b"+\r\n", b"secret\r\n"),
    ),
    Protocol.POP3: ((b"+OK hello\r\n", b"USER alice\r\n"), (b"+OK\r\n", b"PASS secret\r\n")),
    Protocol.SMTP: ((b"220 hello\r\n", b"HELO mail.example.com\r\n"),),
}
"""Replies of an upstream during the login, and the command that follows each."""
ACCEPTANCES: Final = {
    Protocol.IMAP: (b"a OK in\r\n", b"a OK in\r\n"),
    Protocol.POP3: (b"+OK in\r\n", b"+OK in\r\n"),
    Protocol.SMTP: (b"250 hello\r\n", b"235 2.0.0 OK\r\n"),
}
"""The reply of an upstream that completes the login, and the client's reply for it."""


def server_builder(protocol: Protocol, identities: Identities | None = None, **directives: Any) -> Builder:
    """Return a function that builds a server; directives ``listen_*`` set parameters of its listener."""
    listening = {key[7:]: directives.pop(key) for key in list(directives) if key.startswith("listen_")}
    if identities is not None:
        directives["ssl_certificate"] = (identities.server,)
    directives.setdefault("xclient", False)

    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        here = ListenConfig(address=listen.address, port=listen.port, **listening)
        return server(protocol, auth_http=auth, listen=(here,), **directives)

    return build


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def checked_worker(
    build: Builder, *responses: Response, service: Handler | None = None, **options: Any
) -> AsyncIterator[LoopbackWorker]:
    """Run a loopback worker, and check at the end that no resources are left and the counters agree.

    Its ``read_log`` returns all lines since the start, each time.

    Args:
        build: Returns the configuration of the server.
        responses: The responses of the authentication service; by default, it denies each login.
        service: A handler that replaces the authentication service.
        options: Arguments of ``loopback_worker``.
    """
    await asyncio.sleep(0)
    before = invariants.descriptors()
    async with contextlib.AsyncExitStack() as stack:
        if service is not None:
            port = await stack.enter_async_context(serve(service))
            build = _with_auth_port(build, port)
        verbose = _log_all_sessions(build)
        w = await stack.enter_async_context(loopback_worker(verbose, *(responses or (DENIED,)), **options))
        _keep_all_lines(w)
        yield w
        for writer in (*w.writers, *w.upstream.writers):
            abort(writer)
        await invariants.wait_until_idle(w.app, w.metrics)
        invariants.check_counters(w.metrics, w.read_log())
        w.app.context.log.close(0.0)
    for _ in range(500):  # the DNS library closes descriptors in a thread
        if invariants.descriptors() <= before:
            break
        await asyncio.sleep(0.02)
    assert invariants.descriptors() <= before


def _log_all_sessions(build: Builder) -> Builder:
    """Also log sessions in which nothing was sent, so that the log contains all sessions."""
    return lambda auth, listen: replace(build(auth, listen), error_log=LogLevel.DEBUG)


def _with_auth_port(build: Builder, port: int) -> Builder:
    return lambda _, listen: build(AuthHttp(host="127.0.0.1", port=port), listen)


def _keep_all_lines(w: LoopbackWorker) -> None:
    lines: list[str] = []
    read = w.read_log

    def read_whole_log() -> str:
        while more := read():
            lines.append(more)
        return "".join(lines)

    w.read_log = read_whole_log


async def start_tls(peer: Peer, identities: Identities) -> None:
    """Perform a TLS handshake as client."""
    await peer.writer.start_tls(identities.client())


async def log_in(w: LoopbackWorker, protocol: Protocol) -> tuple[Peer, Peer]:
    """Log in alice, and return both ends of the relay."""
    client = await w.client()
    await client.read_line()
    await client.send(LOGINS[protocol])
    upstream = await w.upstream.accept()
    for reply, command in UPSTREAMS[protocol]:
        assert await upstream.exchange(reply) == command
    reply, command = ACCEPTANCES[protocol]
    await upstream.send(reply)
    assert await client.read_line() == command
    return client, upstream


async def open_relay(
    w: LoopbackWorker, identities: Identities | None = None, pipelined: bytes = b""
) -> tuple[Peer, Peer]:
    """Log in by POP3, with STLS where there are identities, and return both ends of the relay.

    Args:
        w: Its server is POP3, and its authentication service allows every login.
        identities: For STLS.
        pipelined: Bytes that the client sends together with its login.
    """
    client = await w.client()
    await client.read_line()
    if identities is not None:
        await client.exchange(b"STLS\r\n")
        await start_tls(client, identities)
    client.writer.write(b"USER u\r\nPASS p\r\n" + pipelined)
    upstream = await w.upstream.accept()
    await upstream.exchange(b"+OK\r\n")
    await upstream.exchange(b"+OK\r\n")
    await upstream.send(b"+OK\r\n")
    await client.read_lines(2)
    return client, upstream


@contextlib.asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[int]:
    """Serve connections with a handler, and close all of them at the end; yields the port."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not listening.is_serving():  # it was accepted before that, and begins only now
            abort(writer)
            return
        writers.append(writer)
        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(reader, writer)

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        for writer in writers:
            abort(writer)
        await asyncio.gather(*tasks, return_exceptions=True)
        await run_iterations()


async def run_iterations(times: int = 4) -> None:
    """Let the event loop run some iterations."""
    for _ in range(times):
        await asyncio.sleep(0)


async def read_until_closed(peer: Peer) -> bytes:
    """Read up to the end of the connection, or its reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := await peer.reader.read(1 << 16):
            received += data
    return received
