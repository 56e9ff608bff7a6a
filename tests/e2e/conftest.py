# SPDX-License-Identifier: Apache-2.0
"""The cluster of the end-to-end tests; they are skipped unless ``make e2e`` runs them.

The modules run in a fixed order: they share one release, as its user does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.e2e.live_cluster import (
    CRD,
    MAIL,
    NODE,
    RELEASE,
    ROOT,
    SYSTEM,
    LiveCluster,
    reach,
    skip_tests,
)
from support.e2e.mail_world import CLIENT, SERVERS, MailWorld, mail_objects, tls_secret
from support.helm import Object, find_tool
from support.process_node.start import missing, process_cluster

ORDER = (
    "test_install",
    "test_logins",
    "test_reload",
    "test_certificates",
    "test_rolling_update",
    "test_service_members",
    "test_sysctls",
    "test_network_policy",
    "test_sidecar",
    "test_uninstall",
)
AUTH_SERVICE = ROOT / "deploy/examples/auth-service"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the modules of this folder; those of others keep their place."""
    places = [number for number, item in enumerate(items) if _module(item) in ORDER and _is_here(item)]
    ours = sorted((items[place] for place in places), key=lambda item: ORDER.index(_module(item)))
    for place, item in zip(places, ours, strict=True):
        items[place] = item


def _module(item: pytest.Item) -> str:
    return item.path.stem


def _is_here(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """A fresh cluster: that of kubectl, or one of the tests' own."""
    mode = os.environ.get(NODE, "")
    if mode not in {"cluster", "processes"}:
        skip_tests("run by `make e2e`, in a throw-away cluster")
    folder = tmp_path_factory.mktemp("e2e")
    found = {name: find_tool(name, folder) for name in ("kubectl", "helm")}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        skip_tests(f"needs {', '.join(absent)}, on the path or in ${absent[0].upper()}")
    kubectl, helm = str(found["kubectl"]), str(found["helm"])
    if mode == "cluster":
        reached = reach(kubectl, helm)
        if isinstance(reached, str):
            skip_tests(reached)
        else:
            yield reached
        return
    if missing():
        skip_tests(missing())
    with process_cluster(folder) as own:
        options = ("--kubeconfig", str(own.kubeconfig))
        yield LiveCluster((*own.enter, kubectl, *options), (*own.enter, helm, *options), is_own=True)


@pytest.fixture(scope="session")
def release(cluster: LiveCluster) -> Iterator[LiveCluster]:
    """The cluster with the chart installed."""
    try:
        cluster.install()
        yield cluster
    finally:
        remove_all(cluster)


def remove_all(cluster: LiveCluster) -> None:
    """Remove what the tests have created, whatever has failed before."""
    cluster.run("delete", "mailp", "--all", "-A", "--ignore-not-found")
    if RELEASE in cluster.helm("list", "--namespace", SYSTEM, "--short"):
        cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")
    cluster.run("delete", "crd", CRD, "--ignore-not-found")
    cluster.run("delete", "namespace", MAIL, SYSTEM, "--ignore-not-found", "--wait=true", seconds=300)


@pytest.fixture(scope="session")
def mail(release: LiveCluster) -> MailWorld:
    """Mail servers and clients in the namespace of the examples."""
    if release.find("namespace", MAIL, "default") is None:
        release.kubectl("create", "namespace", MAIL)
    release.apply(*mail_objects())
    for pod in (SERVERS, CLIENT):
        release.kubectl("-n", MAIL, "wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=150s")
    return MailWorld(release)


def edge_manifest() -> Object:
    """Return the MailProxy of the example of the authentication service, as these tests need it.

    Clients that have not logged in must not reach their timeout while a slow cluster replaces pods.
    """
    text = (AUTH_SERVICE / "mailproxy.yaml").read_text(encoding="utf-8")
    edge: Object = yaml.safe_load(text)
    edge["spec"]["drain"] = {"delay": "5s", "timeout": "3m"}
    edge["spec"]["mail"]["timeout"] = "10m"
    return edge


@pytest.fixture(scope="session")
def first_certificate(mail: MailWorld) -> str:
    """Install the certificate of the proxy; return its fingerprint."""
    secret, fingerprint = tls_secret("mail-tls")
    mail.cluster.apply(secret)
    return fingerprint


@pytest.fixture(scope="session")
def edge(mail: MailWorld, first_certificate: str) -> MailWorld:
    """The example with the authentication service that checks passwords, Ready."""
    cluster = mail.cluster
    cluster.kubectl("apply", "--server-side", "-f", str(AUTH_SERVICE / "secret.yaml"))
    example = yaml.safe_load_all(cluster.kubectl("kustomize", str(AUTH_SERVICE)))
    others = [one for one in example if one["kind"] != "MailProxy"]
    cluster.apply(*others, edge_manifest())  # once: a second change of the resource would replace pods
    cluster.kubectl("-n", MAIL, "rollout", "status", "deployment/auth", "--timeout=170s")
    cluster.wait_ready("edge")
    return mail
