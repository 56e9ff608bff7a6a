# SPDX-License-Identifier: Apache-2.0
"""A cluster that kubectl reaches, and the checks that it may be used for tests."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import pytest
import yaml

from support.helm import CHART, Object

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[3]
NODE: Final = "MAILPROXY_E2E_NODE"
"""Set by ``make e2e``: ``cluster`` for the cluster of kubectl, ``processes`` for the node of the tests."""
ANY_CONTEXT: Final = "MAILPROXY_E2E"
"""``1``: use the cluster even if its context does not have the name of a throw-away one."""
REQUIRED: Final = "MAILPROXY_E2E_REQUIRED"
"""``1``: fail instead of skipping."""
THROW_AWAY: Final = ("kind-*", "k3d-*", "minikube")
CRD: Final = "mailproxies.mailproxy.dev"
SYSTEM: Final = "mailproxy-system"
MAIL: Final = "mail"
RELEASE: Final = "mailproxy-operator"
PATIENCE: Final = 180.0
"""Seconds that a test waits for a condition: images may have to be pulled."""


@dataclass(frozen=True)
class LiveCluster:
    """A cluster for the tests.

    Attributes:
        kubectl_command: kubectl with its options for the cluster.
        helm_command: Helm with its options for the cluster.
        is_own: Whether it is the node of the tests, which runs containers as processes.
    """

    kubectl_command: tuple[str, ...]
    helm_command: tuple[str, ...]
    is_own: bool

    def run(
        self, *arguments: str, stdin: str = "", seconds: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; it may fail."""
        return _run([*self.kubectl_command, *arguments], stdin, seconds)

    def kubectl(self, *arguments: str, stdin: str = "", seconds: float = PATIENCE) -> str:
        """Run kubectl, which must succeed, and return its output."""
        return _checked(self.run(*arguments, stdin=stdin, seconds=seconds))

    def helm(self, *arguments: str, seconds: float = 360) -> str:
        """Run Helm, which must succeed, and return its output."""
        return _checked(_run([*self.helm_command, *arguments], "", seconds))

    # -- objects ----------------------------------------------------------------

    def find(self, kind: str, name: str, namespace: str = MAIL) -> Object | None:
        """Return an object, or ``None``."""
        done = self.run("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
        text = _checked(done)
        return json.loads(text) if text else None

    def get(self, kind: str, name: str, namespace: str = MAIL) -> Object:
        """Return an object that must exist."""
        found: Object = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    def list(self, kinds: str, *options: str, namespace: str = MAIL) -> list[Object]:
        """Return the objects of a namespace."""
        listed = json.loads(self.kubectl("-n", namespace, "get", kinds, "-o", "json", *options))["items"]
        return list(listed)

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(objects)
        )

    def request_pod(self, pod: str, path: str, body: Object | None = None, namespace: str = MAIL) -> Any:
        """Send an HTTP request to port 8000 of a pod, through the API server.

        It needs neither a route from this machine to the pod nor a process such as
        ``kubectl port-forward`` that ends with the pod.
        """
        raw = f"/api/v1/namespaces/{namespace}/pods/{pod}:8000/proxy/{path}"
        if body is None:
            return json.loads(self.kubectl("get", "--raw", raw))
        return json.loads(self.kubectl("create", "--raw", raw, "-f", "-", stdin=json.dumps(body)))

    def install(self, **values: Any) -> str:
        """Install or upgrade the chart, with the images of the environment."""
        options = []
        for key, name in (("image", "OPERATOR_IMAGE"), ("proxyImage", "PROXY_IMAGE")):
            repository, _, tag = os.environ.get(name, "").rpartition(":")
            if repository:
                values = {**values, f"{key}.repository": repository, f"{key}.tag": tag}
        for key, value in values.items():
            options += ["--set-json", f"{key}={json.dumps(value)}"]
        return self.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM, "--create-namespace"),
            *options,
            *("--wait", "--timeout", "5m"),
        )

    # -- conditions ---------------------------------------------------------------

    def condition(self, name: str, kind: str, namespace: str = MAIL) -> tuple[str, str, str]:
        """Return status, reason and message of a condition of a MailProxy, of its newest generation."""
        found = self.find("mailp", name, namespace) or {}
        for one in (found.get("status") or {}).get("conditions") or []:
            if one["type"] == kind and one["observedGeneration"] == found["metadata"]["generation"]:
                return one["status"], one["reason"], one["message"]
        return "", "", ""

    def wait_ready(self, name: str, namespace: str = MAIL) -> None:
        """Wait until a MailProxy is Ready."""
        self.eventually(lambda: self.condition(name, "Ready", namespace)[0] == "True", f"{name} to be Ready")

    def eventually(self, found: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
        """Poll until a result is true, and return it; a failure shows the cluster's state."""
        end = time.monotonic() + seconds
        while not (answer := found()):
            if time.monotonic() > end:
                raise AssertionError(f"in vain waited for: {what}\n{self.describe()}")
            time.sleep(0.3)
        return answer

    def describe(self) -> str:
        """Return what helps to understand a failure."""
        parts = [
            self.run("get", "mailp,pods", "-A", "-o", "wide").stdout,
            self.run("get", "events", "-A", "--sort-by=.lastTimestamp").stdout[-4000:],
            self.run("-n", MAIL, "describe", "mailp").stdout[-6000:],
            self.run("-n", SYSTEM, "logs", f"deployment/{RELEASE}", "--tail=40").stdout,
        ]
        return "\n".join(parts)


def _run(command: Sequence[str], stdin: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def skip_tests(reason: str) -> NoReturn:
    """Skip the test, or fail where the end-to-end tests must run."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, and the end-to-end tests cannot run: {reason}", pytrace=False)
    pytest.skip(reason)


def is_throw_away(context: str) -> bool:
    """Whether tests may change the cluster of this context."""
    return any(fnmatch.fnmatchcase(context, pattern) for pattern in THROW_AWAY)


def reach(kubectl: str, helm: str) -> LiveCluster | str:
    """Return the cluster that kubectl points to, or the reason why the tests do not use it."""
    done = _run([kubectl, "config", "current-context"], "", 30)
    context = done.stdout.strip()
    if done.returncode or not context:
        return "kubectl points to no cluster: kind create cluster"
    if not is_throw_away(context) and os.environ.get(ANY_CONTEXT) != "1":
        allowed = ", ".join(THROW_AWAY)
        return (
            f"the context {context!r} is none of a throw-away cluster ({allowed}); "
            f"{ANY_CONTEXT}=1 uses it all the same: the tests delete the CRD with all MailProxies"
        )
    cluster = LiveCluster((kubectl, "--context", context), (helm, "--kube-context", context), is_own=False)
    done = cluster.run("--request-timeout=15s", "get", "--raw", "/readyz", seconds=60)
    if done.returncode:
        return f"the cluster of {context!r} does not answer: {(done.stderr.strip().splitlines() or [''])[-1]}"
    for kind, name in (("crd", CRD), ("namespace", MAIL), ("namespace", SYSTEM)):
        if cluster.find(kind, name, "default") is not None:
            return f"the cluster of {context!r} already has the {kind} {name}; the tests need a fresh cluster"
    return cluster
