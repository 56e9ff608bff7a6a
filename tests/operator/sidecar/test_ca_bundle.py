# SPDX-License-Identifier: Apache-2.0
"""The webhook's caBundle has the CA of every operator process, and no process removes that of another."""

from __future__ import annotations

import base64
import copy
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import MUTATING_WEBHOOK, Kind, Manifest
from mailproxy_operator.errors import TransientError
from mailproxy_operator.sidecar import ca_bundle
from mailproxy_operator.sidecar.ca_bundle import (
    GivenAuthority,
    MountedCertificate,
    OwnCertificate,
    webhook_hosts,
)
from mailproxy_operator.sidecar.certificate import LIFETIME, has_authorities, issue, server_context

SERVICE = {"service": {"name": "hook", "namespace": "system", "path": "/inject"}}


class Store:
    """The only webhook configuration; another process may write it first."""

    def __init__(self, *clients: Mapping[str, Any]) -> None:
        self.version = 1
        self.webhooks = [{"clientConfig": dict(client)} for client in clients]
        self.patches = 0
        self.fails = False
        self.others: list[str] = []

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        assert (kind, key) == (MUTATING_WEBHOOK, Key("", "mailproxy-operator"))
        if self.fails:
            raise TransientError("not now")
        if not self.webhooks:
            return None
        metadata = {"name": key.name, "resourceVersion": str(self.version)}
        found = {"metadata": metadata, "webhooks": copy.deepcopy(self.webhooks)}
        if self.others:
            self.version += 1
            self.webhooks[0]["clientConfig"]["caBundle"] = self.others.pop()
        return found

    async def patch_json(self, kind: Kind, key: Key, operations: Sequence[Mapping[str, Any]]) -> bool:
        test, *changes = operations
        assert test["op"] == "test"
        if test["value"] != str(self.version):
            return False
        for change in changes:
            _, _, index, *_ = change["path"].split("/")
            self.webhooks[int(index)]["clientConfig"]["caBundle"] = change["value"]
        self.version += 1
        self.patches += 1
        return True

    def bundle(self, index: int = 0) -> bytes:
        return base64.b64decode(self.webhooks[index]["clientConfig"].get("caBundle", ""))


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_bundle, "SETTLE_SECONDS", 0.0)


def own_certificate(store: Store, holder: str = "pod-0", clock: Clock | None = None) -> OwnCertificate:
    return OwnCertificate(store, "mailproxy-operator", server_context(), holder=holder, now=clock or Clock())


async def test_ca_bundle_is_written_once() -> None:
    store = Store(SERVICE, {**SERVICE, "caBundle": "Cg=="})
    certificate = own_certificate(store)
    assert not certificate.is_ready
    assert await certificate.refresh()
    assert certificate.is_ready
    assert has_authorities(store.bundle(0), certificate.authority)
    assert has_authorities(store.bundle(1), certificate.authority)
    assert await certificate.refresh()
    assert store.patches == 1


async def test_ca_bundle_keeps_cas_of_other_processes() -> None:
    store = Store(SERVICE)
    first, second = own_certificate(store, "pod-0"), own_certificate(store, "pod-1")
    assert await first.refresh()
    assert await second.refresh()
    assert has_authorities(store.bundle(), first.authority)
    assert has_authorities(store.bundle(), second.authority)


async def test_concurrent_write_of_ca_bundle_is_retried() -> None:
    store = Store(SERVICE)
    faster = issue(["hook.system.svc"], "pod-1", datetime.now(UTC)).authority
    store.others = [base64.b64encode(faster.encode()).decode()]
    certificate = own_certificate(store)
    assert not await certificate.refresh()
    assert not certificate.is_ready
    assert await certificate.refresh()
    assert has_authorities(store.bundle(), faster)
    assert has_authorities(store.bundle(), certificate.authority)


async def test_removed_ca_is_written_again() -> None:
    store = Store(SERVICE)
    certificate = own_certificate(store)
    await certificate.refresh()
    del store.webhooks[0]["clientConfig"]["caBundle"]
    assert await certificate.refresh()
    assert has_authorities(store.bundle(), certificate.authority)


async def test_renewal_keeps_previous_ca() -> None:
    store, clock = Store(SERVICE), Clock()
    certificate = own_certificate(store, clock=clock)
    await certificate.refresh()
    before = certificate.authority
    clock.now += LIFETIME - timedelta(days=1)
    await certificate.refresh()
    assert certificate.authority != before
    assert has_authorities(store.bundle(), before)
    assert has_authorities(store.bundle(), certificate.authority)


async def test_changed_service_name_gets_new_certificate() -> None:
    store = Store(SERVICE)
    certificate = own_certificate(store)
    await certificate.refresh()
    before = certificate.authority
    store.webhooks[0]["clientConfig"]["service"] = {"name": "other", "namespace": "system"}
    await certificate.refresh()
    assert certificate.authority != before


