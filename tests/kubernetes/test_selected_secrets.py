# SPDX-License-Identifier: Apache-2.0
"""Secrets with certificates by label on a real API server: permission, metadata only, mounts, schema."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mailproxy_operator.api.client import _METADATA_ONLY
from support.kube_api import Object
from support.kube_cluster import USER, Cluster, manifests
from support.kube_world import World
from support.tls_authority import Authority

pytestmark = pytest.mark.kubernetes

SPEC: Final[dict[str, Any]] = {
    "mail": {
        "authHttp": "http://auth.mail.svc:9000/auth",
        "sslCertificate": [
            {"secretName": "default-tls"},
            {"secretName": "named-tls", "serverNames": ["mail.a.example", "*.a.example"]},
        ],
        "sslCertificateSelector": {"matchLabels": {"mail": "yes"}},
    },
    "servers": [{"name": "imap", "protocol": "imap", "listen": [{"port": 993, "ssl": True}]}],
}
only_real = pytest.mark.parametrize("cluster", ["kube-apiserver"], indirect=True, scope="session")


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    files = Authority(tmp_path).issue().files
    return {
        name: base64.b64encode(Path(path).read_bytes()).decode()
        for name, path in (("tls.crt", files.certificate), ("tls.key", files.key))
    }


@pytest.fixture
def permitted(cluster: Cluster) -> Iterator[None]:
    """Grant the permission of ``deploy/list-secrets``."""
    granted = manifests("list-secrets", "rbac.yaml")
    for manifest in granted:
        _ = cluster.api.apply(manifest).checked_body
    yield
    for manifest in granted:
        cluster.api.delete(manifest["kind"], "", manifest["metadata"]["name"])


def secret(world: World, name: str, data: dict[str, str], **labels: str) -> None:
    kind = "kubernetes.io/tls" if "tls.key" in data else "Opaque"
    metadata = {"name": name, "namespace": world.body()["metadata"]["namespace"], "labels": labels}
    manifest: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": kind,
        "data": data,
    }
    _ = world.cluster.api.apply(manifest).checked_body


def mounted(world: World) -> list[str]:
    template = world.found("Deployment")["spec"]["template"]["spec"]
    (refs,) = [one for one in template["volumes"] if one["name"] == "refs"]
    return [source["secret"]["name"] for source in refs["projected"]["sources"]]


@only_real
@pytest.mark.usefixtures("permitted")
def test_labelled_secrets_of_the_type_are_mounted(world: World, pair: dict[str, str]) -> None:
    secret(world, "t1-tls", pair, mail="yes")
    secret(world, "t2-tls", pair, mail="no")
    secret(world, "opaque", {"tls.crt": pair["tls.crt"]}, mail="yes")
    world.put(**SPEC)
    world.until(lambda: world.find("Deployment") is not None, "the Deployment")
    assert mounted(world) == ["default-tls", "named-tls", "t1-tls"]


@only_real
@pytest.mark.usefixtures("permitted")
def test_api_server_sends_no_data_of_secrets(world: World, pair: dict[str, str]) -> None:
    secret(world, "t1-tls", pair, mail="yes")
    world.put(**SPEC)
    world.until(lambda: world.find("Deployment") is not None, "the Deployment")
    assert world.cluster.server is not None
    asked = [one for one in world.cluster.server.requests(USER) if one.resource == "secrets"]
    assert asked
    assert all(one.verb == "list" for one in asked)
    namespace = world.body()["metadata"]["namespace"]
    path = f"/api/v1/namespaces/{namespace}/secrets?labelSelector=mail%3Dyes"
    answer = world.cluster.api.user.request("GET", path, accept=_METADATA_ONLY)
    assert answer.checked_body["kind"] == "PartialObjectMetadataList"
    assert not any("data" in one for one in answer.checked_body["items"])


@only_real
def test_missing_permission_is_named(world: World) -> None:
    world.put(**SPEC)
    world.until(lambda: world.condition("Accepted") == ("False", "Forbidden"), "a refusal")
    assert "rbac.listSecrets" in world.message("Accepted")
    assert world.find("Deployment") is None


SHARED: Final[dict[str, Any]] = {
    "mail": {"authHttp": "http://auth.mail.svc:9000/auth", "sslCertificate": [{"secretName": "default-tls"}]},
    "servers": [
        {
            "name": "imap",
            "protocol": "imap",
            "listen": [
                {"port": 993, "ssl": True},
                {
                    "port": 443,
                    "ssl": True,
                    "alpnServers": {"imap": "imap", "pop3": "pop3"},
                    "alpnDefault": "imap",
                },
            ],
        },
        {
            "name": "tenant",
            "protocol": "imap",
            "serverNames": ["mail.a.example"],
            "listen": [{"port": 993, "ssl": True}],
        },
        {"name": "pop3", "protocol": "pop3", "listen": [{"port": 995, "ssl": True}]},
    ],
}


def test_servers_with_one_listener_are_accepted(world: World) -> None:
    world.put(**SHARED)
    world.until(lambda: world.condition("Accepted") == ("True", "Accepted"), "acceptance")
    ports = world.found("Service")["spec"]["ports"]
    assert [(one["name"], one["port"]) for one in ports] == [
        ("imap-443", 443),
        ("imap-993", 993),
        ("pop3-995", 995),
    ]


@only_real
def test_second_server_without_ssl_is_rejected_by_the_schema(world: World) -> None:
    plain = {"name": "b", "protocol": "imap", "listen": [{"port": 143}]}
    refused = world.cluster.api.create(world.body(servers=[plain, {**plain, "name": "c"}]), dryRun="All")
    assert refused.status == 422
    assert "without ssl on the same port" in refused.message
