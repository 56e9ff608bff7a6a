# SPDX-License-Identifier: Apache-2.0
"""A real API server for the chart, without nodes: Jobs run on this machine, as their service account."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.helm import Helm, Object
from support.kube_api import Response
from support.kube_cluster import Cluster
from support.kube_server import KubeServer, Programs, kube_server
from support.servers.programs import eventually

NAMESPACE = "mail"
RELEASE = "mp"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/mailproxies.mailproxy.dev"
_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"


class ChartCluster:
    """The API server, and Helm with its kubeconfig."""

    def __init__(self, server: KubeServer, folder: Path, helm: Helm) -> None:
        self.server = server
        self.api = server.admin
        self.cluster = Cluster(server.admin, folder, server)
        self.helm = helm
        self._folder = folder
        kubeconfig = self.cluster.kubeconfig("admin", server.admin.user.token)
        self.kubeconfig = kubeconfig
        helm.use_kubeconfig(kubeconfig)
        for name in (NAMESPACE, "other"):
            labels = {"pod-security.kubernetes.io/warn": "restricted"}
            namespace = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }
            _ = self.api.create(namespace).checked_body

    def exists(self, path: str) -> bool:
        """Whether an object exists at a path."""
        return self.api.get(path).status == 200

    def run_job(self, job: str, **environment: str) -> str:
        """Wait for a Job, run its container, and set its status to complete.

        Args:
            job: Its name.
            environment: Environment variables that override those of the Job.

        Returns:
            Its standard output.
        """
        eventually(lambda: self.exists(f"{_JOBS}/{job}"), job)
        done = self._run(self.api.get(f"{_JOBS}/{job}").checked_body, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        _ = self._mark_complete(job).checked_body
        return done.stdout

    def _run(self, job: Object, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a Job's container on this machine: command, variables, service account token."""
        spec = job["spec"]["template"]["spec"]
        [container] = spec["containers"]
        account = self._folder / spec["serviceAccountName"]
        account.mkdir(exist_ok=True)
        (account / "token").write_text(self.server.token(NAMESPACE, spec["serviceAccountName"]))
        (account / "ca.crt").write_bytes(self.server.authority.read_bytes())
        where = urlsplit(self.server.url)
        given = {one["name"]: one["value"] for one in container.get("env", [])}
        found = {
            **given,
            "ACCOUNT_DIR": str(account),
            "KUBERNETES_SERVICE_HOST": where.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(where.port),
            **environment,
        }
        assert container["command"] == ["python", "-c"]
        return subprocess.run(
            [sys.executable, "-c", *container["args"]],
            env={"PATH": os.environ["PATH"], **found},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _mark_complete(self, job: str) -> Response:
        """Set the status of a Job, as its controller does."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": now, "reason": "CompletionsReached"}
            for kind in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}
        content = "application/merge-patch+json"
        return self.api.user.request("PATCH", f"{_JOBS}/{job}/status", {"status": status}, content)


def serving_endpoints(cluster: ChartCluster, service: str, deployment: str, address: str) -> list[Object]:
    """Build the endpoints of a Service, as its controllers do.

    Args:
        cluster: The cluster.
        service: The name of the Service.
        deployment: The name of the Deployment whose pods it selects.
        address: The address of the only pod.

    Returns:
        Two objects to post, each with its ``path``: an EndpointSlice, and Endpoints for API servers
        before 1.33.
    """
    found = cluster.api.found("Service", NAMESPACE, service)["spec"]
    template = cluster.api.found("Deployment", NAMESPACE, deployment)["spec"]["template"]
    assert found["selector"].items() <= template["metadata"]["labels"].items()
    [port] = found["ports"]
    declared = {one["name"]: one["containerPort"] for one in template["spec"]["containers"][0]["ports"]}
    ports = [{"name": port["name"], "port": declared[port["targetPort"]], "protocol": "TCP"}]
    labels = {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "tests"}
    return [
        {
            "path": f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{service}-1", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": ports,
        },
        {
            "path": f"/api/v1/namespaces/{NAMESPACE}/endpoints",
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": service},
            "subsets": [{"addresses": [{"ip": address}], "ports": ports}],
        },
    ]


def own_address() -> str:
    """An address of this machine outside of loopback; the API server rejects loopback endpoints."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # selects a route, sends no packet
        except OSError:
            pytest.skip("needs an address outside of loopback")
        address: str = probe.getsockname()[0]
        return address


@contextmanager
def chart_cluster(
    found: Programs, folder: Path, helm: Helm, *, reaches_services: bool = False
) -> Iterator[ChartCluster]:
    """Run the API server.

    Args:
        found: The programs.
        folder: The folder for its files.
        helm: Helm, which gets the kubeconfig.
        reaches_services: The API server connects to endpoints directly, because there is no kube-proxy.
    """
    with kube_server(found, folder) as server:
        if reaches_services:
            server.stop()
            server.arguments.append("--enable-aggregator-routing=true")
            server.start()
        yield ChartCluster(server, folder, helm)
