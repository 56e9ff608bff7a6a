# SPDX-License-Identifier: Apache-2.0
"""Patches for a pod template: their content, and that applying them has the same result as the webhook."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailproxy_config.errors import ConfigError
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.cli import main
from mailproxy_operator.sidecar.inject import Injected, inject
from mailproxy_operator.sidecar.patch import (
    KINDS,
    JsonPatch,
    Target,
    injected_workloads,
    json_patch,
    strategic_merge,
)
from mailproxy_operator.sidecar.webhook import HANDLER, REVIEW_SECONDS
from support.kubectl import ABSENT as NO_KUBECTL
from support.kubectl import find_kubectl
from support.sidecars import INJECT, rendered_sidecar

HERE = Path(__file__).parent / "golden"
RESOURCE, WORKLOAD = HERE / "mailproxy.yaml", HERE / "workload.yaml"


def applied(document: Any, operations: JsonPatch) -> Any:
    """Apply a patch by RFC 6902, as far as it is used here."""
    found = {"": copy.deepcopy(document)}
    for one in operations:
        steps = [step.replace("~1", "/").replace("~0", "~") for step in one["path"].split("/")]
        at: Any = found
        for step in steps[:-1]:
            at = at[int(step)] if isinstance(at, list) else at[step]
        last = steps[-1]
        if isinstance(at, list) and one["op"] == "add":
            at.insert(len(at) if last == "-" else int(last), copy.deepcopy(one["value"]))
        elif one["op"] == "remove":
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = copy.deepcopy(one["value"])
    return found[""]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet="ab/~", max_size=2), inner, max_size=4)
        | st.lists(st.fixed_dictionaries({"name": st.sampled_from("abc"), "value": inner}), max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_json_patch_transforms_first_value_into_second(before: Any, after: Any) -> None:
    assert applied(before, json_patch(before, after)) == after


def test_json_patch_is_minimal() -> None:
    before = {"spec": {"containers": [{"name": "a", "image": "x"}], "volumes": [{"name": "v"}]}}
    after = copy.deepcopy(before)
    after["spec"]["containers"].insert(0, {"name": "new"})
    after["spec"]["volumes"].append({"name": "w"})
    after["spec"]["containers"][1]["image"] = "y"
    assert json_patch(before, after) == [
        {"op": "replace", "path": "/spec/containers/0/image", "value": "y"},
        {"op": "add", "path": "/spec/containers/0", "value": {"name": "new"}},
        {"op": "add", "path": "/spec/volumes/-", "value": {"name": "w"}},
    ]


def template(kind: str, one: Manifest) -> Manifest:
    path = {"CronJob": ("spec", "jobTemplate", "spec", "template"), "Pod": ()}.get(kind, ("spec", "template"))
    for step in path:
        one = one[step]
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_merge_patch_equals_injection_into_empty_pod(kind: str) -> None:
    patch = strategic_merge(rendered_sidecar(), Target(kind, "dovecot"))
    assert (patch["kind"], patch["metadata"]["name"]) == (kind, "dovecot")
    whole = inject(rendered_sidecar(), {"metadata": {}, "spec": {"containers": []}})
    assert isinstance(whole, Injected)
    part = template(kind, patch)
    assert part["spec"] == {key: value for key, value in whole.pod["spec"].items() if key != "containers"}
    assert part["metadata"]["labels"] == {"mailproxy.dev/inject": "edge", "mailproxy.dev/proxy": "edge"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_workload_can_be_injected(kind: str) -> None:
    pod: Manifest = {"metadata": {}, "spec": {"containers": [{"name": "dovecot"}]}}
    workload: Manifest = pod
    if kind != "Pod":
        workload = {"spec": {"template": pod}}
    if kind == "CronJob":
        workload = {"spec": {"jobTemplate": workload}}
    text = yaml.safe_dump({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, **workload})
    [(_, after)], _ = injected_workloads(rendered_sidecar(), text, "x.yaml")
    assert template(kind, after)["spec"]["initContainers"][0]["name"] == "mailproxy"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: Service\nmetadata: {name: x}\n", "holds no workload whose pods have the label"),
        ("kind: Deployment\nmetadata: {name: x}\nspec: {}\n", "Deployment x has no containers"),
        (
            "kind: Deployment\nmetadata: {name: x}\n"
            "spec: {template: {spec: {containers: [{name: mailproxy}]}}}\n",
            "Deployment x: the pod has a container mailproxy",
        ),
    ],
)
def test_workload_that_cannot_be_injected_is_reported(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        injected_workloads(rendered_sidecar(), text, "x.yaml")


def test_only_requesting_workloads_are_injected() -> None:
    spec = "spec: {template: {metadata: {labels: {LABEL}}, spec: {containers: [{name: a}]}}}\n"
    requesting = spec.replace("LABEL", "mailproxy.dev/inject: edge")
    text = "---\n".join(
        f"kind: Deployment\nmetadata: {{name: {name}}}\n{one}"
        for name, one in (("a", spec.replace("LABEL", "a: b")), ("b", requesting))
    )
    pairs, _ = injected_workloads(rendered_sidecar(), text, "x.yaml")
    assert [before == after for before, after in pairs] == [True, False]


# --- the output of the command ---------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "options"),
    [
        ("merge.out.yaml", ["--target", "StatefulSet/dovecot"]),
        ("into.out.yaml", ["--into", str(WORKLOAD)]),
        ("json.out.yaml", ["--into", str(WORKLOAD), "--json-patch"]),
    ],
)
def test_printed_patch(golden: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["render", "--sidecar", "-f", str(RESOURCE), "--image", "registry.example/mailproxy:1"]
    assert main([*arguments, *options]) == 0
    printed, expected = capsys.readouterr(), HERE / golden
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(printed.out)
    assert printed.out == expected.read_text()
    assert ("terminationGracePeriodSeconds" in printed.err) is ("--into" in options)


def test_json_patch_and_complete_workload_are_equivalent() -> None:
    before, *_ = yaml.safe_load_all(WORKLOAD.read_text())
    [after] = yaml.safe_load_all((HERE / "into.out.yaml").read_text())
    assert applied(before, yaml.safe_load((HERE / "json.out.yaml").read_text())) == after


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--target", "Service/x"], 1, "is not KIND/NAME"),
        (["--target", "Deployment"], 1, "is not KIND/NAME"),
        (["--json-patch"], 2, "--json-patch needs --into"),
        (["--into", "/nowhere.yaml"], 1, "/nowhere.yaml"),
    ],
)
def test_invalid_input_is_reported(
    options: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", "--sidecar", "-f", str(RESOURCE), *options]) == code
    assert expected in capsys.readouterr().err


def test_patch_options_need_sidecar_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(RESOURCE), "--target", "Deployment/x"]) == 2
    assert "need --sidecar" in capsys.readouterr().err
    assert main(["render", "-f", str(RESOURCE)]) == 0
    assert "render --sidecar" in capsys.readouterr().out


def test_only_a_sidecar_has_a_patch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(RESOURCE.read_text().replace("mode: Sidecar", "mode: Deployment"))
    assert main(["render", "--sidecar", "-f", str(other)]) == 1
    assert "holds 0 MailProxies with mode Sidecar" in capsys.readouterr().err


# --- kustomize -------------------------------------------------------------------


def kustomized(folder: Path, kustomization: str) -> list[Manifest]:
    program = find_kubectl(folder.parent)
    if program is None:
        pytest.skip(NO_KUBECTL)
    (folder / "kustomization.yaml").write_text(kustomization)
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kustomize_patch_equals_webhook_injection(tmp_path: Path) -> None:
    shutil.copy(WORKLOAD, tmp_path / "workload.yaml")
    shutil.copy(HERE / "merge.out.yaml", tmp_path / "patch.yaml")
    [found] = kustomized(tmp_path, "resources: [workload.yaml]\npatches: [{path: patch.yaml}]\n")
    [expected] = yaml.safe_load_all((HERE / "into.out.yaml").read_text())
    ours, theirs = expected["spec"]["template"]["spec"], found["spec"]["template"]["spec"]
    assert theirs["initContainers"][0] == ours["initContainers"][0]
    assert [one["name"] for one in theirs["initContainers"]] == ["mailproxy", "prepare"]
    assert {one["name"] for one in theirs["volumes"]} == {one["name"] for one in ours["volumes"]}
    assert theirs["securityContext"]["fsGroup"] == 1000
    assert found["spec"]["template"]["metadata"] == expected["spec"]["template"]["metadata"]


def test_webhook_is_a_kustomize_component(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[3] / "deploy", tmp_path / "deploy")
    folder = tmp_path / "own"
    folder.mkdir()
    found = kustomized(folder, "resources: [../deploy]\ncomponents: [../deploy/webhook]\n")
    [operator] = [one for one in found if one["kind"] == "Deployment"]
    [container] = operator["spec"]["template"]["spec"]["containers"]
    assert "--webhook=[::]:9443" in container["args"]
    assert "--webhook-configuration=mailproxy-operator" in container["args"]
    assert {"name": "webhook", "containerPort": 9443, "protocol": "TCP"} in container["ports"]
    [configuration] = [one for one in found if one["kind"] == "MutatingWebhookConfiguration"]
    [webhook] = configuration["webhooks"]
    assert (webhook["failurePolicy"], webhook["sideEffects"]) == ("Ignore", "NoneOnDryRun")
    assert webhook["timeoutSeconds"] > REVIEW_SECONDS
    assert webhook["clientConfig"]["service"]["path"] == f"/{HANDLER}"
    assert webhook["objectSelector"] == {"matchExpressions": [{"key": INJECT, "operator": "Exists"}]}
    service = webhook["clientConfig"]["service"]
    [offered] = [
        one for one in found if (one["kind"], one["metadata"]["name"]) == ("Service", service["name"])
    ]
    [port] = offered["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (service["port"], "webhook")
