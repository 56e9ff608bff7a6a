# SPDX-License-Identifier: Apache-2.0
"""The webhook's configuration trusts every operator process; none removes another's certificate."""

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
from mailproxy_operator.sidecar.ca_bundle import GivenAuthority, MountedCertificate, OwnCertificate, called_as
from mailproxy_operator.sidecar.certificate import LIFETIME, issue, server_context, trusts

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
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_bundle, "SETTLE_SECONDS", 0.0)


def keeper(store: Store, holder: str = "pod-0", clock: Clock | None = None) -> OwnCertificate:
    return OwnCertificate(store, "mailproxy-operator", server_context(), holder=holder, now=clock or Clock())


def current(one: OwnCertificate) -> str:
    assert one._identity is not None
    return one._identity.authority


async def test_the_api_server_is_told_whom_to_trust_once() -> None:
    store = Store(SERVICE, {**SERVICE, "caBundle": "Cg=="})
    one = keeper(store)
    assert not one.is_ready
    assert await one.refresh()
    assert one.is_ready
    assert trusts(store.bundle(0), current(one))
    assert trusts(store.bundle(1), current(one))
    assert await one.refresh()
    assert store.patches == 1


async def test_several_processes_do_not_forget_each_other() -> None:
    store = Store(SERVICE)
    first, second = keeper(store, "pod-0"), keeper(store, "pod-1")
    assert await first.refresh()
    assert await second.refresh()
    assert trusts(store.bundle(), current(first))
    assert trusts(store.bundle(), current(second))


async def test_who_was_slower_looks_again() -> None:
    store = Store(SERVICE)
    faster = issue(["hook.system.svc"], "pod-1", datetime.now(UTC)).authority
    store.others = [base64.b64encode(faster.encode()).decode()]
    one = keeper(store)
    assert not await one.refresh()
    assert not one.is_ready
    assert await one.refresh()
    assert trusts(store.bundle(), faster)
    assert trusts(store.bundle(), current(one))


async def test_what_somebody_removes_comes_back() -> None:
    store = Store(SERVICE)
    one = keeper(store)
    await one.refresh()
    del store.webhooks[0]["clientConfig"]["caBundle"]
    assert await one.refresh()
    assert trusts(store.bundle(), current(one))


async def test_it_is_renewed_in_time_and_trusted_all_the_while() -> None:
    store, clock = Store(SERVICE), Clock()
    one = keeper(store, clock=clock)
    await one.refresh()
    before = current(one)
    clock.now += LIFETIME - timedelta(days=1)
    await one.refresh()
    assert current(one) != before
    assert trusts(store.bundle(), before)
    assert trusts(store.bundle(), current(one))


async def test_another_service_gets_another_certificate() -> None:
    store = Store(SERVICE)
    one = keeper(store)
    await one.refresh()
    before = current(one)
    store.webhooks[0]["clientConfig"]["service"] = {"name": "other", "namespace": "system"}
    await one.refresh()
    assert current(one) != before


