# SPDX-License-Identifier: Apache-2.0
"""BackendTLSPolicies in the reconcile: what is rendered, mounted, reported, and written into the policies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import BACKEND_TLS_POLICY, CONFIG_MAP, DEPLOYMENT, MAIL_PROXY, POLICIES
from mailproxy_operator.controller.reconciler import UNRESOLVED_SECONDS, Reconciler
from mailproxy_operator.settings import Platform
from mailproxy_operator.sidecar.admission import Admission, AdmissionRequest
from support.backend_tls import REF, config_map, policy
from support.operator_bodies import body, server
from support.operator_cluster import MemoryCluster

EDGE: Final = Key("mail", "edge")
NAME: Final = "imap.example.com"
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
FOREIGN: Final = {"ancestorRef": {"name": "x"}, "controllerName": "example.org/gw", "conditions": []}


class World:
    """A MailProxy whose mail server is the Service ``dovecot``."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.reconciler = Reconciler(self.cluster, Platform(), now=lambda: NOW)

    def put(self, *servers: Any, **mail: Any) -> None:
        values = {"proxySsl": "Starttls", "proxySslService": {"name": "dovecot"}, **mail}
        wanted = {key: value for key, value in values.items() if value is not None}
        spec: dict[str, Any] = {"servers": list(servers)} if servers else {}
        self.cluster.put(body(replicas=1, mail={"authHttp": "http://auth/", **wanted}, **spec))

    async def reconcile(self) -> Any:
        return await self.reconciler.reconcile(EDGE)

    def rendered(self, position: int = 0) -> Any:
        """Return the configuration of a server."""
        data = self.cluster.found(CONFIG_MAP, "edge-config")["data"]["mailproxy.json"]
        return json.loads(data)["config"]["servers"][position]

    def mounted(self) -> list[Any]:
        volumes = self.cluster.found(DEPLOYMENT, "edge")["spec"]["template"]["spec"]["volumes"]
        return next((one["projected"]["sources"] for one in volumes if "projected" in one), [])

    def ancestors(self, name: str = "dovecot") -> list[Any]:
        found = self.cluster.found(BACKEND_TLS_POLICY, name)
        listed: list[Any] = (found.get("status") or {}).get("ancestors", [])
        return listed

    def reported(self, name: str = "dovecot") -> dict[str, str]:
        """Return the reasons that the operator has written into a policy."""
        [entry] = [one for one in self.ancestors(name) if one["controllerName"] == "mailproxy.dev/operator"]
        return {one["type"]: one["reason"] for one in entry["conditions"]}

    def message(self, kind: str) -> str:
        conditions = self.cluster.found_status("edge")["conditions"]
        return str(next(one["message"] for one in conditions if one["type"] == kind))


@pytest.fixture
def world() -> World:
    return World()


async def test_policy_sets_name_and_authorities(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put(policy())
    await world.reconcile()
    found = world.rendered()
    assert found["proxy_ssl_name"] == NAME
    assert found["proxy_ssl_trusted_certificate"] == "/etc/mailproxy-refs/configmaps/mail-ca/ca.crt"
    [source] = world.mounted()
    assert source["configMap"]["name"] == "mail-ca"
    assert world.reported() == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}


async def test_reconcile_without_a_change_writes_nothing(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put(policy())
    await world.reconcile()
    world.cluster.roll_out("edge")
    await world.reconcile()
    world.cluster.calls.clear()
    await world.reconcile()
    assert world.cluster.calls == []


async def test_directive_of_the_resource_wins(world: World) -> None:
    own = {"secretKeyRef": {"name": "own", "key": "ca"}}
    world.put(proxySslName="mine.example", proxySslTrustedCertificate=own)
    world.cluster.put(config_map())
    world.cluster.put(policy())
    await world.reconcile()
    found = world.rendered()
    assert found["proxy_ssl_name"] == "mine.example"
    assert found["proxy_ssl_trusted_certificate"] == "/etc/mailproxy-refs/secrets/own/ca"
    assert [list(source) for source in world.mounted()] == [["secret"]]


async def test_system_authorities_are_those_of_the_image(world: World) -> None:
    world.put()
    world.cluster.put(policy(caCertificateRefs=None, wellKnownCACertificates="System"))
    await world.reconcile()
    assert world.rendered()["proxy_ssl_name"] == NAME
    assert world.rendered()["proxy_ssl_trusted_certificate"] is None
    assert world.mounted() == []


async def test_secret_is_mounted_and_never_read(world: World) -> None:
    world.put()
    world.cluster.put(policy(caCertificateRefs=[{**REF, "kind": "Secret", "name": "private-ca"}]))
    await world.reconcile()
    assert world.mounted()[0]["secret"]["name"] == "private-ca"
    assert world.reported() == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}


async def test_each_server_has_the_policy_of_its_own_service(world: World) -> None:
    world.put(
        server("imap", "imap", 143),
        server("pop3", "pop3", 110, proxySslService={"name": "cyrus", "port": "pop3"}),
        server("smtp", "smtp", 25, proxySsl="Disabled"),
    )
    world.cluster.put(config_map())
    world.cluster.put(policy())
    world.cluster.put(policy("cyrus", service="cyrus", port="pop3", hostname="pop.example.com"))
    await world.reconcile()
    assert [world.rendered(position)["proxy_ssl_name"] for position in (0, 1)] == [NAME, "pop.example.com"]
    assert (
        world.reported("cyrus")
        == world.reported()
        == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
    )


