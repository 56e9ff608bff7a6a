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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from mailproxy_operator.api.kinds import EVENT, LEASE, MAIL_PROXY, MUTATING_WEBHOOK, OWNED, POD, Kind
from support.operator_fields import Fields, flatten, managed, unflatten
from support.reasons_page import check_world

Object = dict[str, Any]
_NAMESPACE = Kind("v1", "Namespace", "namespaces")
_CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
_CORE_EVENT = Kind("v1", "Event", "events")
KINDS = (*OWNED, MAIL_PROXY, POD, EVENT, LEASE, MUTATING_WEBHOOK, _NAMESPACE, _CRD, _CORE_EVENT)
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


class Refusal(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, causes: list[Object] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.causes = causes or []


Fault = Callable[[web.Request], web.Response | None]


class FakeKube:
    """The server on a loopback port; it runs until the context ends.

    Attributes:
        requests: (verb, kind, subresource) of every request.
        faults: Called first for every request; a response that one returns is sent.
        missing: Kinds that this cluster does not have.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.missing: set[Kind] = set()
        self.warnings: list[str] = []
        self._stored: dict[tuple[Kind, str, str], Stored] = {}
        self._versions = itertools.count(2)
        self._version = 0
        self._watches: list[tuple[Kind, str, asyncio.Queue[Object | None]]] = []
        self._told: list[tuple[int, str, tuple[Kind, str, str], Object]] = []
        self._reported: tuple[list[Object], list[Object]] = ([], [])
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
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
        stored = self._stored.get((kind, namespace, name))
        return self._shown(stored) if stored else None

    def found(self, kind: Kind, name: str, namespace: str = "mail") -> Object:
        one = self.find(kind, name, namespace)
        assert one is not None, f"no {kind.name} {namespace}/{name}"
        return one

    def names(self, kind: Kind) -> list[str]:
        return sorted(name for its, _, name in self._stored if its is kind)

    def put(self, manifest: Object, manager: str = "kubectl") -> Object:
        """Create or replace an object as another client does."""
        kind = next(
            one for one in KINDS if (one.api_version, one.name) == (manifest["apiVersion"], manifest["kind"])
        )
        metadata = manifest["metadata"]
        at = (kind, "" if kind in _CLUSTER_WIDE else metadata.get("namespace", "mail"), metadata["name"])
        before = self._stored.get(at)
        return self._store(at, copy.deepcopy(manifest), before, manager, "Update", keep_status=False)

    def remove(self, kind: Kind, name: str, namespace: str = "mail") -> None:
        self._delete((kind, namespace, name))

    def versions(self) -> dict[str, str]:
        """Return every object's resource version."""
        return {
            f"{kind.name} {namespace}/{name}": stored.object["metadata"]["resourceVersion"]
            for (kind, namespace, name), stored in self._stored.items()
        }

    def end_watches(self) -> None:
        """End every watch, as the server does after ``timeoutSeconds``: the connections stay open."""
        for _, _, queue in self._watches:
            queue.put_nowait(None)

    def close_connections(self) -> None:
        """Close every connection, as a restarting server does: the client makes new TLS handshakes."""
        server = self._runner.server if self._runner else None
        for connection in server.connections if server else ():
            if connection.transport is not None:
                connection.transport.abort()

    # -- requests ---------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request)

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        try:
            for fault in self.faults:
                answer = fault(request)
                if answer is not None:
                    return answer
            if request.path == "/version":
                return web.json_response({"gitVersion": "v1.36.2", "major": "1", "minor": "36"})
            found = self._discovery(parts)
            if found is not None:
                return web.json_response(found)
            return await self._resource(request, parts)
        except Refusal as refusal:
            return _status(refusal.status, str(refusal), refusal.causes)

    def _discovery(self, parts: list[str]) -> Object | None:
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            groups = sorted({kind.api_version for kind in self._kinds() if "/" in kind.api_version})
            return {"kind": "APIGroupList", "groups": [_group(one) for one in groups]}
        if (parts[0] == "api" and len(parts) == 2) or (parts[0] == "apis" and len(parts) == 3):
            version = "/".join(parts[1:])
            kinds = [kind for kind in self._kinds() if kind.api_version == version]
            return {
                "kind": "APIResourceList",
                "groupVersion": version,
                "resources": [_resource(k) for k in kinds],
            }
        return None

    def _kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if kind not in self.missing]

    async def _resource(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        version, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = next(
            (k for k in self._kinds() if k.api_version == version and rest and k.plural == rest[0]), None
        )
        if kind is None:
            return web.Response(status=404, text="404 page not found\n")
        name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        if not name and request.method == "GET":
            watching = request.query.get("watch") in {"true", "1"}
            self.requests.append(("watch" if watching else "list", kind.name, ""))
            return (
                await self._watch(request, kind, namespace)
                if watching
                else self._list(request, kind, namespace)
            )
        return await self._object(request, kind, namespace, name, sub)

    def _list(self, request: web.Request, kind: Kind, namespace: str) -> web.Response:
        items = [self._shown(stored) for at, stored in self._stored.items() if _is_in(at, kind, namespace)]
        items = [_as_item(one, kind) for one in items if _selected(one, request.query)]
        metadata = {"resourceVersion": str(self._version)}
        body = {
            "apiVersion": kind.api_version,
            "kind": f"{kind.name}List",
            "metadata": metadata,
            "items": items,
        }
        return web.json_response(body)

    async def _watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        entry = (kind, namespace, queue)
        since = request.query.get("resourceVersion", "")
        for version, what, at, shown in self._told:
            if since.isdecimal() and version > int(since) and _is_in(at, kind, namespace):
                queue.put_nowait({"type": what, "object": shown})
        self._watches.append(entry)
        try:
            await response.prepare(request)
            while (event := await queue.get()) is not None:
                if _selected(event["object"], request.query):
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watches.remove(entry)
        return response

    async def _object(
        self, request: web.Request, kind: Kind, namespace: str, name: str, sub: str
    ) -> web.StreamResponse:
        at = (kind, namespace, name)
        body = json.loads(await request.text() or "null")
        content_type, manager = request.content_type, request.query.get("fieldManager", "unknown")
        is_apply = content_type == "application/apply-patch+yaml"
        verb = "apply" if is_apply else request.method.lower()
        self.requests.append((verb, kind.name, sub))
        self._note(verb, kind, sub, body)
        match request.method:
            case "GET":
                return web.json_response(self._shown(self._there(at)))
            case "POST":
                return self._create(kind, namespace, body, manager)
            case "PUT":
                return self._replace(at, body, manager)
            case "DELETE":
                return self._delete_asked(at, body)
            case "PATCH" if is_apply:
                return self._apply(at, body, manager, force=request.query.get("force") == "true", sub=sub)
            case "PATCH":
                return self._patch(at, body, manager, sub)
        raise Refusal(405, "method not allowed")

    def _note(self, verb: str, kind: Kind, sub: str, body: Object) -> None:
        if (verb, sub) == ("apply", "status"):
            self._reported[0].append(body)
        elif (verb, kind) == ("post", EVENT):
            self._reported[1].append(body)

    def _there(self, at: tuple[Kind, str, str]) -> Stored:
        if at not in self._stored:
            raise Refusal(404, f'{at[0].plural} "{at[2]}" not found')
        return self._stored[at]

    def _create(self, kind: Kind, namespace: str, body: Object, manager: str) -> web.Response:
        at = (kind, namespace, body["metadata"]["name"])
        if at in self._stored:
            raise Refusal(409, "already exists")
        return web.json_response(self._store(at, body, None, manager, "Update"), status=201)

    def _replace(self, at: tuple[Kind, str, str], body: Object, manager: str) -> web.Response:
        before = self._there(at)
        version = body["metadata"].get("resourceVersion")
        if version and version != before.object["metadata"]["resourceVersion"]:
            raise Refusal(409, "the object has been modified")
        return web.json_response(self._store(at, body, before, manager, "Update"))

    def _delete_asked(self, at: tuple[Kind, str, str], options: Object | None) -> web.Response:
        before = self._there(at)
        uid = ((options or {}).get("preconditions") or {}).get("uid")
        if uid and uid != before.object["metadata"]["uid"]:
            raise Refusal(409, "the UID in the precondition does not match")
        self._delete(at)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _apply(
        self, at: tuple[Kind, str, str], body: Object, manager: str, *, force: bool, sub: str
    ) -> web.Response:
        before = self._stored.get(at)
        uid = body["metadata"].get("uid")
        if uid and (before is None or before.object["metadata"]["uid"] != uid):
            raise Refusal(409, "uid mismatch")
        version = body["metadata"].get("resourceVersion")
        if version and before is not None and before.object["metadata"]["resourceVersion"] != version:
            raise Refusal(409, "the object has been modified")
        if sub == "status" and before is None:
            raise Refusal(404, "not found")
        if "managedFields" in body["metadata"]:
            raise Refusal(400, "metadata.managedFields must be nil")
        wanted = {path: leaf for path, leaf in flatten(body).items() if path not in _IDENTITY}
        wanted = {path: leaf for path, leaf in wanted.items() if (path[0] == "status") is (sub == "status")}
        live = flatten(_content(before.object)) if before else {}
        managers = dict(before.managers) if before else {}
        mine = managers.pop((manager, "Apply"), {})
        mine = {path: leaf for path, leaf in mine.items() if (path[0] == "status") is (sub == "status")}
        _resolve_conflicts(wanted, live, managers, manager, force=force)
        others = {path for fields in managers.values() for path in fields}
        for path in mine.keys() - wanted.keys() - others:
            live.pop(path, None)
        result = unflatten({**live, **wanted})
        return self._applied(at, result, before, managers, (manager, "Apply"), wanted)

    def _applied(
        self,
        at: tuple[Kind, str, str],
        result: Object,
        before: Stored | None,
        managers: dict[tuple[str, str], Fields],
        who: tuple[str, str],
        wanted: Fields,
    ) -> web.Response:
        _check_ports(result)
        managers[who] = wanted
        shown = self._write(at, result, before, managers)
        headers = {"Warning": f'299 - "{self.warnings[0]}"'} if self.warnings else {}
        return web.json_response(shown, status=200 if before else 201, headers=headers)

    def _patch(self, at: tuple[Kind, str, str], body: Any, manager: str, sub: str) -> web.Response:
        before = self._there(at)
        shown = self._shown(before)
        patched = _json_patched(shown, body) if isinstance(body, list) else _merged(shown, body)
        if sub != "status":
            patched["status"] = shown.get("status", {})
        kept = patched["metadata"].get("managedFields", [])
        for who in list(before.managers):
            if not any((entry["manager"], entry["operation"]) == who for entry in kept):
                del before.managers[who]
        return web.json_response(self._store(at, patched, before, manager, "Update"))

    # -- storing ----------------------------------------------------------

    def _store(
        self,
        at: tuple[Kind, str, str],
        body: Object,
        before: Stored | None,
        manager: str,
        operation: str,
        *,
        keep_status: bool = True,
    ) -> Object:
        content = _content(body)
        if keep_status and before and "status" not in content and "status" in before.object:
            content["status"] = before.object["status"]
        fields, old = flatten(content), flatten(_content(before.object)) if before else {}
        changed = {path: leaf for path, leaf in fields.items() if old.get(path, old) != leaf}
        managers = dict(before.managers) if before else {}
        for who in managers:
            managers[who] = {
                path: leaf for path, leaf in managers[who].items() if path in fields and path not in changed
            }
        mine = {**managers.get((manager, operation), {}), **changed}
        if mine:
            managers[manager, operation] = mine
        return self._write(at, content, before, managers)

    def _write(
        self,
        at: tuple[Kind, str, str],
        content: Object,
        before: Stored | None,
        managers: dict[tuple[str, str], Fields],
    ) -> Object:
        kind, namespace, name = at
        old = before.object if before else {"metadata": {}}
        if before and flatten(_content(old)) == flatten(content):
            before.managers = managers
            return self._shown(before)
        self._version = next(self._versions)
        metadata = {**content.get("metadata", {}), "name": name}
        metadata |= {"namespace": namespace} if namespace else {}
        metadata["uid"] = old["metadata"].get("uid") or f"uid-{self._version}"
        metadata["resourceVersion"] = str(self._version)
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if kind.name not in _WITHOUT_GENERATION:
            same = before is not None and old.get("spec") == content.get("spec")
            metadata["generation"] = old["metadata"].get("generation", 0) + (0 if same else 1)
        made = {"apiVersion": kind.api_version, "kind": kind.name, **content, "metadata": metadata}
        stored = Stored(made, managers)
        self._stored[at] = stored
        self._annotate_pod("MODIFIED" if before else "ADDED", at, self._shown(stored))
        return self._shown(stored)

    def _delete(self, at: tuple[Kind, str, str]) -> None:
        stored = self._stored.pop(at, None)
        if stored is None:
            return
        self._version = next(self._versions)
        shown = self._shown(stored)
        metadata = {**shown["metadata"], "resourceVersion": str(self._version)}
        self._annotate_pod("DELETED", at, {**shown, "metadata": metadata})
        uid = stored.object["metadata"]["uid"]
        for other, one in list(self._stored.items()):
            if any(owner["uid"] == uid for owner in one.object["metadata"].get("ownerReferences", [])):
                self._delete(other)

    def _annotate_pod(self, event: str, at: tuple[Kind, str, str], shown: Object) -> None:
        self._told.append((self._version, event, at, shown))
        for kind, namespace, queue in self._watches:
            if _is_in(at, kind, namespace):
                queue.put_nowait({"type": event, "object": shown})

    def _shown(self, stored: Stored) -> Object:
        shown = copy.deepcopy(stored.object)
        shown["metadata"]["managedFields"] = [
            {"manager": manager, "operation": operation, "fieldsV1": managed(fields)}
            for (manager, operation), fields in stored.managers.items()
        ]
        return shown


def _as_item(one: Object, kind: Kind) -> Object:
    """Return an object as an item of a list; items of built-in kinds have no ``apiVersion`` and ``kind``."""
    if kind is MAIL_PROXY or kind.optional:
        return one
    return {key: value for key, value in one.items() if key not in {"apiVersion", "kind"}}


def _content(one: Object) -> Object:
    """Return an object without the fields that the server itself writes."""
    content = {key: copy.deepcopy(value) for key, value in one.items() if key not in {"apiVersion", "kind"}}
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
    for who, fields in managers.items():
        taken = [path for path in fields if path in wanted and live.get(path) != wanted[path]]
        if taken and not force:
            raise Refusal(409, f"conflict with {who[0]} over {taken[0]}")
        managers[who] = {path: leaf for path, leaf in fields.items() if path not in taken}
    del manager


def _check_ports(one: Object) -> None:
    spec = one.get("spec", {})
    pods = spec.get("template", {}).get("spec", {}) if isinstance(spec, dict) else {}
    lists = [spec.get("ports", []), *(container.get("ports", []) for container in pods.get("containers", []))]
    for ports in lists:
        names = [port.get("name") for port in ports if isinstance(port, dict)]
        if len(names) != len(set(names)):
            cause = {"reason": "FieldValueDuplicate", "field": "spec.ports[1].name"}
            raise Refusal(422, "Duplicate value", [cause])


def _is_in(at: tuple[Kind, str, str], kind: Kind, namespace: str) -> bool:
    return at[0] is kind and namespace in {"", at[1]}


def _selected(one: Object, query: Any) -> bool:
    labels = one["metadata"].get("labels", {})
    reason = query.get("fieldSelector", "").removeprefix("reason=")
    wanted = filter(None, query.get("labelSelector", "").split(","))
    return all(_matches(labels, one) for one in wanted) and (not reason or one.get("reason") == reason)


def _matches(labels: Object, requirement: str) -> bool:
    """Return whether labels match ``key=value``, ``key`` or ``!key``."""
    key, equals, value = requirement.partition("=")
    if equals:
        return bool(labels.get(key) == value)
    return key.startswith("!") != (key.lstrip("!") in labels)


def _merged(into: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(into, dict):
        return copy.deepcopy(patch)
    merged = dict(into)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _json_patched(one: Object, operations: list[Object]) -> Object:
    patched = copy.deepcopy(one)
    for operation in operations:
        *steps, last = operation["path"].strip("/").split("/")
        at: Any = patched
        for step in steps:
            at = at[int(step)] if isinstance(at, list) else at[step]
        key: Any = int(last) if isinstance(at, list) else last
        match operation["op"]:
            case "replace" | "add":
                at[key] = operation["value"]
            case "remove":
                del at[key]
            case "test" if at[key] != operation["value"]:
                raise Refusal(422, "the test failed")
    return patched


def _status(code: int, message: str, causes: list[Object]) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response({**body, "details": {"causes": causes}}, status=code)


def _group(version: str) -> Object:
    name, _, short = version.partition("/")
    entry = {"groupVersion": version, "version": short}
    return {"name": name, "versions": [entry], "preferredVersion": entry}


def _resource(kind: Kind) -> Object:
    return {
        "name": kind.plural,
        "singularName": kind.name.lower(),
        "kind": kind.name,
        "namespaced": kind not in _CLUSTER_WIDE,
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    }