@pytest.mark.parametrize("store", [Store(), Store({"caBundle": ""})])
async def test_own_certificate_is_not_ready_without_configuration(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = own_certificate(store)
    assert not await certificate.refresh()
    assert not certificate.is_ready
    assert "no MutatingWebhookConfiguration mailproxy-operator" in caplog.text


async def test_api_error_is_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, pauses = Store(SERVICE), []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        store.fails = False
        if len(pauses) == 4:
            raise TimeoutError

    monkeypatch.setattr("mailproxy_operator.sidecar.ca_bundle.asyncio.sleep", pause)
    store.fails = True
    with pytest.raises(TimeoutError):
        await own_certificate(store).keep()
    assert pauses == [
        ca_bundle.RETRY_SECONDS,
        ca_bundle.SETTLE_SECONDS,
        ca_bundle.CHECK_SECONDS,
        ca_bundle.CHECK_SECONDS,
    ]
    assert "not now" in caplog.text


@pytest.mark.parametrize(
    ("clients", "names"),
    [
        ([SERVICE, SERVICE], {"hook.system.svc"}),
        ([{"url": "https://127.0.0.1:9443/inject"}, {"url": "https://[::1]/x"}], {"127.0.0.1", "::1"}),
        ([{}], set()),
    ],
)
def test_webhook_hosts_come_from_configuration(clients: list[Any], names: set[str]) -> None:
    assert webhook_hosts({"webhooks": [{"clientConfig": client} for client in clients]}) == names


# --- certificates that are given -------------------------------------------------


def write(folder: Path, holder: str) -> None:
    made = issue(["localhost"], holder, datetime.now(UTC))
    (folder / "tls.crt").write_bytes(made.certificate)
    (folder / "tls.key").write_bytes(made.key)


def test_replaced_mounted_certificate_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    certificate = MountedCertificate(tmp_path, server_context())
    certificate.refresh()
    assert not certificate.is_ready
    write(tmp_path, "a")
    certificate.refresh()
    assert certificate.is_ready
    certificate.refresh()
    write(tmp_path, "b")
    certificate.refresh()
    assert caplog.text.count("the webhook uses the certificate") == 2


def test_invalid_mounted_certificate_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a")
    certificate = MountedCertificate(tmp_path, server_context())
    certificate.refresh()
    (tmp_path / "tls.key").write_text("not a key")
    certificate.refresh()
    assert certificate.is_ready
    assert "SSLError" in caplog.text


def company_ca(name: str = "company") -> str:
    """A certificate of a corporate certificate authority, valid for ten years."""
    ca = trustme.CA(organization_name=name)
    return ca.cert_pem.bytes().decode()


def mounted_certificate(store: Store, authorities: str, folder: Path) -> MountedCertificate:
    return MountedCertificate(
        folder, server_context(), GivenAuthority(store, "mailproxy-operator", authorities)
    )


async def refresh_all(certificate: MountedCertificate) -> bool:
    certificate.refresh()
    return await certificate.refresh_bundle()


async def test_mounted_certificate_is_ready_when_ca_bundle_has_its_ca(tmp_path: Path) -> None:
    store, authority = Store(SERVICE, SERVICE), company_ca()
    write(tmp_path, "a")
    certificate = mounted_certificate(store, authority, tmp_path)
    certificate.refresh()
    assert not certificate.is_ready
    assert await refresh_all(certificate)
    assert certificate.is_ready
    assert has_authorities(store.bundle(0), authority)
    assert has_authorities(store.bundle(1), authority)
    assert await refresh_all(certificate)
    assert store.patches == 1


async def test_ca_bundle_has_both_cas_during_switch(tmp_path: Path) -> None:
    """In a rollout, operators with their own certificate serve until those with the Secret's are ready."""
    store, authority = Store(SERVICE), company_ca()
    own = own_certificate(store)
    await own.refresh()
    write(tmp_path, "a")
    assert await refresh_all(mounted_certificate(store, authority, tmp_path))
    assert has_authorities(store.bundle(), own.authority)
    assert has_authorities(store.bundle(), authority)
    # and the same in reverse
    again = own_certificate(store, "pod-2")
    await again.refresh()
    assert has_authorities(store.bundle(), authority)
    assert has_authorities(store.bundle(), again.authority)


async def test_previous_ca_is_removed_at_next_renewal() -> None:
    store, clock, authority = Store(SERVICE), Clock(), company_ca()
    store.webhooks[0]["clientConfig"]["caBundle"] = base64.b64encode(authority.encode()).decode()
    certificate = own_certificate(store, clock=clock)
    await certificate.refresh()
    assert has_authorities(store.bundle(), authority)
    clock.now += LIFETIME - timedelta(days=1)
    await certificate.refresh()
    assert not has_authorities(store.bundle(), authority)
    assert has_authorities(store.bundle(), certificate.authority)


async def test_several_given_cas_are_written(tmp_path: Path) -> None:
    """As during the renewal of a certificate authority."""
    store, both = Store(SERVICE), company_ca() + company_ca("next")
    write(tmp_path, "a")
    assert await refresh_all(mounted_certificate(store, both, tmp_path))
    assert has_authorities(store.bundle(), both)


async def test_api_error_after_success_keeps_webhook_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(SERVICE)
    write(tmp_path, "a")
    certificate = mounted_certificate(store, company_ca(), tmp_path)
    store.fails = True
    assert not await refresh_all(certificate)
    assert not certificate.is_ready
    store.fails = False
    assert await refresh_all(certificate)
    store.fails = True
    assert not await refresh_all(certificate)
    assert certificate.is_ready
    assert "not now" in caplog.text


async def test_mounted_certificate_is_not_ready_without_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a")
    certificate = mounted_certificate(Store(), company_ca(), tmp_path)
    assert not await refresh_all(certificate)
    assert not certificate.is_ready
    assert "no MutatingWebhookConfiguration" in caplog.text
