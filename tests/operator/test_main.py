# SPDX-License-Identifier: Apache-2.0
"""The whole operator in this process, on an emulated API server: kopf, work queue and reconciler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mailproxy_operator import main as main_module
from mailproxy_operator.admin import AdminEndpoint
from mailproxy_operator.api.kinds import CONFIG_MAP, DEPLOYMENT, LEASE, MAIL_PROXY, POD_MONITOR, SERVICE
from support.operator_bodies import body, server
from support.operator_fakekube import FakeKube
from support.operator_running import running, until


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as fake:
        yield fake


def reason(kube: FakeKube, name: str = "edge") -> str:
    found = kube.find(MAIL_PROXY, name) or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((one["reason"] for one in conditions if one["type"] == "Ready"), "")


async def test_resources_are_created_updated_and_deleted(kube: FakeKube) -> None:
    kube.put(body())
    async with running(kube):
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await until(lambda: reason(kube) == "PodsNotReady")
        kube.put({**body(), "metadata": {"name": "second", "namespace": "mail"}})
        await until(lambda: reason(kube, "second") == "PodsNotReady")
        kube.put(body(servers=[server("imap", "imap", 1143)]))
        await until(lambda: kube.found(SERVICE, "edge")["spec"]["ports"][0]["port"] == 1143)
        kube.remove(MAIL_PROXY, "edge")
        await until(lambda: kube.names(DEPLOYMENT) == ["second"])
        assert "finalizers" not in kube.found(MAIL_PROXY, "second")["metadata"]
        assert "annotations" not in kube.found(MAIL_PROXY, "second")["metadata"]


async def test_edited_and_deleted_objects_are_restored(kube: FakeKube) -> None:
    kube.put(body())
    async with running(kube):
        await until(lambda: reason(kube))
        kube.remove(SERVICE, "edge")
        await until(lambda: kube.find(SERVICE, "edge"))
        edited = kube.found(CONFIG_MAP, "edge-config")
        edited["data"] = {"mailproxy.json": "by hand"}
        kube.put(edited)
        await until(lambda: kube.found(CONFIG_MAP, "edge-config")["data"]["mailproxy.json"] != "by hand")


async def test_resync_finds_changes_that_a_watch_missed(kube: FakeKube) -> None:
    kube.put(body())
    async with running(kube, resync_seconds=0.5):
        await until(lambda: reason(kube))
        with kube.muted_watches():
            kube.remove(SERVICE, "edge")
            kube.put({**body(), "metadata": {"name": "second", "namespace": "mail"}})
            await until(lambda: kube.find(SERVICE, "edge") and kube.find(SERVICE, "second"))


async def test_ended_watches_are_restarted(kube: FakeKube) -> None:
    async with running(kube):
        [old] = await until(kube.open_watches)
        kube.end_watches()
        await until(lambda: old not in kube.open_watches())
        await until(kube.open_watches)
        kube.put(body())
        await until(lambda: reason(kube))


async def test_reconcile_is_retried_after_api_errors(kube: FakeKube) -> None:
    failures = {"left": 5}

    def fault(request: web.Request) -> web.Response | None:
        if request.method == "PATCH" and failures["left"]:
            failures["left"] -= 1
            return web.json_response(
                {"kind": "Status", "message": "busy"}, status=500 if failures["left"] % 2 else 429
            )
        return None

    kube.faults.append(fault)
    kube.put(body())
    async with running(kube):
        await until(lambda: reason(kube) == "PodsNotReady")
    assert failures["left"] == 0


async def test_failing_resource_does_not_delay_others(kube: FakeKube) -> None:
    def fault(request: web.Request) -> web.Response | None:
        is_bad = request.method == "PATCH" and "/bad" in request.path and "status" not in request.path
        return web.json_response({"kind": "Status", "message": "no"}, status=500) if is_bad else None

    kube.faults.append(fault)
    kube.put({**body(), "metadata": {"name": "bad", "namespace": "mail"}})
    async with running(kube):
        await until(lambda: any("bad" in key for key in kube.versions()))
        for index in range(20):
            kube.put({**body(), "metadata": {"name": f"good-{index}", "namespace": "mail"}})
        await until(lambda: len(kube.names(DEPLOYMENT)) == 20)
        status = kube.found(MAIL_PROXY, "bad")["status"]
        reconciling = next(one for one in status["conditions"] if one["type"] == "Reconciling")
        assert reconciling["reason"] == "Retrying"


async def test_only_configured_namespaces_are_reconciled(kube: FakeKube) -> None:
    kube.put(body())
    kube.put({**body(), "metadata": {"name": "edge", "namespace": "other"}})
    async with running(kube, namespaces=("mail",)):
        await until(lambda: reason(kube))
        assert kube.find(DEPLOYMENT, "edge", "other") is None


async def test_cluster_without_monitoring_kinds_is_supported(kube: FakeKube) -> None:
    kube.missing.add(POD_MONITOR)
    kube.put(body(monitoring={"podMonitor": {"enabled": True}}))
    async with running(kube):
        await until(lambda: reason(kube) == "PodsNotReady")


async def test_crd_installed_after_start_is_detected(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "RETRY_SECONDS", 0.05)
    kube.missing.add(MAIL_PROXY)
    async with running(kube):
        await asyncio.sleep(0.2)
        kube.missing.clear()
        kube.put(body())
        await until(lambda: reason(kube))


async def test_second_operator_takes_over_after_first_ends(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailproxy_operator.api.leader_election.RETRY_SECONDS", 0.1)
    async with running(kube, lease_namespace="mail", identity="first"):
        await until(lambda: kube.find(LEASE, "mailproxy-operator"))
        async with running(kube, lease_namespace="mail", identity="second"):
            kube.put(body())
            await until(lambda: reason(kube))
            assert kube.found(LEASE, "mailproxy-operator")["spec"]["holderIdentity"] == "first"
        kube.put(body(servers=[server("imap", "imap", 1143)]))
        await until(lambda: kube.found(SERVICE, "edge")["spec"]["ports"][0]["port"] == 1143)
    assert kube.found(LEASE, "mailproxy-operator")["spec"]["holderIdentity"] == ""
    async with running(kube, lease_namespace="mail", identity="third"):
        await until(lambda: kube.found(LEASE, "mailproxy-operator")["spec"]["holderIdentity"] == "third")


async def test_lost_lease_ends_operator(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailproxy_operator.api.leader_election.RENEW_SECONDS", 1.0)
    async with running(kube, restarts=False, lease_namespace="mail", identity="first") as operator:
        await until(lambda: kube.find(LEASE, "mailproxy-operator"))
        stolen = kube.found(LEASE, "mailproxy-operator")
        stolen["spec"]["holderIdentity"] = "other"
        kube.put(stolen)
        async with asyncio.timeout(60):
            assert await operator == 1


async def test_admin_endpoint(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints: list[AdminEndpoint] = []

    def record_endpoint(*arguments: Any, **more: Any) -> AdminEndpoint:
        endpoints.append(AdminEndpoint(*arguments, **more))
        return endpoints[-1]

    monkeypatch.setattr(main_module, "AdminEndpoint", record_endpoint)
    kube.put(body())
    async with running(kube), aiohttp.ClientSession() as session:
        await until(lambda: reason(kube))
        base = f"http://127.0.0.1:{endpoints[0].port}"
        async with session.get(f"{base}/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        async with session.get(f"{base}/readyz") as response:
            assert response.status == 200
        async with asyncio.timeout(60):  # the status is written before the reconcile has ended and is counted
            text = ""
            while 'mailproxy_operator_resources{ready="false"} 1.0' not in text:
                async with session.get(f"{base}/metrics") as response:
                    text = await response.text()
        assert 'mailproxy_operator_reconciles_total{result="ok"}' in text
        assert (
            'mailproxy_operator_condition{name="edge",namespace="mail",status="False",type="Ready"} 1.0'
            in text
        )
