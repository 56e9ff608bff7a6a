# SPDX-License-Identifier: Apache-2.0
"""A cluster whose certificate authority has neither key usage nor key identifiers, as on EKS."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from support.kube_authority import PlainAuthority
from support.kube_cluster import REAL, Cluster, Operator
from support.kube_world import World

pytestmark = pytest.mark.kubernetes

_STRICT: Final = """
import ssl

_plain = ssl.create_default_context

def create_default_context(*arguments, **more):
    context = _plain(*arguments, **more)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context

ssl.create_default_context = create_default_context
"""
"""This is the default of Python since 3.13."""


@pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
def test_operator_accepts_ca_without_key_usage(cluster: Cluster, idle_world: World, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_STRICT)
    kubeconfig = cluster.kubeconfig("strict", cluster.operator_token())
    operator = Operator(cluster, "strict", kubeconfig, modules=[tmp_path])
    idle_world.operator = operator
    try:
        operator.started()
        idle_world.put()
        idle_world.until(lambda: idle_world.find("Deployment"), "the Deployment")
        idle_world.until(lambda: operator.admin.request("GET", "/readyz").status == 200, "readiness")
        idle_world.put("second")
        idle_world.until(lambda: idle_world.find("Deployment", "second"), "what only a watch notices")
        assert "not accepted" not in operator.output_text()
    finally:
        operator.stop()


@pytest.mark.parametrize("cluster", [REAL], indirect=True, scope="session")
def test_untrusted_ca_is_reported(cluster: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(PlainAuthority().certificate)
    kubeconfig = cluster.kubeconfig("mistrusting", cluster.operator_token())
    kubeconfig.write_text(kubeconfig.read_text().replace(str(cluster.api.user.authority), str(other)))
    operator = Operator(cluster, "mistrusting", kubeconfig)
    try:
        operator.started()
        operator.eventually(lambda: "certificate is not accepted" in operator.output_text(), "to be logged")
        response = operator.admin.request("GET", "/readyz")
        assert response.status == 503
        assert "certificate is not accepted" in response.message
        assert operator.admin.request("GET", "/healthz").status == 200
    finally:
        operator.stop()
