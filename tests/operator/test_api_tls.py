# SPDX-License-Identifier: Apache-2.0
"""TLS to the API server: certificate authorities that Python 3.13 rejects, and renewed ones."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import kopf
import pytest

from mailproxy_operator import main as main_module
from mailproxy_operator.api.api_tls import ApiServerContext
from mailproxy_operator.api.credentials import Configuration, client_context
from mailproxy_operator.api.kinds import DEPLOYMENT, MAIL_PROXY
from support.kube_authority import PlainAuthority
from support.kube_faults import OperatorInProcess, running_with_metrics
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import until


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify as Python 3.13 does, with any version of Python."""
    plain = ssl.create_default_context

    def create_default_context(*arguments: Any, **more: Any) -> ssl.SSLContext:
        context = plain(*arguments, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_default_context)
    monkeypatch.setattr(main_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(main_module, "BACK_OFFS", (0.02, 0.02))


@pytest.fixture
def authority() -> PlainAuthority:
    return PlainAuthority()


@pytest.fixture
def tls_context(authority: PlainAuthority, tmp_path: Path) -> ssl.SSLContext:
    return authority.server_context(tmp_path)


@pytest.fixture
async def kube(tls_context: ssl.SSLContext) -> AsyncIterator[FakeKube]:
    async with FakeKube(tls_context) as fake:
        fake.put(body())
        yield fake


@pytest.fixture
def ca(authority: PlainAuthority, tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_bytes(authority.certificate)
    return path


def operator(kube: FakeKube, ca: Path) -> AbstractAsyncContextManager[OperatorInProcess]:
    return running_with_metrics(
        kube,
        configuration=Configuration(host=kube.url, ssl_ca_cert=str(ca)),
        login=lambda **_: kopf.ConnectionInfo(server=kube.url, ca_path=str(ca)),
    )


def renew(ca: Path, authority: PlainAuthority) -> None:
    """Replace the file as the kubelet does: by renaming another file."""
    other = ca.with_suffix(".new")
    other.write_bytes(authority.certificate)
    other.replace(ca)


async def wait_until_ready(running: OperatorInProcess) -> None:
    async with asyncio.timeout(60):
        while (await running.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.05)


async def wait_until_not_ready(running: OperatorInProcess, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in (await running.get("/readyz"))[1]:
            await asyncio.sleep(0.05)
    assert (await running.get("/readyz"))[0] == 503


async def test_ca_without_key_usage_and_key_identifiers_is_accepted(kube: FakeKube, ca: Path) -> None:
    async with operator(kube, ca) as running:
        await until(lambda: kube.find(DEPLOYMENT, "edge"))
        await until(kube.open_watches)
        await wait_until_ready(running)


async def test_certificate_of_another_ca_is_rejected(
    kube: FakeKube, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renew(ca, PlainAuthority())
    async with operator(kube, ca) as running:
        await wait_until_not_ready(running, "certificate is not accepted: 127.0.0.1:")
        assert "certificate signature failure" in caplog.text or "unable to get" in caplog.text
        assert (await running.get("/healthz"))[0] == 200, "another start would not help"
        assert kube.open_watches() == []


async def test_renewed_ca_file_is_used_without_restart(
    kube: FakeKube, ca: Path, tls_context: ssl.SSLContext, tmp_path: Path
) -> None:
    async with operator(kube, ca) as running:
        await until(kube.open_watches)
        await wait_until_ready(running)
        renewed = PlainAuthority("renewed")
        renewed.load(tls_context, tmp_path)
        kube.close_connections()
        await wait_until_not_ready(running, "certificate is not accepted")
        renew(ca, renewed)
        await wait_until_ready(running)
        await until(kube.open_watches)
        kube.put({**body(), "metadata": {"name": "second", "namespace": "mail"}})
        await until(lambda: kube.find(DEPLOYMENT, "second"))


async def test_renewed_ca_in_kubeconfig_is_used(
    kube: FakeKube, authority: PlainAuthority, tls_context: ssl.SSLContext, tmp_path: Path, ca: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """There is no file to watch: the kubeconfig is read again when a certificate is rejected."""
    monkeypatch.setattr("mailproxy_operator.api.watch_monitor.RENEW_SECONDS", 0.0)
    current = {"ca": authority.certificate}
    login = lambda **_: kopf.ConnectionInfo(server=kube.url, ca_data=current["ca"])  # noqa: E731
    configuration = Configuration(host=kube.url, ssl_ca_cert=str(ca))
    async with running_with_metrics(kube, configuration=configuration, login=login) as running:
        await until(kube.open_watches)
        renewed = PlainAuthority("renewed")
        renewed.load(tls_context, tmp_path)
        current["ca"] = renewed.certificate
        renew(ca, renewed)
        kube.requests.clear()
        kube.close_connections()
        await until(lambda: ("watch", "MailProxy", "") in kube.requests)
        await wait_until_ready(running)


async def test_readiness_names_server_that_refuses_connections(kube: FakeKube, ca: Path) -> None:
    url = "https://127.0.0.1:1"
    given = Configuration(host=url, ssl_ca_cert=str(ca))
    login = lambda **_: kopf.ConnectionInfo(server=url, ca_path=str(ca))  # noqa: E731
    async with running_with_metrics(kube, configuration=given, login=login) as running:
        await wait_until_not_ready(running, "not ready: 127.0.0.1:1: Connection refused")


def test_unusable_ca_file_is_ignored(ca: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = client_context(Configuration(host="https://x", ssl_ca_cert=str(ca)))
    assert isinstance(context, ApiServerContext)
    before = context.current()
    assert not before.verify_flags & ssl.VERIFY_X509_STRICT
    assert before.verify_mode == ssl.CERT_REQUIRED
    ca.with_suffix(".new").write_text("half a certificate")
    ca.with_suffix(".new").replace(ca)
    assert context.current() is before
    assert "renewed certificates" in caplog.text
    renew(ca, PlainAuthority())
    assert context.current() is not before


async def test_readiness_reports_missing_crd(kube: FakeKube, ca: Path) -> None:
    kube.missing.add(MAIL_PROXY)
    async with operator(kube, ca) as running:
        await wait_until_not_ready(running, "the custom resource definition is not installed")
        kube.missing.clear()
        await wait_until_ready(running)
