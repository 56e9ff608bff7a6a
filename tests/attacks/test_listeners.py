# SPDX-License-Identifier: Apache-2.0
"""Many connections, no free descriptors, invalid PROXY headers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Final

import pytest

from mailproxy_config.model import Protocol, Seconds
from support import invariants
from support.checked_worker import (
    DENIED,
    GREETINGS,
    LOGINS,
    checked_worker,
    read_until_closed,
    run_iterations,
    server_builder,
)
from support.loopback_worker import LoopbackWorker, Peer, run
from support.tls_identities import Identities
from support.worker_processes import PYTHONPATH

each = pytest.mark.parametrize("protocol", Protocol, ids=str)
BUSY: Final = {Protocol.IMAP: b"* BYE ", Protocol.POP3: b"-ERR ", Protocol.SMTP: b"421 "}


@each
@pytest.mark.parametrize("how", ["close", "reset"])
def test_clients_above_worker_connections_get_busy_reply_until_others_leave(
    protocol: Protocol, how: str
) -> None:
    limit = 5

    async def play() -> None:
        async with checked_worker(server_builder(protocol), limit=limit) as w:
            patient = [await w.client() for _ in range(limit)]
            for client in patient:
                assert await client.read_line() == GREETINGS[protocol]
            before = invariants.descriptors()
            for _ in range(50):
                refused = await w.client()
                assert (await read_until_closed(refused)).startswith(BUSY[protocol])
                refused.close()
            await run_iterations(10)
            assert invariants.descriptors() == before
            assert w.app.sessions == limit
            getattr(patient.pop(), how)()
            await w.wait_for_sessions(limit - 1)
            client = await w.client()
            assert await client.read_line() == GREETINGS[protocol]
            assert w.value("mailproxy_limit_rejections_total", protocol.value, "conn_total", "enforce") == 50

    run(play)


@each
def test_many_connections_at_once(protocol: Protocol) -> None:
    async def connect(w: LoopbackWorker) -> bytes:
        with contextlib.suppress(ConnectionError):
            client = await w.client()
            line = await client.read_line()
            client.reset()
            return line
        return b""

    async def play() -> None:
        async with checked_worker(server_builder(protocol), limit=10) as w:
            lines = await asyncio.gather(*(connect(w) for _ in range(200)))
            assert lines.count(GREETINGS[protocol]) >= 10
            await w.wait_for_sessions()
            client = await w.client()
            assert await client.read_line() == GREETINGS[protocol]

    run(play)


def test_many_refused_clients_write_few_log_lines() -> None:
    async def play() -> None:
        async with checked_worker(server_builder(Protocol.POP3), limit=1) as w:
            first = await w.client()
            await first.read_line()
            for _ in range(30):
                refused = await w.client()
                await read_until_closed(refused)
                refused.close()
            assert w.read_log().count("worker_connections_not_enough") == 1

    run(play)


@each
def test_refused_client_on_a_tls_port_gets_no_reply(protocol: Protocol, identities: Identities) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, identities, listen_ssl=True), limit=1) as w:
            first = await w.client()
            await run_iterations()
            second = await w.client()
            assert await read_until_closed(second) == b""
            first.close()

    run(play)


@each
def test_number_of_lingering_connections_is_limited(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that do not close their side after the last reply."""
    monkeypatch.setattr("mailproxy.session.lingering_close.MAX_LINGERING", 5)
    monkeypatch.setattr("mailproxy.session.lingering_close.LINGER_SECONDS", 0.3)

    async def play() -> None:
        async with checked_worker(server_builder(protocol, max_errors=1)) as w:
            clients = [await w.client() for _ in range(30)]
            for client in clients:
                await client.read_line()
                await client.send(b"\0\r\n")
            for client in clients:
                assert b"nvalid command" in await client.read_to_eof()
            assert len(w.app.context.lingering) <= 5
            assert w.app.sessions == 0
            await invariants.wait_until_idle(w.app, w.metrics)

    run(play)


