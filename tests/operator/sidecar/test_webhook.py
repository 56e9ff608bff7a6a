# SPDX-License-Identifier: Apache-2.0
"""The webhook over HTTPS: requests that a real API server sends, and requests that are refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mailproxy_operator.api.kinds import EVENT, MAIL_PROXY, MUTATING_WEBHOOK
from mailproxy_operator.settings import WebhookSettings
from mailproxy_operator.sidecar import ca_bundle
from mailproxy_operator.sidecar.certificate import issue
from mailproxy_operator.sidecar.inject import has_sidecar
from mailproxy_operator.sidecar.patch import JsonPatch
from support.operator_fakekube import FakeKube
from support.operator_running import running, until
from support.servers.programs import Ports
from support.sidecars import review, sidecar_body

CONFIGURATION = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": "mailproxy-operator"},
    "webhooks": [{"name": "inject.mailproxy.dev", "clientConfig": {"url": "https://localhost/inject"}}],
}


class Caller:
    """An API server that calls a webhook."""

    def __init__(self, kube: FakeKube, port: int) -> None:
        self.kube = kube
        self._port = port

    def bundle(self) -> str:
        found = self.kube.found(MUTATING_WEBHOOK, "mailproxy-operator", "")
        client = found["webhooks"][0]["clientConfig"]
        return base64.b64decode(client.get("caBundle", "")).decode()

    async def post(self, body: bytes, path: str = "/inject", authority: str = "") -> tuple[int, Any]:
        context = ssl.create_default_context(cadata=authority or self.bundle())
        url = f"https://localhost:{self._port}{path}?timeout=5s"
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, data=io.BytesIO(body), ssl=context) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if response.status == 200 else text

    async def request_review(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Request a review, and return the response."""
        status, body = await self.post(json.dumps(sent).encode())
        assert status == 200, body
        assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert body["response"]["uid"] == sent["request"]["uid"]
        found: dict[str, Any] = body["response"]
        return found


@asynccontextmanager
async def webhook(kube: FakeKube, **settings: Any) -> AsyncIterator[Caller]:
    port = Ports().take()
    sent = WebhookSettings(host="127.0.0.1", port=port, certificates=settings.pop("certificates", None))
    async with running(kube, webhook=sent, identity="operator-0", **settings):
        yield Caller(kube, port)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_bundle, "SETTLE_SECONDS", 0.0)


@asynccontextmanager
async def calling() -> AsyncIterator[Caller]:
    """A webhook with a trusted certificate, in a cluster without a MailProxy."""
    async with FakeKube() as kube:
        kube.put(CONFIGURATION)
        async with webhook(kube) as found:
            await until(found.bundle)
            await until_answered(found)
            yield found


async def until_answered(caller: Caller) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await caller.post(b"")
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
            else:
                return


