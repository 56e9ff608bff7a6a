# SPDX-License-Identifier: Apache-2.0
"""Connecting to an upstream: the duration, and the stage of a failure."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    Protocol,
    Seconds,
    SendProxyProtocol,
    ServerConfig,
)
from support.configs import server
from support.loopback_worker import GRANT, Builder, LoopbackWorker, http_response, loopback_worker, run

FAMILY = "mailproxy_upstream_connect_duration_seconds"


def imap(**directives: object) -> Builder:
    def build(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return server(Protocol.IMAP, **{"auth_http": auth, "listen": (listen,), **directives})

    return build


def grant(sock: socket.socket) -> bytes:
    """Send every client to this listening socket."""
    if sock.family == socket.AF_UNIX:
        return http_response(f"Auth-Status: OK\r\nAuth-Server: unix:{sock.getsockname()}\r\n")
    host, port = sock.getsockname()
    return http_response(f"Auth-Status: OK\r\nAuth-Server: {host}\r\nAuth-Port: {port}\r\n")


def connected(w: LoopbackWorker, result: str) -> tuple[int, float]:
    """Return the number of connects with this result, and their seconds together."""
    found = w.value(FAMILY, "imap", result)
    return (sum(found[1:]), found[0] / 1e9) if found else (0, 0.0)


def errors(w: LoopbackWorker, stage: str) -> int:
    found: int = w.value("mailproxy_upstream_errors_total", "imap", stage)
    return found


async def log_in(w: LoopbackWorker) -> bytes:
    """Log in, and return the reply."""
    client = await w.client()
    await client.read_line()
    reply = await client.exchange(b"a LOGIN u p\r\n")
    client.close()
    await w.wait_for_sessions()
    return reply


INTERNAL_ERROR = b"* BAD internal server error\r\n"


def test_connect_duration_excludes_the_wait_for_the_greeting() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice secret\r\n")
            upstream = await w.upstream.accept()
            await asyncio.sleep(0.5)
            assert await upstream.exchange(b"* OK at last\r\n") == b"a LOGIN {5}\r\n"
            upstream.close()
            assert await client.read_line() == INTERNAL_ERROR
            count, seconds = connected(w, "ok")
            assert count == 1
            assert 0.0 < seconds < 0.5

    run(play)


def test_upstream_without_greeting_counts_as_connected() -> None:
    async def play() -> None:
        async with loopback_worker(imap(timeout=Seconds(0.2)), http_response(GRANT)) as w:
            assert await log_in(w) == INTERNAL_ERROR
            assert (connected(w, "ok")[0], connected(w, "error")[0]) == (1, 0)
            assert (errors(w, "greeting"), errors(w, "connect")) == (1, 0)

    run(play)


@contextlib.contextmanager
def full() -> Iterator[socket.socket]:
    """A listening socket whose queue is full: a SYN gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener


def test_connect_without_answer_fails_after_timeout() -> None:
    async def play() -> None:
        with full() as listener:
            async with loopback_worker(imap(timeout=Seconds(0.2)), grant(listener)) as w:
                assert await log_in(w) == INTERNAL_ERROR
                assert (connected(w, "ok")[0], connected(w, "error")[0]) == (0, 1)
                assert (errors(w, "greeting"), errors(w, "connect")) == (0, 1)

    run(play)


def test_upstream_that_resets_at_once_counts_as_connected() -> None:
    async def play() -> None:
        async with loopback_worker(imap(), http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice secret\r\n")
            (await w.upstream.accept()).reset()
            assert await client.read_line() == INTERNAL_ERROR
            client.close()
            await w.wait_for_sessions()
            assert (connected(w, "ok")[0], connected(w, "error")[0]) == (1, 0)
            assert (errors(w, "greeting"), errors(w, "connect")) == (1, 0)

    run(play)


def _closed(path: Path) -> socket.socket:
    del path
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))  # and does not listen
    return sock


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path / "upstream"))  # does not listen either
    return sock


def _unix_full(path: Path) -> socket.socket:
    sock = _unix(path)
    sock.listen(0)
    for _ in range(2):
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        caller.connect_ex(sock.getsockname())
        _CALLERS.append(caller)
    return sock


_CALLERS: list[socket.socket] = []


@pytest.mark.parametrize("make", [_closed, _unix, _unix_full])
def test_refused_connect_counts_as_connect_error(
    tmp_path: Path, make: Callable[[Path], socket.socket]
) -> None:
    async def play() -> None:
        sock = make(tmp_path)
        async with loopback_worker(imap(), grant(sock)) as w:
            assert await log_in(w) == INTERNAL_ERROR
            assert (connected(w, "ok")[0], connected(w, "error")[0]) == (0, 1)
            assert (errors(w, "greeting"), errors(w, "connect")) == (0, 1)
        sock.close()
        while _CALLERS:
            _CALLERS.pop().close()

    run(play)


def test_unix_socket_is_connected_at_once(tmp_path: Path) -> None:
    async def play() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "upstream"))
            sock.listen()
            sock.settimeout(20)
            async with loopback_worker(imap(), grant(sock)) as w:
                client = await w.client()
                await client.read_line()
                await client.send(b"a LOGIN alice secret\r\n")
                near, _ = await asyncio.to_thread(sock.accept)
                with near:
                    near.settimeout(20)
                    await asyncio.to_thread(near.sendall, b"* OK ready\r\n")
                    assert await asyncio.to_thread(near.recv, 100) == b"a LOGIN {5}\r\n"
                assert await client.read_line() == INTERNAL_ERROR
                assert connected(w, "ok")[0] == 1

    run(play)


def test_proxy_header_is_sent_before_the_greeting() -> None:
    async def play() -> None:
        async with loopback_worker(imap(proxy_protocol=SendProxyProtocol.V1), http_response(GRANT)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice secret\r\n")
            upstream = await w.upstream.accept()
            assert (await upstream.read_line()).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
            assert await upstream.exchange(b"* OK ready\r\n") == b"a LOGIN {5}\r\n"
            upstream.close()
            assert await client.read_line() == INTERNAL_ERROR
            assert connected(w, "ok")[0] == 1

    run(play)
