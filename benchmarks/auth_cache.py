# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.auth_cache``: CPU time of a login's decision from the cache, and with a request.

A worker's authenticators run in this process, and an authentication service in another; only the CPU time of
this process counts.  ``benchmarks/AUTH_CACHE.md`` has the results.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from mailproxy.app import App
from mailproxy.auth_http.pending_request import Authenticator, PendingRequest
from mailproxy.auth_http.request import RequestTemplate
from mailproxy.enums import Method
from mailproxy.loop.worker_loop import make_loop
from mailproxy.protocols.real_ip import TrustedPeers
from mailproxy.protocols.types import AuthRequest, Client, Credentials, Secret
from mailproxy.telemetry.log import Log
from mailproxy.telemetry.log_format import SessionRecord
from mailproxy.telemetry.log_writer import LogFormat
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.auth_cache import AuthCacheConfig
from mailproxy_config.model import AuthHttp, LogLevel, Protocol, ServerConfig
from support.configs import server

LOGINS: Final = 2000
ROUNDS: Final = 9
_RESPONSE: Final = (
    b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 192.0.2.1\r\nAuth-Port: 143\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def serve(listening: socket.socket) -> None:
    """Answer each request of one connection after the other."""
    while True:
        connection, _ = listening.accept()
        with connection:
            while connection.recv(65536):
                connection.sendall(_RESPONSE)


class Bench:
    """Logins one after the other, each decided before the next one is sent."""

    def __init__(self, app: App, config: ServerConfig) -> None:
        self.template = RequestTemplate(config, (), keep_alive=True)
        self.auth: Authenticator = app.authenticators.authenticator(config, self.template, TrustedPeers(()))
        self.app = app
        self.config = config
        self.durations = app.context.metrics.protocol(config.protocol).auth_seconds
        self.client = Client("192.0.2.7", session_id="1")

    async def decide(self, password: bytes) -> None:
        """Render and send one request, and wait for the decision."""
        decided: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        request = AuthRequest(Credentials(Method.PLAIN, b"bob@example.org", Secret(password)), 1, self.client)
        data = self.template.render(request)
        now = self.app.context.epoll.now
        self.auth.send(
            PendingRequest(
                decided.set_result, data, request, self.config, self.durations, now, SessionRecord()
            )
        )
        await decided

    async def microseconds(self, *, distinct: bool) -> float:
        """Return the CPU time of a decision, the least of several rounds."""
        await self.decide(b"secret")
        found = []
        for turn in range(ROUNDS):
            passwords = [b"%d %d" % (turn, number) if distinct else b"secret" for number in range(LOGINS)]
            started = time.process_time_ns()
            for password in passwords:
                await self.decide(password)
            found.append((time.process_time_ns() - started) / LOGINS / 1000)
        return min(found)


async def run(port: int) -> None:
    """Print the table."""
    app = App(
        log=Log(os.open(os.devnull, os.O_WRONLY), LogFormat.JSON, LogLevel.ERROR), metrics=WorkerMetrics()
    )
    auth = AuthHttp(host="127.0.0.1", port=port)
    off = server(Protocol.IMAP, auth_http=auth)
    on = server(Protocol.IMAP, auth_http=auth, auth_cache=AuthCacheConfig(size=1 << 20, ttl=3600.0))
    benches = {config: Bench(app, config) for config in (off, on)}
    await app.authenticators.start(512)
    request = await benches[off].microseconds(distinct=False)
    miss = await benches[on].microseconds(distinct=True)
    hit = await benches[on].microseconds(distinct=False)
    print("| Decision | CPU time of the worker | of a request |\n|---|---|---|")
    for name, value in (("without a cache", request), ("not in the cache", miss), ("in the cache", hit)):
        print(f"| {name} | {value:.1f} µs | {value / request:.2f} |")
    app.stop()
    await app.close()


def main() -> None:
    """Run the benchmark."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        service = multiprocessing.get_context("fork").Process(target=serve, args=(listening,), daemon=True)
        service.start()
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(run(listening.getsockname()[1]))
        service.terminate()
        service.join()


if __name__ == "__main__":
    main()
