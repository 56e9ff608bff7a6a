# SPDX-License-Identifier: Apache-2.0
"""Every error of the API server on every verb: it is counted, reported where possible, and not fatal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from mailproxy_operator import main as main_module
from mailproxy_operator.api import client as kube_module
from mailproxy_operator.api.kinds import DEPLOYMENT, DISRUPTION_BUDGET, MAIL_PROXY, POD, SERVICE
from mailproxy_operator.controller import reconciler as reconcile_module
from mailproxy_operator.controller import resync as resync_module
from mailproxy_operator.controller import work_queue as work_queue_module
from support.kube_faults import HANGS, Fault, Matching, is_list, running_with_metrics
from support.operator_bodies import body, server
from support.operator_fakekube import FakeKube
from support.operator_running import until

APPLY = "application/apply-patch+yaml"
STATUSES = (400, 401, 403, 404, 409, 410, 422, 429, 500, 503, HANGS)
CODES = {409: "409", 410: "410", 422: "422", 429: "429", 500: "5xx", 503: "5xx", HANGS: "error"}


def is_read(request: web.Request) -> bool:
    return request.method == "GET" and request.path == "/version"


def is_apply(request: web.Request) -> bool:
    return request.content_type == APPLY and request.path.endswith("/services/edge")


def is_status(request: web.Request) -> bool:
    return request.path.endswith("/status")


def is_annotation_patch(request: web.Request) -> bool:
    return request.method == "PATCH" and "/pods/" in request.path


def is_delete(request: web.Request) -> bool:
    return request.method == "DELETE"


def is_event_creation(request: web.Request) -> bool:
    return request.method == "POST" and request.path.endswith("/events")


VERBS: dict[str, tuple[str, Matching]] = {
    "get": ("get", is_read),
    "list": ("list", is_list),
    "apply": ("apply", is_apply),
    "apply status": ("apply", is_status),
    "patch": ("patch", is_annotation_patch),
    "delete": ("delete", is_delete),
    "create": ("create", is_event_creation),
}


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as fake:
        yield fake


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(main_module, "BACK_OFFS", (0.02, 0.02))
    monkeypatch.setattr(main_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(work_queue_module, "MIN_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(work_queue_module, "MAX_BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr(reconcile_module, "ROLLOUT_REQUEUE_SECONDS", 0.1)


@pytest.fixture
def short_request_timeout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the timeout of requests to a server that does not respond."""
    if request.getfixturevalue("status") == HANGS:
        monkeypatch.setattr(kube_module, "REQUEST_SECONDS", 0.5)


def condition(kube: FakeKube, name: str, kind: str) -> dict[str, Any]:
    found = kube.find(MAIL_PROXY, name) or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {"reason": "", "message": ""})


def put_pod(kube: FakeKube) -> None:
    """Create a pod without the annotation of the wanted configuration."""
    template = kube.found(DEPLOYMENT, "edge")["spec"]["template"]["metadata"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "edge-1", "uid": "r", "controller": True}
    metadata = {
        "name": "edge-1-a",
        "namespace": "mail",
        "labels": template["labels"],
        "ownerReferences": [owner],
    }
    kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {}})


def code(status: int) -> str:
    return CODES.get(status, "4xx")


@pytest.mark.usefixtures("short_request_timeout")
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("verb", VERBS)
async def test_api_error_is_counted_and_not_fatal(kube: FakeKube, verb: str, status: int) -> None:
    counted, matching = VERBS[verb]
    fault = Fault(matching, status)
    kube.put(body(servers=[server("imap", "imap", 143)]))
    if verb == "delete":
        kube.put(body(servers=[server("imap", "imap", 143)], podDisruptionBudget={"maxUnavailable": 1}))
    if verb not in {"patch", "delete"}:
        kube.faults.append(fault)
    resync_seconds = 2.0 if verb == "list" else 30.0  # only resyncs list objects
    async with running_with_metrics(kube, resync_seconds=resync_seconds) as operator:
        if verb in {"patch", "delete"}:
            await until(lambda: kube.find(DEPLOYMENT, "edge"))
            await until(lambda: condition(kube, "edge", "Ready")["reason"] == "PodsNotReady")
            kube.faults.append(fault)
            await until(kube.open_watches)
            put_pod(kube)
            if verb == "delete":
                kube.put(body(mode="Sidecar", servers=[server("imap", "imap", 143)]))
        await operator.wait_for_metric("api_requests_total", verb=counted, code=code(status))
        assert fault.count
        assert (await operator.get("/healthz"))[0] == 200, "another start would not help"
        fault.disable()
        await until(kube.open_watches)
        mode = "Sidecar" if verb == "delete" else "Deployment"
        kube.put(body(mode=mode, servers=[server("imap", "imap", 993)]))
        kube.put({**body(), "metadata": {"name": "second", "namespace": "mail"}})
        await until(lambda: kube.find(DEPLOYMENT, "second"))
        if verb == "delete":
            await until(lambda: kube.find(DISRUPTION_BUDGET, "edge") is None)
        else:
            await until(lambda: (kube.find(SERVICE, "edge") or _NONE)["spec"]["ports"][0]["port"] == 993)
        assert not operator.task.done()


_NONE = {"spec": {"ports": [{"port": 0}]}}


@pytest.mark.usefixtures("short_request_timeout")
@pytest.mark.parametrize(
    ("status", "kind", "reason", "expected"),
    [
        (400, "Accepted", "InvalidSpec", "injected error"),
        (401, "Reconciling", "Retrying", "they may have expired"),
        (403, "Accepted", "Forbidden", "injected error"),
        (404, "Reconciling", "Retrying", "injected error"),
        (409, "Reconciling", "Retrying", "injected error"),
        (410, "Reconciling", "Retrying", "injected error"),
        (422, "Accepted", "InvalidSpec", "injected error"),
        (429, "Reconciling", "Retrying", "injected error"),
        (500, "Reconciling", "Retrying", "injected error"),
        (HANGS, "Reconciling", "Retrying", "no response in time"),
    ],
)
async def test_api_error_is_reported_in_status(
    kube: FakeKube, status: int, kind: str, reason: str, expected: str
) -> None:
    kube.faults.append(Fault(is_apply, status))
    kube.put(body())
    async with running_with_metrics(kube):
        await until(lambda: condition(kube, "edge", kind)["reason"] == reason)
        message = condition(kube, "edge", kind)["message"]
        assert expected in message
        assert "edge" in message, "which object"
        assert kube.find(POD, "edge-1-a") is None
