# SPDX-License-Identifier: Apache-2.0
"""The objects that the chart renders, for several values and versions of Kubernetes."""

from __future__ import annotations

import base64
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_demo.manifest_file import read_resource
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.cli import argument_parser as operator_arguments
from mailproxy_operator.command import settings_from
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.crd.schema import custom_resource_definition
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from support.helm import (
    ABSENT,
    CHART,
    MONITORING,
    ROOT,
    Helm,
    Object,
    find_object,
    load_objects,
    objects_of_kind,
    value_options,
)
from support.helm_schemas import VERSIONS, pod_security_violations, pod_specs, schema_errors
from support.operator_bodies import body

EDGE: Object = {
    "spec": {
        "mail": {"serverName": "mail.example.com", "authHttp": "http://auth.mail.svc:9000/auth"},
        "servers": [
            {"name": "imap", "listen": [{"port": 143}, {"address": "[::]", "port": 143}]},
            {"name": "submission", "listen": [{"port": 587}]},
        ],
        "sysctls": {"unsafe": "Allow"},
    }
}
EVERYTHING: Object = {
    "fullnameOverride": "mail-operator",
    "commonLabels": {"team": "mail"},
    "image": {"digest": "sha256:" + "a" * 64},
    "proxyImage": {"tag": "2.0.0", "pullSecrets": ["proxies", {"name": "proxies-too"}]},
    "imagePullSecrets": ["pull", {"name": "pull-too"}],
    "extraArgs": ["--resync=60"],
    "extraEnvFrom": [{"secretRef": {"name": "proxy-settings"}}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/company"}],
    "replicas": 2,
    "nodeMinVersion": "1.31",
    "log": {"level": "debug", "format": "text"},
    "serviceAccount": {"annotations": {"a/b": "c"}},
    "podLabels": {"x": "y"},
    "podAnnotations": {"x": "y"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "mail", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"podSelector": {}}],
        "apiServerCidrs": ["10.0.0.0/8"],
    },
    "metrics": {
        "service": {"annotations": {"a": "b"}},
        "scrapeAnnotations": True,
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Mail"}},
    },
    "proxies": {"edge": EDGE, "inner": {**EDGE, "namespace": "other", "labels": {"a": "b"}}},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-extra"}}
    ],
}
MATRIX: dict[str, Object] = {
    "defaults": {},
    "everything": EVERYTHING,
    "namespaced": {
        "watchNamespaces": ["mail", "other"],
        "proxies": {"edge": EDGE},
        "metrics": {"serviceMonitor": {"enabled": True}, "service": {"enabled": True}},
    },
    "least": {
        "crds": {"enabled": False},
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "given"},
        "metrics": {"service": {"enabled": False}},
        "podDisruptionBudget": {"enabled": False},
        "resources": {},
        "replicas": 3,
    },
    "sysctl policy": {"sysctlPolicy": {"enabled": True}},
    "webhook": {"webhook": {"enabled": True}, "networkPolicy": {"enabled": True}},
    "webhook with a Secret": {
        "watchNamespaces": ["mail"],
        "webhook": {
            "enabled": True,
            "certificateSecret": "webhook-tls",
            "annotations": {"cert-manager.io/inject-ca-from": "mail/webhook"},
        },
    },
}
EXTREMES = (VERSIONS[0], VERSIONS[-1])


@pytest.mark.parametrize(
    ("options", "version"),
    [*((MONITORING, version) for version in VERSIONS), *(((), version) for version in EXTREMES)],
    ids=[*(f"monitoring-{version}" for version in VERSIONS), *(f"bare-{version}" for version in EXTREMES)],
)
@pytest.mark.parametrize("case", MATRIX)
def test_every_object_is_valid_and_every_pod_restricted(
    helm: Helm, case: str, version: str, options: tuple[str, ...]
) -> None:
    if case == "sysctl policy" and version == "1.29":
        assert "needs Kubernetes 1.30" in helm.error_of(MATRIX[case], "--kube-version", version)
        return
    objects = helm.objects(MATRIX[case], "--kube-version", version, *options)
    known = [one for one in objects if one["kind"] != "MailProxy"]
    assert [fault for one in known for fault in schema_errors(one, version)] == []
    assert [violation for spec in pod_specs(objects) for violation in pod_security_violations(spec)] == []
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))
    assert bool(objects_of_kind(objects, "PrometheusRule")) == (case == "everything" and bool(options))