@each
def test_client_that_sends_after_the_end_is_closed(protocol: Protocol) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, max_errors=1)) as w:
            client = await w.client()
            await client.read_line()
            client.writer.write(b"\0\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send(b"NOOP\r\n" * 1000)
                    await asyncio.sleep(0)
            await invariants.wait_until_idle(w.app, w.metrics)

    run(play)


# -- descriptors

_SCRIPT: Final = """
    import asyncio, contextlib, os, resource, socket
    from mailproxy_config.model import Protocol
    from support import invariants
    from support.checked_worker import GREETINGS, checked_worker, server_builder
    from support.loopback_worker import run

    async def play():
        async with checked_worker(server_builder(Protocol.IMAP), limit=1000) as w:
            used = invariants.descriptors()
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
            clients = []
            with contextlib.suppress(OSError):
                while True:
                    sock = socket.socket()
                    clients.append(sock)
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sock.connect(("127.0.0.1", w.port))
                    await asyncio.sleep(0)
            assert w.app.sessions < len(clients), "descriptors did not run out"
            while "cannot_accept" not in w.read_log():
                await asyncio.sleep(0.01)
            iterations = w.app.context.epoll.iterations
            await asyncio.sleep(0.3)
            assert w.app.context.epoll.iterations - iterations < 60, "accepting did not pause"
            for sock in clients:
                sock.close()
            client = await w.client()
            assert await client.read_line() == GREETINGS[Protocol.IMAP]

    run(play)
    print("recovered")
"""


def test_accepting_pauses_without_descriptors_and_recovers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SCRIPT)],
        env={"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "recovered\n", done.stderr


@contextlib.contextmanager
def _no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Not zero: then poll(2) would fail in threads of other servers of the test.
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@each
def test_login_without_descriptors_gets_internal_error_reply(protocol: Protocol) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol), DENIED) as w:
            client = await w.client()
            await client.read_line()
            with _no_more_descriptors():
                await client.send(LOGINS[protocol])
                received = await read_until_closed(client)
            assert b"nternal server error" in received
            assert w.value("mailproxy_auth_errors_total", "connect") == 1

    run(play)


# -- PROXY headers

V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
BAD_HEADERS: Final = {
    "none": b"a LOGIN alice secret\r\n",
    "almost": b"PROXX TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
    "without an end": b"PROXY TCP4 " + b"1" * 5000,
    "too long": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2" + b" " * 200 + b"\r\n",
    "an UNKNOWN without an end": b"PROXY UNKNOWN " + b"x" * 5000,
    "control characters": b"PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n",
    "a line in it": b"PROXY TCP4 1.2.3.4\n1.2.3.4 1 2\r\n",
    "a name": b"PROXY TCP4 localhost 1.2.3.4 1 2\r\n",
    "the wrong family": b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
    "a port too large": b"PROXY TCP4 1.2.3.4 1.2.3.4 99999 2\r\n",
    "version 2, too long": V2 + b"\x21\x11\xff\xff" + bytes(70_000),
    "version 2, too short": V2 + b"\x21\x11\x00\x02ab",
    "version 3": V2 + b"\x31\x11\x00\x0c" + bytes(12),
    "noise": bytes(range(256)) * 50,
}


@each
@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_invalid_proxy_header_gets_no_reply(protocol: Protocol, header: bytes) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, listen_proxy_protocol=True)) as w:
            client = await w.client()
            client.writer.write(header)
            assert await read_until_closed(client) == b""
            await w.wait_for_sessions()
            assert w.auth.requests == []
            closed = w.value(
                "mailproxy_connections_closed_total", protocol.value, protocol.value, "proxy_protocol_failed"
            )
            assert closed == 1

    run(play)


async def _drip(peer: Peer, data: bytes, w: LoopbackWorker) -> None:
    with contextlib.suppress(ConnectionError):
        for byte in data:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.01)
            if not w.app.sessions:
                return


@each
@pytest.mark.parametrize(
    "header", [b"", b"PROXY UNKNOWN " + b"x" * 90, V2 + b"\x21\x11\x10\x00" + bytes(4096)]
)
def test_slow_proxy_header_times_out(protocol: Protocol, header: bytes) -> None:
    async def play() -> None:
        async with checked_worker(
            server_builder(protocol, listen_proxy_protocol=True, timeout=Seconds(0.3))
        ) as w:
            client = await w.client()
            await run_iterations()
            await _drip(client, header, w)
            assert await read_until_closed(client) == b""
            assert w.value("mailproxy_proxy_protocol_headers_total", protocol.value, "timeout") == 1

    run(play)


@each
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("header", [b"", b"PROXY", V2, V2 + b"\x21\x11"])
def test_client_that_leaves_within_a_proxy_header_leaves_nothing(
    protocol: Protocol, how: str, header: bytes
) -> None:
    async def play() -> None:
        async with checked_worker(server_builder(protocol, listen_proxy_protocol=True)) as w:
            client = await w.client()
            await client.send(header)
            await run_iterations()
            getattr(client, how)()
            await w.wait_for_sessions()

    run(play)


@each
def test_proxy_header_of_an_untrusted_address_is_not_used(protocol: Protocol) -> None:
    """A client that is not in ``set_real_ip_from`` keeps its own address."""

    async def play() -> None:
        build = server_builder(protocol, listen_proxy_protocol=True, set_real_ip_from=("10.0.0.0/8",))
        async with checked_worker(build, DENIED) as w:
            client = await w.client()
            await client.send(b"PROXY TCP4 10.1.2.3 10.1.2.4 1 2\r\n")
            await client.read_line()
            await client.send(LOGINS[protocol])
            await read_until_closed(client)
            (request,) = w.auth.requests
            assert b"\r\nClient-IP: 127.0.0.1\r\n" in request
            assert "10.1.2.3" not in w.read_log()

    run(play)
