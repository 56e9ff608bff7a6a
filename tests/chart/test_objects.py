# SPDX-License-Identifier: Apache-2.0
"""What the chart renders, over values and versions of Kubernetes."""

from __future__ import annotations

import base64
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.cli import _parser as operator_arguments
from mailproxy_operator.command import settings_from
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.crd.schema import custom_resource_definition
from mailproxy_operator.local.source import read_resource
from mailproxy_operator.render import planned, render
from mailproxy_operator.render.sidecar import sidecar
from mailproxy_operator.settings import Platform
from support.helm import CHART, MONITORING, ROOT, Helm, Object, documents, given, named, of_kind
from support.helm_schemas import VERSIONS, faults, pod_specs, violations
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
        assert "needs Kubernetes 1.30" in helm.refusal(MATRIX[case], "--kube-version", version)
        return
    objects = helm.objects(MATRIX[case], "--kube-version", version, *options)
    known = [one for one in objects if one["kind"] != "MailProxy"]
    assert [fault for one in known for fault in faults(one, version)] == []
    assert [violation for spec in pod_specs(objects) for violation in violations(spec)] == []
    names = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))
    assert bool(of_kind(objects, "PrometheusRule")) == (case == "everything" and bool(options))


@pytest.mark.parametrize("version", ["1.29", "1.36"])
def test_the_proxies_of_the_values_are_what_the_operator_takes(helm: Helm, version: str) -> None:
    found = of_kind(helm.objects(EVERYTHING, *MONITORING), "MailProxy")
    assert [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found] == [
        ("mail", "edge"),
        ("other", "inner"),
    ]
    for one in found:
        assert one["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        resource = Resource.read(read_resource(yaml.safe_dump(one), "values"))
        rendered = render(planned(resource, Platform(kube_version=KubeVersion.parse(version))))
        assert [fault for child in rendered for fault in faults(child, version)] == []
        assert [violation for spec in pod_specs(list(rendered)) for violation in violations(spec)] == []


def test_the_crd_is_the_generated_one_and_nothing_else(helm: Helm) -> None:
    shipped = (ROOT / "deploy/crd.yaml").read_text()
    assert (CHART / "files/crd.yaml").read_text() == shipped
    for version in EXTREMES:
        rendered = named(helm.objects(None, "--kube-version", version), "CustomResourceDefinition")
        assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        rendered["metadata"].pop("labels")
        assert rendered == custom_resource_definition(KubeVersion.parse(version))


def test_the_crd_is_kept_or_not_and_may_be_left_out(helm: Helm) -> None:
    unkept = named(helm.objects({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in unkept["metadata"]
    assert of_kind(helm.objects({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def _rules(role: Object) -> list[tuple[Any, ...]]:
    return sorted(
        (*rule["apiGroups"], *sorted(rule["resources"]), *sorted(rule["verbs"])) for rule in role["rules"]
    )


def test_the_rights_of_namespaces_are_the_same(helm: Helm) -> None:
    wanted = _rules(named(helm.objects(), "ClusterRole", "operator"))
    objects = helm.objects({"watchNamespaces": ["a", "b"]})
    roles = {one["metadata"]["namespace"]: _rules(one) for one in of_kind(objects, "Role")
             if one["metadata"]["name"].endswith("operator")}  # fmt: skip
    assert roles == {"a": wanted, "b": wanted}
    assert of_kind(objects, "ClusterRoleBinding") == []


def test_a_webhook_with_a_secret_needs_no_right_of_its_own(helm: Helm) -> None:
    objects = helm.objects(MATRIX["webhook with a Secret"])
    assert [
        one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"].endswith("webhook")
    ] == []
    spec = named(objects, "Deployment")["spec"]["template"]["spec"]
    assert "--webhook-certificates=/etc/webhook" in spec["containers"][0]["args"]
    assert {"webhook": "webhook-tls"}.items() <= {
        one["name"]: one.get("secret", {}).get("secretName") for one in spec["volumes"]
    }.items()


CA_BUNDLE = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n").decode()
GIVEN: Object = {"webhook": {"enabled": True, "certificateSecret": "webhook-tls", "caBundle": CA_BUNDLE}}


@pytest.mark.parametrize("case", ["webhook", "webhook with a Secret", "given"])
def test_helm_never_writes_the_ca_bundle(helm: Helm, case: str) -> None:
    """What two write is a conflict with server-side apply, which Helm 4 does."""
    objects = helm.objects({**MATRIX, "given": GIVEN}[case])
    for webhook in named(objects, "MutatingWebhookConfiguration")["webhooks"]:
        assert "caBundle" not in webhook["clientConfig"]


def test_the_operator_writes_the_authority_that_it_is_given(helm: Helm) -> None:
    objects = helm.objects(GIVEN)
    container = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {}).webhook
    assert settings is not None
    assert settings.authorities.encode() == base64.b64decode(CA_BUNDLE)
    assert settings.configuration == named(objects, "MutatingWebhookConfiguration")["metadata"]["name"]
    [rule] = named(objects, "ClusterRole", "-webhook")["rules"]
    assert rule["resourceNames"] == [settings.configuration]
    assert rule["verbs"] == ["get", "patch"]


def test_policy_and_timeout_of_the_webhook_are_values(helm: Helm) -> None:
    objects = helm.objects({"webhook": {"enabled": True, "failurePolicy": "Fail", "timeoutSeconds": 12}})
    [webhook] = named(objects, "MutatingWebhookConfiguration")["webhooks"]
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Fail", 12)
    container = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
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
def test_there_are_two_replicas_with_a_webhook(helm: Helm, values: Object, replicas: int) -> None:
    """Pods are created without their sidecar, or not at all, while none answers."""
    objects = helm.objects(values)
    assert named(objects, "Deployment")["spec"]["replicas"] == replicas
    assert bool(of_kind(objects, "PodDisruptionBudget")) == (replicas > 1)


def test_the_operator_understands_every_argument(helm: Helm) -> None:
    """The chart and the program are of one version: what one says, the other knows."""
    for values in MATRIX.values():
        objects = helm.objects(values, "--kube-version", "1.36")
        arguments = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
        options = operator_arguments().parse_args(arguments)
        assert options.namespace == (values.get("watchNamespaces") or [])


def test_no_role_is_about_secrets_or_everything(helm: Helm) -> None:
    for one in helm.objects(EVERYTHING, *MONITORING):
        for rule in one.get("rules", []):
            assert not {"secrets", "*"} & {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}


def test_the_operator_is_told_what_the_values_say(helm: Helm) -> None:
    container = named(helm.objects(EVERYTHING), "Deployment")["spec"]["template"]["spec"]["containers"][0]
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
    two = named(helm.objects({"watchNamespaces": ["a", "b"]}), "Deployment")
    arguments = two["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [one for one in arguments if "namespace" in one] == ["--namespace=a", "--namespace=b"]


def _pod(helm: Helm, values: Object, *options: str) -> Object:
    spec: Object = named(helm.objects(values, *options), "Deployment")["spec"]["template"]["spec"]
    return spec


def test_two_releases_in_one_namespace_have_two_leases(helm: Helm) -> None:
    names = set()
    for release in ("first", "second"):
        text = helm.good("template", release, str(CHART), "--namespace", "mail")
        objects = documents(text)
        container = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        settings = settings_from(operator_arguments().parse_args(container["args"]), {})
        role = named(objects, "Role", "-lease")
        assert [settings.lease_name] in [rule.get("resourceNames") for rule in role["rules"]]
        names.add(settings.lease_name)
    assert len(names) == 2


def test_the_lease_belongs_to_the_pod_that_holds_it(helm: Helm) -> None:
    """So it is collected with the pods of a release that is uninstalled."""
    [container] = _pod(helm, {})["containers"]
    paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"]}
    pod = {"metadata.namespace": "mail", "metadata.name": "op-0", "metadata.uid": "u"}
    settings = settings_from(
        operator_arguments().parse_args(container["args"]),
        {name: pod[path] for name, path in paths.items()},
    )
    assert settings.lease_owner() == {"apiVersion": "v1", "kind": "Pod", "name": "op-0", "uid": "u"}


def test_what_is_extra_is_there(helm: Helm) -> None:
    spec = _pod(helm, EVERYTHING)
    [container] = spec["containers"]
    assert spec["imagePullSecrets"] == [{"name": "pull"}, {"name": "pull-too"}]
    assert container["envFrom"] == EVERYTHING["extraEnvFrom"]
    assert EVERYTHING["extraVolumes"][0] in spec["volumes"]
    assert EVERYTHING["extraVolumeMounts"][0] in container["volumeMounts"]
    job = named(helm.objects(EVERYTHING), "Job", "-test")["spec"]["template"]["spec"]
    assert job["imagePullSecrets"] == spec["imagePullSecrets"]
    assert job["priorityClassName"] == spec["priorityClassName"] == "system-cluster-critical"


def test_security_contexts_can_be_changed_and_thinned_out(helm: Helm) -> None:
    """OpenShift chooses the user itself, and refuses a pod that names another one."""
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


def test_proxies_are_pulled_with_the_secrets_of_the_values(helm: Helm) -> None:
    [container] = _pod(helm, EVERYTHING)["containers"]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {})
    platform = settings.platform(KubeVersion(1, 36))
    [workload] = of_kind(list(render(planned(Resource.read(body()), platform))), "Deployment")
    pull = workload["spec"]["template"]["spec"]["imagePullSecrets"]
    assert pull == [{"name": "proxies"}, {"name": "proxies-too"}]
    own = body(imagePullSecrets=[{"name": "own"}])
    [workload] = of_kind(list(render(planned(Resource.read(own), platform))), "Deployment")
    assert workload["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "own"}]
    assert sidecar(planned(Resource.read(body(mode="Sidecar")), platform)).pull_secrets == (
        "proxies",
        "proxies-too",
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_a_chart_that_contains_this_one_decides_whether_it_does(
    helm: Helm, tmp_path: Path, enabled: bool
) -> None:
    shutil.copytree(CHART, tmp_path / "charts/mailproxy-operator")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    dependency = {"name": "mailproxy-operator", "version": version, "condition": "mailproxy-operator.enabled"}
    chart = {"apiVersion": "v2", "name": "mail", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    value = f"mailproxy-operator.enabled={str(enabled).lower()}"
    objects = documents(helm.good("template", "mp", str(tmp_path), "--set", value))
    assert bool(of_kind(objects, "Deployment")) == enabled


def test_another_version_of_the_chart_changes_no_label_of_a_pod(helm: Helm) -> None:
    deployment = named(helm.objects(), "Deployment")
    labels = {"app.kubernetes.io/name": "mailproxy-operator", "app.kubernetes.io/instance": "mp"}
    by_policies = {"mailproxy.dev/component": "operator"}
    assert deployment["spec"]["template"]["metadata"]["labels"] == {**labels, **by_policies}
    assert deployment["spec"]["selector"]["matchLabels"] == labels


def test_a_disruption_budget_only_where_it_blocks_no_drain(helm: Helm) -> None:
    assert of_kind(helm.objects(), "PodDisruptionBudget") == []
    assert of_kind(helm.objects({"replicas": 2}), "PodDisruptionBudget")


def test_there_is_one_version_number() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert {one["image"].rpartition(":")[2] for one in images} == {project["version"]}
    assert {one["image"].rpartition(":")[2] for one in images} == {Platform().image.rpartition(":")[2]}


@pytest.mark.parametrize("case", MATRIX)
def test_helm_finds_nothing_to_complain_about(helm: Helm, case: str) -> None:
    helm.good("lint", "--strict", str(CHART), "--kube-version", "1.36", *given(MATRIX[case]))


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent", "Never"])
def test_the_pull_policy_of_the_proxies_reaches_their_pods(helm: Helm, policy: str) -> None:
    """A cluster whose nodes have the image, and no registry to pull ``latest`` from."""
    values: Object = {"proxyImage": {"tag": "latest", "pullPolicy": policy}}
    [container] = named(helm.objects(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    settings = settings_from(operator_arguments().parse_args(container["args"]), {})
    body = {"apiVersion": "mailproxy.dev/v1alpha1", "kind": "MailProxy", "metadata": {"name": "edge"}, **EDGE}
    for own, expected in ((None, policy), ("Never", "Never")):
        spec = {**EDGE["spec"], **({"imagePullPolicy": own} if own else {})}
        resource = Resource.read(read_resource(yaml.safe_dump({**body, "spec": spec}), "values"))
        rendered = render(planned(resource, settings.platform(KubeVersion(1, 36))))
        [workload] = [one for one in rendered if one["kind"] == "Deployment"]
        [proxy] = workload["spec"]["template"]["spec"]["containers"]
        assert (proxy["image"], proxy["imagePullPolicy"]) == ("ghcr.io/mailproxy/mailproxy:latest", expected)


def test_another_pull_policy_is_refused(helm: Helm) -> None:
    assert "pullPolicy" in helm.refusal({"proxyImage": {"pullPolicy": "Sometimes"}})