@pytest.mark.parametrize("version", ["1.29", "1.36"])
def test_operator_renders_the_proxies_of_the_values(helm: Helm, version: str) -> None:
    found = objects_of_kind(helm.objects(EVERYTHING, *MONITORING), "MailProxy")
    assert [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found] == [
        ("mail", "edge"),
        ("other", "inner"),
    ]
    for one in found:
        assert one["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        resource = Resource.read(read_resource(yaml.safe_dump(one), "values"))
        rendered = render(planned(resource, Platform(kube_version=KubeVersion.parse(version))))
        assert [fault for child in rendered for fault in schema_errors(child, version)] == []
        assert [
            violation for spec in pod_specs(list(rendered)) for violation in pod_security_violations(spec)
        ] == []


def test_crd_is_the_generated_one(helm: Helm) -> None:
    shipped = (ROOT / "deploy/crd.yaml").read_text()
    assert (CHART / "files/crd.yaml").read_text() == shipped
    for version in EXTREMES:
        rendered = find_object(helm.objects(None, "--kube-version", version), "CustomResourceDefinition")
        assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        rendered["metadata"].pop("labels")
        assert rendered == custom_resource_definition(KubeVersion.parse(version))


def test_crd_can_be_kept_deleted_or_omitted(helm: Helm) -> None:
    unkept = find_object(helm.objects({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in unkept["metadata"]
    assert objects_of_kind(helm.objects({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def _rules(role: Object) -> list[tuple[Any, ...]]:
    return sorted(
        (*rule["apiGroups"], *sorted(rule["resources"]), *sorted(rule["verbs"])) for rule in role["rules"]
    )


def test_permissions_per_namespace_equal_those_of_the_cluster(helm: Helm) -> None:
    wanted = _rules(find_object(helm.objects(), "ClusterRole", "operator"))
    objects = helm.objects({"watchNamespaces": ["a", "b"]})
    roles = {one["metadata"]["namespace"]: _rules(one) for one in objects_of_kind(objects, "Role")
             if one["metadata"]["name"].endswith("operator")}  # fmt: skip
    assert roles == {"a": wanted, "b": wanted}
    assert objects_of_kind(objects, "ClusterRoleBinding") == []


def test_webhook_with_secret_needs_no_additional_permission(helm: Helm) -> None:
    objects = helm.objects(MATRIX["webhook with a Secret"])
    assert [
        one for one in objects_of_kind(objects, "ClusterRole") if one["metadata"]["name"].endswith("webhook")
    ] == []
    spec = find_object(objects, "Deployment")["spec"]["template"]["spec"]
    assert "--webhook-certificates=/etc/webhook" in spec["containers"][0]["args"]
    assert {"webhook": "webhook-tls"}.items() <= {
        one["name"]: one.get("secret", {}).get("secretName") for one in spec["volumes"]
    }.items()


CA_BUNDLE = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").decode()
GIVEN: Object = {"webhook": {"enabled": True, "certificateSecret": "webhook-tls", "caBundle": CA_BUNDLE}}


@pytest.mark.parametrize("case", ["webhook", "webhook with a Secret", "given"])
def test_helm_never_writes_the_ca_bundle(helm: Helm, case: str) -> None:
    """A field with two writers is a conflict with server-side apply, which Helm 4 uses."""
    objects = helm.objects({**MATRIX, "given": GIVEN}[case])
    for webhook in find_object(objects, "MutatingWebhookConfiguration")["webhooks"]:
        assert "caBundle" not in webhook["clientConfig"]


def test_operator_gets_the_ca_bundle_of_the_values(helm: Helm) -> None:
    objects = helm.objects(GIVEN)
    container = find_object(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {}).webhook
    assert settings is not None
    assert settings.authorities.encode() == base64.b64decode(CA_BUNDLE)
    assert settings.configuration == find_object(objects, "MutatingWebhookConfiguration")["metadata"]["name"]
    [rule] = find_object(objects, "ClusterRole", "-webhook")["rules"]
    assert rule["resourceNames"] == [settings.configuration]
    assert rule["verbs"] == ["get", "patch"]


def test_webhook_policy_and_timeout_come_from_the_values(helm: Helm) -> None:
    objects = helm.objects({"webhook": {"enabled": True, "failurePolicy": "Fail", "timeoutSeconds": 12}})
    [webhook] = find_object(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Fail", 12)
    container = find_object(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {}).webhook
    assert settings is not None
    assert settings.timeout_seconds == 12


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ({}, 1),
        ({"webhook": {"enabled": True}}, 2),
        ({"webhook": {"enabled": True}, "replicas": 1}, 1),
        ({"replicas": 3}, 3),
    ],
)
def test_webhook_defaults_to_two_replicas(helm: Helm, values: Object, replicas: int) -> None:
    """Without a running operator, pods are created without their sidecar, or rejected."""
    objects = helm.objects(values)
    assert find_object(objects, "Deployment")["spec"]["replicas"] == replicas
    assert bool(objects_of_kind(objects, "PodDisruptionBudget")) == (replicas > 1)


def test_operator_parses_every_argument_of_the_chart(helm: Helm) -> None:
    """The chart and the operator have the same version, so every argument must exist."""
    for values in MATRIX.values():
        objects = helm.objects(values, "--kube-version", "1.36")
        arguments = find_object(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
        options = operator_arguments().parse_args(arguments)
        assert options.namespace == (values.get("watchNamespaces") or [])


def test_no_role_has_secrets_or_wildcards(helm: Helm) -> None:
    for one in helm.objects(EVERYTHING, *MONITORING):
        for rule in one.get("rules", []):
            assert not {"secrets", "*"} & {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}


def test_values_become_arguments_of_the_operator(helm: Helm) -> None:
    container = find_object(helm.objects(EVERYTHING), "Deployment")["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert container["image"] == "ghcr.io/mailproxy/mailproxy-operator@sha256:" + "a" * 64
    assert container["args"] == [
        "run",
        "--admin=:8080",
        "--image=ghcr.io/mailproxy/mailproxy:2.0.0",
        "--image-pull-policy=IfNotPresent",
        "--image-pull-secret=proxies",
        "--image-pull-secret=proxies-too",
        "--lease-name=mail-operator",
        "--node-min-version=1.31",
        "--resync=600",
        "--log-level=debug",
        "--log-format=text",
        "--resync=60",
    ]
    two = find_object(helm.objects({"watchNamespaces": ["a", "b"]}), "Deployment")
    arguments = two["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [one for one in arguments if "namespace" in one] == ["--namespace=a", "--namespace=b"]


def _pod(helm: Helm, values: Object, *options: str) -> Object:
    spec: Object = find_object(helm.objects(values, *options), "Deployment")["spec"]["template"]["spec"]
    return spec


def test_two_releases_in_one_namespace_have_two_leases(helm: Helm) -> None:
    names = set()
    for release in ("first", "second"):
        text = helm.check_output("template", release, str(CHART), "--namespace", "mail")
        objects = load_objects(text)
        container = find_object(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        settings = settings_from(operator_arguments().parse_args(container["args"]), {})
        role = find_object(objects, "Role", "-lease")
        assert [settings.lease_name] in [rule.get("resourceNames") for rule in role["rules"]]
        names.add(settings.lease_name)
    assert len(names) == 2


def test_lease_is_owned_by_the_leader_pod(helm: Helm) -> None:
    """So it is deleted with the pods of a release that is uninstalled."""
    [container] = _pod(helm, {})["containers"]
    paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"]}
    pod = {"metadata.namespace": "mail", "metadata.name": "op-0", "metadata.uid": "u"}
    settings = settings_from(
        operator_arguments().parse_args(container["args"]),
        {name: pod[path] for name, path in paths.items()},
    )
    assert settings.lease_owner() == {"apiVersion": "v1", "kind": "Pod", "name": "op-0", "uid": "u"}


def test_extra_values_are_rendered(helm: Helm) -> None:
    spec = _pod(helm, EVERYTHING)
    [container] = spec["containers"]
    assert spec["imagePullSecrets"] == [{"name": "pull"}, {"name": "pull-too"}]
    assert container["envFrom"] == EVERYTHING["extraEnvFrom"]
    assert EVERYTHING["extraVolumes"][0] in spec["volumes"]
    assert EVERYTHING["extraVolumeMounts"][0] in container["volumeMounts"]
    job = find_object(helm.objects(EVERYTHING), "Job", "-test")["spec"]["template"]["spec"]
    assert job["imagePullSecrets"] == spec["imagePullSecrets"]
    assert job["priorityClassName"] == spec["priorityClassName"] == "system-cluster-critical"


def test_security_context_fields_can_be_changed_and_removed(helm: Helm) -> None:
    """OpenShift assigns the user, and rejects a pod with another one."""
    values = {
        "podSecurityContext": {
            "runAsUser": None,
            "runAsGroup": None,
            "fsGroup": None,
            "supplementalGroups": [7],
        },
        "securityContext": {"capabilities": {"drop": ["NET_RAW"]}},
    }
    spec = _pod(helm, values)
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "supplementalGroups": [7],
    }
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["NET_RAW"]}
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_proxy_pods_get_the_pull_secrets_of_the_values(helm: Helm) -> None:
    [container] = _pod(helm, EVERYTHING)["containers"]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {})
    platform = settings.platform(KubeVersion(1, 36))
    [workload] = objects_of_kind(list(render(planned(Resource.read(body()), platform))), "Deployment")
    pull = workload["spec"]["template"]["spec"]["imagePullSecrets"]
    assert pull == [{"name": "proxies"}, {"name": "proxies-too"}]
    own = body(imagePullSecrets=[{"name": "own"}])
    [workload] = objects_of_kind(list(render(planned(Resource.read(own), platform))), "Deployment")
    assert workload["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "own"}]
    assert sidecar(planned(Resource.read(body(mode="Sidecar")), platform)).pull_secrets == (
        "proxies",
        "proxies-too",
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_parent_chart_can_disable_the_subchart(helm: Helm, tmp_path: Path, enabled: bool) -> None:
    shutil.copytree(CHART, tmp_path / "charts/mailproxy-operator")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    dependency = {"name": "mailproxy-operator", "version": version, "condition": "mailproxy-operator.enabled"}
    chart = {"apiVersion": "v2", "name": "mail", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    value = f"mailproxy-operator.enabled={str(enabled).lower()}"
    objects = load_objects(helm.check_output("template", "mp", str(tmp_path), "--set", value))
    assert bool(objects_of_kind(objects, "Deployment")) == enabled


def test_pod_labels_do_not_depend_on_the_chart_version(helm: Helm) -> None:
    deployment = find_object(helm.objects(), "Deployment")
    labels = {"app.kubernetes.io/name": "mailproxy-operator", "app.kubernetes.io/instance": "mp"}
    by_policies = {"mailproxy.dev/component": "operator"}
    assert deployment["spec"]["template"]["metadata"]["labels"] == {**labels, **by_policies}
    assert deployment["spec"]["selector"]["matchLabels"] == labels


def test_disruption_budget_needs_two_replicas(helm: Helm) -> None:
    assert objects_of_kind(helm.objects(), "PodDisruptionBudget") == []
    assert objects_of_kind(helm.objects({"replicas": 2}), "PodDisruptionBudget")


def test_versions_of_chart_project_and_images_are_equal() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert {one["image"].rpartition(":")[2] for one in images} == {project["version"]}
    assert {one["image"].rpartition(":")[2] for one in images} == {Platform().image.rpartition(":")[2]}


@pytest.mark.parametrize("case", MATRIX)
def test_helm_3_and_helm_4_render_the_same_objects(helms: dict[int, Helm], case: str) -> None:
    for major in (3, 4):
        if major not in helms:
            pytest.skip(ABSENT[major])
    rendered = [helms[major].objects(MATRIX[case], "--kube-version", "1.36", *MONITORING) for major in (3, 4)]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("case", MATRIX)
def test_helm_lint_passes(each_helm: Helm, case: str) -> None:
    each_helm.check_output(
        "lint", "--strict", str(CHART), "--kube-version", "1.36", *value_options(MATRIX[case])
    )


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent", "Never"])
def test_proxy_pods_get_the_pull_policy_of_the_values(helm: Helm, policy: str) -> None:
    """As in a cluster whose nodes have the image, without a registry for ``latest``."""
    values: Object = {"proxyImage": {"tag": "latest", "pullPolicy": policy}}
    [container] = find_object(helm.objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {})
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "metadata": {"name": "edge"}, **EDGE}
    for own, expected in ((None, policy), ("Never", "Never")):
        spec = {**EDGE["spec"], **({"imagePullPolicy": own} if own else {})}
        resource = Resource.read(read_resource(yaml.safe_dump({**body, "spec": spec}), "values"))
        rendered = render(planned(resource, settings.platform(KubeVersion(1, 36))))
        [workload] = [one for one in rendered if one["kind"] == "Deployment"]
        [proxy] = workload["spec"]["template"]["spec"]["containers"]
        assert (proxy["image"], proxy["imagePullPolicy"]) == ("ghcr.io/mailproxy/mailproxy:latest", expected)


def test_unknown_pull_policy_is_rejected(helm: Helm) -> None:
    assert "pullPolicy" in helm.error_of({"proxyImage": {"pullPolicy": "Sometimes"}})


@pytest.mark.parametrize("spaces", [[], ["mail", "other"]])
def test_permission_to_list_secrets_is_given_only_on_request(helm: Helm, spaces: list[str]) -> None:
    def rules(**rbac: bool) -> list[Object]:
        kind = "Role" if spaces else "ClusterRole"
        roles = objects_of_kind(helm.objects({"rbac": rbac, "watchNamespaces": spaces or None}), kind)
        return [rule for role in roles for rule in role["rules"] if "secrets" in rule["resources"]]

    assert rules() == []
    expected = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
    assert rules(listSecrets=True) == [expected] * max(len(spaces), 1)
    [plain] = objects_of_kind(
        load_objects((ROOT / "deploy/list-secrets/rbac.yaml").read_text()), "ClusterRole"
    )
    assert plain["rules"] == [expected]
