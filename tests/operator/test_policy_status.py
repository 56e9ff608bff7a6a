# SPDX-License-Identifier: Apache-2.0
"""The operator with an API server: events of policies, their status, and clusters without the kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from mailproxy_operator.api.client import KubeClient, api_client
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.credentials import Configuration
from mailproxy_operator.api.kinds import BACKEND_TLS_POLICY, CONFIG_MAP, MAIL_PROXY, POLICIES
from mailproxy_operator.errors import TransientError
from support.backend_tls import config_map, policy
from support.operator_bodies import body
from support.operator_fakekube import FakeKube
from support.operator_running import running, until

MAIL: Final = {
    "authHttp": "http://auth/",
    "proxySsl": "Starttls",
    "proxySslService": {"name": "dovecot"},
}
FOREIGN: Final = {"ancestorRef": {"name": "x"}, "controllerName": "example.org/gw", "conditions": []}


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with FakeKube() as made:
        yield made


def rendered(kube: FakeKube) -> str:
    found = kube.find(CONFIG_MAP, "edge-config")
    return str(found["data"]["mailproxy.json"]) if found else ""


def accepted(kube: FakeKube, name: str = "dovecot") -> Any:
    """Return the reason of ``Accepted`` in each entry of a policy."""
    found = kube.found(BACKEND_TLS_POLICY, name)
    return [
        one["conditions"][0]["reason"]
        for one in (found.get("status") or {}).get("ancestors", [])
        if one["conditions"]
    ]


def message(kube: FakeKube, kind: str = "Accepted") -> str:
    conditions = (kube.found(MAIL_PROXY, "edge").get("status") or {}).get("conditions", [])
    return next((str(one["message"]) for one in conditions if one["type"] == kind), "")


async def test_policy_is_followed_from_creation_to_deletion(kube: FakeKube) -> None:
    kube.put(config_map())
    kube.put(body(mail=MAIL))
    async with running(kube):
        await until(lambda: "no BackendTLSPolicy is for Service dovecot" in message(kube))
        kube.put({**policy(), "status": {"ancestors": [FOREIGN]}})
        await until(lambda: "imap.example.com" in rendered(kube))
        await until(lambda: accepted(kube) == ["Accepted"])
        kube.put(
            {
                **policy(hostname="new.example.com"),
                "status": kube.found(BACKEND_TLS_POLICY, "dovecot")["status"],
            }
        )
        await until(lambda: "new.example.com" in rendered(kube))
        kube.remove(BACKEND_TLS_POLICY, "dovecot")
        await until(lambda: "new.example.com" not in rendered(kube))


async def test_entry_of_deleted_resource_is_removed_and_those_of_others_stay(kube: FakeKube) -> None:
    kube.put(config_map())
    kube.put(body(mail=MAIL))
    kube.put({**policy(), "status": {"ancestors": [FOREIGN]}})
    async with running(kube):
        await until(lambda: accepted(kube) == ["Accepted"])
        kube.remove(MAIL_PROXY, "edge")
        await until(lambda: kube.found(BACKEND_TLS_POLICY, "dovecot")["status"]["ancestors"] == [FOREIGN])


async def test_entry_of_resource_that_was_deleted_while_the_operator_was_away(kube: FakeKube) -> None:
    entry = {
        "ancestorRef": {"group": "mailproxy.dev", "kind": "MailProxy", "namespace": "mail", "name": "gone"},
        "controllerName": "mailproxy.dev/operator",
        "conditions": [],
    }
    kube.put({**policy(), "status": {"ancestors": [entry, FOREIGN]}})
    async with running(kube):
        await until(lambda: kube.found(BACKEND_TLS_POLICY, "dovecot")["status"]["ancestors"] == [FOREIGN])


async def test_cluster_without_the_kind_works_and_the_condition_has_it(kube: FakeKube) -> None:
    kube.missing |= set(POLICIES)
    kube.put(body(mail=MAIL))
    async with running(kube):
        await until(lambda: "the cluster has no BackendTLSPolicy" in message(kube))
        assert rendered(kube)


async def test_status_written_by_another_at_the_same_time_is_not_overwritten(kube: FakeKube) -> None:
    stale = kube.put(policy())
    kube.put({**policy(), "status": {"ancestors": [FOREIGN]}})
    async with api_client(Configuration(host=kube.url)) as api, aiohttp.ClientSession() as pods:
        cluster = KubeClient(api, pods)
        with pytest.raises(TransientError):
            await cluster.write_ancestors(stale, [])
        [current] = await cluster.policies("mail") or []
        assert current["status"]["ancestors"] == [FOREIGN]
        await cluster.write_ancestors(current, [])
        [current] = await cluster.policies("mail") or []
        assert current["status"]["ancestors"] == []
        kube.remove(BACKEND_TLS_POLICY, "dovecot")
        await cluster.write_ancestors(current, [FOREIGN])  # it was deleted meanwhile


async def test_keys_of_a_config_map(kube: FakeKube) -> None:
    kube.put({**config_map(), "binaryData": {"more": "AA=="}})
    async with api_client(Configuration(host=kube.url)) as api, aiohttp.ClientSession() as pods:
        cluster = KubeClient(api, pods)
        assert await cluster.config_map_keys(Key("mail", "mail-ca")) == {"ca.crt", "more"}
        assert await cluster.config_map_keys(Key("mail", "absent")) is None
        kube.faults.append(lambda _: web.json_response({"message": "no"}, status=500))
        with pytest.raises(TransientError):
            await cluster.config_map_keys(Key("mail", "mail-ca"))