@pytest.mark.parametrize("store", [Store(), Store({"caBundle": ""})])
async def test_without_a_configuration_nobody_is_ready(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    one = keeper(store)
    assert not await one.refresh()
    assert not one.is_ready
    assert "no MutatingWebhookConfiguration mailproxy-operator" in caplog.text


async def test_an_api_server_that_fails_is_asked_again(
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
        await keeper(store).keep()
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
def test_the_names_are_those_of_the_configuration(clients: list[Any], names: set[str]) -> None:
    assert called_as({"webhooks": [{"clientConfig": client} for client in clients]}) == names


# --- certificates that are given -------------------------------------------------


def write(folder: Path, holder: str) -> None:
    made = issue(["localhost"], holder, datetime.now(UTC))
    (folder / "tls.crt").write_bytes(made.certificate)
    (folder / "tls.key").write_bytes(made.key)


def test_a_mounted_certificate_is_used_and_so_is_its_successor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = MountedCertificate(tmp_path, server_context())
    one.refresh()
    assert not one.is_ready
    write(tmp_path, "a")
    one.refresh()
    assert one.is_ready
    one.refresh()
    write(tmp_path, "b")
    one.refresh()
    assert caplog.text.count("the webhook answers with") == 2


def test_a_broken_successor_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a")
    one = MountedCertificate(tmp_path, server_context())
    one.refresh()
    (tmp_path / "tls.key").write_text("not a key")
    one.refresh()
    assert one.is_ready
    assert "SSLError" in caplog.text


def lasting_authority(name: str = "company") -> str:
    """A certificate of a corporate certificate authority, valid for ten years."""
    ca = trustme.CA(organization_name=name)
    return ca.cert_pem.bytes().decode()


def given(store: Store, authorities: str, folder: Path) -> MountedCertificate:
    return MountedCertificate(
        folder, server_context(), GivenAuthority(store, "mailproxy-operator", authorities)
    )


async def refreshed(one: MountedCertificate) -> bool:
    one.refresh()
    return await one._trusted()


async def test_a_mounted_certificate_is_ready_when_its_authority_is_trusted(tmp_path: Path) -> None:
    store, authority = Store(SERVICE, SERVICE), lasting_authority()
    write(tmp_path, "a")
    one = given(store, authority, tmp_path)
    one.refresh()
    assert not one.is_ready
    assert await refreshed(one)
    assert one.is_ready
    assert trusts(store.bundle(0), authority)
    assert trusts(store.bundle(1), authority)
    assert await refreshed(one)
    assert store.patches == 1


async def test_another_certificate_is_switched_to_while_both_are_trusted(tmp_path: Path) -> None:
    """In a rollout, operators with their own certificate serve until those with the Secret's are ready."""
    store, authority = Store(SERVICE), lasting_authority()
    own = keeper(store)
    await own.refresh()
    write(tmp_path, "a")
    assert await refreshed(given(store, authority, tmp_path))
    assert trusts(store.bundle(), current(own))
    assert trusts(store.bundle(), authority)
    # and the same in reverse
    again = keeper(store, "pod-2")
    await again.refresh()
    assert trusts(store.bundle(), authority)
    assert trusts(store.bundle(), current(again))


async def test_an_authority_that_was_switched_from_goes_with_the_next_renewal() -> None:
    store, clock, authority = Store(SERVICE), Clock(), lasting_authority()
    store.webhooks[0]["clientConfig"]["caBundle"] = base64.b64encode(authority.encode()).decode()
    one = keeper(store, clock=clock)
    await one.refresh()
    assert trusts(store.bundle(), authority)
    clock.now += LIFETIME - timedelta(days=1)
    await one.refresh()
    assert not trusts(store.bundle(), authority)
    assert trusts(store.bundle(), current(one))


async def test_several_given_authorities_are_trusted_together(tmp_path: Path) -> None:
    """As during the renewal of a certificate authority."""
    store, both = Store(SERVICE), lasting_authority() + lasting_authority("next")
    write(tmp_path, "a")
    assert await refreshed(given(store, both, tmp_path))
    assert trusts(store.bundle(), both)


async def test_who_is_trusted_goes_on_answering_while_the_api_server_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(SERVICE)
    write(tmp_path, "a")
    one = given(store, lasting_authority(), tmp_path)
    store.fails = True
    assert not await refreshed(one)
    assert not one.is_ready
    store.fails = False
    assert await refreshed(one)
    store.fails = True
    assert not await refreshed(one)
    assert one.is_ready
    assert "not now" in caplog.text


async def test_an_authority_without_a_configuration_is_not_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a")
    one = given(Store(), lasting_authority(), tmp_path)
    assert not await refreshed(one)
    assert not one.is_ready
    assert "no MutatingWebhookConfiguration" in caplog.text
