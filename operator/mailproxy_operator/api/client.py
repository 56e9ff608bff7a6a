# SPDX-License-Identifier: Apache-2.0
"""The cluster port for an API server; only this module and ``credentials`` use the Kubernetes client.

It uses the lowest layer of the client with paths from a static table.  The
library provides authentication, TLS and connections; ``api_errors`` interprets
the responses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client

from mailproxy_operator.api import names
from mailproxy_operator.api.api_errors import ApiResponse, code_class, error_from, is_port_drift, warnings
from mailproxy_operator.api.api_tls import describe_error
from mailproxy_operator.api.cluster import NO_LABELS, Applied, Key, RunningConfig
from mailproxy_operator.api.credentials import Configuration, Credentials, client_context
from mailproxy_operator.api.kinds import (
    CONFIG_MAP,
    EVENT,
    LEASE,
    MAIL_PROXY,
    POLICIES,
    SECRET,
    SERVICE,
    Kind,
    Manifest,
    kind_of,
    uid_of,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.api.pod_report import read_config
from mailproxy_operator.errors import NotFoundOrConflict, OperatorError, TransientError

REQUEST_SECONDS = 15.0
POD_SECONDS = 2.0
PAGE = 500
MAX_CONFIG_BYTES = 64 * 1024
_JSON = "application/json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_APPLY, _MERGE, _JSON_PATCH = (
    "application/apply-patch+yaml",
    "application/merge-patch+json",
    "application/json-patch+json",
)

ApiClient = client.ApiClient

Meter = Callable[[str, str, float], None]
"""Called for every request: verb, class of status code, seconds."""


@asynccontextmanager
async def api_client(configuration: Configuration) -> AsyncIterator[client.ApiClient]:
    """Open a client with the credentials of a configuration."""
    async with client.ApiClient(configuration) as opened:
        opened.rest_client.ssl_context = client_context(configuration)
        yield opened


class KubeClient:
    """Objects on an API server.

    Args:
        api: The client with address and credentials.
        pods: The HTTP session for requests to pods.
        meter: Called for every request.
        node_version: The version of the oldest node, if it is older than the API server.
        credentials: Read again when the API server refuses them.

    Attributes:
        is_authenticated: Whether the API server accepts the credentials.
        last_error: Why the last request got no response or was not authenticated; empty otherwise.
    """

    def __init__(
        self,
        api: client.ApiClient,
        pods: aiohttp.ClientSession,
        *,
        meter: Meter = lambda *_: None,
        node_version: KubeVersion | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.is_authenticated = False
        self.last_error = ""
        self._credentials = credentials
        self._api = api
        self._pods = pods
        self._meter = meter
        self._node_version = node_version
        self._missing: frozenset[Kind] = frozenset()

    async def version(self) -> KubeVersion:
        """Return the version of the nodes if set, otherwise request the version of the API server."""
        if self._node_version is not None:
            return self._node_version
        response = await self._request("get", "GET", "/version")
        if not response.is_success:
            raise TransientError(f"the version of the API server: {response.message}")
        return KubeVersion.parse(str(response.body.get("gitVersion", "")))

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object."""
        response = await self._request("get", "GET", kind.path(key.namespace, key.name))
        if response.status == 404:
            return None
        return dict(self._check(response, kind, f"{kind.name} {key}").body)

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the objects of a namespace with these labels."""
        return await self.list_all(kind, (namespace,), names.label_selector(labels))

    async def list_tls_secrets(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the metadata of Secrets; the API server sends no data (PartialObjectMetadataList)."""
        query = {"labelSelector": names.label_selector(labels), "fieldSelector": "type=kubernetes.io/tls"}
        return await self._list(SECRET, namespace, query, accept=_METADATA_ONLY)

    async def has(self, kind: Kind) -> bool:
        """Return whether the cluster has a kind."""
        return kind.name in await self._names_in(kind)

    async def _names_in(self, kind: Kind) -> frozenset[str]:
        """Return the names of all kinds in the group and version of a kind."""
        path = kind.path(None).rpartition("/")[0]
        response = await self._request("get", "GET", path)
        if response.status == 404:
            return frozenset()
        listed = self._check(response, kind, path).body.get("resources") or []
        return frozenset(str(one.get("kind")) for one in listed)

    async def served(self, kinds: Iterable[Kind]) -> frozenset[Kind]:
        """Return which kinds the cluster has; the others are not listed until the next call."""
        kinds = frozenset(kinds)
        by_version = {kind.api_version: kind for kind in kinds}
        named = {version: await self._names_in(kind) for version, kind in by_version.items()}
        found = frozenset(kind for kind in kinds if kind.name in named[kind.api_version])
        self._missing = kinds - found
        return found

    async def list_all(
        self,
        kind: Kind,
        namespaces: tuple[str, ...],
        selector: str,
        on_page: Callable[[], None] = lambda: None,
    ) -> list[Manifest]:
        """Read the objects of a kind that match a label selector.

        Args:
            kind: The kind.
            namespaces: The namespaces; all namespaces when empty.
            selector: A label selector; all objects when empty.
            on_page: Called for each page.
        """
        query = {"labelSelector": selector} if selector else {}
        return [
            one
            for namespace in namespaces or ("",)
            for one in await self._list(kind, namespace, query, on_page)
        ]

    async def _list(
        self,
        kind: Kind,
        namespace: str,
        query: Mapping[str, str],
        on_page: Callable[[], None] = lambda: None,
        accept: str = _JSON,
    ) -> list[Manifest]:
        items: list[Manifest] = []
        position = ""
        while kind not in self._missing:
            page = {**query, "limit": str(PAGE), **({"continue": position} if position else {})}
            path = kind.path(namespace or None)
            response = await self._request("list", "GET", path, query=page, accept=accept)
            on_page()
            if response.status == 404 and kind.optional:
                break
            body = self._check(response, kind, f"the list of {kind.plural}").body
            # Items of a list have no apiVersion and kind.
            what = {"apiVersion": kind.api_version, "kind": kind.name}
            items += [{**what, **one} for one in body.get("items") or []]
            position = (body.get("metadata") or {}).get("continue") or ""
            if not position:
                break
        return items

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Apply server-side; a manually edited port that prevents the apply is repaired."""
        response = await self._apply(manifest, manager, force=force)
        if is_port_drift(response):
            await self._repair_ports(manifest)
            response = await self._apply(manifest, manager, force=force)
        kind = kind_of(manifest)
        applied = self._check(response, kind, f"{kind.name} {manifest['metadata']['name']}")
        return Applied(dict(applied.body), applied.warnings)

    async def _apply(
        self, manifest: Manifest, manager: str, *, force: bool, status: bool = False
    ) -> ApiResponse:
        key = _key(manifest)
        path = kind_of(manifest).path(key.namespace, key.name) + ("/status" if status else "")
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._request("apply", "PATCH", path, query=query, body=manifest, content_type=_APPLY)

    async def apply_status(self, manifest: Manifest) -> Manifest | None:
        """Apply the status subresource of a MailProxy.

        Returns:
            The current MailProxy; ``None`` when it was deleted.
        """
        response = await self._apply(manifest, names.FIELD_MANAGER, force=True, status=True)
        if response.status == 404:
            return None
        return dict(self._check(response, MAIL_PROXY, f"the status of {_key(manifest)}").body)

    async def delete(self, manifest: Manifest) -> bool:
        """Delete the object with this uid; another object with the same name is kept.

        Returns:
            Whether it was deleted; false when it was already deleted or another object has its name.
        """
        kind, key = kind_of(manifest), _key(manifest)
        options = {"preconditions": {"uid": uid_of(manifest)}, "propagationPolicy": "Background"}
        response = await self._request("delete", "DELETE", kind.path(key.namespace, key.name), body=options)
        if response.status in {404, 409}:
            return False
        self._check(response, kind, f"{kind.name} {key}")
        return True

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> Manifest | None:
        """Set annotations and labels by a merge patch: an apply would create a deleted object again.

        Returns:
            The current object; ``None`` when it was deleted.
        """
        metadata = {"annotations": dict(annotations), **({"labels": dict(labels)} if labels else {})}
        response = await self._request(
            "patch", "PATCH", kind.path(key.namespace, key.name),
            query={"fieldManager": names.FIELD_MANAGER},
            body={"metadata": metadata}, content_type=_MERGE,
        )  # fmt: skip
        if response.status in {404, 409}:
            return None
        return dict(self._check(response, kind, f"{kind.name} {key}").body)

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        """Request ``/config`` from the admin endpoint of a pod."""
        address = str(pod["status"]["podIP"])
        host = f"[{address}]" if ":" in address else address
        try:
            async with asyncio.timeout(POD_SECONDS):
                async with self._pods.get(f"http://{host}:{names.ADMIN_PORT}/config") as response:
                    body = json.loads(await response.content.read(MAX_CONFIG_BYTES))
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return read_config(body)

    # -- policies ---------------------------------------------------------

    async def policies(self, namespace: str) -> list[Manifest] | None:
        """Read the BackendTLSPolicies of a namespace, in the first version that the cluster has."""
        for kind in POLICIES:
            if kind not in self._missing:
                return await self._list(kind, namespace, {})
        return None

    async def config_map_keys(self, key: Key) -> frozenset[str] | None:
        """Read the keys of a ConfigMap."""
        found = await self.get(CONFIG_MAP, key)
        return (
            None
            if found is None
            else frozenset((*(found.get("data") or ()), *(found.get("binaryData") or ())))
        )

    async def write_ancestors(self, policy: Manifest, entries: list[Manifest]) -> None:
        """Write ``status.ancestors``; the list is atomic, so the resource version detects other writers."""
        kind, key = kind_of(policy), _key(policy)
        version = {"resourceVersion": policy["metadata"]["resourceVersion"]}
        response = await self._request(
            "patch", "PATCH", kind.path(key.namespace, key.name) + "/status",
            query={"fieldManager": names.FIELD_MANAGER},
            body={"metadata": version, "status": {"ancestors": entries}}, content_type=_MERGE,
        )  # fmt: skip
        if response.status == 409:
            raise TransientError(f"{kind.name} {key} has changed", delay=1.0)
        if response.status != 404:
            self._check(response, kind, f"the status of {kind.name} {key}")

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Read the kubelet's events about volumes; empty without permission to read them."""
        response = await self._request(
            "list", "GET", f"/api/v1/namespaces/{namespace}/events",
            query={"fieldSelector": "reason=FailedMount", "limit": str(PAGE)},
        )  # fmt: skip
        items: list[Manifest] = list(response.body.get("items") or []) if response.is_success else []
        items.sort(key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
        return {one["involvedObject"]["name"]: str(one.get("message", "")) for one in items}

    async def create_event(self, manifest: Manifest) -> None:
        """Create an event; a failure is ignored."""
        with suppress(OperatorError):
            await self._request(
                "create", "POST", EVENT.path(manifest["metadata"]["namespace"]), body=manifest
            )

    # -- leases -----------------------------------------------------------

    async def read_lease(self, key: Key) -> Manifest | None:
        """Read a Lease."""
        return await self.get(LEASE, key)

    async def write_lease(self, manifest: Manifest) -> bool:
        """Create or replace a Lease; the resource version detects a concurrent write.

        Returns:
            Whether the write succeeded.
        """
        key = _key(manifest)
        if "resourceVersion" in manifest["metadata"]:
            response = await self._request("patch", "PUT", LEASE.path(key.namespace, key.name), body=manifest)
        else:
            response = await self._request("create", "POST", LEASE.path(key.namespace), body=manifest)
        if response.status in {404, 409}:
            return False
        return self._check(response, LEASE, f"Lease {key}").is_success

    # -- the webhook ------------------------------------------------------

    async def patch_json(self, kind: Kind, key: Key, operations: Sequence[Mapping[str, Any]]) -> bool:
        """Patch an object (RFC 6902); false when it was deleted or a ``test`` operation failed."""
        response = await self._request(
            "patch", "PATCH", kind.path(key.namespace, key.name),
            query={"fieldManager": names.FIELD_MANAGER}, body=list(operations), content_type=_JSON_PATCH,
        )  # fmt: skip
        if response.status in {404, 409, 422}:
            return False
        return self._check(response, kind, f"{kind.name} {key.name}").is_success

    # -- requests --------------------------------------------------------------

    async def _repair_ports(self, manifest: Manifest) -> None:
        """Replace an edited list of ports without keeping ownership of it.

        The replacement uses a separate field manager, whose entry is removed
        afterwards.  Otherwise two managers would own the list, and a port that
        is later removed from the manifest would remain in the object.
        """
        kind, key = kind_of(manifest), _key(manifest)
        path = kind.path(key.namespace, key.name)
        live = await self.get(kind, key)
        if live is None:
            raise NotFoundOrConflict(f"{kind.name} {key}")
        where, desired = _ports_of(manifest, live)
        await self._patch_json(kind, path, [{"op": "replace", "path": where, "value": desired}])
        live = await self.get(kind, key)
        entries = (live or {}).get("metadata", {}).get("managedFields") or []
        for index, entry in enumerate(entries):
            if entry.get("manager") == names.REPAIR_MANAGER:
                at = f"/metadata/managedFields/{index}"
                test = {"op": "test", "path": f"{at}/manager", "value": names.REPAIR_MANAGER}
                await self._patch_json(kind, path, [test, {"op": "remove", "path": at}])
                return

    async def _patch_json(self, kind: Kind, path: str, operations: list[Manifest]) -> None:
        query = {"fieldManager": names.REPAIR_MANAGER}
        response = await self._request(
            "patch", "PATCH", path, query=query, body=operations, content_type=_JSON_PATCH
        )
        self._check(response, kind, path)

    def _check(self, response: ApiResponse, kind: Kind, what: str) -> ApiResponse:
        if not response.is_success:
            raise error_from(response, kind, what)
        return response

    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> ApiResponse:
        """Send one request.

        Raises:
            TransientError: There was no response.
        """
        clock = asyncio.get_running_loop().time
        started_at, code = clock(), "error"
        send = partial(self._send, method, path, query, body, content_type, accept)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                response = await self._send_with_renewal(send)
            code = code_class(response.status)
        except (aiohttp.ClientError, OSError) as error:
            self._record_failure(error)
            raise TransientError(f"{method} {path}: {self.last_error}") from error
        finally:
            self._meter(verb, code, clock() - started_at)
        self.is_authenticated = response.is_success or (self.is_authenticated and response.status != 401)
        self.last_error = "" if self.is_authenticated else response.message
        return response

    async def _send_with_renewal(self, send: Callable[[], Awaitable[ApiResponse]]) -> ApiResponse:
        """Send a request; once more if credentials or certificate were refused and new credentials exist."""
        try:
            response = await send()
        except aiohttp.ClientConnectorCertificateError:
            if not await self._renew():
                raise
            return await send()
        return await send() if response.status == 401 and await self._renew() else response

    async def _renew(self) -> bool:
        return self._credentials is not None and await self._credentials.renew()

    def _record_failure(self, error: Exception) -> None:
        self.last_error = describe_error(error)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            self.is_authenticated = False

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        accept: str,
    ) -> ApiResponse:
        headers: dict[str, str] = {"Accept": accept}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        if body is not None:
            headers["Content-Type"] = content_type
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        send: Callable[..., Awaitable[Any]] = self._api.rest_client.request
        limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        response = await send(method, url, headers=headers, body=body, _request_timeout=limit)
        text = await response.read()
        found = response.headers
        return ApiResponse(
            response.status,
            _parsed(text),
            _seconds(found.get("Retry-After")),
            warnings(found.getall("Warning", [])),
        )


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None


def _key(manifest: Manifest) -> Key:
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _ports_of(manifest: Manifest, live: Manifest) -> tuple[str, object]:
    """Return the JSON pointer of an object's ports, and the ports from the manifest."""
    if kind_of(manifest) is SERVICE:
        return "/spec/ports", manifest["spec"]["ports"]
    desired = manifest["spec"]["template"]["spec"]["containers"][0]
    containers = live["spec"]["template"]["spec"]["containers"]
    index = next(at for at, one in enumerate(containers) if one["name"] == desired["name"])
    return f"/spec/template/spec/containers/{index}/ports", desired["ports"]
