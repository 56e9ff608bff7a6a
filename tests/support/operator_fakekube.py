# SPDX-License-Identifier: Apache-2.0
"""An API server in one process, with everything that the operator and kopf request, and its special cases.

Discovery, lists, watches, server-side apply with managers and conflicts, merge
and JSON patches, ``/status``, generations, deletion with preconditions, and
garbage collection of the children of a deleted owner.  Faults can be scripted;
every request is recorded.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from mailproxy_operator.api.kinds import (
    BACKEND_TLS_POLICY,
    ENDPOINT_SLICE,
    EVENT,
    LEASE,
    MAIL_PROXY,
    MUTATING_WEBHOOK,
    OWNED,
    POD,
    SECRET,
    Kind,
)
from support.operator_fields import Fields, flatten, managed, unflatten
from support.reasons_page import check_world

Object = dict[str, Any]
ObjectKey = tuple[Kind, str, str]
"""Kind, namespace (empty for a cluster-wide kind) and name."""
_NAMESPACE = Kind("v1", "Namespace", "namespaces")
_CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
_CORE_EVENT = Kind("v1", "Event", "events")
KINDS = (
    *OWNED,
    MAIL_PROXY,
    POD,
    SECRET,
    EVENT,
    LEASE,
    BACKEND_TLS_POLICY,
    ENDPOINT_SLICE,
    MUTATING_WEBHOOK,
    _NAMESPACE,
    _CRD,
    _CORE_EVENT,
)
_CLUSTER_WIDE = {_NAMESPACE, _CRD, MUTATING_WEBHOOK}
_WITHOUT_GENERATION = {
    "ConfigMap",
    "Service",
    "ServiceAccount",
    "HorizontalPodAutoscaler",
    "Pod",
    "Lease",
    "Event",
}
_ANY_PROXY = {"mailproxy.dev/proxy": "edge"}
"""Labels of an error event, so that it matches the label selector of every watch."""
_IDENTITY = {
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "uid"),
    ("metadata", "resourceVersion"),
}


@dataclass
class Stored:
    """One object, and the fields that each manager has set in it."""

    object: Object
    managers: dict[tuple[str, str], Fields] = field(default_factory=dict)


@dataclass(eq=False)
class Watch:
    """An open watch.

    Attributes:
        namespace: Its namespace; empty for all namespaces.
        events: The events to send; ``None`` ends the watch.
        is_muted: Whether changes are not sent.
    """

    kind: Kind
    namespace: str
    events: asyncio.Queue[Object | None] = field(default_factory=asyncio.Queue)
    is_muted: bool = False


class RequestError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, causes: list[Object] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.causes = causes or []


FaultHandler = Callable[[web.Request], web.Response | None]


class FakeKube:
    """The server on a loopback port; it runs until the context ends.

    Args:
        tls: The TLS context; HTTP without TLS if it is not set.

    Attributes:
        requests: (verb, kind, subresource) of every request.
        faults: Called first for every request; a response that one returns is sent.
        missing: Kinds that this cluster does not have.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[FaultHandler] = []
        self.missing: set[Kind] = set()
        self.warnings: list[str] = []
        self._stored: dict[ObjectKey, Stored] = {}
        self._versions = itertools.count(2)
        self._version = 0
        self._watches: list[Watch] = []
        self._history: list[tuple[int, str, ObjectKey, Object]] = []
        self._reported: tuple[list[Object], list[Object]] = ([], [])
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self.end_watches()
        if self._runner is not None:
            await self._runner.cleanup()
        if failure is None:
            check_world(*self._reported)

    # -- what tests do ----------------------------------------------------

    def find(self, kind: Kind, name: str, namespace: str = "mail") -> Object | None:
        """Return an object as a read returns it, or ``None``."""
        stored = self._stored.get((kind, namespace, name))
        return self._returned(stored) if stored else None

    def found(self, kind: Kind, name: str, namespace: str = "mail") -> Object:
        """Return an object that must exist."""
        manifest = self.find(kind, name, namespace)
        assert manifest is not None, f"no {kind.name} {namespace}/{name}"
        return manifest

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all objects of a kind."""
        return sorted(name for stored_kind, _, name in self._stored if stored_kind is kind)

    def put(self, manifest: Object, manager: str = "kubectl") -> Object:
        """Create or replace an object as another client does."""
        kind = next(
            kind
            for kind in KINDS
            if (kind.api_version, kind.name) == (manifest["apiVersion"], manifest["kind"])
        )
        metadata = manifest["metadata"]
        key = (kind, "" if kind in _CLUSTER_WIDE else metadata.get("namespace", "mail"), metadata["name"])
        before = self._stored.get(key)
        return self._store(key, copy.deepcopy(manifest), before, manager, "Update", keep_status=False)

    def remove(self, kind: Kind, name: str, namespace: str = "mail") -> None:
        """Delete an object as another client does."""
        self._delete((kind, namespace, name))

    def versions(self) -> dict[str, str]:
        """Return every object's resource version."""
        return {
            f"{kind.name} {namespace}/{name}": stored.object["metadata"]["resourceVersion"]
            for (kind, namespace, name), stored in self._stored.items()
        }

    def open_watches(self, kind: Kind = MAIL_PROXY) -> list[Watch]:
        """Return the open watches of a kind."""
        return [watch for watch in self._watches if watch.kind is kind]

    def end_watches(self) -> None:
        """End every watch, as the server does after ``timeoutSeconds``: the connections stay open."""
        for watch in self._watches:
            watch.events.put_nowait(None)

    def send_watch_error(self, code: int) -> None:
        """Send an error event on every watch, as a server does in the middle of a stream."""
        status = {"kind": "Status", "metadata": {"labels": _ANY_PROXY}, "code": code, "message": "too old"}
        for watch in self._watches:
            watch.events.put_nowait({"type": "ERROR", "object": status})

    @contextmanager
    def muted_watches(self) -> Iterator[None]:
        """Send no event to the watches that are open now: they miss all changes until the context ends."""
        muted = list(self._watches)
        for watch in muted:
            watch.is_muted = True
        try:
            yield
        finally:
            for watch in muted:
                watch.is_muted = False

    def close_connections(self) -> None:
        """Close every connection, as a restarting server does: the client makes new TLS handshakes."""
        server = self._runner.server if self._runner else None
        for connection in server.connections if server else ():
            if connection.transport is not None:
                connection.transport.abort()

    # -- requests ---------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        try:
            for handler in self.faults:
                response = handler(request)
                if response is not None:
                    return response
            if request.path == "/version":
                return web.json_response({"gitVersion": "v1.36.2", "major": "1", "minor": "36"})
            found = self._discovery(parts)
            if found is not None:
                return web.json_response(found)
            return await self._handle_object_request(request, parts)
        except RequestError as error:
            return _error_response(error.status, str(error), error.causes)

    def _discovery(self, parts: list[str]) -> Object | None:
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            groups = sorted({kind.api_version for kind in self._kinds() if "/" in kind.api_version})
            return {"kind": "APIGroupList", "groups": [_api_group(version) for version in groups]}
        if (parts[0] == "api" and len(parts) == 2) or (parts[0] == "apis" and len(parts) == 3):
            version = "/".join(parts[1:])
            kinds = [kind for kind in self._kinds() if kind.api_version == version]
            return {
                "kind": "APIResourceList",
                "groupVersion": version,
                "resources": [_api_resource(kind) for kind in kinds],
            }
        return None

    def _kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if kind not in self.missing]

    async def _handle_object_request(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        version, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = next(
            (
                found
                for found in self._kinds()
                if found.api_version == version and rest and found.plural == rest[0]
            ),
            None,
        )
        if kind is None:
            return web.Response(status=404, text="404 page not found\n")
        name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        if not name and request.method == "GET":
            watching = request.query.get("watch") in {"true", "1"}
            self.requests.append(("watch" if watching else "list", kind.name, ""))
            return (
                await self._serve_watch(request, kind, namespace)
                if watching
                else self._list_objects(request, kind, namespace)
            )
        return await self._handle_single_object(request, kind, namespace, name, sub)

    def _list_objects(self, request: web.Request, kind: Kind, namespace: str) -> web.Response:
        items = [
            self._returned(stored)
            for key, stored in self._stored.items()
            if _is_in_scope(key, kind, namespace)
        ]
        items = [
            _as_item(manifest, kind) for manifest in items if _matches_selectors(manifest, request.query)
        ]
        metadata = {"resourceVersion": str(self._version)}
        body = {
            "apiVersion": kind.api_version,
            "kind": f"{kind.name}List",
            "metadata": metadata,
            "items": items,
        }
        return web.json_response(body)

    async def _serve_watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        watch = Watch(kind, namespace)
        since = request.query.get("resourceVersion", "")
        for version, event_type, key, shown in self._history:
            if since.isdecimal() and version > int(since) and _is_in_scope(key, kind, namespace):
                watch.events.put_nowait({"type": event_type, "object": shown})
        self._watches.append(watch)
        try:
            await response.prepare(request)
            while (event := await watch.events.get()) is not None:
                if _matches_selectors(event["object"], request.query):
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.remove(watch)
        return response

    async def _handle_single_object(
        self, request: web.Request, kind: Kind, namespace: str, name: str, sub: str
    ) -> web.StreamResponse:
        key = (kind, namespace, name)
        body = json.loads(await request.text() or "null")
        content_type, manager = request.content_type, request.query.get("fieldManager", "unknown")
        is_apply = content_type == "application/apply-patch+yaml"
        verb = "apply" if is_apply else request.method.lower()
        self.requests.append((verb, kind.name, sub))
        self._note(verb, kind, sub, body)
        match request.method:
            case "GET":
                return web.json_response(self._returned(self._existing(key)))
            case "POST":
                return self._create(kind, namespace, body, manager)
            case "PUT":
                return self._replace(key, body, manager)
            case "DELETE":
                return self._delete_object(key, body)
            case "PATCH" if is_apply:
                return self._apply(key, body, manager, force=request.query.get("force") == "true", sub=sub)
            case "PATCH":
                return self._patch(key, body, manager, sub)
        raise RequestError(405, "method not allowed")

    def _note(self, verb: str, kind: Kind, sub: str, body: Object) -> None:
        if (verb, sub) == ("apply", "status"):
            self._reported[0].append(body)
        elif (verb, kind) == ("post", EVENT):
            self._reported[1].append(body)

    def _existing(self, key: ObjectKey) -> Stored:
        if key not in self._stored:
            raise RequestError(404, f'{key[0].plural} "{key[2]}" not found')
        return self._stored[key]

    def _create(self, kind: Kind, namespace: str, body: Object, manager: str) -> web.Response:
        key = (kind, namespace, body["metadata"]["name"])
        if key in self._stored:
            raise RequestError(409, "already exists")
        return web.json_response(self._store(key, body, None, manager, "Update"), status=201)

    def _replace(self, key: ObjectKey, body: Object, manager: str) -> web.Response:
        before = self._existing(key)
        version = body["metadata"].get("resourceVersion")
        if version and version != before.object["metadata"]["resourceVersion"]:
            raise RequestError(409, "the object has been modified")
        return web.json_response(self._store(key, body, before, manager, "Update"))

    def _delete_object(self, key: ObjectKey, options: Object | None) -> web.Response:
        before = self._existing(key)
        uid = ((options or {}).get("preconditions") or {}).get("uid")
        if uid and uid != before.object["metadata"]["uid"]:
            raise RequestError(409, "the UID in the precondition does not match")
        self._delete(key)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _apply(self, key: ObjectKey, body: Object, manager: str, *, force: bool, sub: str) -> web.Response:
        before = self._stored.get(key)
        uid = body["metadata"].get("uid")
        if uid and (before is None or before.object["metadata"]["uid"] != uid):
            raise RequestError(409, "uid mismatch")
        version = body["metadata"].get("resourceVersion")
        if version and before is not None and before.object["metadata"]["resourceVersion"] != version:
            raise RequestError(409, "the object has been modified")
        if sub == "status" and before is None:
            raise RequestError(404, "not found")
        if "managedFields" in body["metadata"]:
            raise RequestError(400, "metadata.managedFields must be nil")
        wanted = {path: leaf for path, leaf in flatten(body).items() if path not in _IDENTITY}
        wanted = {path: leaf for path, leaf in wanted.items() if (path[0] == "status") is (sub == "status")}
        live = flatten(_client_fields(before.object)) if before else {}
        managers = dict(before.managers) if before else {}
        own = managers.pop((manager, "Apply"), {})
        own = {path: leaf for path, leaf in own.items() if (path[0] == "status") is (sub == "status")}
        _resolve_conflicts(wanted, live, managers, manager, force=force)
        others = {path for fields in managers.values() for path in fields}
        for path in own.keys() - wanted.keys() - others:
            live.pop(path, None)
        result = unflatten({**live, **wanted})
        return self._finish_apply(key, result, before, managers, (manager, "Apply"), wanted)

    def _finish_apply(
        self,
        key: ObjectKey,
        result: Object,
        before: Stored | None,
        managers: dict[tuple[str, str], Fields],
        owner: tuple[str, str],
        wanted: Fields,
    ) -> web.Response:
        _check_ports(result)
        managers[owner] = wanted
        shown = self._write(key, result, before, managers)
        headers = {"Warning": f'299 - "{self.warnings[0]}"'} if self.warnings else {}
        return web.json_response(shown, status=200 if before else 201, headers=headers)

    def _patch(self, key: ObjectKey, body: Any, manager: str, sub: str) -> web.Response:
        before = self._existing(key)
        version = body.get("metadata", {}).get("resourceVersion") if isinstance(body, dict) else None
        if version and version != before.object["metadata"]["resourceVersion"]:
            raise RequestError(409, "the object has been modified")
        shown = self._returned(before)
        patched = _json_patch(shown, body) if isinstance(body, list) else _merge_patch(shown, body)
        if sub != "status":
            patched["status"] = shown.get("status", {})
        kept = patched["metadata"].get("managedFields", [])
        for owner in list(before.managers):
            if not any((entry["manager"], entry["operation"]) == owner for entry in kept):
                del before.managers[owner]
        return web.json_response(self._store(key, patched, before, manager, "Update"))

    # -- storing ----------------------------------------------------------

    def _store(
        self,
        key: ObjectKey,
        body: Object,
        before: Stored | None,
        manager: str,
        operation: str,
        *,
        keep_status: bool = True,
    ) -> Object:
        content = _client_fields(body)
        if keep_status and before and "status" not in content and "status" in before.object:
            content["status"] = before.object["status"]
        fields, old = flatten(content), flatten(_client_fields(before.object)) if before else {}
        changed = {path: leaf for path, leaf in fields.items() if old.get(path, old) != leaf}
        managers = dict(before.managers) if before else {}
        for owner in managers:
            managers[owner] = {
                path: leaf for path, leaf in managers[owner].items() if path in fields and path not in changed
            }
        own = {**managers.get((manager, operation), {}), **changed}
        if own:
            managers[manager, operation] = own
        return self._write(key, content, before, managers)

    def _write(
        self,
        key: ObjectKey,
        content: Object,
        before: Stored | None,
        managers: dict[tuple[str, str], Fields],
    ) -> Object:
        kind, namespace, name = key
        old = before.object if before else {"metadata": {}}
        if before and flatten(_client_fields(old)) == flatten(content):
            before.managers = managers
            return self._returned(before)
        self._version = next(self._versions)
        metadata = {**content.get("metadata", {}), "name": name}
        metadata |= {"namespace": namespace} if namespace else {}
        metadata["uid"] = old["metadata"].get("uid") or f"uid-{self._version}"
        metadata["resourceVersion"] = str(self._version)
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if kind.name not in _WITHOUT_GENERATION:
            same = before is not None and old.get("spec") == content.get("spec")
            metadata["generation"] = old["metadata"].get("generation", 0) + (0 if same else 1)
        created = {"apiVersion": kind.api_version, "kind": kind.name, **content, "metadata": metadata}
        stored = Stored(created, managers)
        self._stored[key] = stored
        self._record_event("MODIFIED" if before else "ADDED", key, self._returned(stored))
        return self._returned(stored)

    def _delete(self, key: ObjectKey) -> None:
        stored = self._stored.pop(key, None)
        if stored is None:
            return
        self._version = next(self._versions)
        shown = self._returned(stored)
        metadata = {**shown["metadata"], "resourceVersion": str(self._version)}
        self._record_event("DELETED", key, {**shown, "metadata": metadata})
        uid = stored.object["metadata"]["uid"]
        for other, owned in list(self._stored.items()):
            if any(owner["uid"] == uid for owner in owned.object["metadata"].get("ownerReferences", [])):
                self._delete(other)

    def _record_event(self, event_type: str, key: ObjectKey, shown: Object) -> None:
        self._history.append((self._version, event_type, key, shown))
        for watch in self._watches:
            if not watch.is_muted and _is_in_scope(key, watch.kind, watch.namespace):
                watch.events.put_nowait({"type": event_type, "object": shown})

    def _returned(self, stored: Stored) -> Object:
        shown = copy.deepcopy(stored.object)
        shown["metadata"]["managedFields"] = [
            {"manager": manager, "operation": operation, "fieldsV1": managed(fields)}
            for (manager, operation), fields in stored.managers.items()
        ]
        return shown


def _as_item(manifest: Object, kind: Kind) -> Object:
    """Return an object as an item of a list; items of built-in kinds have no ``apiVersion`` and ``kind``."""
    if kind is MAIL_PROXY or kind.optional:
        return manifest
    return {key: value for key, value in manifest.items() if key not in {"apiVersion", "kind"}}


def _client_fields(manifest: Object) -> Object:
    """Return an object without the fields that the server itself writes."""
    content = {
        key: copy.deepcopy(value) for key, value in manifest.items() if key not in {"apiVersion", "kind"}
    }
    metadata = content.get("metadata", {})
    content["metadata"] = {
        key: value
        for key, value in metadata.items()
        if key in {"labels", "annotations", "ownerReferences", "finalizers", "deletionTimestamp"}
    }
    return content


def _resolve_conflicts(
    wanted: Fields, live: Fields, managers: dict[tuple[str, str], Fields], manager: str, *, force: bool
) -> None:
    for owner, fields in managers.items():
        conflicting = [path for path in fields if path in wanted and live.get(path) != wanted[path]]
        if conflicting and not force:
            raise RequestError(409, f"conflict with {owner[0]} over {conflicting[0]}")
        managers[owner] = {path: leaf for path, leaf in fields.items() if path not in conflicting}
    del manager


def _check_ports(manifest: Object) -> None:
    spec = manifest.get("spec", {})
    pods = spec.get("template", {}).get("spec", {}) if isinstance(spec, dict) else {}
    lists = [spec.get("ports", []), *(container.get("ports", []) for container in pods.get("containers", []))]
    for ports in lists:
        names = [port.get("name") for port in ports if isinstance(port, dict)]
        if len(names) != len(set(names)):
            cause = {"reason": "FieldValueDuplicate", "field": "spec.ports[1].name"}
            raise RequestError(422, "Duplicate value", [cause])


def _is_in_scope(key: ObjectKey, kind: Kind, namespace: str) -> bool:
    return key[0] is kind and namespace in {"", key[1]}


def _matches_selectors(manifest: Object, query: Any) -> bool:
    labels = manifest["metadata"].get("labels", {})
    reason = query.get("fieldSelector", "").removeprefix("reason=")
    requirements = filter(None, query.get("labelSelector", "").split(","))
    return all(_matches_label(labels, requirement) for requirement in requirements) and (
        not reason or manifest.get("reason") == reason
    )


def _matches_label(labels: Object, requirement: str) -> bool:
    """Return whether labels match ``key=value``, ``key`` or ``!key``."""
    key, equals, value = requirement.partition("=")
    if equals:
        return bool(labels.get(key) == value)
    return key.startswith("!") != (key.lstrip("!") in labels)


def _merge_patch(into: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(into, dict):
        return copy.deepcopy(patch)
    merged = dict(into)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patch(merged.get(key), value)
    return merged


def _json_patch(manifest: Object, operations: list[Object]) -> Object:
    patched = copy.deepcopy(manifest)
    for operation in operations:
        *steps, last = operation["path"].strip("/").split("/")
        target: Any = patched
        for step in steps:
            target = target[int(step)] if isinstance(target, list) else target[step]
        field_name: Any = int(last) if isinstance(target, list) else last
        match operation["op"]:
            case "replace" | "add":
                target[field_name] = operation["value"]
            case "remove":
                del target[field_name]
            case "test" if target[field_name] != operation["value"]:
                raise RequestError(422, "the test failed")
    return patched


def _error_response(code: int, message: str, causes: list[Object]) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response({**body, "details": {"causes": causes}}, status=code)


def _api_group(version: str) -> Object:
    name, _, short = version.partition("/")
    entry = {"groupVersion": version, "version": short}
    return {"name": name, "versions": [entry], "preferredVersion": entry}


def _api_resource(kind: Kind) -> Object:
    return {
        "name": kind.plural,
        "singularName": kind.name.lower(),
        "kind": kind.name,
        "namespaced": kind not in _CLUSTER_WIDE,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    }
