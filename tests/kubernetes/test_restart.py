# SPDX-License-Identifier: Apache-2.0
"""A restarted operator: it keeps no state in memory, and finds nothing to change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support.kube_cluster import REAL, Operator
from support.kube_world import World
from support.operator_bodies import server

pytestmark = pytest.mark.kubernetes

NewOperator = Callable[..., Operator]

EVERYTHING = {
    "autoscaling": {"minReplicas": 2, "maxReplicas": 3, "targetCPUUtilizationPercentage": 70},
    "networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 143}]}]},
    "service": {"type": "LoadBalancer", "annotations": {"a.example/b": "c"}},
    "servers": [server("imap", "imap", 143, 993), server("smtp", "smtp", 587)],
    "sysctls": {"extra": [{"name": "net.ipv4.tcp_fin_timeout", "value": "15"}]},
    "pod": {"tolerations": [{"operator": "Exists"}], "extraEnv": [{"name": "A", "value": "b"}]},
    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
}


@dataclass
class Restarts:
    """Restarts operators in one namespace."""

    world: World
    new: NewOperator

    def restart(self) -> Operator:
        """Stop the running operator, start another, and wait until it has reconciled all resources."""
        if self.world.operator is not None:
            self.world.operator.stop()
        operator = self.new("restarted", f"--namespace={self.world.namespace}").started()
        self.world.operator = operator
        return operator

    def wait_until_idle(self) -> dict[tuple[str, str], str]:
        """Return the versions of all objects, after two seconds without a change by the operator."""

        def unchanged() -> dict[tuple[str, str], str] | None:
            before = self.world.versions()
            time.sleep(2.0)
            return before if self.world.versions() == before else None

        found = self.world.until(unchanged, "no change for two seconds")
        assert found is not None
        return found

    def restart_and_reconcile(self) -> None:
        """Restart the operator, and wait for the first reconcile of every resource."""
        count = len(self.world.api.list("MailProxy", self.world.namespace))
        operator = self.restart()
        self.world.until(lambda: reconciles(operator) >= count, "the first reconcile")


def reconciles(operator: Operator) -> float:
    text = operator.admin.request("GET", "/metrics").body["message"]
    lines = [line for line in text.splitlines() if line.startswith("mailproxy_operator_reconciles_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture
def restarts(idle_world: World, new_operator: NewOperator) -> Restarts:
    made = Restarts(idle_world, new_operator)
    made.restart()
    return made


@pytest.mark.parametrize("spec", [{}, EVERYTHING, {"mode": "DaemonSet"}, {"mode": "Sidecar", "service": {}}])
def test_resync_changes_nothing(restarts: Restarts, spec: dict[str, object]) -> None:
    world = restarts.world
    world.put(**spec)
    kind = str(spec.get("mode", "Deployment"))
    if kind == "Sidecar":
        world.until(lambda: world.condition() == ("True", "Ready"), "it to be ready")
    else:
        world.settle(kind=kind, count=2)
    world.until(lambda: world.condition("Reconciling") == ("False", "Settled"), "it to settle")
    before = world.versions()
    restarts.restart_and_reconcile()
    assert world.versions() == before
    assert "finalizers" not in world.mail_proxy()["metadata"]


def test_restarted_operator_keeps_last_valid_state(restarts: Restarts) -> None:
    world = restarts.world
    world.put()
    good = world.settle()["status"]["configHash"]
    world.put(mail={"authHttp": "http://auth.mail.svc:9000/auth", "setRealIpFrom": ["192.0.2.0/99"]})
    world.until(lambda: world.condition() == ("False", "InvalidSpec"), "the refusal")
    before = world.versions()
    restarts.restart_and_reconcile()
    assert world.versions() == before
    assert world.status()["configHash"] == good
    assert world.found("ConfigMap", "edge-config")["data"]["mailproxy.json"]


@pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
def test_refused_sysctls_are_remembered_after_restart(restarts: Restarts) -> None:
    """Otherwise each start of the operator would create many pods that are refused."""
    world = restarts.world
    backlog = {"name": "imap", "protocol": "imap", "listen": [{"port": 143, "backlog": 16384}]}
    world.put(servers=[backlog], sysctls={"unsafe": "Allow"})
    world.until(lambda: world.find("Deployment"), "the Deployment")
    world.make_pod("edge-bad", world.found("Deployment"))
    message = 'Pod was rejected: forbidden sysctl: "net.core.somaxconn" not allowlisted'
    world.set_pod_status("edge-bad", {"phase": "Failed", "reason": "SysctlForbidden", "message": message})
    world.until(lambda: world.condition("Stalled") == ("True", "SysctlForbidden"), "the breaker")
    world.until(lambda: world.find("Pod", "edge-bad") is None, "the refused pod to go")
    before = restarts.wait_until_idle()
    restarts.restart_and_reconcile()
    assert world.versions() == before


def test_longest_name_is_reconciled(restarts: Restarts) -> None:
    name = "m" * 50
    restarts.world.put(name, **EVERYTHING)
    restarts.world.settle(name, count=1)
    assert all(len(child) <= 63 for _, child in restarts.world.children())