def patched(sent: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """Apply the patch of the response, as the API server does."""
    import jsonpatch

    assert response["patchType"] == "JSONPatch"
    operations: JsonPatch = json.loads(base64.b64decode(response["patch"]))
    found: dict[str, Any] = jsonpatch.apply_patch(sent["request"]["object"], operations)
    return found


async def test_requesting_pod_gets_sidecar() -> None:
    async with calling() as caller:
        caller.kube.put(sidecar_body())
        sent = review()
        response = await caller.request_review(sent)
        assert response["allowed"]
        made = patched(sent, response)
        assert has_sidecar(made)
        assert made["metadata"]["annotations"]["mailproxy.dev/config-hash"]
        before = sent["request"]["object"]
        assert made["spec"]["containers"] == before["spec"]["containers"]
        assert made["metadata"]["managedFields"] == before["metadata"]["managedFields"]


async def test_pod_with_sidecar_is_not_changed() -> None:
    async with calling() as caller:
        caller.kube.put(sidecar_body())
        sent = review()
        again = review(object=patched(sent, await caller.request_review(sent)))
        response = await caller.request_review(again)
        assert response["allowed"]
        assert "patch" not in response


async def test_pod_that_requests_missing_proxy_is_admitted_with_warning() -> None:
    async with calling() as caller:
        response = await caller.request_review(review())
        assert response["allowed"]
        assert "patch" not in response
        assert "there is no MailProxy edge" in response["warnings"][0]
        assert len(caller.kube.names(EVENT)) == 1
        await caller.request_review(review(dryRun=True, namespace="elsewhere"))
        assert len(caller.kube.names(EVENT)) == 1


async def test_failure_policy_fail_denies_pod() -> None:
    async with calling() as caller:
        caller.kube.put(sidecar_body(mode="Deployment", sidecar={"failurePolicy": "Fail"}))
        response = await caller.request_review(review())
        assert not response["allowed"]
        assert response["status"]["code"] == 403
        assert "has mode Deployment" in response["status"]["message"]


async def test_namespace_is_that_of_request() -> None:
    async with calling() as caller:
        caller.kube.put(sidecar_body())
        sent = review()
        del sent["request"]["object"]["metadata"]["namespace"]
        assert "patch" in await caller.request_review(sent)


async def test_pod_without_label_is_not_reviewed() -> None:
    async with calling() as caller:
        sent = review()
        sent["request"]["object"]["metadata"]["labels"] = {"app": "dovecot"}
        assert await caller.request_review(sent) == {"uid": sent["request"]["uid"], "allowed": True}


async def test_internal_error_admits_pod() -> None:
    async with calling() as caller:

        def broken(request: aiohttp.web.Request) -> aiohttp.web.Response | None:
            is_ours = "mailproxies/edge" in request.path and request.method == "GET"
            return aiohttp.web.Response(status=500) if is_ours else None

        caller.kube.put(sidecar_body())
        caller.kube.faults.append(broken)
        response = await caller.request_review(review())
        assert response["allowed"]
        assert "the operator failed" in response["warnings"][0]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/inject", b"", 400),
        ("/inject", b"{", 400),
        ("/inject", b"[]", 400),
        ("/inject", b"{}", 400),
        ("/inject", b'{"request": {"object": {"metadata": 7}}}', 400),
        (
            "/inject",
            json.dumps(review(resource={"group": "", "version": "v1", "resource": "x"})).encode(),
            400,
        ),
        ("/", b"{}", 404),
        ("/inject", b" " * (4 * 1024 * 1024), 413),
    ],
    ids=["nothing", "no-json", "a-list", "no-request", "no-pod", "no-such-kind", "no-such-path", "too-much"],
)
async def test_invalid_requests_get_status_400_or_404(path: str, body: bytes, status: int) -> None:
    async with calling() as caller:
        found, text = await caller.post(body, path)
        assert found == status
        assert "Traceback" not in text


async def test_mounted_certificate_is_served(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    made = issue(["localhost"], "cert-manager", datetime.now(UTC))
    (tmp_path / "tls.crt").write_bytes(made.certificate)
    (tmp_path / "tls.key").write_bytes(made.key)
    async with FakeKube() as kube:
        kube.put(CONFIGURATION)
        kube.put(sidecar_body())
        async with webhook(kube, certificates=tmp_path) as caller:
            monitored = review()
            async with asyncio.timeout(20):
                while True:
                    try:
                        status, body = await caller.post(
                            json.dumps(monitored).encode(), authority=made.authority
                        )
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.05)
                        continue
                    break
            assert (status, body["response"]["allowed"]) == (200, True)
            assert caller.bundle() == ""


async def test_standby_operator_serves_webhook() -> None:
    async with FakeKube() as kube:
        kube.put(CONFIGURATION)
        held = {"holderIdentity": "another", "leaseDurationSeconds": 3600}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": held}
        kube.put({**lease, "metadata": {"name": "mailproxy-operator", "namespace": "mail"}})
        kube.put(sidecar_body())
        async with webhook(kube, lease_namespace="mail") as caller:
            await until(caller.bundle)
            await until_answered(caller)
            assert "patch" in await caller.request_review(review())
            assert "status" not in kube.found(MAIL_PROXY, "edge")