async def test_older_policy_wins_and_the_other_is_in_conflict(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put(policy("newer", created="2026-02-01T00:00:00Z", hostname="newer.example"))
    world.cluster.put(policy("older"))
    await world.reconcile()
    assert world.rendered()["proxy_ssl_name"] == NAME
    assert world.reported("newer")["Accepted"] == "Conflicted"
    assert world.reported("older")["Accepted"] == "Accepted"
    assert world.cluster.condition("edge", "ResolvedRefs")[1] != "InvalidBackendTLSPolicy"


async def test_missing_config_map_is_reported_and_stays_mounted(world: World) -> None:
    """New pods wait for it, pods that run keep the files that they have."""
    world.put()
    world.cluster.put(policy())
    outcome = await world.reconcile()
    assert world.reported() == {
        "Accepted": "NoValidCACertificate",
        "ResolvedRefs": "InvalidCACertificateRef",
    }
    assert world.cluster.condition("edge", "ResolvedRefs") == ("False", "InvalidBackendTLSPolicy")
    assert world.mounted()[0]["configMap"]["name"] == "mail-ca"
    assert outcome.again_after == UNRESOLVED_SECONDS
    world.cluster.put(config_map())
    await world.reconcile()
    assert world.reported() == {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
    assert world.cluster.condition("edge", "ResolvedRefs")[1] != "InvalidBackendTLSPolicy"


async def test_policy_without_tls_is_a_finding(world: World) -> None:
    world.put(proxySsl=None)
    world.cluster.put(config_map())
    world.cluster.put(policy())
    await world.reconcile()
    assert world.reported()["Accepted"] == "Invalid"
    assert world.cluster.condition("edge", "ResolvedRefs") == ("False", "InvalidBackendTLSPolicy")
    assert "proxySsl of server imap is Disabled" in world.message("ResolvedRefs")
    assert world.mounted() == []


async def test_policy_that_cannot_be_used_sets_nothing(world: World) -> None:
    world.put()
    world.cluster.put(policy(subjectAltNames=[{"type": "URI", "uri": "spiffe://a/b"}]))
    await world.reconcile()
    assert world.rendered()["proxy_ssl_name"] == ""
    assert world.reported()["Accepted"] == "Invalid"


@pytest.mark.parametrize(
    ("has_policies", "policies", "notice"),
    [
        (False, [], "the cluster has no BackendTLSPolicy"),
        (True, [], "no BackendTLSPolicy is for Service dovecot"),
        (True, [policy(port="imap")], "there are policies for its ports imap: set proxySslService.port"),
        (True, [policy(namespace="other")], "no BackendTLSPolicy is for Service dovecot"),
    ],
)
async def test_service_without_a_policy_is_a_notice(
    world: World, has_policies: bool, policies: list[Any], notice: str
) -> None:
    world.cluster.has_policies = has_policies
    for one in policies:
        world.cluster.put(one)
    world.put()
    await world.reconcile()
    assert notice in world.message("Accepted")
    assert world.cluster.condition("edge", "Accepted") == ("True", "Accepted")
    assert world.rendered()["proxy_ssl_name"] == ""


async def test_verification_that_is_off_is_a_notice(world: World) -> None:
    world.put(proxySslVerify=False)
    world.cluster.put(config_map())
    world.cluster.put(policy())
    await world.reconcile()
    assert "proxySslVerify is false" in world.message("Accepted")


async def test_entry_is_removed_when_the_policy_no_longer_applies(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put({**policy(), "status": {"ancestors": [FOREIGN]}})
    await world.reconcile()
    assert len(world.ancestors()) == 2
    world.put(proxySslService=None)
    await world.reconcile()
    assert world.ancestors() == [FOREIGN]
    assert world.rendered()["proxy_ssl_name"] == ""


async def test_entry_is_removed_when_the_resource_is_deleted(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put({**policy(), "status": {"ancestors": [FOREIGN]}})
    await world.reconcile()
    del world.cluster.objects[MAIL_PROXY, EDGE]
    assert (await world.reconcile()).is_gone
    assert world.ancestors() == [FOREIGN]


async def test_full_list_of_ancestors_is_not_extended(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put({**policy(), "status": {"ancestors": [FOREIGN] * 16}})
    await world.reconcile()
    assert world.ancestors() == [FOREIGN] * 16
    assert "status.ancestors of the policy is full" in world.message("ResolvedRefs")


async def test_paused_resource_leaves_policies_unchanged(world: World) -> None:
    world.cluster.put(
        body(paused=True, mail={"authHttp": "http://a/", "proxySslService": {"name": "dovecot"}})
    )
    world.cluster.put(policy())
    await world.reconcile()
    assert world.ancestors() == []


async def test_older_version_of_the_kind_is_used_too(world: World) -> None:
    world.put()
    world.cluster.put(config_map())
    world.cluster.put(policy(version="v1alpha3"))
    await world.reconcile()
    assert world.rendered()["proxy_ssl_name"] == NAME
    [stored] = [one for (kind, _), one in world.cluster.objects.items() if kind in POLICIES]
    assert stored["status"]["ancestors"][0]["ancestorRef"]["name"] == "edge"


async def test_sidecar_gets_the_files_of_the_policy(world: World) -> None:
    world.put()
    made = world.cluster.found(MAIL_PROXY, "edge")
    world.cluster.put({**made, "spec": {**made["spec"], "mode": "Sidecar"}})
    world.cluster.put(config_map())
    world.cluster.put(policy())

    async def platform() -> Platform:
        return Platform()

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "dovecot-0", "namespace": "mail", "labels": {"mailproxy.dev/inject": "edge"}},
        "spec": {"containers": [{"name": "dovecot", "image": "dovecot"}]},
    }
    admission = Admission(world.cluster, platform)
    decision = await admission.review(AdmissionRequest.read(pod, "mail", dry_run=False))
    assert decision.pod is not None
    assert "mail-ca" in json.dumps(decision.pod["spec"]["volumes"])
