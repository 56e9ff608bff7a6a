# SPDX-License-Identifier: Apache-2.0
"""The custom resource definition on a real API server, with kubectl and other clients."""

from __future__ import annotations

from typing import Any, Final

import pytest

from mailproxy_config.directives import LEVEL_DIRECTIVES
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.crd.schema import custom_resource_definition
from support.kube_api import Object
from support.kube_cluster import Cluster, manifests
from support.kube_world import Addresses, World
from support.kubectl import Kubectl

pytestmark = pytest.mark.kubernetes

READY: Final = {
    "type": "Ready",
    "status": "True",
    "reason": "Ready",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "observedGeneration": 1,
}
LISTEN: Final = [
    "address",
    "port",
    "ssl",
    "proxyProtocol",
    "backlog",
    "rcvbuf",
    "sndbuf",
    "bind",
    "ipv6only",
    "multipath",
    "soKeepalive",
    "soKeepalive.idle",
    "soKeepalive.interval",
    "soKeepalive.count",
]


@pytest.fixture
def place(real: Cluster) -> Any:
    """A namespace of the real API server that no operator watches."""
    made = World(real, None, Addresses())
    yield made
    made.close()


def largest(servers: int = 32, listeners: int = 16) -> Object:
    """Return a spec with the maximum size of every field that rules read."""
    return {
        "mail": {"authHttp": "http://auth/" + "a" * 1000, "imapCapabilities": ["X" * 256] * 32},
        "servers": [
            {
                "name": f"server-{number}" + "x" * (63 - len(f"server-{number}")),
                "protocol": "imap",
                "listen": [
                    {"address": f"[2001:db8::{number:x}:{at:x}]", "port": 10000 + at, "ipv6only": True}
                    for at in range(listeners)
                ],
                "imapCapabilities": ["Y" * 256] * 32,
                "authHttpHeader": [{"name": f"X-{at}", "value": "z" * 1024} for at in range(8)],
            }
            for number in range(servers)
        ],
    }


