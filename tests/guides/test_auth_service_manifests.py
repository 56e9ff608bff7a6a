# SPDX-License-Identifier: Apache-2.0
"""Manifests and Dockerfile of the example authentication service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.example_auth import AUTH, FOLDER, PROGRAM
from support.helm_schemas import VERSIONS, pod_security_violations, schema_errors
from support.kubectl import ABSENT, find_kubectl
from support.network_policies import Peer, allows_connection
from support.servers.programs import run_program
from support.servers.proxy import ROOT


def _objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def _of_kind(kind: str) -> dict[str, Any]:
    return next(one for one in _objects("service.yaml") if one["kind"] == kind)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_and_restricted(version: str) -> None:
    objects = _objects("service.yaml") + _objects("secret.yaml")
    assert [fault for one in objects for fault in schema_errors(one, version)] == []
    assert pod_security_violations(_of_kind("Deployment")["spec"]["template"]["spec"]) == []


def test_shipped_users_and_key_are_valid() -> None:
    users, key = _objects("secret.yaml")
    parsed = AUTH.parse_users(users["stringData"]["users.txt"].encode())
    assert parsed[b"alice"].hashed.matches(b"wonderland")
    [proxy] = _objects("mailproxy.yaml")
    [header] = proxy["spec"]["mail"]["authHttpHeader"]
    reference = header["valueFrom"]["secretKeyRef"]
    assert (reference["name"], list(key["stringData"])) == (key["metadata"]["name"], [reference["key"]])
    service = _of_kind("Service")
    assert proxy["spec"]["mail"]["authHttp"] == (
        f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc:9000/auth"
    )


def test_program_starts_with_arguments_of_deployment_and_of_image(tmp_path: Path) -> None:
    container = _of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    parsed = [argument for argument in container["args"] if argument.startswith("--")]
    assert [argument.partition("=")[0] for argument in parsed] == ["--users", "--imap", "--pop3", "--smtp"]
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert "COPY auth.py /opt/auth/auth.py" in dockerfile
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == re.findall(
        r"^ARG PYTHON=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )


def test_only_proxies_of_namespace_can_connect_to_service() -> None:
    policies = [_of_kind("NetworkPolicy")]
    target = Peer.of("mail", _of_kind("Deployment")["spec"]["template"])
    proxy_pod = Peer(
        "mail", {"app.kubernetes.io/name": "mailproxy", "app.kubernetes.io/instance": "edge"}, {}
    )
    assert allows_connection(policies, proxy_pod, target, 9000)
    assert not allows_connection(policies, Peer("mail", {"app": "other"}, {}), target, 9000)
    assert not allows_connection(policies, Peer("default", proxy_pod.labels, {}), target, 9000)


def test_kustomize_includes_program(tmp_path: Path) -> None:
    kubectl = find_kubectl(tmp_path)
    if kubectl is None:
        pytest.skip(ABSENT)
    objects = list(yaml.safe_load_all(run_program([str(kubectl), "kustomize", str(FOLDER)])))
    program = next(one for one in objects if one["kind"] == "ConfigMap")
    assert program["data"]["auth.py"] == PROGRAM.read_text()
    [deployment] = [one for one in objects if one["kind"] == "Deployment"]
    volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["program"]["configMap"]["name"] == program["metadata"]["name"]
    assert sorted(one["kind"] for one in objects) == [
        "ConfigMap",
        "Deployment",
        "MailProxy",
        "NetworkPolicy",
        "Service",
    ]
