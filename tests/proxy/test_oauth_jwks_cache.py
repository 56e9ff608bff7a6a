# SPDX-License-Identifier: Apache-2.0
"""The keys of an issuer over a socket: fetched, refreshed, replaced, and servers that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from mailproxy.context import WorkerContext
from mailproxy.loop.worker_loop import WorkerLoop
from mailproxy.oauth import jwks_cache, jwks_fetch
from mailproxy.oauth.issuer_keys import MAX_JWKS
from mailproxy.oauth.jwks_cache import MAX_AGE, RETRY_SECONDS, JwksCache
from mailproxy.oauth.jwks_fetch import JwksFetch, JwksFetchFailed, Keys
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy.tls.client import client_context
from mailproxy_config.model import LogLevel
from support.loopback_worker import run
from support.token_issuer import Issuer, JwksServer, http_response, jwks_server

ISSUER: Final = Issuer()
KEYS: Final = http_response(ISSUER.jwks("RS256"))
NEW_KEYS: Final = http_response(ISSUER.jwks("ES256"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, context: WorkerContext, metrics: WorkerMetrics, read_log: Callable[[], str]) -> None:
        self.context = context
        self.metrics = metrics
        self.read_log = read_log
        self.clock = Clock()

    def fetches(self, result: str) -> int:
        return int(self.metrics.jwks_fetches[result].value)  # type: ignore[index]


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WorkerLoop)
    read, write = os.pipe()
    os.set_blocking(read, False)
    log = Log(write, LogFormat.TEXT, LogLevel.INFO)
    metrics = WorkerMetrics()

    def read_log() -> str:
        log.flush()
        with contextlib.suppress(BlockingIOError):
            return os.read(read, 1 << 20).decode()
        return ""

    context = WorkerContext(loop, loop.epoll, log=log, metrics=metrics)
    loop.epoll.on_error = context.handle_error
    try:
        yield World(context, metrics, read_log)
    finally:
        context.pipes.close()
        os.close(read)
        os.close(write)


@contextlib.asynccontextmanager
async def cache_of(server: JwksServer, w: World) -> AsyncIterator[JwksCache]:
    cache = JwksCache(w.context, server.uri, clock=w.clock)
    try:
        yield cache
    finally:
        cache.close()


async def fetched(cache: JwksCache) -> bool:
    """Wait for a fetch; false if none is due."""
    done = asyncio.Event()
    if not cache.wait(done.set):
        return False
    await done.wait()
    return True


async def fetch(uri: str, tls: Any = None, seconds: float = 5.0) -> Keys | JwksFetchFailed:
    result: asyncio.Future[Keys | JwksFetchFailed] = asyncio.get_running_loop().create_future()
    one = JwksFetch(asyncio.get_running_loop(), uri, tls, result.set_result, seconds)
    one.start()
    return await result


def failure_of(*responses: Any, seconds: float = 5.0) -> JwksFetchFailed:
    with jwks_server(*responses) as server:
        result = run(lambda: fetch(server.uri, seconds=seconds))
    assert isinstance(result, JwksFetchFailed)
    return result


def trickle(sock: socket.socket, interval: float = 0.05) -> None:
    """Send a response that never ends, byte by byte."""
    stop = threading.Event()
    with contextlib.suppress(OSError):
        while not stop.wait(interval):
            sock.sendall(b"H")


def silence(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.recv(1)


# ---- one request


def test_request_asks_for_json_and_closes() -> None:
    with jwks_server(KEYS) as server:
        result = run(lambda: fetch(server.uri + "?realm=mail"))
    assert isinstance(result, dict)
    assert list(result) == ["rsa"]
    [request] = server.requests
    assert request.startswith(b"GET /certs?realm=mail HTTP/1.1\r\n")
    for header in (b"Host: 127.0.0.1", b"Accept: application/json", b"Connection: close"):
        assert header in request


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (http_response(b"", "404 Not Found"), "status"),
        (http_response(b"", "500 Internal Server Error"), "status"),
        (http_response(b"", "204 No Content"), "status"),
        (http_response(b"", "301 Moved", "Location: https://other.example/certs\r\n"), "redirect"),
        (http_response(b"", "307 Moved", "Location: file:///etc/keys\r\n"), "redirect"),
        (http_response(b"<html></html>"), "invalid"),
        (http_response(b'{"keys":[{]}'), "invalid"),
        (http_response(b""), "invalid"),
        (http_response(b'{"keys":[]}'), "empty"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", "too_large"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_JWKS + 1), "too_large"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b" " * 65536 + b"\r\n"
         + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 4 + b"0\r\n\r\n", "too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "invalid"),
        (b"* OK IMAP ready\r\n", "invalid"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "invalid"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "invalid"),
        (b"", "connect"),
    ],
)  # fmt: skip
def test_bad_response_is_a_failure(response: bytes, result: str) -> None:
    assert failure_of(response).result == result


def test_key_set_of_largest_size_is_read() -> None:
    body = ISSUER.jwks("RS256").ljust(MAX_JWKS)
    with jwks_server(http_response(body)) as server:
        assert isinstance(run(lambda: fetch(server.uri)), dict)


@pytest.mark.parametrize("behaviour", [silence, trickle])
def test_slow_server_is_a_timeout(behaviour: Callable[[socket.socket], None]) -> None:
    failed = failure_of(behaviour, seconds=0.4)
    assert failed.result == "timeout"
    assert str(failed) == "no complete response within 0.4 seconds"


def test_thread_of_slow_server_ends_with_the_timeout() -> None:
    async def play(server: JwksServer) -> threading.Thread:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        one = JwksFetch(asyncio.get_running_loop(), server.uri, None, result.set_result, 0.3)
        one.start()
        await result
        await asyncio.to_thread(one.thread.join, 10)
        return one.thread

    with jwks_server(trickle) as server:
        assert not run(lambda: play(server)).is_alive()


def test_silent_server_is_a_timeout_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_fetch, "STEP_SECONDS", 0.2)
    assert str(failure_of(silence)) == "the server does not respond"


def test_refused_connection_is_a_failure() -> None:
    with jwks_server(KEYS) as server:
        uri = server.uri
    failed = run(lambda: fetch(uri))
    assert isinstance(failed, JwksFetchFailed)
    assert (failed.result, str(failed)) == ("connect", "cannot connect: Connection refused")


def test_unknown_host_is_a_failure() -> None:
    failed = run(lambda: fetch("http://[::1%nonexistent]:1/certs"))
    assert isinstance(failed, JwksFetchFailed)
    assert failed.result == "connect"


def test_cancelled_fetch_calls_nothing() -> None:
    async def play(server: JwksServer) -> list[Any]:
        results: list[Any] = []
        one = JwksFetch(asyncio.get_running_loop(), server.uri, None, results.append, 5)
        one.start()
        await asyncio.to_thread(server.wait_for_requests, 1)
        one.cancel()
        await asyncio.to_thread(one.thread.join, 10)
        await asyncio.sleep(0.01)
        return results

    with jwks_server(silence) as server:
        assert run(lambda: play(server)) == []


def test_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with jwks_server(KEYS, tls=context) as server:
        assert client_context().verify_mode is ssl.CERT_REQUIRED
        untrusted = run(lambda: fetch(server.uri, client_context))
        assert isinstance(untrusted, JwksFetchFailed)
        assert (untrusted.result, server.requests) == ("tls", [])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert isinstance(run(lambda: fetch(server.uri, client_context)), dict)
        wrong_name = server.uri.replace("localhost", "127.0.0.1")
        failed = run(lambda: fetch(wrong_name, client_context))
        assert isinstance(failed, JwksFetchFailed)
        assert failed.result == "tls"


def test_request_passes_the_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("issuer.example").configure_cert(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with jwks_server(KEYS, tls=context) as server:

        def tunnel(sock: socket.socket) -> None:
            """Connect to the server, whatever its name, and copy bytes."""
            with socket.create_connection(("127.0.0.1", server.port)) as target:
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                copying = threading.Thread(target=copy, args=(target, sock), daemon=True)
                copying.start()
                copy(sock, target)
                copying.join(5)

        with jwks_server(tunnel) as proxy:
            monkeypatch.setenv("https_proxy", f"http://user:pass%20word@127.0.0.1:{proxy.port}")
            result = run(lambda: fetch("https://issuer.example/certs", client_context))
            assert isinstance(result, dict)
            [connect] = proxy.requests
            assert connect.startswith(b"CONNECT issuer.example:443 HTTP/1.")
            assert b"Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in connect
            assert b"Proxy-Authorization" not in server.requests[0]
            monkeypatch.setenv("no_proxy", "issuer.example")
            unproxied = run(lambda: fetch("https://issuer.example/certs", client_context))
            assert isinstance(unproxied, JwksFetchFailed)
            assert len(proxy.requests) == 1


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("proxy", ["https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://"])
def test_unusable_proxy_of_the_environment_is_a_failure(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    failed = run(lambda: fetch("https://issuer.example/certs", client_context))
    assert isinstance(failed, JwksFetchFailed)
    assert str(failed) == "https_proxy is not an http:// URL"


# ---- the cache


def test_keys_are_fetched_at_the_start() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            cache.start()
            cache.start()
            assert await fetched(cache)
            assert cache.find("rsa") is not None
            assert cache.find("p256") is None
            assert (len(server.requests), w.fetches("ok"), cache.has_failed) == (1, 1, False)

    with jwks_server(KEYS) as server:
        run(lambda: play(server))


def test_keys_are_fetched_again_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_cache, "REFRESH_SECONDS", 0.1)

    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            cache.start()
            await asyncio.to_thread(server.wait_for_requests, 3)

    with jwks_server(KEYS) as server:
        run(lambda: play(server))


def test_keys_are_replaced_not_merged() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            assert await fetched(cache)
            w.clock.now += RETRY_SECONDS
            assert await fetched(cache)
            assert cache.find("rsa") is None
            assert cache.find("p256") is not None

    with jwks_server(KEYS, NEW_KEYS) as server:
        run(lambda: play(server))


def test_unknown_key_causes_one_fetch_per_thirty_seconds() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            assert await fetched(cache)
            for _ in range(1000):
                assert not await fetched(cache)
            w.clock.now += RETRY_SECONDS - 0.1
            assert not await fetched(cache)
            w.clock.now += 0.1
            assert await asyncio.gather(*(fetched(cache) for _ in range(50))) == [True] * 50
            assert len(server.requests) == 2

    with jwks_server(KEYS) as server:
        run(lambda: play(server))


def test_failed_fetch_keeps_keys_and_is_logged() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            assert await fetched(cache)
            w.clock.now += RETRY_SECONDS
            assert await fetched(cache)
            assert cache.has_failed
            assert cache.find("rsa") is not None
            assert w.fetches("status") == 1
            log = w.read_log()
            assert "jwks_fetch_failed" in log
            assert f"127.0.0.1:{server.port}" in log
            w.clock.now += RETRY_SECONDS
            assert await fetched(cache)
            assert not cache.has_failed

    with jwks_server(KEYS, http_response(b"", "503 Unavailable"), KEYS) as server:
        run(lambda: play(server))


def test_failed_fetch_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_cache, "RETRY_SECONDS", 0.1)

    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            cache.start()
            while not cache.keys:
                await asyncio.sleep(0.01)
            assert w.fetches("status") == 2

    failed = http_response(b"", "503 Unavailable")
    with jwks_server(failed, failed, KEYS) as server:
        run(lambda: play(server))


def test_keys_that_are_too_old_are_not_used() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            assert await fetched(cache)
            w.clock.now += MAX_AGE
            assert cache.find("rsa") is not None
            w.clock.now += 1
            assert cache.find("rsa") is None

    with jwks_server(KEYS) as server:
        run(lambda: play(server))


def test_closed_cache_fetches_no_more() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            waiting = asyncio.Event()
            assert cache.wait(waiting.set)
            cache.close()
            assert waiting.is_set()
            w.clock.now += RETRY_SECONDS
            assert not cache.wait(waiting.set)
            assert cache.has_failed

    with jwks_server(silence) as server:
        run(lambda: play(server))


def test_callback_that_raises_does_not_stop_the_others() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            done = asyncio.Event()

            def fails() -> None:
                raise LookupError

            cache.wait(fails)
            cache.wait(done.set)
            await done.wait()
            assert "internal_error" in w.read_log()

    with jwks_server(KEYS) as server:
        run(lambda: play(server))


def test_callback_that_stopped_waiting_is_not_called() -> None:
    async def play(server: JwksServer) -> None:
        async with world() as w, cache_of(server, w) as cache:
            stopped, done = asyncio.Event(), asyncio.Event()
            cache.wait(stopped.set)
            cache.wait(done.set)
            cache.stop_waiting(stopped.set)
            await done.wait()
            assert not stopped.is_set()

    with jwks_server(KEYS) as server:
        run(lambda: play(server))
