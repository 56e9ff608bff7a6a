# SPDX-License-Identifier: Apache-2.0
"""Which clusters the end-to-end tests use: never one that a user could miss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.e2e.live_cluster import ANY_CONTEXT, NODE, REQUIRED, ROOT, LiveCluster, is_throw_away, reach

KUBECTL = """\
#!/bin/sh
case "$*" in
  "config current-context") echo "$TEST_CONTEXT"; test -n "$TEST_CONTEXT" ;;
  *readyz*) test -z "$TEST_DOWN" || { echo "connection refused" >&2; exit 1; } ;;
  *"get $TEST_FOUND "*) echo '{"metadata": {}}' ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kubectl that reads its answers from the environment."""
    monkeypatch.delenv(ANY_CONTEXT, raising=False)
    for name in ("TEST_CONTEXT", "TEST_DOWN", "TEST_FOUND"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TEST_FOUND", "nothing")
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("context", ["kind-kind", "k3d-mail", "minikube"])
def test_throw_away_cluster_is_used(kubectl: str, monkeypatch: pytest.MonkeyPatch, context: str) -> None:
    monkeypatch.setenv("TEST_CONTEXT", context)
    reached = reach(kubectl, "helm")
    assert isinstance(reached, LiveCluster)
    assert reached.kubectl_command == (kubectl, "--context", context)
    assert reached.helm_command == ("helm", "--kube-context", context)


@pytest.mark.parametrize("context", ["production", "my-kind-cluster", "minikube-2", "gke_kind-x"])
def test_other_context_is_not_used_unless_allowed(
    kubectl: str, monkeypatch: pytest.MonkeyPatch, context: str
) -> None:
    assert not is_throw_away(context)
    monkeypatch.setenv("TEST_CONTEXT", context)
    assert f"'{context}' is none of a throw-away cluster" in str(reach(kubectl, "helm"))
    monkeypatch.setenv(ANY_CONTEXT, "1")
    assert isinstance(reach(kubectl, "helm"), LiveCluster)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TEST_CONTEXT", "", "points to no cluster"),
        ("TEST_DOWN", "1", "does not answer: connection refused"),
        ("TEST_FOUND", "crd mailproxies.mailproxy.dev", "already has the crd"),
        ("TEST_FOUND", "namespace mail", "already has the namespace mail"),
        ("TEST_FOUND", "namespace mailproxy-system", "already has the namespace mailproxy-system"),
    ],
)
def test_cluster_that_is_down_or_in_use_is_not_used(
    kubectl: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv("TEST_CONTEXT", "kind-kind")
    monkeypatch.setenv(variable, value)
    assert reason in str(reach(kubectl, "helm"))


def _collected_run(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "MAILPROXY_E2E"))
    }
    command = [sys.executable, "-m", "pytest", "tests/e2e/test_install.py", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-n", "0"],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_ordinary_test_run_skips_the_end_to_end_tests() -> None:
    done = _collected_run()
    assert done.returncode == 0, done.stdout
    assert "4 skipped" in done.stdout
    assert "run by `make e2e`" in done.stdout


def test_required_end_to_end_tests_fail_without_a_cluster(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "none"
    done = _collected_run(**{NODE: "cluster", REQUIRED: "1", "KUBECONFIG": str(kubeconfig)})
    assert done.returncode == 1
    assert "the end-to-end tests cannot run" in done.stdout
