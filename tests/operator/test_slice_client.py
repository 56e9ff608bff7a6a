# SPDX-License-Identifier: Apache-2.0
"""EndpointSlices of a Service over HTTP: lists, watches, and responses that are neither."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.slice_client import SliceClient
from mailproxy_operator.errors import NotFoundOrConflict, OperatorError, TerminalError, TransientError
from support.endpoint_slices import Object, endpoint, slice_of

DOVECOT = Key("mail", "dovecot")


@dataclass
class World:
    """An API server with one response for each request."""

    client: SliceClient
    responses: list[Callable[[web.Request], Awaitable[web.StreamResponse]]]
    queries: list[dict[str, str]] = field(default_factory=list)

    def respond(self, text: str, status: int = 200) -> None:
        async def response(_: web.Request) -> web.Response:
            return web.Response(text=text, status=status, content_type="application/json")

        self.responses.append(response)

    async def watched(self) -> list[tuple[str, Object]]:
        return [event async for event in self.client.watch(DOVECOT, "7")]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    responses: list[Callable[[web.Request], Awaitable[web.StreamResponse]]] = []
    queries: list[dict[str, str]] = []

    async def respond(request: web.Request) -> web.StreamResponse:
        assert request.path == "/apis/discovery.k8s.io/v1/namespaces/mail/endpointslices"
        queries.append(dict(request.query))
        return await responses.pop(0)(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", respond)
    async with TestServer(app) as server, aiohttp.ClientSession() as pods:
        host = str(server.make_url("")).rstrip("/")
        async with ApiClient(Configuration(host=host)) as cluster, ApiClient(Configuration(host=host)) as api:
            yield World(SliceClient(KubeClient(cluster, pods), api), responses, queries)


async def test_list_has_the_slices_of_one_service_and_their_version(world: World) -> None:
    one = slice_of(endpoint(0))
    world.respond(json.dumps({"metadata": {"resourceVersion": "7"}, "items": [one]}))
    assert await world.client.slices(DOVECOT) == ([one], "7")
    assert world.queries == [{"labelSelector": "kubernetes.io/service-name=dovecot"}]


@pytest.mark.parametrize("text", ["", "<html>", "[]", '{"items":[]}', '{"metadata":{"resourceVersion":"7"}}'])
async def test_response_that_is_no_list_is_a_failure_and_not_a_service_without_members(
    world: World, text: str
) -> None:
    world.respond(text)
    with pytest.raises(TransientError, match="no list"):
        await world.client.slices(DOVECOT)


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, TerminalError), (410, NotFoundOrConflict), (500, TransientError), (429, TransientError)],
)
async def test_error_of_the_api_server_is_a_failure(
    world: World, status: int, error: type[OperatorError]
) -> None:
    for _ in range(2):
        world.respond('{"kind":"Status","message":"no"}', status)
    with pytest.raises(error, match="the list of endpointslices: no"):
        await world.client.slices(DOVECOT)
    with pytest.raises(error, match="the list of endpointslices: no"):
        await world.watched()


async def test_watch_yields_changes_without_bookmarks_until_it_ends(world: World) -> None:
    many = slice_of(*(endpoint(number, hostname="d" * 60) for number in range(1000)))
    events = [("ADDED", slice_of(endpoint(0))), ("MODIFIED", many), ("DELETED", slice_of())]
    lines = [json.dumps({"type": kind, "object": one}) for kind, one in events]
    assert len(lines[1]) > 2**17  # a buffer of aiohttp
    lines.insert(1, '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"8"}}}')
    world.respond("\n".join(lines) + "\n")
    assert await world.watched() == events
    assert world.queries[0]["resourceVersion"] == "7"
    assert world.queries[0]["watch"] == "true"


async def test_error_in_a_watch_ends_it(world: World) -> None:
    world.respond('{"type":"ERROR","object":{"kind":"Status","code":410}}\n{"type":"ADDED","object":{}}\n')
    assert await world.watched() == []
