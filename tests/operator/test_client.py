# SPDX-License-Identifier: Apache-2.0
"""The client and an API server: the requests, and the meaning of the responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from mailproxy_operator.api import client, names
from mailproxy_operator.api.client import KubeClient
from mailproxy_operator.api.cluster import Key, RunningConfig
from mailproxy_operator.api.credentials import Credentials
from mailproxy_operator.api.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    MAIL_PROXY,
    POD,
    POD_MONITOR,
    SERVICE,
    Manifest,
)
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.errors import KindMissing, NotFoundOrConflict, TerminalError, TransientError
from mailproxy_operator.settings import Platform
from support.operator_bodies import body, server
from support.operator_fakekube import FakeKube

EDGE = Key("mail", "edge")


@dataclass
class World:
    kube: FakeKube
    cluster: KubeClient
    recorded: list[tuple[str, str]]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    recorded: list[tuple[str, str]] = []
    async with (
        FakeKube() as fake,
        aiohttp.ClientSession() as pods,
        ApiClient(Configuration(host=fake.url)) as api,
    ):
        cluster = KubeClient(api, pods, meter=lambda verb, code, _: recorded.append((verb, code)))
        yield World(fake, cluster, recorded)


def config_map(data: str = "1", **metadata: Any) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "edge", "namespace": "mail", "labels": {"a": "b"}, **metadata},
        "data": {"key": data},
    }


async def test_objects_are_applied_and_read(world: World) -> None:
    assert await world.cluster.get(CONFIG_MAP, EDGE) is None
    applied = await world.cluster.apply(config_map())
    assert applied.manifest["data"] == {"key": "1"}
    again = await world.cluster.apply(config_map())
    assert again.manifest["metadata"]["resourceVersion"] == applied.manifest["metadata"]["resourceVersion"]
    assert [
        one["metadata"]["name"] for one in await world.cluster.list_labelled(CONFIG_MAP, "mail", {"a": "b"})
    ] == ["edge"]
    assert await world.cluster.list_labelled(CONFIG_MAP, "mail", {"a": "c"}) == []
    [entry] = world.kube.found(CONFIG_MAP, "edge")["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("mailproxy-operator", "Apply")
    assert world.recorded[:2] == [("get", "4xx"), ("apply", "2xx")]


async def test_apply_keeps_fields_of_other_managers(world: World) -> None:
    await world.cluster.apply(config_map())
    other = world.kube.found(CONFIG_MAP, "edge")
    other["metadata"]["annotations"] = {"theirs": "kept"}
    other["data"] = {"key": "edited", "other": "kept"}
    world.kube.put(other)
    await world.cluster.apply(config_map())
    stored = world.kube.found(CONFIG_MAP, "edge")
    assert stored["data"] == {"key": "1", "other": "kept"}
    assert stored["metadata"]["annotations"] == {"theirs": "kept"}


async def test_delete_keeps_another_object_of_same_name(world: World) -> None:
    applied = (await world.cluster.apply(config_map())).manifest
    await world.cluster.delete({**applied, "metadata": {**applied["metadata"], "uid": "other"}})
    assert world.kube.find(CONFIG_MAP, "edge")
    await world.cluster.delete(applied)
    await world.cluster.delete(applied)
    assert world.kube.find(CONFIG_MAP, "edge") is None


async def test_listed_object_can_be_deleted(world: World) -> None:
    world.kube.put(config_map())
    [found] = await world.cluster.list_labelled(CONFIG_MAP, "mail", {"a": "b"})
    assert (found["apiVersion"], found["kind"]) == ("v1", "ConfigMap")
    await world.cluster.delete(found)
    assert world.kube.find(CONFIG_MAP, "edge") is None


async def test_apply_with_wrong_uid_is_a_conflict(world: World) -> None:
    with pytest.raises(NotFoundOrConflict):
        await world.cluster.apply(config_map(uid="uid-of-another"))


async def test_patch_annotations_changes_nothing_else_and_creates_nothing(world: World) -> None:
    await world.cluster.patch_annotations(POD, EDGE, {"a": "b"})
    assert world.kube.find(POD, "edge") is None
    world.kube.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "edge", "namespace": "mail"},
            "spec": {"x": 1},
        }
    )
    await world.cluster.patch_annotations(POD, EDGE, {"a": "b"})
    stored = world.kube.found(POD, "edge")
    assert (stored["metadata"]["annotations"], stored["spec"]) == ({"a": "b"}, {"x": 1})


async def test_status_is_written_to_subresource(world: World) -> None:
    await world.cluster.apply_status({**body(), "status": {"replicas": 1}})
    world.kube.put(body())
    await world.cluster.apply_status({**body(), "status": {"replicas": 1}})
    assert world.kube.found(MAIL_PROXY, "edge")["status"] == {"replicas": 1}
    assert world.kube.found(MAIL_PROXY, "edge")["metadata"]["generation"] == 1


def patch_error(
    status: int, text: str = "no", **headers: str
) -> Callable[[web.Request], web.Response | None]:
    payload = {"kind": "Status", "message": text, "code": status}

    def fault(request: web.Request) -> web.Response | None:
        return (
            web.json_response(payload, status=status, headers=headers) if request.method == "PATCH" else None
        )

    return fault


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (401, "who?", TransientError),
        (403, "exceeded quota", TerminalError),
        (409, "conflict", NotFoundOrConflict),
        (410, "gone", NotFoundOrConflict),
        (422, "spec.replicas: Invalid value", TerminalError),
        (429, "slow down", TransientError),
        (500, "etcdserver: request timed out", TransientError),
        (500, "failed to create typed patch object: .spec.x: field not declared in schema", TerminalError),
        (503, "", TransientError),
    ],
)
async def test_error_of_each_response_status(
    world: World, status: int, text: str, error: type[Exception]
) -> None:
    world.kube.faults.append(patch_error(status, text))
    with pytest.raises(error, match=text or "HTTP 503"):
        await world.cluster.apply(config_map())


@pytest.mark.parametrize(("kind", "reason"), [("Deployment", "InvalidPodFields"), ("Service", "InvalidSpec")])
async def test_reason_of_invalid_object_depends_on_kind(world: World, kind: str, reason: str) -> None:
    world.kube.faults.append(patch_error(422))
    version = "apps/v1" if kind == "Deployment" else "v1"
    with pytest.raises(TerminalError) as refused:
        await world.cluster.apply({"apiVersion": version, "kind": kind, "metadata": config_map()["metadata"]})
    assert refused.value.reason == reason


async def test_retry_after_is_used_as_delay(world: World) -> None:
    world.kube.faults.append(patch_error(429, **{"Retry-After": "7"}))
    with pytest.raises(TransientError) as refused:
        await world.cluster.apply(config_map())
    assert refused.value.delay == 7.0


async def test_kind_missing_in_cluster(world: World) -> None:
    world.kube.missing.add(POD_MONITOR)
    monitor = {
        "apiVersion": POD_MONITOR.api_version,
        "kind": "PodMonitor",
        "metadata": config_map()["metadata"],
    }
    assert await world.cluster.get(POD_MONITOR, EDGE) is None
    assert await world.cluster.list_labelled(POD_MONITOR, "mail", {}) == []
    with pytest.raises(KindMissing):
        await world.cluster.apply(monitor)


async def test_warning_headers_are_returned(world: World) -> None:
    world.kube.warnings.append('would violate PodSecurity \\"restricted:latest\\"')
    applied = await world.cluster.apply(config_map())
    assert applied.warnings == ('would violate PodSecurity "restricted:latest"',)


async def test_refused_connection_is_transient() -> None:
    async with aiohttp.ClientSession() as pods, ApiClient(Configuration(host="http://127.0.0.1:1")) as api:
        with pytest.raises(TransientError):
            await KubeClient(api, pods).get(CONFIG_MAP, EDGE)


async def test_request_has_a_timeout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(client, "REQUEST_SECONDS", 0.05)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hang)
    async with (
        TestServer(app) as silent,
        aiohttp.ClientSession() as pods,
        client.api_client(Configuration(host=str(silent.make_url("")).rstrip("/"))) as api,
    ):
        with pytest.raises(TransientError, match="no response in time"):
            await KubeClient(api, pods).get(CONFIG_MAP, EDGE)


async def test_version_of_api_server(world: World) -> None:
    assert await world.cluster.version() == KubeVersion(1, 36)


async def test_long_list_is_read_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [
        {"items": [{**body()}], "metadata": {"continue": "next"}},
        {"items": [{**body(), "metadata": {"name": "other", "namespace": "mail"}}], "metadata": {}},
    ]

    def paged(request: web.Request) -> web.Response | None:
        assert request.query["limit"] == "500"
        if not request.path.endswith("mailproxies"):
            return None
        return web.json_response(pages[1 if request.query.get("continue") else 0])

    world.kube.faults.append(paged)
    found = await world.cluster.list_all(MAIL_PROXY, (), "")
    assert [one["metadata"]["name"] for one in found] == ["edge", "other"]


async def test_mount_failures_are_newest_events_about_volumes(world: World) -> None:
    def event(name: str, reason: str, message: str, when: str) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{when}", "namespace": "mail"},
            "reason": reason,
            "message": message,
            "lastTimestamp": when,
            "involvedObject": {"name": name},
        }

    world.kube.put(event("a", "FailedMount", "new", "2026-01-02T00:00:00Z"))
    world.kube.put(event("a", "FailedMount", "old", "2026-01-01T00:00:00Z"))
    world.kube.put(event("b", "Pulled", "image", "2026-01-01T00:00:00Z"))
    assert await world.cluster.mount_failures("mail") == {"a": "new"}


async def test_failure_to_create_event_is_ignored(world: World) -> None:
    world.kube.faults.append(lambda request: web.Response(status=403) if request.method == "POST" else None)
    await world.cluster.create_event({"metadata": {"name": "x", "namespace": "mail"}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"hash": "abc", "last_error": null}', RunningConfig("abc")),
        ('{"hash": "abc", "last_error": "no"}', RunningConfig("abc", "no")),
        ('{"hash": "abc", "certificates": ["x", "y"]}', RunningConfig("abc", certificates=("x", "y"))),
        (
            f'{{"hash": "abc", "certificates": {json.dumps(["x"] * 30)}}}',
            RunningConfig("abc", certificates=("x",) * 20),
        ),
        ("[]", None),
        ("nonsense", None),
    ],
)
async def test_running_config_is_read_from_admin_endpoint(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str, expected: RunningConfig | None
) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/config", respond)
    async with TestServer(app) as pod:
        monkeypatch.setattr(names, "ADMIN_PORT", pod.port)
        assert await world.cluster.running_config({"status": {"podIP": "127.0.0.1"}}) == expected
    assert await world.cluster.running_config({"status": {"podIP": "127.0.0.1"}}) is None


async def test_edited_port_is_repaired_without_new_field_manager(world: World) -> None:
    world.kube.put(body(servers=[server("imap", "imap", 143, 993)]))
    reconciler = Reconciler(world.cluster, Platform(kube_version=KubeVersion(1, 36)))
    await reconciler.reconcile(EDGE)
    for kind in (SERVICE, DEPLOYMENT):
        good = world.kube.found(kind, "edge")
        edited = world.kube.found(kind, "edge")
        _ports(edited)[0]["port" if kind is SERVICE else "containerPort"] = 144
        world.kube.put(edited, manager="kubectl-edit")
        outcome = await reconciler.reconcile(EDGE)
        assert outcome.refused is None
        repaired = world.kube.found(kind, "edge")
        assert _ports(repaired) == _ports(good)
        managers = {entry["manager"] for entry in repaired["metadata"]["managedFields"]}
        assert names.REPAIR_MANAGER not in managers


def _ports(manifest: Manifest) -> Any:
    if manifest["kind"] == "Service":
        return manifest["spec"]["ports"]
    return manifest["spec"]["template"]["spec"]["containers"][0]["ports"]


async def test_replicas_are_kept_when_autoscaler_is_added(world: World) -> None:
    world.kube.put(body(replicas=4))
    reconciler = Reconciler(world.cluster, Platform(kube_version=KubeVersion(1, 36)))
    await reconciler.reconcile(EDGE)
    world.kube.put(body(autoscaling={"maxReplicas": 9}))
    await reconciler.reconcile(EDGE)
    assert world.kube.found(DEPLOYMENT, "edge")["spec"]["replicas"] == 4
    world.kube.put(body(replicas=3))
    await reconciler.reconcile(EDGE)
    assert world.kube.found(DEPLOYMENT, "edge")["spec"]["replicas"] == 3


async def test_second_reconcile_changes_no_resource_version(world: World) -> None:
    world.kube.put(body())
    await Reconciler(world.cluster, Platform()).reconcile(EDGE)
    before = world.kube.versions()
    await Reconciler(world.cluster, Platform()).reconcile(EDGE)
    assert world.kube.versions() == before
    assert "finalizers" not in world.kube.found(MAIL_PROXY, "edge")["metadata"]


async def test_second_write_of_same_lease_version_fails(world: World) -> None:
    lease: Manifest = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "edge", "namespace": "mail"},
        "spec": {"holderIdentity": "a"},
    }
    assert await world.cluster.read_lease(EDGE) is None
    assert await world.cluster.write_lease(lease)
    assert not await world.cluster.write_lease(lease)
    stored = await world.cluster.read_lease(EDGE)
    assert stored is not None
    assert await world.cluster.write_lease({**stored, "spec": {"holderIdentity": "b"}})
    assert not await world.cluster.write_lease({**stored, "spec": {"holderIdentity": "c"}})


async def test_refused_credentials_are_read_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(request: web.Request) -> web.Response | None:
        is_good = request.headers.get("Authorization") == "Bearer new"
        return (
            None if is_good else web.json_response({"kind": "Status", "message": "Unauthorized"}, status=401)
        )

    world.kube.faults.append(fault)
    kubeconfig = tmp_path / "kubeconfig"
    credentials = credentials_of(kubeconfig, world.kube.url, "old")
    async with client.api_client(await credentials.read()) as api, aiohttp.ClientSession() as pods:
        cluster = KubeClient(api, pods, credentials=credentials)
        with pytest.raises(TransientError, match="may have expired"):
            await cluster.get(CONFIG_MAP, EDGE)
        assert not cluster.is_authenticated
        credentials_of(kubeconfig, world.kube.url, "new")
        with pytest.raises(TransientError):
            await cluster.get(CONFIG_MAP, EDGE)
        monkeypatch.setattr("mailproxy_operator.api.credentials.RENEW_SECONDS", 0.0)
        assert await cluster.get(CONFIG_MAP, EDGE) is None
        await cluster.version()
        assert cluster.is_authenticated


def credentials_of(path: Path, url: str, token: str) -> Credentials:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "a", "cluster": {"server": url}}],
                "users": [{"name": "a", "user": {"token": token}}],
                "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                "current-context": "a",
            }
        )
    )
    return Credentials(file=str(path))
