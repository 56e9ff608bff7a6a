# SPDX-License-Identifier: Apache-2.0
"""Secrets that ``sslCertificateSelector`` selects: mounts, order, changes, permissions, reports of pods."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import CONFIG_MAP, DEPLOYMENT
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller.reconciler import Outcome, Reconciler
from mailproxy_operator.errors import TerminalError, TransientError
from mailproxy_operator.reasons import Reason
from mailproxy_operator.render import selected
from mailproxy_operator.settings import Platform
from support.operator_bodies import body
from support.operator_cluster import MemoryCluster

EDGE = Key("mail", "edge")
SPEC: dict[str, Any] = {
    "mail": {
        "authHttp": "http://auth.mail.svc:9000/auth",
        "sslCertificate": [{"secretName": "default-tls"}],
        "sslCertificateSelector": {"matchLabels": {"mail": "yes"}},
    },
    "servers": [{"name": "imap", "listen": [{"port": 993, "ssl": True}]}],
}


class World:
    """A cluster with Secrets, and a reconciler."""

    def __init__(self, **spec: Any) -> None:
        self.cluster = MemoryCluster()
        self.cluster.put(body(**{**SPEC, **spec}))
        self.reconciler = Reconciler(
            self.cluster,
            Platform(kube_version=KubeVersion(1, 36)),
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )

    def secret(
        self, name: str, created: str = "2026-01-01T00:00:00Z", namespace: str = "mail", **labels: str
    ) -> None:
        found = {"name": name, "namespace": namespace, "creationTimestamp": created}
        self.cluster.secrets.append({**found, "labels": labels or {"mail": "yes"}})

    async def reconcile(self) -> Outcome:
        return await self.reconciler.reconcile(EDGE)

    async def settle(self, *certificates: str) -> Outcome:
        await self.reconcile()
        self.cluster.roll_out("edge")
        outcome = await self.reconcile()
        self.cluster.report_config(outcome.status["configHash"], certificates=certificates)
        return await self.reconcile()

    def mounted(self) -> dict[str, list[str]]:
        """The paths of each Secret in the volume of references."""
        template = self.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]["spec"]
        (refs,) = [one for one in template["volumes"] if one["name"] == "refs"]
        return {
            source["secret"]["name"]: [item["path"] for item in source["secret"]["items"]]
            for source in refs["projected"]["sources"]
        }

    def message(self, kind: str) -> str:
        status = self.cluster.found_status("edge")
        return str(next(one["message"] for one in status["conditions"] if one["type"] == kind))


@pytest.fixture
def world() -> World:
    return World()


async def test_selected_secrets_are_mounted_below_the_directory_of_the_configuration(world: World) -> None:
    world.secret("b-tls", "2026-02-01T10:00:00Z")
    world.secret("a-tls", "2026-03-01T10:00:00Z")
    world.secret("other", mail="no")
    world.secret("elsewhere", namespace="default")
    await world.settle()
    config = json.loads(world.cluster.found(CONFIG_MAP, "edge-config")["data"]["mailproxy.json"])["config"]
    directory = config["servers"][0]["ssl_certificate_selector"].removeprefix("/etc/mailproxy-refs/")
    assert world.mounted() == {
        "default-tls": ["secrets/default-tls/tls.crt", "secrets/default-tls/tls.key"],
        "b-tls": [f"{directory}/20260201T100000Z-b-tls/{key}" for key in ("tls.crt", "tls.key")],
        "a-tls": [f"{directory}/20260301T100000Z-a-tls/{key}" for key in ("tls.crt", "tls.key")],
    }


async def test_selected_secrets_are_optional_and_others_are_not(world: World) -> None:
    world.secret("a-tls")
    await world.reconcile()
    template = world.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]["spec"]
    (refs,) = [one for one in template["volumes"] if one["name"] == "refs"]
    assert [source["secret"].get("optional", False) for source in refs["projected"]["sources"]] == [
        False,
        True,
    ]


async def test_new_secret_is_mounted_after_the_next_list(world: World) -> None:
    outcome = await world.settle()
    assert outcome.again_after == 60.0
    assert "no Secret of type kubernetes.io/tls has these labels" in world.message("Accepted")
    world.secret("a-tls")
    await world.settle()
    assert "a-tls" in world.mounted()
    world.cluster.secrets.clear()
    await world.settle()
    assert "a-tls" not in world.mounted()


async def test_resource_without_selector_lists_no_secrets() -> None:
    world = World(
        mail={"authHttp": "http://auth.mail.svc:9000/auth", "sslCertificate": [{"secretName": "x"}]}
    )
    outcome = await world.settle()
    assert world.cluster.listed_secrets == 0
    assert outcome.again_after is None


async def test_selector_of_server_without_tls_lists_no_secrets() -> None:
    world = World(servers=[{"name": "imap", "listen": [{"port": 143}]}])
    await world.reconcile()
    assert world.cluster.listed_secrets == 0


@pytest.mark.parametrize(
    ("failure", "condition"),
    [
        (
            TerminalError("the list of secrets: forbidden", Reason.FORBIDDEN),
            ("Accepted", "False", "Forbidden"),
        ),
        (TransientError("no response"), ("Reconciling", "True", "Retrying")),
    ],
)
async def test_failed_list_keeps_what_is_mounted(
    world: World, failure: Exception, condition: tuple[str, str, str]
) -> None:
    world.secret("a-tls")
    await world.settle()
    world.cluster.failures["Secret"] = failure
    await world.reconcile()
    kind, status, reason = condition
    assert world.cluster.condition("edge", kind) == (status, reason)
    assert "a-tls" in world.mounted()
    if reason == "Forbidden":
        assert "rbac.listSecrets" in world.message(kind)


async def test_number_of_mounted_secrets_is_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selected, "MAX_SELECTED", 2)
    for number in (3, 1, 2):
        world.secret(f"t{number}", f"2026-01-0{number}T00:00:00Z")
    await world.settle()
    assert list(world.mounted()) == ["default-tls", "t1", "t2"]
    assert "3 Secrets, of which the oldest 2 are mounted" in world.message("Accepted")


BROKEN = (
    'servers[imap].ssl_certificate_selector: cannot load certificate "/x/20260101T000000Z-a-tls/tls.crt" '
    "with key"
)
TAKEN = (
    'servers[imap].ssl_certificate: certificate "/x/b/tls.crt" is not used for a.example: "/x/a/tls.crt" '
    "comes first"
)


async def test_certificate_that_does_not_load_is_named_by_the_condition(world: World) -> None:
    world.secret("a-tls")
    await world.settle(BROKEN, TAKEN)
    assert world.cluster.condition("edge", "ResolvedRefs") == ("False", "InvalidCertificate")
    assert "a-tls/tls.crt" in world.message("ResolvedRefs")
    events = [(one["type"], one["reason"]) for one in world.cluster.events if "NotUsed" in one["reason"]]
    assert events == [("Warning", "CertificateNotUsed")] * 2
    await world.reconcile()
    assert len([one for one in world.cluster.events if "NotUsed" in one["reason"]]) == 2


async def test_two_secrets_with_one_name_are_an_event_and_not_a_failure(world: World) -> None:
    world.secret("a-tls")
    await world.settle(TAKEN)
    assert world.cluster.condition("edge", "ResolvedRefs") == ("True", "ResolvedRefs")
    assert world.cluster.condition("edge") == ("True", "Ready")
    (event,) = [one for one in world.cluster.events if one["reason"] == "CertificateNotUsed"]
    assert event["note"] == TAKEN


def test_label_selector_needs_pods_of_the_operator() -> None:
    from mailproxy_config.errors import ConfigError
    from mailproxy_config.manifest import parse_manifest

    with pytest.raises(ConfigError, match="matchLabels needs mode Deployment or DaemonSet"):
        parse_manifest(body(**SPEC, mode="Sidecar"))