def test_crd_is_accepted_unchanged(real: Cluster) -> None:
    [definition] = manifests("crd.yaml")
    response = real.api.apply(definition, fieldValidation="Strict")
    assert response.checked_body
    assert response.warnings == ()
    stored = real.api.found("CustomResourceDefinition", "", "mailproxies.mailproxy.dev")
    conditions = {one["type"]: one["status"] for one in stored["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}, "and its schema is structural"


@pytest.mark.parametrize(("servers", "listeners"), [(32, 16), (8, 16), (1, 16), (32, 1)])
def test_largest_resource_is_accepted(place: World, servers: int, listeners: int) -> None:
    _ = place.put(**largest(servers, listeners))


def test_larger_resource_is_rejected(place: World) -> None:
    for spec in (largest(33, 1), largest(1, 17)):
        response = place.api.create(place.body(**spec))
        assert response.status == 422
        assert "must have at most" in response.message


def test_two_managers_can_own_servers_of_one_resource(place: World) -> None:
    for team, port in (("imap", 143), ("pop3", 110)):
        part = place.body()
        part["spec"]["servers"] = [{"name": team, "protocol": team, "listen": [{"port": port}]}]
        assert place.api.apply(part, manager=team).checked_body
    assert [one["name"] for one in place.mail_proxy()["spec"]["servers"]] == ["imap", "pop3"]


def test_only_deployment_fields_have_defaults(place: World) -> None:
    spec = place.body()["spec"]
    assert {name: value for name, value in place.put()["spec"].items() if name not in spec} == {
        "mode": "Deployment",
        "replicas": 2,
        "portStrategy": "Direct",
        "sysctls": {"mode": "Auto", "unsafe": "Forbid"},
        "drain": {"delay": "5s", "timeout": "5m"},
        "paused": False,
    }


def test_status_is_written_to_subresource(place: World) -> None:
    before = place.put()
    both = {**place.body(), "status": {"replicas": 7}}
    assert place.api.apply(both).checked_body.get("status") is None
    changed = {"status": {"replicas": 3, "conditions": [READY]}, "spec": {"replicas": 9}}
    path = place.path("MailProxy") + "/status"
    after = place.api.user.request("PATCH", path, changed, "application/merge-patch+json").checked_body
    assert (after["status"]["replicas"], after["spec"]) == (3, before["spec"])
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_kubectl_scale_changes_replicas(place: World, kubectl: Kubectl) -> None:
    place.put()
    place.api.patch_status("MailProxy", place.namespace, "edge", {"replicas": 2, "selector": "a=b"})
    output = kubectl("-n", place.namespace, "scale", "mailp/edge", "--replicas", "3")
    assert "mailproxy.mailproxy.dev/edge scaled" in output
    assert place.mail_proxy()["spec"]["replicas"] == 3
    scale = place.api.get(place.path("MailProxy") + "/scale").checked_body
    assert (scale["spec"], scale["status"]) == ({"replicas": 3}, {"replicas": 2, "selector": "a=b"})


def test_kubectl_get_shows_columns(place: World, kubectl: Kubectl) -> None:
    place.put()
    status = {
        "replicas": 3,
        "readyReplicas": 2,
        "ready": "2/2",
        "podsSynced": 1,
        "conditions": [READY],
        "addresses": [{"type": "IPAddress", "value": "192.0.2.9"}],
    }
    _ = place.api.patch_status("MailProxy", place.namespace, "edge", status).checked_body
    heading, line = kubectl("-n", place.namespace, "get", "mailp").splitlines()
    assert heading.split() == ["NAME", "MODE", "READY", "SYNCED", "REASON", "AGE"]
    assert line.split()[:5] == ["edge", "Deployment", "2/2", "1", "Ready"]
    heading, line = kubectl("-n", place.namespace, "get", "mail", "-o", "wide").splitlines()
    assert heading.split()[4:] == ["REASON", "MESSAGE", "ADDRESS", "AGE"]
    assert line.split()[4] == "Ready"
    assert line.split()[-2] == "192.0.2.9"


def test_kubectl_selects_by_mode_and_waits_for_conditions(place: World, kubectl: Kubectl) -> None:
    newer = custom_resource_definition(KubeVersion(1, 31))
    assert place.api.apply(newer, fieldValidation="Strict").checked_body
    place.put()
    place.put("other", mode="DaemonSet")
    options = ("-n", place.namespace, "get", "mailp", "-o", "name", "--field-selector")
    assert kubectl(*options, "spec.mode=DaemonSet").split() == ["mailproxy.mailproxy.dev/other"]
    assert kubectl(*options, "spec.mode=Deployment").split() == ["mailproxy.mailproxy.dev/edge"]
    _ = place.api.patch_status("MailProxy", place.namespace, "edge", {"conditions": [READY]}).checked_body
    wait = ("-n", place.namespace, "wait", "mailp/edge", "--for=condition=Ready")
    assert "condition met" in kubectl(*wait, "--timeout=20s")


def explained(kubectl: Kubectl, path: str) -> str:
    """Return the description of a field in the output of ``kubectl explain``."""
    output = kubectl("explain", path)
    assert "DESCRIPTION:" in output, output
    description = output.partition("DESCRIPTION:")[2].partition("FIELDS:")[0]
    return " ".join(description.split())


def test_kubectl_explain_equals_documentation(kubectl: Kubectl) -> None:
    output = explained(kubectl, "mailproxy.spec.mail.maxErrors")
    assert "max_errors" in output
    assert len(output.split()) > 8
    assert "<integer>" in kubectl("explain", "mailproxy.spec.mail.maxErrors")


def test_kubectl_explain_has_every_directive_and_parameter(real: Cluster, kubectl: Kubectl) -> None:
    document = real.api.get("/openapi/v3/apis/mailproxy.dev/v1alpha1").checked_body
    schema = document["components"]["schemas"]["dev.mailproxy.v1alpha1.MailProxy"]
    spec = schema["properties"]["spec"]["properties"]
    levels = [spec["mail"]["properties"], spec["servers"]["items"]["properties"]]
    for level in levels:
        for row in LEVEL_DIRECTIVES:
            assert len(level[row.field].get("description", "").split()) > 3, row.field
    for parameter in LISTEN:
        assert explained(kubectl, f"mailproxy.spec.servers.listen.{parameter}") != "<empty>", parameter
    for field in ("mode", "replicas", "portStrategy", "sysctls", "drain", "pod"):
        assert explained(kubectl, f"mailproxy.spec.{field}") != "<empty>", field


YAML = """
apiVersion: mailproxy.dev/v1alpha1
kind: MailProxy
metadata: {{name: edge, namespace: {namespace}}}
spec:
  mail: {{authHttp: "http://auth/", {written}}}
  servers: [{{name: imap, protocol: imap, listen: [{{port: 143}}]}}]
"""


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("xclient: off, proxySmtpAuth: on", {"xclient": False, "proxySmtpAuth": True}),
        ("xclient: yes", {"xclient": True}),
        ("timeout: 1_000", {"timeout": 1000}),
        ('resolver: {mode: "Off"}', {"resolver": {"mode": "Off"}}),
    ],
)
def test_common_yaml_forms_are_accepted(place: World, kubectl: Kubectl, written: str, stored: Object) -> None:
    text = YAML.format(namespace=place.namespace, written=written)
    output = kubectl("apply", "--server-side", "-f", "-", stdin=text)
    assert "serverside-applied" in output
    mail = place.mail_proxy()["spec"]["mail"]
    assert {name: mail[name] for name in stored} == stored


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("starttls: on", "spec.mail.starttls"),
        ("resolver: {mode: Off}", "spec.mail.resolver.mode"),
        ("serverName: no", "spec.mail.serverName"),
        ("timeout: '1:30'", "spec.mail.timeout"),
        ("maxError: 5", "maxError"),
    ],
)
def test_wrong_yaml_type_is_rejected_with_field(
    place: World, kubectl: Kubectl, written: str, field: str
) -> None:
    text = YAML.format(namespace=place.namespace, written=written)
    output = kubectl("create", "-f", "-", stdin=text)
    assert field in output
    assert place.find("MailProxy") is None


def test_kubectl_applies_crd_and_manifests(kubectl: Kubectl) -> None:
    folder = "deploy"
    for name in ("crd.yaml", "rbac.yaml"):
        output = kubectl("apply", "--server-side", "--force-conflicts", "-f", f"{folder}/{name}")
        assert "error" not in output.lower(), output
