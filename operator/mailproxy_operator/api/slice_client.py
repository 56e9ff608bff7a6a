# SPDX-License-Identifier: Apache-2.0
"""Reads and watches the EndpointSlices of one Service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp

from mailproxy_operator.api.api_errors import ApiResponse, error_from
from mailproxy_operator.api.api_tls import describe_error
from mailproxy_operator.api.client import ApiClient, KubeClient
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import ENDPOINT_SLICE, SERVICE, Manifest
from mailproxy_operator.errors import TransientError

WATCH_SECONDS: Final = 240
"""After this time the API server ends a watch, and the slices are listed again."""
LIST_SECONDS: Final = 15.0
SILENT_SECONDS: Final = 150.0
"""A connection that is silent for longer is dead: the API server sends a bookmark about every minute."""

_SERVICE_NAME: Final = "kubernetes.io/service-name"
_WHAT: Final = f"the list of {ENDPOINT_SLICE.plural}"
_CONNECT_SECONDS: Final = 10.0


class SliceClient:
    """EndpointSlices on an API server.

    Args:
        cluster: Reads single objects and lists.
        api: A client of its own for watches: they occupy their connections.
    """

    def __init__(self, cluster: KubeClient, api: ApiClient) -> None:
        self._cluster = cluster
        self._api = api
        # Each Service has a watch, and the pool of a client has room for 100 connections.
        api.rest_client.maxsize = 0

    async def service(self, key: Key) -> Manifest | None:
        """Read a Service; ``None`` if it does not exist."""
        return await self._cluster.get(SERVICE, key)

    async def slices(self, key: Key) -> tuple[list[Manifest], str]:
        """Return all EndpointSlices of a Service, and the version that a watch begins with.

        Raises:
            OperatorError: They could not be read.
        """
        path = ENDPOINT_SLICE.path(key.namespace)
        try:
            async with asyncio.timeout(LIST_SECONDS):
                response = await self._open(path, {"labelSelector": _selector(key)})
                body = _parsed(await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"GET {path}: {describe_error(error)}") from error
        if response.status != 200:
            raise error_from(ApiResponse(response.status, body), ENDPOINT_SLICE, _WHAT)
        version = (body.get("metadata") or {}).get("resourceVersion")
        if not version or "items" not in body:
            raise TransientError(f"{_WHAT}: the response is no list")  # no reason to remove all members
        return list(body["items"] or ()), str(version)

    async def watch(self, key: Key, version: str) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield changes of EndpointSlices, as type and object, until the watch ends.

        Args:
            key: The Service.
            version: The resource version of the list.

        Raises:
            OperatorError: The watch could not be started, or has failed.
        """
        query = {
            "labelSelector": _selector(key),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        path = ENDPOINT_SLICE.path(key.namespace)
        try:
            response = await self._open(path, query)
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(f"GET {path}: {describe_error(error)}") from error
        try:
            if response.status != 200:
                body = _parsed(await response.read())
                raise error_from(ApiResponse(response.status, body), ENDPOINT_SLICE, _WHAT)
            async for line in response.content:
                event = _parsed(line)
                if event.get("type") == "ERROR":
                    return  # 410: the version is too old
                if event.get("type") != "BOOKMARK" and isinstance(event.get("object"), dict):
                    yield str(event["type"]), dict(event["object"])
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransientError(f"{_WHAT}: {describe_error(error)}") from error
        finally:
            response.close()

    async def _open(self, path: str, query: Mapping[str, str]) -> aiohttp.ClientResponse:
        headers: dict[str, str] = {"Accept": "application/json"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        url = f"{self._api.configuration.host}{path}?{urlencode(query)}"
        send: Callable[..., Awaitable[Any]] = self._api.rest_client.request
        wrapped = await send("GET", url, headers=headers, _request_timeout=limit)
        response: aiohttp.ClientResponse = wrapped.response
        return response


def _selector(key: Key) -> str:
    return f"{_SERVICE_NAME}={key.name}"


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
