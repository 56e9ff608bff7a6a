# SPDX-License-Identifier: Apache-2.0
"""The parts of the tests' own node that need no cluster: Services, policies, mounted files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from support.process_node.images import find_image
from support.process_node.pods import refused_sysctls
from support.process_node.policies import render_policies, selects
from support.process_node.services import addresses_by_name, endpoints_of, render_rules
from support.process_node.volumes import NotThereError, Sources, Volume

SERVICE = {
    "metadata": {"name": "imap", "namespace": "mail", "uid": "0123456789"},
    "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 143, "protocol": "TCP"}]},
}


def endpoint_slice(*endpoints: tuple[str, bool, bool]) -> dict[str, Any]:
    listed = [
        {"addresses": [address], "conditions": {"ready": ready, "serving": serving}}
        for address, ready, serving in endpoints
    ]
    metadata = {"namespace": "mail", "labels": {"kubernetes.io/service-name": "imap"}}
    return {"metadata": metadata, "ports": [{"port": 1143}], "endpoints": listed}


@pytest.mark.parametrize(
    ("endpoints", "chosen"),
    [
        ([("10.0.0.1", True, True), ("10.0.0.2", True, True)], ["10.0.0.1:1143", "10.0.0.2:1143"]),
        ([("10.0.0.1", True, True), ("10.0.0.2", False, True)], ["10.0.0.1:1143"]),
        ([("10.0.0.1", False, False), ("10.0.0.2", False, True)], ["10.0.0.2:1143"]),
        ([("10.0.0.1", False, False)], []),
    ],
)
def test_terminating_endpoints_are_used_only_if_none_is_ready(
    endpoints: list[tuple[str, bool, bool]], chosen: list[str]
) -> None:
    assert endpoints_of([endpoint_slice(*endpoints)], "mail", "imap", "") == chosen


def test_service_is_translated_to_its_endpoints() -> None:
    rules = render_rules([SERVICE], [endpoint_slice(("10.0.0.1", True, True), ("10.0.0.2", True, True))])
    assert "ip daddr 10.96.0.9 tcp dport 143 goto service-01234567-143" in rules
    assert "numgen random mod 2 vmap { 0 : goto to-10-0-0-1-1143, 1 : goto to-10-0-0-2-1143 }" in rules
    assert "meta l4proto tcp dnat to 10.0.0.2:1143" in rules
    assert "ip saddr 10.0.0.1 ip daddr 10.0.0.1 masquerade" in rules


def test_service_without_endpoints_drops_connections() -> None:
    assert "counter drop" in render_rules([SERVICE], [])


def test_headless_service_has_the_addresses_of_its_pods() -> None:
    headless = {**SERVICE, "spec": {**SERVICE["spec"], "clusterIP": "None"}}
    slices = [endpoint_slice(("10.0.0.1", True, True))]
    assert addresses_by_name([SERVICE], slices) == {"imap.mail.svc": ["10.96.0.9"]}
    assert addresses_by_name([headless], slices) == {"imap.mail.svc": ["10.0.0.1"]}


def pod(address: str, namespace: str, **labels: str) -> dict[str, Any]:
    ports = [{"name": "imap", "containerPort": 143}]
    return {
        "metadata": {"namespace": namespace, "labels": labels},
        "spec": {"containers": [{"ports": ports}]},
        "status": {"podIP": address},
    }


def test_policy_allows_only_what_it_lists() -> None:
    peer = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "operator"}}}
    spec = {
        "podSelector": {"matchLabels": {"app": "edge"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": [{"port": "imap"}]}, {"from": [peer], "ports": [{"port": 9113}]}],
        "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
    }
    policy = {"metadata": {"namespace": "mail"}, "spec": spec}
    pods = [
        pod("10.0.0.1", "mail", app="edge"),
        pod("10.0.0.2", "system", app="operator"),
        pod("10.0.0.3", "mail"),
    ]
    rules = render_policies([policy], pods, {"mail": {}, "system": {}}).splitlines()
    ingress = rules.index("  chain ingress-10-0-0-1 {")
    assert [one.strip() for one in rules[ingress + 1 : ingress + 4]] == [
        "tcp dport 143 return",
        "ip saddr { 10.0.0.2 } tcp dport 9113 return",
        "drop",
    ]
    egress = rules.index("  chain egress-10-0-0-1 {")
    assert [one.strip() for one in rules[egress + 1 : egress + 3]] == ["udp dport 53 return", "drop"]
    assert sum("jump" in one for one in rules) == 2


@pytest.mark.parametrize(
    ("operator", "values", "found"),
    [("Exists", [], True), ("DoesNotExist", [], False), ("In", ["a"], True), ("NotIn", ["a"], False)],
)
def test_selector_expressions(operator: str, values: list[str], found: bool) -> None:
    expression = {"key": "app", "operator": operator, "values": values}
    assert selects({"matchExpressions": [expression]}, {"app": "a"}) is found


class Objects:
    """An API server with one Secret, or none."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = None

    def find(self, _kind: str, _namespace: str, _name: str) -> dict[str, Any] | None:
        return None if self.data is None else {"data": self.data}


def test_mounted_secret_is_replaced_in_one_step(tmp_path: Path) -> None:
    objects = Objects()
    sources = Sources(objects, {"metadata": {"namespace": "mail"}})  # type: ignore[arg-type]
    items = [{"key": "tls.crt", "path": "secrets/mail/tls.crt"}]
    volume = Volume({"name": "tls", "secret": {"secretName": "tls", "items": items}}, tmp_path / "tls", None)
    with pytest.raises(NotThereError, match="'tls' not found"):
        volume.update(sources)
    file = tmp_path / "tls/secrets/mail/tls.crt"
    for content in (b"first", b"second"):
        objects.data = {"tls.crt": base64.b64encode(content).decode()}
        volume.update(sources)
        assert file.read_bytes() == content
    assert (tmp_path / "tls/secrets").readlink() == Path("..data/secrets")
    assert sum(one.is_dir() and not one.is_symlink() for one in (tmp_path / "tls").iterdir()) == 1


def test_images_of_this_checkout_have_the_commands_of_the_dockerfile() -> None:
    image = find_image("registry.example/mail/mailproxy-operator:0.1.0")
    assert image is not None
    assert (image.entrypoint, image.command[0], image.user) == (("mailproxy-operator",), "run", 65532)
    assert find_image("dovecot/dovecot:2.4.2") is None


def test_only_sysctls_of_the_kubelets_list_are_admitted() -> None:
    sysctls = [{"name": "net.core.somaxconn"}, {"name": "net.ipv4.ip_unprivileged_port_start"}]
    assert refused_sysctls({"spec": {"securityContext": {"sysctls": sysctls}}}) == ["net.core.somaxconn"]
