# SPDX-License-Identifier: Apache-2.0
"""The admin endpoint, over loopback."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from mailproxy import http_server
from mailproxy.supervisor import admin_endpoint
from mailproxy.telemetry.aggregate import Aggregator, BuildInfo, MetricsPage, SupervisorFacts
from mailproxy.telemetry.metrics import WorkerMetrics
from mailproxy_config.model import Protocol
from support.needs import Needs

BUILD = BuildInfo(version="1", revision="abc", python_version="3.11", openssl_version="3.0")


class Supervisor:
    """A status with one worker, whose replies can be delayed."""

    def __init__(self) -> None:
        self.metrics = WorkerMetrics()
        self.metrics.protocol(Protocol.IMAP)
        self.is_ready = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.refreshes = 0
        self.was_asked = asyncio.Event()
        self._totals = Aggregator()

    async def refresh(self) -> None:
        self.refreshes += 1
        self.was_asked.set()
        await self.answers.wait()
        self._totals.update(1, self.metrics.snapshot())

    def page(self) -> MetricsPage:
        return self._totals.page(SupervisorFacts(build=BUILD, workers=1, started=1.7e9))

    def unready_reason(self) -> str:
        return "" if self.is_ready else "starting"

    def config(self) -> dict[str, object]:
        return {"hash": "0a1b", "generation": 3, "loaded_at": "2026-11-23T04:16:47.500Z", "last_error": None}


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


class Ask:
    """A client of the endpoint."""

    def __init__(self, client: aiohttp.ClientSession, port: int) -> None:
        self.port = port
        self._client = client

    async def __call__(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._client.request(method, url, headers=named) as response:
            return response.status, dict(response.headers), await response.text()


@asynccontextmanager
async def running(
    supervisor: Supervisor, address: str = "127.0.0.1"
) -> AsyncIterator[admin_endpoint.AdminEndpoint]:
    endpoint = await admin_endpoint.serve(address, 0, supervisor)
    try:
        yield endpoint
    finally:
        await endpoint.close()


@pytest.fixture
async def ask(supervisor: Supervisor) -> AsyncIterator[Ask]:
    async with running(supervisor) as endpoint, aiohttp.ClientSession() as client:
        yield Ask(client, endpoint.port)


async def test_healthz_is_200_when_not_ready(ask: Ask, supervisor: Supervisor) -> None:
    supervisor.is_ready = False
    assert (await ask("/healthz"))[::2] == (200, "ok\n")


@pytest.mark.parametrize(
    ("is_ready", "status", "text"), [(True, 200, "ready\n"), (False, 503, "not ready: starting\n")]
)
async def test_readyz_follows_the_status(
    ask: Ask, supervisor: Supervisor, is_ready: bool, status: int, text: str
) -> None:
    supervisor.is_ready = is_ready
    assert (await ask("/readyz"))[::2] == (status, text)


async def test_config_is_json(ask: Ask, supervisor: Supervisor) -> None:
    status, headers, text = await ask("/config")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == supervisor.config()


async def test_scrape_requests_new_snapshots(ask: Ask, supervisor: Supervisor) -> None:
    server = supervisor.metrics.server("a", Protocol.IMAP)
    for number in (1, 2):
        server.accepted.value += 1
        status, headers, text = await ask("/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert f'mailproxy_connections_accepted_total{{protocol="imap",server="a"}} {number}.0\n' in text


async def test_a_scrape_gets_the_format_it_accepts(ask: Ask) -> None:
    _, headers, text = await ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip", "gzip"), ("identity", None)])
async def test_scrape_is_gzipped_where_accepted(ask: Ask, accepted: str, encoding: str | None) -> None:
    _, headers, text = await ask("/metrics", Accept_Encoding=accepted)
    assert headers.get("Content-Encoding") == encoding
    assert "mailproxy_workers 1.0\n" in text


async def test_worker_without_reply_delays_scrape_by_its_timeout(
    ask: Ask, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask("/metrics")
    monkeypatch.setattr(admin_endpoint, "SNAPSHOT_SECONDS", 0.01)
    supervisor.answers.clear()
    status, _, text = await ask("/metrics")
    assert status == 200
    assert "mailproxy_logins_total" in text


async def test_concurrent_scrapes_share_one_refresh(ask: Ask, supervisor: Supervisor) -> None:
    supervisor.answers.clear()
    async with asyncio.TaskGroup() as scrapes:
        first = scrapes.create_task(ask("/metrics"))
        await supervisor.was_asked.wait()
        others = [scrapes.create_task(ask("/metrics")) for _ in range(5)]
        await asyncio.sleep(0.05)
        supervisor.answers.set()
    assert [task.result()[0] for task in (first, *others)] == [200] * 6
    assert supervisor.refreshes == 2  # the first snapshot may be older than the other requests


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/../etc/passwd", "/config.json"])
async def test_unknown_path_lists_the_endpoints(ask: Ask, path: str) -> None:
    status, _, text = await ask(path)
    assert status == 404
    assert text.splitlines()[1:] == ["/metrics", "/healthz", "/readyz", "/config"]


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/config"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
async def test_other_methods_are_405(ask: Ask, method: str, path: str) -> None:
    status, headers, _ = await ask(path, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/config"])
async def test_head_is_get_without_a_body(ask: Ask, path: str) -> None:
    status, headers, text = await ask(path, "HEAD", Accept_Encoding="identity")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/config", "/nothing"])
async def test_responses_have_no_store_and_no_version(ask: Ask, path: str) -> None:
    _, headers, _ = await ask(path)
    assert (headers["Cache-Control"], headers["Server"]) == ("no-store", "mailproxy")


async def send_and_read(port: int, data: bytes) -> bytes:
    """Send bytes and read until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 5000 + b"\r\n\r\n",
        b"EHLO nonsense\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
    ],
)
async def test_invalid_or_long_request_is_400(ask: Ask, data: bytes) -> None:
    assert (await send_and_read(ask.port, data)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert (await ask("/healthz"))[0] == 200


async def test_connection_without_request_is_closed(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_SECONDS", 0.05)
    async with running(supervisor) as endpoint:
        assert await send_and_read(endpoint.port, b"GET /healthz HTTP/1.1\r\nHost:") == b""


async def test_connection_closed_without_request_is_dropped(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_SECONDS", 0.02)
    async with running(supervisor) as endpoint:
        _, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.close()
        await asyncio.sleep(0.05)
        assert b"ok" in await send_and_read(endpoint.port, b"GET /healthz HTTP/1.0\r\n\r\n")


async def test_connection_with_timely_requests_is_kept(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_SECONDS", 0.01)
    async with running(supervisor) as endpoint, aiohttp.ClientSession() as client:
        ask = Ask(client, endpoint.port)
        await ask("/healthz")
        await asyncio.sleep(0.05)
        assert (await ask("/healthz"))[0] == 200


@pytest.mark.parametrize("address", ["[::]", "::"])
async def test_dual_stack_address_accepts_both_families(supervisor: Supervisor, address: str) -> None:
    async with running(supervisor, address) as endpoint, aiohttp.ClientSession() as client:
        assert (await Ask(client, endpoint.port)("/healthz"))[0] == 200
        assert endpoint.address == "::"


async def test_dual_stack_address_without_ipv6_accepts_ipv4(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def without_ipv6(family: Any = socket.AF_INET, *rest: Any, **named: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
        return real(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    async with running(supervisor, "::") as endpoint:
        assert endpoint.address == "0.0.0.0"
        with pytest.raises(OSError, match="not supported"):
            await admin_endpoint.serve("::1", 0, supervisor)


async def test_address_in_use_raises_oserror(supervisor: Supervisor) -> None:
    async with running(supervisor) as endpoint:
        with pytest.raises(OSError, match="in use") as caught:
            await admin_endpoint.serve("127.0.0.1", endpoint.port, supervisor)
    assert caught.value.errno == errno.EADDRINUSE


async def test_failed_listen_closes_the_socket(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[socket.socket] = []

    async def refuse(_: object, *, sock: socket.socket, **__: object) -> None:
        bound.append(sock)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "start_server", refuse)
    with pytest.raises(OSError, match="Too many"):
        await admin_endpoint.serve("127.0.0.1", 0, supervisor)
    assert bound[0].fileno() == -1


async def test_close_releases_the_address(supervisor: Supervisor) -> None:
    async with running(supervisor) as endpoint, aiohttp.ClientSession() as client:
        assert (await Ask(client, endpoint.port)("/healthz"))[0] == 200
        port = endpoint.port
    again = await admin_endpoint.serve("127.0.0.1", port, supervisor)
    await again.close()


@pytest.mark.interop
async def test_promtool_accepts_the_metrics(needs: Needs, ask: Ask) -> None:
    promtool = needs("promtool")
    _, _, text = await ask("/metrics")
    run = await asyncio.create_subprocess_exec(
        promtool, "check", "metrics", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, complaints = await asyncio.wait_for(run.communicate(text.encode()), 30)
    assert (run.returncode, complaints) == (0, b"")
